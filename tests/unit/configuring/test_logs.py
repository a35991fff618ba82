"""What of other libraries' talk reaches the log."""

import logging

import pytest
import structlog

from dispatcher.config.settings import LogSettings
from dispatcher.errors import StoreUnavailable
from dispatcher.telemetry.logs import WITHHELD, configure_logging


@pytest.mark.parametrize("level", ["info", "debug"])
def test_a_watched_directory_that_holds_the_log_does_not_feed_itself(
    level: str, capsys: pytest.CaptureFixture[str]
) -> None:
    """watchfiles tells of each change at level info: written into a watched directory, that is the next change."""
    root = logging.getLogger()
    handlers, before = root.handlers, root.level
    try:
        configure_logging(LogSettings.model_validate({"level": level}))
        logging.getLogger("watchfiles.main").info("1 change detected")
        logging.getLogger("watchfiles.main").warning("something is wrong")
    finally:
        root.handlers = handlers
        root.setLevel(before)

    told = capsys.readouterr().err
    assert "1 change detected" not in told
    assert "something is wrong" in told


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
def test_an_exception_that_we_do_not_know_is_told_without_its_message(
    form: str, capsys: pytest.CaptureFixture[str]
) -> None:
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

    told = capsys.readouterr().err
    assert "canary" not in told
    for said in ("RuntimeError", "ExceptionGroup", "ValueError", "KeyError", "_explode", "test_logs.py", WITHHELD):
        assert said in told
    assert told.count("StoreUnavailable") == told.count("the store is away") == 2, "ours names places, and is kept"
