"""Paces the reading of held events: slowly while the process needs its core for deliveries. Pure."""

import time
from collections.abc import Callable
from typing import Final

PASSED_A_SECOND: Final = 12_500
"""Fastest rate at which waiting records are read. With the time that passing over takes, a million need 110 s."""
PASSED_WHEN_BUSY: Final = 3_000
"""Rate while the process is busy. Passing over a record costs 7 µs to 12 µs, so this is under 4 % of a core."""
BUSY: Final = 0.6
"""Share of a core that a busy process uses."""
MEASURED_S: Final = 1.0


class ReadingPace:
    """Computes the rests between reads of held events, from the CPU time that the process uses."""

    def __init__(
        self, clock: Callable[[], float] = time.monotonic, cpu: Callable[[], float] = time.process_time
    ) -> None:
        """Begins as if the process were busy. `cpu` returns the CPU seconds that it has used."""
        self._clock = clock
        self._cpu = cpu
        self._since = (clock(), cpu())
        self._is_busy = True

    def rest_s(self, passed: int) -> float:
        """Returns the seconds to rest after this number of records was passed over."""
        now, used = self._clock(), self._cpu()
        began, used_before = self._since
        if now - began >= MEASURED_S:
            self._is_busy = used - used_before >= BUSY * (now - began)
            self._since = (now, used)
        return passed / (PASSED_WHEN_BUSY if self._is_busy else PASSED_A_SECOND)
