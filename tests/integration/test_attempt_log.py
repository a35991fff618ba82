"""The attempt log, and the command that makes its topic."""

import asyncio
import subprocess
import sys

import orjson
import pytest

from tests.integration.brokers import needs_kafka
from tests.integration.harness import Stage, at_first, status, tenants, until, webhook_id_of
from tests.kafka import topics

pytestmark = [needs_kafka, pytest.mark.timeout(120)]


async def test_every_attempt_leaves_one_record_without_personal_data(scene: Stage) -> None:
    """One endpoint fails each event once: two records an event, the second one of its delivery."""
    tenant = tenants(1)[0]
    scene.mount([scene.webhook(tenant)])
    scene.receiver.behave(f"/{tenant.org}", at_first(status(503)))
    async with scene.dispatcher() as dispatcher:
        settings = dispatcher.settings | {"attempt_log": True}
        dispatcher.path.write_bytes(orjson.dumps(settings))
        command = [sys.executable, "-m", "dispatcher", "topics", "-c", str(dispatcher.path), "--create"]
        made = await asyncio.to_thread(
            subprocess.run, [*command, "--replication", "1"], capture_output=True, text=True, check=True
        )
        assert f"{scene.topic}.attempts: created" in made.stdout
        assert f"{scene.dead_topic}: exists" in made.stdout
        dispatcher.start()
        await scene.produce([tenant], 5)
        await scene.all_accepted(dispatcher)
        attempts = f"{scene.topic}.attempts"

        async def written() -> bool:
            return len(await topics.read_all(scene.bootstrap_servers, attempts)) >= 10

        await until(written, "ten attempts in the log", 20, dispatcher)
    records = await topics.read_all(scene.bootstrap_servers, attempts)
    told = [orjson.loads(record.value or b"") for record in records]
    assert {record.key for record in records} == {str(tenant).encode()}
    for number in range(5):
        name = webhook_id_of(tenant, f"e-{number}")
        own = sorted((one for one in told if one["webhookId"] == name), key=lambda one: one["attempt"])
        assert [(one["attempt"], one["status"], one["reason"]) for one in own] == [
            (1, 503, "http_5xx"),
            (2, 200, "http_2xx"),
        ]
    assert not any(b"@luma" in (record.value or b"") or b"john" in (record.value or b"") for record in records)
