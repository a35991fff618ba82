"""The attempt log, and the command that makes its topic."""

import asyncio
import subprocess
import sys
import time

import orjson
import pytest
from aiohttp import web

from dispatcher.console.sources.attempts import read_attempt
from tests.integration.brokers import needs_kafka
from tests.integration.harness import Receiver, Stage, at_first, status, tenants, until, webhook_id_of
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
        assert f"{scene.prefix}.attempts: created" in made.stdout
        assert f"{scene.dead_topic}: exists" in made.stdout
        dispatcher.start()
        await scene.produce([tenant], 5)
        await scene.all_accepted(dispatcher)
        attempts = f"{scene.prefix}.attempts"

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
    assert not any("answer" in one for one in told)


_TOKEN = "eyJhbGciOiJIUzI1NiJ9.eyJpc3MiOiJ1cyJ9.c2lnbmF0dXJl"


async def test_what_failed_attempts_were_answered_is_kept_where_that_is_wanted(scene: Stage) -> None:
    """Without what an endpoint may echo of a person or of us; what answered a delivery is nobody's business."""
    failing, fine = tenants(2)
    scene.mount([scene.webhook(failing, headers={"x-api-key": "canary-key"}), scene.webhook(fine)])

    async def objects(request: web.Request, _receiver: Receiver) -> web.Response:
        echo = f"{request.headers['x-api-key']}, Bearer opaque, {_TOKEN}\x00\n"
        said = f"no such customer: john.doe@luma.com, +49 170 1234567, {echo}"
        return web.Response(status=422, text=said + "x" * 3000)

    async def thanks(request: web.Request, receiver: Receiver) -> web.Response:
        receiver.accept(request)
        return web.Response(text="thank you, john")

    scene.receiver.behave(f"/{failing.org}", objects)
    scene.receiver.behave(f"/{fine.org}", thanks)
    attempts = f"{scene.prefix}.attempts"
    await topics.create_topic(scene.bootstrap_servers, attempts)
    async with scene.dispatcher(attempt_log=True, attempt_log_answers=True) as dispatcher:
        dispatcher.start()
        await scene.produce([failing, fine], 2)

        async def written() -> bool:
            return len(await topics.read_all(scene.bootstrap_servers, attempts)) >= 2

        await until(written, "two attempts in the log", 40, dispatcher)
    records = await topics.read_all(scene.bootstrap_servers, attempts)
    by_status = {fact.status: fact for record in records if (fact := read_attempt(record.value, time.time()))}
    told = by_status[422].answer
    assert told.startswith("no such customer: j•••@luma.com, +4•••67, (header), Bearer (token) (token)\ufffd\nxxx")
    assert 1900 < len(told) <= 2048
    assert by_status[200].answer == ""
    assert not any(word in (record.value or b"") for record in records for word in (b"john", b"canary", b"opaque"))
