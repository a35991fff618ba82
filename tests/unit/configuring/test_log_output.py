"""The log's handler on real pipes: lines are whole or counted, and no line waits for a reader that hangs."""

import fcntl
import io
import logging
import os
import select
from collections.abc import Iterator
from typing import TextIO

import pytest

from dispatcher.telemetry import metrics
from dispatcher.telemetry.log_output import PATIENT_EVERY_S, LineHandler

HOLDS = 8192
"""Two pages, the least that takes a line while another one is in it."""


class Pipe:
    """A small pipe, and what its reader has got."""

    def __init__(self) -> None:
        self._reads, writes = os.pipe()
        fcntl.fcntl(writes, fcntl.F_SETPIPE_SZ, HOLDS)
        self.stream: TextIO = os.fdopen(writes, "w", encoding="utf-8")
        self.now = 0.0
        self.handler = LineHandler(self.stream, lambda: self.now)

    def log(self, text: str) -> None:
        self.handler.handle(logging.LogRecord("test", logging.INFO, "", 0, text, None, None))

    def read(self) -> list[str]:
        """Returns the lines in the pipe, without waiting."""
        data = b""
        while select.select([self._reads], [], [], 0)[0] and (part := os.read(self._reads, 65536)):
            data += part
        return data.decode().splitlines()

    def close(self) -> None:
        self.stream.close()
        if self._reads >= 0:
            os.close(self._reads)
            self._reads = -1

    def close_reader(self) -> None:
        os.close(self._reads)
        self._reads = -1


@pytest.fixture
def pipe() -> Iterator[Pipe]:
    one = Pipe()
    yield one
    one.close()


def test_lines_that_are_read_are_written_as_they_come(pipe: Pipe) -> None:
    pipe.log("one")
    pipe.log("ä" * 100)
    assert pipe.read() == ["one", "ä" * 100]


def test_lines_that_are_not_read_are_counted_and_reported_to_the_next_reader(pipe: Pipe) -> None:
    before = metrics.LOG_LINES_LEFT_OUT._value.get()
    for _ in range(5):
        pipe.log("x" * (HOLDS - 1))
    assert metrics.LOG_LINES_LEFT_OUT._value.get() - before == 4
    assert pipe.read() == ["x" * (HOLDS - 1)]
    pipe.log("again")
    assert pipe.read() == ["4 log lines were left out, because standard error was not read", "again"]
    pipe.log("more")
    assert pipe.read() == ["more"]


def test_a_line_that_was_cut_ends_before_the_next(pipe: Pipe) -> None:
    pipe.log("x" * 3 * HOLDS)
    assert pipe.read() == ["x" * HOLDS]
    pipe.log("next")
    lines = pipe.read()
    assert lines == ["", "1 log lines were left out, because standard error was not read", "next"]


def test_a_line_waits_for_a_slow_reader_once_in_a_while(pipe: Pipe, monkeypatch: pytest.MonkeyPatch) -> None:
    waits: list[float] = []

    class Poll:
        def poll(self, timeout_ms: float) -> list[tuple[int, int]]:
            waits.append(timeout_ms)
            return []

    monkeypatch.setattr(pipe.handler, "_writable", Poll())
    for _ in range(3):
        pipe.log("line")
    assert [wait for wait in waits if wait] == [100.0]
    pipe.now += PATIENT_EVERY_S
    pipe.log("line")
    assert [wait for wait in waits if wait] == [100.0, 100.0]


def test_a_reader_that_is_gone_ends_nothing(pipe: Pipe, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(logging, "raiseExceptions", False)
    pipe.close_reader()
    pipe.log("line")


def test_a_stream_without_a_descriptor_is_written_to() -> None:
    stream = io.StringIO()
    LineHandler(stream).handle(logging.LogRecord("test", logging.INFO, "", 0, "line", None, None))
    assert stream.getvalue() == "line\n"
