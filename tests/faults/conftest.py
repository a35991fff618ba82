"""The fault suite: its broker, its choice of scenarios, and the table at the end."""

from collections.abc import Callable

import pytest

from tests.faults.table import Row, lines
from tests.integration.conftest import mortal, scene

__all__ = ["mortal", "scene"]  # the fixtures of both suites that mistreat a broker

_ROWS = pytest.StashKey[list[Row]]()

Tell = Callable[[Row], None]


@pytest.fixture
def tell(request: pytest.FixtureRequest) -> Tell:
    """Puts a row into the table at the end, then checks it."""

    def told(row: Row) -> None:
        request.config.stash.setdefault(_ROWS, []).append(row)
        row.check()

    return told


def pytest_terminal_summary(terminalreporter: pytest.TerminalReporter) -> None:
    """What every scenario came to."""
    rows = terminalreporter.config.stash.get(_ROWS, [])
    if rows:
        terminalreporter.section("faults")
        for line in lines(rows):
            terminalreporter.write_line(line)
