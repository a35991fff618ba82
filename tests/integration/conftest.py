"""A broker that the tests of the whole program may stop: each leaves it running."""

from collections.abc import AsyncIterator
from pathlib import Path

import pytest

from tests.integration.brokers import mistreatable_broker
from tests.integration.harness import Stage, stage
from tests.kafka.apache_kafka import ApacheKafka


@pytest.fixture(scope="package")
async def mortal() -> AsyncIterator[ApacheKafka]:
    async with mistreatable_broker() as broker:
        yield broker


@pytest.fixture
async def scene(mortal: ApacheKafka, tmp_path: Path) -> AsyncIterator[Stage]:
    """Yields a stage with topics of four partitions."""
    async with stage(mortal.bootstrap_servers, tmp_path) as made:
        yield made
