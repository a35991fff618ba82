"""A broker that ends connections whose login is too old (KIP-368), and that limits the members of a group."""

import asyncio
from collections.abc import AsyncIterator
from pathlib import Path

import pytest

from dispatcher.config.loader import load_settings
from dispatcher.kafka.probe import KafkaProbe
from tests.commands.running import write_settings
from tests.field.readiness import readiness, reports
from tests.integration.brokers import PASSWORD, USER, needs_kafka
from tests.integration.harness import LARGEST_RECORD, stage, tenants
from tests.kafka.apache_kafka import ApacheKafka
from tests.kafka.server_properties import KafkaOptions, Listener

pytestmark = [needs_kafka, pytest.mark.timeout(300)]

LOGIN_S = 3.0


@pytest.fixture(scope="module")
async def broker() -> AsyncIterator[ApacheKafka]:
    options = KafkaOptions(
        message_max_bytes=LARGEST_RECORD,
        listeners=frozenset({Listener.SASL_PLAINTEXT}),
        users={USER: PASSWORD},
        extra={"connections.max.reauth.ms": str(int(LOGIN_S * 1000)), "group.max.size": "1"},
    )
    async with ApacheKafka(options) as running:
        yield running


async def test_a_connection_that_the_broker_ends_is_made_again_before_anything_is_reported(
    broker: ApacheKafka, tmp_path: Path
) -> None:
    (tmp_path / "password").write_text(PASSWORD)
    security = {
        "protocol": "SASL_PLAINTEXT", "mechanism": "PLAIN", "username": USER, "password": {"file": "password"},
    }  # fmt: skip
    kafka = {"bootstrap_servers": broker.address(Listener.SASL_PLAINTEXT), "security": security}
    settings = load_settings(write_settings(tmp_path, kafka=kafka), {}).kafka
    async with KafkaProbe(settings, (), ()) as probe:
        for _ in range(3):
            found = await probe.look()
            assert (found.answers, found.details) == (True, {})
            await asyncio.sleep(LOGIN_S + 0.5)


async def test_a_member_too_many_is_named_and_the_brokers_are_not_blamed(broker: ApacheKafka, tmp_path: Path) -> None:
    async with stage(broker.bootstrap_servers, tmp_path) as scene:
        (tenant,) = tenants(1)
        scene.mount([scene.webhook(tenant)])
        alone = {"group_instance_id": None}
        async with scene.dispatcher("first", kafka=alone) as first, scene.dispatcher("second", kafka=alone) as second:
            first.start()
            await first.ready()
            second.start()
            await reports(second, "group_protocol", "group.max.size")
            _, checks = await readiness(second)
            blamed = [one["reason"] for one in checks.values() if "do not answer" in one.get("reason", "")]
            assert blamed == []
            assert not checks[f"consumer {scene.group_id} joined"]["ok"]
            first.sigterm()
            await first.wait()
            await second.ready(60)
