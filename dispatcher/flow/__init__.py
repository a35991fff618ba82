"""The flow of one record, from reading it to its outcome."""
