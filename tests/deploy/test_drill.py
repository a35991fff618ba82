"""The drill: each trouble is caused for real, its alert fires and nothing else pages, its runbook's commands show the cause.

One Apache Kafka, one dispatcher, one Prometheus with the chart's rules and one Alertmanager with the example's routes serve
all troubles. The rules' windows are shorter by `FACTOR`. What is slow runs with `make faults` only.
"""

import asyncio
import re
from collections.abc import AsyncIterator, Awaitable, Callable
from contextlib import AsyncExitStack, suppress
from dataclasses import dataclass, field
from datetime import UTC, datetime, timedelta
from pathlib import Path
from typing import Any, Self
from zlib import crc32

import aiohttp
import pytest
from aiohttp import web
from aiokafka.admin import NewTopic

from dispatcher.config.secrets import Secret
from dispatcher.demo.child_process import free_ports
from dispatcher.stores.sql.database import Database
from dispatcher.stores.sql.encryption import Encryption
from dispatcher.stores.sql.migrate import upgrade
from dispatcher.stores.sql.repository import WebhookRepository
from tests.deploy.prometheus import answered, query, scraping
from tests.deploy.runbooks import NO_SUCH_COMMAND, World
from tests.deploy.test_live_data import Notified, people
from tests.deploy.test_rules import ALERTS
from tests.integration.brokers import PASSWORD, USER, mistreatable_broker, needs_kafka
from tests.integration.harness import (
    Dispatcher,
    Receiver,
    Stage,
    create_own_topics,
    create_topics,
    event,
    slowly,
    tenants,
    until,
)
from tests.kafka import topics
from tests.kafka.apache_kafka import ApacheKafka
from tests.kafka.server_properties import Listener
from tests.stores.kubelet import MountedVolume
from tests.stores_sql.examples import plain
from tests.stores_sql.postgres import Postgres

pytestmark = [
    needs_kafka,
    pytest.mark.timeout(400),
    # aiokafka's client in the test loses connections to the broker that hangs, and says so when they are collected
    pytest.mark.filterwarnings("ignore::pytest.PytestUnraisableExceptionWarning"),
]

FACTOR = 30
TOPIC, GROUP = "delivery-events", "feedback-dispatcher"
HEALTHY, HIT, *OTHERS = EVERYBODY = tenants(5)
FIRES_WITHIN_S = 180
"""Seconds for the dispatcher's own recognition, which isn't shortened, and the alert's windows, which are."""


@dataclass
class Drill:
    """Everything that can be put out of order."""

    broker: ApacheKafka
    scene: Stage
    expired: Receiver
    """An endpoint whose certificate is past its date."""
    dispatcher: Dispatcher
    prometheus: str
    notified: Notified
    world: World
    password: Path
    database: "SlowDatabase"
    of_database: World
    """That of the dispatcher which has its webhooks in a database."""
    is_of_database: bool = False
    """True while the trouble is the other dispatcher's."""
    is_producer_broken: bool = False
    """True while no good event is produced: each one would release a little of the brake."""
    flooded: set[str] = field(default_factory=set)
    """Ids of the events that a flood consists of."""
    heard: list[tuple[str, str]] = field(default_factory=list)

    def mount(self, url: str | None = None, **changes: Any) -> None:
        """The webhooks of all tenants; those of one are changed."""
        webhooks = [self.scene.webhook(tenant) for tenant in EVERYBODY]
        webhooks[1] |= changes | ({"url": url} if url else {})
        self.scene.mount(webhooks)

    async def firing(self) -> set[str]:
        found = await asyncio.to_thread(query, self.prometheus, 'ALERTS{alertstate="firing"}')
        return {one["metric"]["alertname"] for one in found}

    async def story(self) -> list[str]:
        """When each critical alert began and ceased to fire lately, for a failure's message."""
        found = await asyncio.to_thread(query, self.prometheus, 'ALERTS{severity="critical"}[3m]')
        return [
            f"{one['metric']['alertname']} {one['metric']['alertstate']} {one['values'][0][0]:.0f}-{one['values'][-1][0]:.0f}"
            for one in found
        ]

    def listen(self) -> list[tuple[str, str]]:
        """Receiver and name of everything that Alertmanager has sent so far."""
        while not self.notified.empty():
            who, name, annotations = self.notified.get_nowait()
            # The other dispatcher has the same broker, and recovers earlier if a password is wrong.
            if ("other-" in annotations["description"]) == self.is_of_database:
                self.heard.append((who, name))
        return self.heard

    async def quiet(self, name: str) -> None:
        """Returns when neither the alert nor a page fires any more. Tickets of the trouble before may last longer."""
        pages = {one for one, rule in ALERTS.items() if rule["labels"]["severity"] == "critical"}

        async def over() -> bool:
            return not (await self.firing() & (pages | {name}))

        try:
            await until(over, "the end of the alerts", 150, self.dispatcher)
        except AssertionError:
            pytest.fail(f"still firing: {await self.firing()}\n{self.dispatcher.log[-3000:]}")


class SlowDatabase:
    """A way to a server that can stop passing anything on."""

    def __init__(self, port: int) -> None:
        self._port = port
        self._server: asyncio.Server | None = None
        self.answers = asyncio.Event()
        self.answers.set()
        self.port = 0

    async def __aenter__(self) -> Self:
        self._server = await asyncio.start_server(self._pass, "127.0.0.1", 0)
        self.port = self._server.sockets[0].getsockname()[1]
        return self

    async def __aexit__(self, *_: object) -> None:
        self.answers.set()
        assert self._server is not None
        self._server.close()

    async def _pass(self, reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        theirs, ours = await asyncio.open_connection("127.0.0.1", self._port)
        try:
            await asyncio.gather(self._copy(reader, ours), self._copy(theirs, writer))
        finally:
            writer.close()
            ours.close()

    async def _copy(self, reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        with suppress(OSError):
            while piece := await reader.read(65536):
                await self.answers.wait()
                writer.write(piece)
                await writer.drain()
        writer.close()


Step = Callable[[Drill], Awaitable[None]]


@dataclass(frozen=True)
class Trouble:
    """One trouble: how it is caused and ended, what fires, and what the runbook's commands show."""

    alert: str
    cause: Step
    cure: Step
    shows: tuple[str, ...]
    """Patterns in the output of the runbook's commands."""
    placeholders: dict[str, str] = field(default_factory=dict)


async def _kafka_hangs(drill: Drill) -> None:
    drill.broker.pause()


async def _kafka_answers(drill: Drill) -> None:
    drill.broker.resume()


async def _topic_missing(drill: Drill) -> None:
    async with topics.admin_client(drill.broker.bootstrap_servers) as admin:
        await admin.delete_topics([f"{GROUP}.retry.2s"])


async def _topics_made(drill: Drill) -> None:
    async with topics.admin_client(drill.broker.bootstrap_servers) as admin:
        await admin.create_topics([NewTopic(f"{GROUP}.retry.2s", 4, 1)])


async def _password_wrong(drill: Drill) -> None:
    drill.password.write_text("not the one")
    await drill.broker.restart()  # a connection that is open asks for no password


async def _password_right(drill: Drill) -> None:
    drill.password.write_text(PASSWORD)


async def _endpoint_down(drill: Drill) -> None:
    (port,) = free_ports(1)  # above 1023: a file with another one would be refused, and the old version stay in use
    drill.mount(url=f"https://localhost:{port}/")


async def _endpoint_as_before(drill: Drill) -> None:
    drill.scene.receiver.behave(f"/{HIT.org}", None)
    drill.mount()


async def _certificate_expired(drill: Drill) -> None:
    drill.mount(url=drill.expired.url("/"))


async def _payload_refused(drill: Drill) -> None:
    """An eighth of one tenant's events: too few to open its breaker, which would park the others."""

    async def answer(request: web.Request, receiver: Receiver) -> web.StreamResponse:
        if crc32(request.headers["webhook-id"].encode()) % 8 == 0:
            return web.Response(status=400)
        return receiver.accept(request)

    drill.scene.receiver.behave(f"/{HIT.org}", answer)


async def _everything_refused(drill: Drill) -> None:
    async def answer(request: web.Request, receiver: Receiver) -> web.StreamResponse:
        del request, receiver
        return web.Response(status=422)

    drill.scene.receiver.behave(f"/{HIT.org}", answer)


async def _file_bad(drill: Drill) -> None:
    drill.mount(channels=["pigeon"])


async def _flood(drill: Drill) -> None:
    for tenant in EVERYBODY:
        drill.scene.receiver.behave(f"/{tenant.org}", slowly(2))
    drill.flooded |= await drill.scene.produce(EVERYBODY, 3000, prefix="flood")


async def _flood_over(drill: Drill) -> None:
    for tenant in EVERYBODY:
        drill.scene.receiver.behave(f"/{tenant.org}", None)
    # Only these: other troubles make events dead, or delete a topic with some that are parked.
    await until(lambda: not drill.flooded & drill.scene.missing(), "the flood's events", 120, drill.dispatcher)


async def _unreadable(drill: Drill) -> None:
    for number in range(12):
        await drill.scene.send(b"rubbish", partition=number % 4)


async def _only_unreadable(drill: Drill) -> None:
    drill.is_producer_broken = True
    for _ in range(120):
        await drill.scene.send(b"rubbish", partition=3)


async def _brake_released(drill: Drill) -> None:
    drill.is_producer_broken = False
    async with (
        aiohttp.ClientSession() as session,
        session.post(f"http://127.0.0.1:{drill.dispatcher.ops_port}/brakes/release") as answer,
    ):
        assert answer.status == 200


async def _nothing(drill: Drill) -> None:
    del drill


async def _database_hangs(drill: Drill) -> None:
    drill.database.answers.clear()


async def _database_answers(drill: Drill) -> None:
    drill.database.answers.set()


TROUBLES = {
    "kafka hangs": Trouble(
        "DispatcherKafkaUnavailable", _kafka_hangs, _kafka_answers, (r'dispatcher_kafka_problem\{reason="unreachable"\}',)
    ),
    "a topic is missing": Trouble(
        "DispatcherKafkaUnavailable", _topic_missing, _topics_made,
        (r'dispatcher_kafka_problem\{reason="topic_missing"\}', rf"{GROUP}\.retry\.2s"),
    ),
    "the password is wrong": Trouble(
        "DispatcherKafkaUnavailable", _password_wrong, _password_right,
        (r'dispatcher_kafka_problem\{reason="authentication_refused"\}', f"password of user {USER}"),
    ),
    "an endpoint is down": Trouble(
        "DispatcherBreakerOpenLong", _endpoint_down, _endpoint_as_before,
        (rf'"org": "{HIT.org}"', r'"last_failure": "connect_refused"'),
    ),
    "a certificate has expired": Trouble(
        "DispatcherTlsFailing", _certificate_expired, _endpoint_as_before,
        (rf'"org": "{HIT.org}"', r"certificate has expired", r"notAfter="),
    ),
    "the expired certificate itself": Trouble(
        "DispatcherCertificateExpiring", _certificate_expired, _endpoint_as_before,
        (r"dispatcher_certificate_expiry_timestamp_seconds", rf'"org": "{HIT.org}"'),
    ),
    "payloads are refused": Trouble(
        "DispatcherDeadLetters", _payload_refused, _endpoint_as_before,
        (rf"{HIT.org}", r"feedback-last-status=400", r"rejected"), {"<org>/<sandbox>": f"{HIT.org}/{HIT.sandbox}"},
    ),
    "everything is refused": Trouble(
        "DispatcherTenantFailing", _everything_refused, _endpoint_as_before,
        (r'dispatcher_tenants_failing\{reason="http_4xx"\} 1', rf'"org": "{HIT.org}"', r'"last_status": 422'),
    ),
    "a file is bad": Trouble(
        "DispatcherConfigReloadFailed", _file_bad, _endpoint_as_before, (r"webhooks\.yaml:\d+", r"channels"),
    ),
    "a flood": Trouble("DispatcherSaturated", _flood, _flood_over, (r'"in_flight": [1-9]',)),
    "dead letters": Trouble(
        "DispatcherDeadLettersOurs", _unreadable, _nothing, (r"feedback-reason=unreadable", r"unreadable"),
        {"<offset>": "0"},
    ),
    "a database is slow": Trouble(
        "DispatcherStoreFailing", _database_hangs, _database_answers, (r"PostgreSQL at \S+: does not answer",),
    ),
    "the brake": Trouble(
        "DispatcherDeadLetterBrakeEngaged", _only_unreadable, _brake_released,
        (r"engaged on delivery-events/3", r"unreadable", r'"released": 1'),
        {"<pod>": "dispatcher-0"},
    ),
}  # fmt: skip
QUICK = {"a file is bad"}


@pytest.fixture(scope="module")
async def drill(postgres: Postgres, tmp_path_factory: pytest.TempPathFactory) -> AsyncIterator[Drill]:
    """Everything in order, with events all the time."""
    directory = tmp_path_factory.mktemp("drill")
    (directory / "prometheus").mkdir()
    async with AsyncExitStack() as stack:
        broker = await stack.enter_async_context(mistreatable_broker())
        receiver = await stack.enter_async_context(Receiver())
        receiver.authority.cert_pem.write_to_path(str(directory / "ca.pem"))
        yesterday = datetime.now(UTC) - timedelta(days=1)
        expired = await stack.enter_async_context(Receiver(receiver.authority, valid_until=yesterday))
        scene = Stage(broker.bootstrap_servers, directory, receiver, TOPIC, MountedVolume(directory / "webhooks.d"))
        stack.push_async_callback(scene.close)
        for topic, group in ((TOPIC, GROUP), (f"{TOPIC}-sql", f"{GROUP}-sql")):
            await create_topics(broker.bootstrap_servers, topic, 4)
            await create_own_topics(broker.bootstrap_servers, group, 4)
        database = await stack.enter_async_context(SlowDatabase(postgres.port))
        dispatcher = await stack.enter_async_context(_dispatcher(scene, broker))
        second = await stack.enter_async_context(await _with_database(scene, postgres, database))

        def world(one: Dispatcher) -> World:
            own = directory / f"of-{one.path.stem}"
            own.mkdir()
            return World(
                directory=own, ops_port=one.ops_port, settings=one.path, log=directory / f"{one.path.stem}.001.log",
                webhooks=scene.volume.path, bootstrap_servers=broker.bootstrap_servers,
                endpoint=f"localhost:{expired.port}",
            )  # fmt: skip

        webhooks = [scene.webhook(tenant) for tenant in EVERYBODY]
        scene.mount(webhooks)
        for one in (dispatcher, second):
            one.start()
            await one.ready(120)
        alertmanager, notified = await stack.enter_async_context(people(directory))
        url, process = scraping(
            f"127.0.0.1:{dispatcher.ops_port}", directory / "prometheus", alertmanager=alertmanager, factor=FACTOR,
            also=[f"127.0.0.1:{second.ops_port}"],
        )  # fmt: skip
        stack.callback(process.wait)
        stack.callback(process.terminate)
        await asyncio.to_thread(answered, f"{url}/-/ready")

        async def scraped() -> bool:
            """A trouble before the first scrape would be one of a new pod."""
            found = await asyncio.to_thread(query, url, "count_over_time(dispatcher_build_info[1m]) > 3")
            return len(found) == 2

        await until(scraped, "both to be scraped", 60, dispatcher)

        made = Drill(
            broker, scene, expired, dispatcher, url, notified, world(dispatcher), directory / "password", database,
            world(second),
        )  # fmt: skip
        traffic = asyncio.get_running_loop().create_task(_traffic(made))
        try:
            yield made
        finally:
            traffic.cancel()
            broker.resume()
            for one in (dispatcher, second):
                one.kill9()


def _dispatcher(scene: Stage, broker: ApacheKafka) -> Dispatcher:
    password = scene.directory / "password"
    password.write_text(PASSWORD)
    security = {
        "protocol": "SASL_PLAINTEXT", "mechanism": "SCRAM-SHA-512", "username": USER, "password": {"file": str(password)},
    }  # fmt: skip
    return scene.dispatcher(
        kafka={"bootstrap_servers": broker.address(Listener.SASL_PLAINTEXT), "group_id": GROUP, "security": security},
        delivery={"max_in_flight": 30},  # fewer than the lanes of all tenants may take, even at half of their limits
        dead_letters={"brake": 50},
    )


async def _with_database(scene: Stage, postgres: Postgres, database: SlowDatabase) -> Dispatcher:
    url = await postgres.fresh_database()
    await upgrade(Secret(url.encode()))
    webhooks = Database(Secret(url.encode()))
    try:  # without any DispatcherNoWebhooks would fire
        await WebhookRepository(webhooks, Encryption([])).create(plain(), by="the drill", orgs=None)
    finally:
        await webhooks.close()
    (scene.directory / "url").write_text(url.replace(f":{postgres.port}/", f":{database.port}/"))
    settings = scene.settings | {
        "webhooks": {"store": "sql", "url": {"file": str(scene.directory / "url")}, "cache_ttl": "1s"}
    }
    settings["kafka"] |= {"topic": f"{TOPIC}-sql", "group_id": f"{GROUP}-sql"}
    return Dispatcher(scene.directory, settings, name="second")


async def _traffic(drill: Drill) -> None:
    """A few events each second, until it is cancelled; those of the database's dispatcher are of ever new tenants."""
    for number in range(100_000):
        if not drill.is_producer_broken:
            try:
                await asyncio.wait_for(_produce(drill.scene, number), 20)
            except (
                Exception
            ):  # the broker is out of order on purpose, and a producer that was cancelled sends nothing more
                with suppress(Exception):
                    await asyncio.wait_for(drill.scene.close(), 5)
        await asyncio.sleep(0.5)


async def _produce(scene: Stage, number: int) -> None:
    await scene.produce(EVERYBODY, 10, prefix=f"round-{number}")
    await scene.send(event(tenants(1)[0], "x").replace(b"org000", f"new{number}".encode()), topic=f"{TOPIC}-sql")


@pytest.mark.parametrize(
    "what", [pytest.param(what, marks=() if what in QUICK else pytest.mark.all_faults) for what in TROUBLES]
)
async def test_a_trouble_fires_its_alert_alone_and_its_runbook_shows_the_cause(drill: Drill, what: str) -> None:
    trouble = TROUBLES[what]
    name, severity = trouble.alert, ALERTS[trouble.alert]["labels"]["severity"]
    await drill.quiet(name)
    drill.listen()
    drill.heard.clear()
    drill.is_of_database = what == "a database is slow"
    await trouble.cause(drill)
    try:

        async def fires() -> bool:
            if severity == "info":  # shown on the dashboard, sent to no one
                return name in await drill.firing()
            return any(one == name for _, one in drill.listen())

        try:
            await until(fires, name, FIRES_WITHIN_S, drill.dispatcher)
        except AssertionError as error:
            known = await asyncio.to_thread(query, drill.prometheus, "ALERTS")
            pytest.fail(f"{error}\nheard: {drill.heard}\nalerts: {[one['metric'] for one in known]}")
        world = drill.of_database if drill.is_of_database else drill.world
        ran, without_match = await world.run(name, trouble.placeholders)
        output = "\n".join(f"$ {one.command}\n{one.output}" for one in ran)
        assert [one for one in ran if one.status in NO_SUCH_COMMAND] == [], output
        assert without_match == [], output
        assert [shown for shown in trouble.shows if not re.search(shown, output)] == [], output
        paged = {one for who, one in drill.listen() if who == "pager"}
        assert paged <= {name}, f"a page too many: {drill.heard}, {await drill.story()}"
        assert severity != "critical" or paged == {name}
    finally:
        await trouble.cure(drill)
