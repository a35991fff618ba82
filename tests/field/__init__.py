"""Situations that happen in the field, on a real broker with the real process: nothing is lost, nothing stands still."""
