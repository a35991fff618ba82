"""`dispatcher topics` prints what creates the topics and what permits their use, with and without a broker."""

import shlex
from pathlib import Path

import yaml

from tests.commands.running import called, write_settings
from tests.conftest import Broker
from tests.kafka import topics


async def test_the_commands_are_printed_without_a_broker(tmp_path: Path) -> None:
    ran = await called("topics", "-c", write_settings(tmp_path))
    assert ran.status == 0, ran
    lines = ran.out.splitlines()
    assert [shlex.split(line)[6] for line in lines] == [
        *(f"feedback-dispatcher.retry.{tier}" for tier in ("30s", "2m", "5m", "15m")),
        "feedback-dispatcher.held",
        "feedback-dispatcher.dead",
    ]
    assert all("--partitions 12 --replication-factor 3" in line for line in lines)
    assert "not compared with the existing topics: kafka at 127.0.0.1:1" in ran.err


async def test_topics_get_the_partitions_of_the_events_topic_and_mistakes_are_reported(
    kafka: Broker, tmp_path: Path
) -> None:
    await topics.create_topic(kafka.bootstrap_servers, "printed-events", partitions=5)
    names = {"topic": "printed-events", "topic_prefix": "printed"}
    ran = await called("topics", "-c", write_settings(tmp_path, kafka.bootstrap_servers, kafka=names))
    assert ran.status == 0, ran
    assert "--topic printed.dead --partitions 5 " in ran.out
    assert "warning: topic printed.dead: is missing" in ran.err


async def test_the_permissions_are_printed_for_both_tools(tmp_path: Path) -> None:
    ran = await called("topics", "-c", write_settings(tmp_path), "--acls", "d'artagnan")
    assert ran.status == 0, ran
    commands, _, document = ran.out.partition("\n\n")
    first = shlex.split(commands.splitlines()[0])
    assert first[:5] == ["kafka-acls.sh", "--bootstrap-server", "127.0.0.1:1", "--add", "--allow-principal"]
    assert first[5:] == [
        "User:d'artagnan",
        "--operation",
        "Read",
        "--operation",
        "Describe",
        "--topic",
        "delivery-events",
    ]
    user = yaml.safe_load(document)
    acls = {
        (one["resource"]["type"], one["resource"]["name"]): one["operations"]
        for one in user["spec"]["authorization"]["acls"]
    }
    assert acls["topic", "feedback-dispatcher.dead"] == ["Read", "Write", "Describe", "DescribeConfigs"]
    assert acls["group", "feedback-dispatcher.retry"] == ["Read", "Describe"]
    assert len(acls) == len(commands.splitlines())


async def test_permissions_and_creation_exclude_each_other(tmp_path: Path) -> None:
    ran = await called("topics", "-c", write_settings(tmp_path), "--acls", "a", "--create")
    assert ran.status == 2
    assert "give either --create or --acls" in ran.err
