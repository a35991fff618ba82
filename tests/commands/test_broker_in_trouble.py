"""A command that Kafka fails says why in one sentence, without the lines that the Kafka client logs."""

from collections.abc import Sequence
from pathlib import Path

import pytest

from tests.commands.running import dispatcher, write_settings
from tests.integration.brokers import PASSWORD, USER, needs_kafka
from tests.kafka import topics
from tests.kafka.acls import Operation
from tests.kafka.apache_kafka import ApacheKafka
from tests.kafka.server_properties import Listener

REFUSED = "kafka at 127.0.0.1:1: nothing listens there (connection refused)"
COMMANDS = [
    ("redrive",),
    ("explain", "--partition", "0", "--offset", "0"),
    ("trace", "an-id"),
    ("sample", "--org", "myImsOrg", "--produce"),
    ("topics", "--create"),
]


@pytest.mark.parametrize("command", COMMANDS, ids=lambda command: command[0])
async def test_a_command_without_a_broker_prints_one_line(command: Sequence[str], tmp_path: Path) -> None:
    ran = await dispatcher(*command, "-c", write_settings(tmp_path))
    assert (ran.status, ran.out, ran.err) == (1, "", f"dispatcher: {REFUSED}\n")


async def test_commands_that_go_on_without_a_broker_print_one_line(tmp_path: Path) -> None:
    ran = await dispatcher("check", "--kafka", "-c", write_settings(tmp_path))
    assert (ran.status, ran.err) == (1, f"{REFUSED}\n")
    ran = await dispatcher("topics", "-c", write_settings(tmp_path))
    assert (ran.status, ran.err) == (0, f"not compared with the existing topics: {REFUSED}\n")


async def test_the_lines_of_the_client_are_logged_on_request(tmp_path: Path) -> None:
    ran = await dispatcher("trace", "an-id", "-c", write_settings(tmp_path), env={"DISPATCHER_LOG__LEVEL": "debug"})
    assert ran.status == 1
    assert '"logger":"aiokafka"' in ran.err


@needs_kafka
async def test_a_write_that_a_topic_refuses_is_named_with_its_cure(mortal: ApacheKafka, tmp_path: Path) -> None:
    topic = "refusing-commands"
    await topics.create_topic(mortal.bootstrap_servers, topic)
    (tmp_path / "password").write_text(PASSWORD)
    security = {
        "protocol": "SASL_PLAINTEXT", "mechanism": "SCRAM-SHA-512", "username": USER,
        "password": {"file": str(tmp_path / "password")},
    }  # fmt: skip
    config = write_settings(
        tmp_path, mortal.address(Listener.SASL_PLAINTEXT), kafka={"topic": topic, "security": security}
    )
    await mortal.deny(USER, Operation.WRITE, topic)
    try:
        ran = await dispatcher("sample", "--org", "myImsOrg", "--produce", "-c", config)
    finally:
        await mortal.permit(USER, Operation.WRITE, topic)
    cure = f"user {USER} has no permission for topic {topic}: add its ACL"
    assert (ran.status, ran.err) == (1, f"dispatcher: topic {topic} took no record: {cure}\n")
