"""Writes log lines to a stream that may not be read, without holding up the process."""

import logging
import math
import os
import select
import time
from collections.abc import Callable
from typing import Final, TextIO

from dispatcher.telemetry import metrics

PATIENCE_S: Final = 0.1
"""Seconds that a line may wait for a reader that is slow."""
PATIENT_EVERY_S: Final = 10.0
"""Seconds in which lines wait once at most, so that a reader that hangs takes a hundredth of the process's time."""
_PIECE: Final = 4096
"""Bytes that a pipe takes at once if it takes any (Linux: PIPE_BUF)."""


class LineHandler(logging.StreamHandler[TextIO]):
    """Writes lines to a stream; leaves lines out, and counts them, while it is not read.

    A full pipe blocks its writer. If the reader hangs, as a container runtime does whose disk is full, the next line
    would stop the event loop, and with it deliveries, heartbeats and the ops port.
    """

    def __init__(self, stream: TextIO | None, clock: Callable[[], float] = time.monotonic) -> None:
        super().__init__(stream)
        self._clock = clock
        self._fd = _descriptor_of(stream)
        self._writable = select.poll()
        if self._fd is not None:
            self._writable.register(self._fd, select.POLLOUT)
        self._patient_at = -math.inf
        """When the next line may wait."""
        self._left_out = 0
        self._is_cut = False
        """The last line was written in part."""

    def emit(self, record: logging.LogRecord) -> None:
        """Writes the record's line, after one that says how many were left out before, if any."""
        if self._fd is None:
            super().emit(record)
            return
        try:
            if self._left_out and self._write(self._fd, self.format(_left_out(self._left_out))):
                self._left_out = 0
            if not self._write(self._fd, self.format(record)):
                self._left_out += 1
                metrics.LOG_LINES_LEFT_OUT.inc()
        except Exception:  # noqa: BLE001  (a line that can't be formatted must not end what logs it)
            self.handleError(record)

    def _write(self, fd: int, line: str) -> bool:
        """Returns False if the line was not written, or not wholly."""
        text = f"{self.terminator if self._is_cut else ''}{line}{self.terminator}"
        rest = text.encode(self.stream.encoding or "utf-8", "backslashreplace")
        is_begun = False
        while rest:
            try:
                written = os.write(fd, rest[:_PIECE]) if self._is_read() else 0
            except BlockingIOError:  # the descriptor's owner has set it so
                written = 0
            if not written:
                self._is_cut |= is_begun
                return False
            is_begun, rest = True, rest[written:]
        self._is_cut = False
        return True

    def _is_read(self) -> bool:
        """Returns whether the stream takes bytes; waits for that, if no line did lately."""
        if self._writable.poll(0):
            return True
        now = self._clock()
        if now < self._patient_at:
            return False
        self._patient_at = now + PATIENT_EVERY_S
        return bool(self._writable.poll(PATIENCE_S * 1000))


def _descriptor_of(stream: TextIO | None) -> int | None:
    """Returns None for a stream without a descriptor, or if there is none."""
    try:
        return None if stream is None else stream.fileno()
    except (OSError, ValueError):
        return None


def _left_out(count: int) -> logging.LogRecord:
    text = f"{count} log lines were left out, because standard error was not read"
    return logging.LogRecord(__name__, logging.WARNING, __file__, 0, text, None, None)
