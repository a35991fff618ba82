"""`python -m dispatcher.demo`: watch real events leave a real broker as webhooks.

DEMO_EVENTS=300 produces 300 events instead of 2,000; FOREVER=1 goes on until Ctrl-C.
"""

import os
import sys

from dispatcher.demo import EVENTS, start


def main() -> int:
    """Runs the demo as the environment says and returns the exit status."""
    events = os.environ.get("DEMO_EVENTS") or str(EVENTS)
    if not events.isdigit() or not int(events):
        print(f"demo: DEMO_EVENTS must be a whole number from 1, not {events!r}", file=sys.stderr)
        return 2
    return start(int(events), forever=os.environ.get("FOREVER", "").lower() not in ("", "0", "false", "no", "off"))


if __name__ == "__main__":
    sys.exit(main())
