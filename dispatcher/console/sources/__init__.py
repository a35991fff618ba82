"""Where the console's facts come from: topics that are followed, dispatchers that are asked, test events."""
