"""What of other libraries' talk reaches the log."""

import json
import logging
import os
from collections.abc import Iterator
from contextlib import contextmanager

import pytest
import structlog

from dispatcher.config.settings import LogSettings
from dispatcher.errors import StoreUnavailable
from dispatcher.telemetry.logs import MAX_TEXT, WITHHELD, RepeatedLines, configure_logging


@pytest.mark.parametrize("level", ["info", "debug"])
def test_a_watched_directory_that_holds_the_log_does_not_feed_itself(
    level: str, capsys: pytest.CaptureFixture[str]
) -> None:
    """watchfiles logs each change at level info: written into a watched directory, that is the next change."""
    root = logging.getLogger()
    handlers, before = root.handlers, root.level
    try:
        configure_logging(LogSettings.model_validate({"level": level}))
        logging.getLogger("watchfiles.main").info("1 change detected")
        logging.getLogger("watchfiles.main").warning("something is wrong")
    finally:
        root.handlers = handlers
        root.setLevel(before)

    reported = capsys.readouterr().err
    assert "1 change detected" not in reported
    assert "something is wrong" in reported


def _explode(address: str) -> None:
    try:
        {}[address]
    except KeyError as error:
        error.add_note(address)
        try:
            raise ExceptionGroup(address, [ValueError(address), StoreUnavailable("the store is away")])
        except ExceptionGroup as group:
            raise RuntimeError(f"{address} again") from group


@pytest.mark.parametrize("form", ["json", "console"])
def test_an_unknown_exception_is_logged_without_its_message(form: str, capsys: pytest.CaptureFixture[str]) -> None:
    root = logging.getLogger()
    handlers, before, configured = root.handlers, root.level, structlog.get_config()
    try:
        configure_logging(LogSettings.model_validate({"format": form}))
        try:
            _explode("ada@canary.example")
        except RuntimeError:
            structlog.get_logger("test").exception("a bug")
            logging.getLogger("asyncio").exception("Task exception was never retrieved")
    finally:
        root.handlers = handlers
        root.setLevel(before)
        structlog.configure(**configured)

    reported = capsys.readouterr().err
    assert "canary" not in reported
    for said in ("RuntimeError", "ExceptionGroup", "ValueError", "KeyError", "_explode", "test_logs.py", WITHHELD):
        assert said in reported
    assert reported.count("StoreUnavailable") == reported.count("the store is away") == 2, (
        "ours names places, and is kept"
    )


@contextmanager
def _configured(level: str) -> Iterator[None]:
    root, ours = logging.getLogger(), logging.getLogger("dispatcher")
    before, configured = (root.handlers, root.level, ours.level), structlog.get_config()
    try:
        configure_logging(LogSettings.model_validate({"level": level}))
        yield
    finally:
        root.handlers = before[0]
        root.setLevel(before[1])
        ours.setLevel(before[2])
        structlog.configure(**configured)


@pytest.mark.parametrize(
    ("level", "reported"),
    [
        ("debug", ["debug", "info", "warning", "error"]),
        ("info", ["info", "warning", "error"]),
        ("warning", ["warning", "error"]),
        ("error", ["error"]),
    ],
)
def test_the_level_decides_which_of_our_lines_are_written(
    level: str, reported: list[str], capsys: pytest.CaptureFixture[str]
) -> None:
    with _configured(level):
        log = structlog.get_logger("dispatcher.anything")
        for one in ("debug", "info", "warning", "error"):
            getattr(log, one)(f"a line at {one}")
            getattr(logging.getLogger("dispatcher.other"), one)(f"another at {one}")

    written = capsys.readouterr().err
    for one in ("debug", "info", "warning", "error"):
        assert (f"a line at {one}" in written, f"another at {one}" in written) == (one in reported, one in reported)


def test_at_debug_other_libraries_stay_quiet(capsys: pytest.CaptureFixture[str]) -> None:
    """Their debug lines quote statements, requests and tokens."""
    with _configured("debug"):
        for name in ("sqlalchemy.engine", "aiokafka.conn", "aiohttp.server", "asyncio", "alembic", "watchfiles", "jwt"):
            logging.getLogger(name).debug("canary")

    assert "canary" not in capsys.readouterr().err


def test_a_line_about_a_file_whose_name_is_not_utf_8_is_written(capsys: pytest.CaptureFixture[str]) -> None:
    name = os.fsdecode(b"a\xff.yaml")
    with _configured("info"):
        structlog.get_logger("dispatcher").warning("mistake", file=name, inner={"name": [name, 1 << 80]})
    (line,) = capsys.readouterr().err.splitlines()
    assert json.loads(line)["file"] == "a?.yaml"


def test_a_text_in_a_line_is_cut(capsys: pytest.CaptureFixture[str]) -> None:
    with _configured("info"):
        structlog.get_logger("dispatcher.x").warning("y" * 5_000_000, why="x" * 5_000_000)
        logging.getLogger("aiohttp.server").error("z%s", "z" * 5_000_000)

    lines = capsys.readouterr().err.splitlines()
    assert len(lines) == 2
    assert all(len(line) < 3 * MAX_TEXT for line in lines)


def test_a_library_repeats_itself_once_a_minute_at_most() -> None:
    now = 0.0
    lines = RepeatedLines("aiokafka", lambda: now)

    def passes(name: str, message: str, *arguments: object) -> bool:
        return lines.filter(logging.LogRecord(name, logging.ERROR, "", 0, message, arguments, None))

    assert passes("aiokafka", "Unable connect to %s", "a")
    assert not passes("aiokafka", "Unable connect to %s", "b")
    assert passes("aiokafka.consumer", "Heartbeat failed")
    assert [passes("dispatcher.kafka", "kafka problem") for _ in range(3)] == [True] * 3
    assert [passes("aiokafkaesque", "other") for _ in range(3)] == [True] * 3
    now = 60.0
    assert passes("aiokafka", "Unable connect to %s", "b")
    assert not passes("aiokafka", "Unable connect to %s", "b")
