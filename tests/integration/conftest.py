"""A stage for the tests of the whole program, on the broker that tests may stop."""

from collections.abc import AsyncIterator
from pathlib import Path

import pytest

from tests.integration.harness import Stage, stage
from tests.kafka import topics
from tests.kafka.apache_kafka import ApacheKafka


@pytest.fixture
async def scene(mortal: ApacheKafka, tmp_path: Path) -> AsyncIterator[Stage]:
    """Yields a stage with topics of four partitions; deletes them afterwards: each costs every later start time."""
    async with stage(mortal.bootstrap_servers, tmp_path) as made:
        yield made
    await topics.delete_topics_with(mortal.bootstrap_servers, made.topic)
