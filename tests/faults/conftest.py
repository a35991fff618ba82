"""The fault suite: its broker, its choice of scenarios, and the table at the end."""

from collections.abc import AsyncIterator, Callable
from pathlib import Path

import pytest

from tests.faults.table import Row, lines
from tests.integration.brokers import mistreatable_broker
from tests.integration.harness import Stage, stage
from tests.kafka.apache_kafka import ApacheKafka

_ROWS = pytest.StashKey[list[Row]]()

Tell = Callable[[Row], None]


@pytest.fixture(scope="package")
async def mortal() -> AsyncIterator[ApacheKafka]:
    """A broker that a test may stop; each leaves it running."""
    async with mistreatable_broker() as broker:
        yield broker


@pytest.fixture
async def scene(mortal: ApacheKafka, tmp_path: Path) -> AsyncIterator[Stage]:
    """A stage with topics of four partitions."""
    async with stage(mortal.bootstrap_servers, tmp_path) as made:
        yield made


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
