"""Sources of the console's data: tailed topics, queries to running dispatchers, and test events."""
