"""Checks that a test which configures logging does not change what the next test sees."""

import structlog
from structlog.testing import capture_logs

from dispatcher.config.settings import LogSettings
from dispatcher.telemetry.logs import configure_logging

_LOG = structlog.get_logger("tests of logging")


def test_a_test_may_silence_the_log() -> None:
    configure_logging(LogSettings.model_validate({"level": "error"}))
    with capture_logs() as lines:
        _LOG.warning("not seen")
    assert lines == []


def test_and_the_next_test_sees_warnings_again() -> None:
    """A command that ran in-process at level error once hid every warning from the tests after it."""
    with capture_logs() as lines:
        _LOG.warning("seen")
    assert [line["event"] for line in lines] == ["seen"]
