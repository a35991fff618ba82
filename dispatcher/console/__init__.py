"""The console: admin API and pages where administrators set up their webhook and see what happens to their events."""
