"""Prepares the interpreter for a process that serves many clients at once: `run`, `console` and `history`."""

import gc
import sys
from typing import Final

SWITCH_INTERVAL_S: Final = 0.0005


def prepare_interpreter() -> None:
    """Shortens the pauses of the event loop. Call it once, after everything is imported and before the loop starts."""
    # What was loaded so far lives as long as the process: keep the collector away from it, and rarer.
    gc.freeze()
    gc.set_threshold(50_000, 20, 50)
    # While threads read large files, bodies or rows, the loop gets the interpreter back this soon after each system
    # call. With Python's 5 ms, six busy threads would make every step of the loop wait for 30 ms.
    sys.setswitchinterval(SWITCH_INTERVAL_S)
