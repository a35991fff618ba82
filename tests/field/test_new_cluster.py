"""A cluster that has just been made has no coordinators yet: commands that need one wait for it."""

from collections.abc import AsyncIterator
from pathlib import Path

import pytest

from tests.commands.running import called, write_settings
from tests.integration.brokers import needs_kafka
from tests.kafka import topics
from tests.kafka.apache_kafka import ApacheKafka
from tests.kafka.server_properties import KafkaOptions

pytestmark = [needs_kafka, pytest.mark.timeout(300)]


@pytest.fixture
async def new_cluster() -> AsyncIterator[str]:
    """Yields the address of a broker that no client has asked for a coordinator yet."""
    async with ApacheKafka(KafkaOptions(auto_create_topics=False)) as broker:
        yield broker.bootstrap_servers


@pytest.mark.parametrize("command", [("check", "--kafka"), ("redrive", "--dry-run")], ids=["check", "redrive"])
async def test_the_first_command_on_a_new_cluster_succeeds(
    new_cluster: str, tmp_path: Path, command: tuple[str, ...]
) -> None:
    """The first request for a coordinator makes the cluster create its topic of positions; until then it has none."""
    for name in ("events", "former.retry.30s"):  # the second one makes a redrive ask which topics the group has read
        await topics.create_topic(new_cluster, name, partitions=1)
    config = write_settings(tmp_path, new_cluster, kafka={"topic": "events", "group_id": "group"})
    created = await called("topics", "--create", "--replication", "1", "-c", config)
    assert created.status == 0, created
    ran = await called(*command, "-c", config)
    assert ran.status == 0, ran
