"""What of other libraries' talk reaches the log."""

import logging

import pytest

from dispatcher.logs import configure_logging
from dispatcher.settings import LogSettings


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
