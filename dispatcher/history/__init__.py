"""The history worker: takes entries from the history topic and keeps them in the history store."""
