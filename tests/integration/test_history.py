"""History on a real broker: what dispatchers write, what the worker keeps of it, and what `dispatcher trace` prints."""

import contextlib
import re
import signal
import subprocess
import sys
import time
from collections import Counter
from collections.abc import AsyncIterator, Sequence
from pathlib import Path
from typing import Any

import aiohttp
import orjson
import pytest
import yaml
from aiohttp import web
from aiokafka import AIOKafkaProducer
from sqlalchemy import text

from dispatcher.config.secrets import Secret
from dispatcher.contract.history import HistoryEntry, HistoryOutcome, bucket_of, decode_record
from dispatcher.contract.recipient import recipient_hash
from dispatcher.demo.child_process import free_ports
from dispatcher.stores.sql.database import Database
from dispatcher.stores.sql.history_search import HistoryQuery, HistorySearch
from tests.commands.running import called
from tests.deploy.runbooks import World
from tests.integration.brokers import needs_kafka
from tests.integration.harness import (
    Receiver,
    Stage,
    at_first,
    event,
    merged,
    status,
    tenants,
    until,
    webhook_id_of,
)
from tests.integration.impatient import impatient
from tests.kafka import topics
from tests.notifications.receivers import PASSWORD, USER, certificates, mail_server

pytestmark = [needs_kafka, pytest.mark.timeout(300)]

KEY = b"k" * 32
NOTIFIER = "dispatcher.notifications.notifier"
IMPATIENT = impatient({f"{NOTIFIER}:PLAN_EVERY_S": 1.0, f"{NOTIFIER}:SEND_EVERY_S": 1.0})


def history_settings(scene: Stage, **more: Any) -> dict[str, Any]:
    """Settings of a history in a SQLite file, with a key for recipients."""
    url, key = scene.directory / "history-url", scene.directory / "recipient-key"
    url.write_text(f"sqlite+aiosqlite:///{scene.directory / 'history.db'}")
    key.write_bytes(KEY)
    return {"url": {"file": str(url)}, "recipient_key": {"file": str(key)}} | more


def topic_of(scene: Stage) -> str:
    return f"group-{scene.topic}.history"


async def entries_of(scene: Stage) -> list[HistoryEntry]:
    """Returns every entry in the topic."""
    records = await topics.read_all(scene.bootstrap_servers, topic_of(scene))
    found: list[HistoryEntry] = []
    for record in records:
        decoded = [one for run in decode_record(record.value).runs for one in run.entries]
        assert {str(bucket_of(one.org, one.sandbox)).encode() for one in decoded} == {record.key}
        found += decoded
    return found


@contextlib.asynccontextmanager
async def worker(scene: Stage, settings: dict[str, Any], **groups: Any) -> AsyncIterator["Worker"]:
    made = Worker(scene, settings, **groups)
    made.program = IMPATIENT
    made.start()
    try:
        yield made
    finally:
        made.stop()


class Worker:
    """`dispatcher history` as a process of its own."""

    program: tuple[str, ...] = ("-m", "dispatcher")
    """Python's options, before the command."""

    def __init__(self, scene: Stage, settings: dict[str, Any], **groups: Any) -> None:
        self.ops_port = free_ports(1)[0]
        ops = {"ops": {"host": "127.0.0.1", "port": self.ops_port}, "kafka": {"session_timeout": "6s"}}
        self.path = scene.directory / "worker.yaml"
        self.path.write_text(yaml.safe_dump(merged(scene.settings, {"history": settings} | ops | groups)))
        self.log_path = scene.directory / "worker.log"
        self._process: subprocess.Popen[bytes] | None = None

    @property
    def log(self) -> str:
        return self.log_path.read_text()

    def start(self) -> None:
        with self.log_path.open("ab") as output:
            command = [sys.executable, *self.program, "history", "-c", str(self.path)]
            self._process = subprocess.Popen(command, stdout=output, stderr=output, stdin=subprocess.DEVNULL)

    def kill9(self) -> None:
        assert self._process is not None
        self._process.kill()
        self._process.wait()

    def stop(self) -> int:
        """Asks it to end; its exit status."""
        assert self._process is not None
        self._process.send_signal(signal.SIGTERM)
        try:
            return self._process.wait(60)
        except subprocess.TimeoutExpired:
            self.kill9()
            raise


async def command(*arguments: str | Path) -> str:
    """Returns what a command prints."""
    ran = await called(*arguments)
    assert ran.status == 0, ran.out + ran.err
    return ran.out


def world_of(scene: Stage, running: "Worker") -> World:
    """What runbooks name, for a worker."""
    return World(
        scene.directory, running.ops_port, running.path, running.log_path, scene.volume.path,
        scene.bootstrap_servers, "localhost:1",
    )  # fmt: skip


async def stored(scene: Stage) -> Counter[tuple[str, str | None]]:
    """Returns how many entries the store has, by outcome and webhook-id."""
    if not (scene.directory / "history.db").exists():
        return Counter()
    database = Database(Secret((scene.directory / "history-url").read_bytes()))
    try:
        async with database.read() as connection:
            if not (
                await connection.execute(text("SELECT 1 FROM sqlite_master WHERE name = 'history_entries_reason'"))
            ).all():
                return Counter()  # it is being made
            found = await connection.execute(text("SELECT outcome, webhook_id FROM history_entries"))
            return Counter(tuple(row) for row in found)
    finally:
        await database.close()


def as_stored(entries: Sequence[HistoryEntry]) -> Counter[tuple[str, str | None]]:
    return Counter((one.outcome.value, one.webhook_id) for one in entries)


async def test_everything_that_happens_is_written_stored_and_traced(scene: Stage) -> None:
    """One tenant's endpoint fails each event once, one rejects, one wants no such channel, one has no webhook."""
    shaky, bad, picky, unknown = tenants(4)
    scene.mount([scene.webhook(shaky), scene.webhook(bad), scene.webhook(picky, channels=["sms"])])
    scene.receiver.behave(f"/{shaky.org}", at_first(status(503, retry_after="1")))
    scene.receiver.behave(f"/{bad.org}", status(301))
    settings = history_settings(scene)
    async with scene.dispatcher(history=settings) as dispatcher:
        command_ = ["topics", "-c", str(dispatcher.path), "--create", "--replication", "1"]
        assert f"{topic_of(scene)}: created" in await command(*command_)
        dispatcher.start()
        await scene.produce([shaky], 5)
        for tenant in (bad, picky, unknown):
            await scene.send(event(tenant, f"e-{tenant.org}"))
        await scene.send(b"{")
        await scene.all_accepted(dispatcher)

        async def written() -> bool:
            found = Counter(one.outcome for one in await entries_of(scene))
            return found[HistoryOutcome.DELIVERED] == 5 and found[HistoryOutcome.DEAD] == 2

        await until(written, "the entries", 60, dispatcher)
        dispatcher.sigterm()
        assert await dispatcher.wait() == 0
    written_entries = await entries_of(scene)
    by_event: dict[str | None, list[HistoryEntry]] = {}
    for one in written_entries:
        by_event.setdefault(one.webhook_id, []).append(one)
    recipient = recipient_hash(KEY, "john.doe@luma.com")
    for number in range(5):
        own = sorted(by_event[webhook_id_of(shaky, f"e-{number}")], key=lambda one: one.at)
        found = [(one.outcome.value, one.reason, one.status, one.attempt) for one in own]
        assert found[0] == ("attempt", "http_5xx", 503, 1)
        assert found[-1][:3] == ("delivered", "http_2xx", 200)
        assert own[-1].has_earlier
        assert own[0].headers == {"retry-after": "1"}
        assert {one.event_id for one in own} == {f"e-{number}"}
        assert all(one.request_id and one.message_execution_id and one.campaign_id for one in own)
        assert {(one.topic, one.channel, one.message_status) for one in own} == {(scene.topic, "email", "bounce")}
    outcomes = {(one.org, one.outcome.value, one.reason) for one in written_entries}
    assert (picky.org, "skipped", "channel") in outcomes
    assert {(bad.org, "attempt", "http_3xx"), (bad.org, "dead", "redirected")} <= outcomes
    assert (None, "dead", "unreadable") in outcomes
    counted = [one for one in written_entries if one.reason == "no_webhook"]
    assert [(one.org, one.count, one.webhook_id) for one in counted] == [(unknown.org, 1, None)]
    raw = await topics.read_all(scene.bootstrap_servers, topic_of(scene))
    assert not any(b"luma.com" in (record.value or b"") or b"john" in (record.value or b"") for record in raw)

    async with worker(scene, settings) as running:

        async def complete() -> bool:
            return await stored(scene) == as_stored(written_entries)

        await until(complete, "the store to be complete", 60)
        name = webhook_id_of(shaky, "e-3")
        for option, value in (
            ("--webhook-id", name), ("--event-id", "e-3"), ("", "e-3"), ("--tenant", f"{shaky}"),
        ):  # fmt: skip
            arguments = [value] if not option else [option, value]
            if option == "--tenant":
                arguments += ["--event-id", "e-3"]
            printed = await command("trace", *arguments, "-c", running.path)
            assert name in printed
            assert "Attempt 1: answered 503" in printed
            assert "Delivered by attempt" in printed
            assert "e-2" not in printed
        printed = await command("trace", "--event-id", f"e-{picky.org}", "-c", running.path)
        assert "Skipped: the webhook doesn't want its channel" in printed
        for pasted, known in (("e-3", "e-3"), ('"e-3"', "e-3"), (name.upper(), name), ("_id: e-3", "e-3")):
            printed = await command("trace", pasted, "--topics", "-c", running.path)
            assert "Attempt 1: answered 503" in printed
            assert (f"found as {known}" in printed) == (pasted != known)
        printed = await command("trace", recipient.upper(), "--topics", "-c", running.path)
        assert f"found by the recipient's hash {recipient}" in printed
        assert name in printed
        database = Database(Secret((scene.directory / "history-url").read_bytes()))
        page = await HistorySearch(database).search(HistoryQuery(recipients=(recipient,), limit=200), orgs=None)
        await database.close()
        assert len(page.items) == sum(one.recipient == recipient for one in written_entries) > 10
        assert " erased" in await command("history", "erase", "--recipient", " John.Doe@luma.com", "-c", running.path)
        assert {one for one in await stored(scene)} == {("dead", None), ("skipped", None)}


_TOKEN = "eyJhbGciOiJIUzI1NiJ9.eyJpc3MiOiJ1cyJ9.c2lnbmF0dXJl"


async def test_answers_to_failed_attempts_are_kept_masked_if_configured(scene: Stage) -> None:
    """Without what an endpoint may echo of a person or of us; what answered a delivery is not kept."""
    failing, fine = tenants(2)
    scene.mount([scene.webhook(failing, headers={"x-api-key": "canary-key"}), scene.webhook(fine)])

    async def objects(request: web.Request, _receiver: Receiver) -> web.Response:
        echo = f"{request.headers['x-api-key']}, Bearer opaque, {_TOKEN}\x00\n"
        said = f"no such customer: john.doe@luma.com, +49 170 1234567, {echo}"
        return web.Response(status=301, text=said + "x" * 3000)

    async def thanks(request: web.Request, receiver: Receiver) -> web.Response:
        receiver.accept(request)
        return web.Response(text="thank you, john")

    scene.receiver.behave(f"/{failing.org}", objects)
    scene.receiver.behave(f"/{fine.org}", thanks)
    await topics.create_topic(scene.bootstrap_servers, topic_of(scene), partitions=2)
    async with scene.dispatcher(history={"store": "none", "answers": True}) as dispatcher:
        dispatcher.start()
        await scene.produce([failing, fine], 2)

        async def written() -> bool:
            return len(await entries_of(scene)) >= 3

        await until(written, "attempts in the history", 60, dispatcher)
    by_status = {one.status: one for one in await entries_of(scene) if one.status is not None}
    answer = by_status[301].answer
    assert answer.startswith("no such customer: j•••@luma.com, +4•••67, (header), Bearer (token) (token)\ufffd\nxxx")
    assert 1900 < len(answer) <= 2048
    assert by_status[200].answer == ""
    assert {one.recipient for one in await entries_of(scene)} == {None}  # no key
    records = await topics.read_all(scene.bootstrap_servers, topic_of(scene))
    assert not any(word in (record.value or b"") for record in records for word in (b"john", b"canary", b"opaque"))


async def test_a_history_that_can_not_be_written_costs_no_delivery(scene: Stage) -> None:
    """The topic takes no record of this size: every entry is counted as lost, every event is delivered."""
    chosen = tenants(3)
    scene.mount([scene.webhook(tenant) for tenant in chosen])
    await topics.create_topic(scene.bootstrap_servers, topic_of(scene), config={"max.message.bytes": "80"})
    async with scene.dispatcher(history={"store": "none"}) as dispatcher:
        dispatcher.start()
        await scene.produce(chosen, 300)
        await scene.all_accepted(dispatcher)

        async def counted() -> bool:
            _, page = await dispatcher.get("/metrics")
            lost = [line for line in page.splitlines() if line.startswith("dispatcher_history_lost_total")]
            return sum(float(line.split()[-1]) for line in lost) >= 300

        await until(counted, "every lost entry to be counted", 60, dispatcher)
        await dispatcher.ready()
        dispatcher.sigterm()
        assert await dispatcher.wait() == 0
    assert scene.receiver.repeats() == 0
    assert not await topics.read_all(scene.bootstrap_servers, topic_of(scene))


async def test_an_endpoint_that_asks_for_no_more_is_reported_by_mail(scene: Stage) -> None:
    """From the 410 to the mailbox: dispatcher, topic, worker, state, message."""
    (gone,) = tenants(1)
    scene.mount([scene.webhook(gone)])
    scene.receiver.behave(f"/{gone.org}", status(410))
    (scene.directory / "mail").mkdir()
    issued = certificates(scene.directory / "mail")
    (scene.directory / "mail-password").write_text(PASSWORD)
    await topics.create_topic(scene.bootstrap_servers, topic_of(scene), partitions=2)
    settings = history_settings(scene)
    async with mail_server(issued.server, implicit=True) as mail:
        smtp = {
            "host": "localhost", "port": mail.port, "security": "tls", "ca": str(issued.ca), "username": USER,
            "password": {"file": str(scene.directory / "mail-password")}, "sender": "dispatcher@operator.example",
        }  # fmt: skip
        mail.refused.add("nobody@operator.example")
        notifications = {"smtp": smtp, "operator": ["noc@operator.example", "nobody@operator.example"]}
        async with (
            scene.dispatcher(history=settings) as dispatcher,
            worker(scene, settings, notifications=notifications) as running,
        ):
            dispatcher.start()
            await scene.produce([gone], 3)

            async def received() -> bool:
                return bool(mail.received) and "was not sent" in running.log

            await until(received, f"a mail, and one refused; {running.log[-500:]}", 120, dispatcher)
            ran, without_match = await world_of(scene, running).run("DispatcherNotificationsFailing")
            assert without_match == []
            assert "550" in ran[-1].output, ran
    (sent,) = mail.received
    assert sent["To"] == "noc@operator.example"
    text = sent.get_body(("plain",))
    assert text is not None
    assert "is disabled: its events wait" in sent["Subject"]
    assert "410" in text.get_content()
    assert re.search(r"Events that wait: [123]\s", text.get_content()), text.get_content() + running.log[-1500:]


async def test_what_can_not_be_read_costs_no_other_entry_and_is_reported(scene: Stage) -> None:
    """A worker that is older than the dispatchers: it stores what it knows, once, and counts the rest."""
    await topics.create_topic(scene.bootstrap_servers, topic_of(scene), partitions=1)
    (tenant,) = tenants(1)
    fine = [
        {
            "at": int(time.time() * 1000),
            "outcome": "dead",
            "org": tenant.org,
            "sandbox": "prod",
            "webhookId": f"msg_{n}",
        }
        for n in range(4)
    ]
    entries = [fine[0], fine[1] | {"outcome": "expired"}, fine[2], fine[3] | {"at": "today"}]
    values = [
        orjson.dumps({"version": version, "writer": 7, "first": 100, "entries": made})
        for version, made in ((1, entries), (1, entries), (1, [fine[0]]), (2, fine))
    ]
    async with AIOKafkaProducer(bootstrap_servers=scene.bootstrap_servers) as producer:
        for value in values:
            await producer.send_and_wait(topic_of(scene), value)
    async with worker(scene, history_settings(scene)) as running:
        url = f"http://127.0.0.1:{running.ops_port}/metrics"

        async def counted() -> bool:
            with contextlib.suppress(aiohttp.ClientError):
                async with aiohttp.ClientSession() as session, session.get(url) as answer:
                    return 'dispatcher_history_stored_total{result="unreadable"} 5.0' in await answer.text()
            return False

        await until(counted, f"the unreadable ones to be counted; {running.log[-500:]}", 60)
        assert await stored(scene) == Counter({("dead", "msg_0"): 1, ("dead", "msg_2"): 1})
        assert "history record of version 2: this program reads version 1" in running.log
        ran, without_match = await world_of(scene, running).run("DispatcherHistoryUnreadable")
        assert without_match == []
        assert "'expired'" in "".join(one.output for one in ran)
