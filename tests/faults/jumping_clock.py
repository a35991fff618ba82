"""`dispatcher` with a wall clock that a test sets: `python -m tests.faults.jumping_clock FILE [waits] -- run …`.

`waits` as in `tests.integration.impatient`. The file holds the seconds by which the clock is wrong. Only `time.time` is: timers use the steady clock, as they do
after an operator has set the machine's clock.
"""

import sys
import time
from pathlib import Path


def _jumping(file: Path) -> None:
    steady = time.time
    time.time = lambda: steady() + float(file.read_text())


if __name__ == "__main__":
    _jumping(Path(sys.argv.pop(1)))
    from tests.integration.impatient import main  # after that: what it imports keeps the function, not its name

    main()
