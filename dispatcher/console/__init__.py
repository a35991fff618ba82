"""The console: admin API and pages where administrators set up their webhook and see what became of their events."""
