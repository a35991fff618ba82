"""The fault suite: its broker, its choice of scenarios, and the table at the end."""

from collections.abc import Callable

import pytest

from tests.faults.table import Row, lines
from tests.integration.conftest import scene

__all__ = ["scene"]

_ROWS = pytest.StashKey[list[Row]]()

Tell = Callable[[Row], None]


@pytest.fixture
def tell(request: pytest.FixtureRequest) -> Tell:
    """Returns a function that puts a row into the final table, then checks it."""

    def add(row: Row) -> None:
        request.config.stash.setdefault(_ROWS, []).append(row)
        row.check()

    return add


def pytest_terminal_summary(terminalreporter: pytest.TerminalReporter) -> None:
    """Prints the result of every scenario."""
    rows = terminalreporter.config.stash.get(_ROWS, [])
    if rows:
        terminalreporter.section("faults")
        for line in lines(rows):
            terminalreporter.write_line(line)
