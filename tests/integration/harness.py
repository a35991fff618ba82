"""What a test of the whole program needs: an HTTPS receiver that misbehaves on demand and keeps a ledger, the real
`dispatcher run` as a process, topics, and events whose webhook-ids are known beforehand.
"""

import asyncio
import re
import ssl
import subprocess
import sys
import time
from collections import Counter
from collections.abc import AsyncIterator, Awaitable, Callable, Iterable, Mapping, Sequence
from contextlib import asynccontextmanager, suppress
from copy import deepcopy
from dataclasses import dataclass, field
from datetime import datetime
from pathlib import Path
from types import TracebackType
from typing import Any, Self
from uuid import uuid4

import aiohttp
import orjson
import psutil
import trustme
import yaml
from aiohttp import web
from aiokafka import AIOKafkaProducer
from aiokafka.admin import NewTopic
from aiokafka.errors import for_code

from dispatcher.contract.events import DeliveryEvent, read_event, webhook_id
from dispatcher.contract.records import Origin, RetryState
from dispatcher.contract.tenant import TenantKey
from dispatcher.demo.child_process import free_ports
from dispatcher.kafka.topics import dead_letter_topic, held_topic, retry_topics
from tests.kafka import topics
from tests.stores.kubelet import MountedVolume
from tests.unit.examples import EMAIL_EVENT

Json = dict[str, Any]
Behaviour = Callable[[web.Request, "Receiver"], Awaitable[web.StreamResponse]]
"""How one path answers; the body has been read. What answers 2xx says so to the ledger with `Receiver.accept`."""

TIERS = (1.0, 2.0, 4.0)
LARGEST_RECORD = 2_200_000
RSS_LIMIT = 400 * 1024 * 1024
"""Bytes of a dispatcher under any load here: the interpreter and its libraries alone take about a quarter of it."""

_TEMPLATE = orjson.dumps(EMAIL_EVENT)
_EVENT_ID = EMAIL_EVENT["body"]["xdmEntity"]["_id"].encode()


# Events


def tenants(count: int) -> list[TenantKey]:
    """Returns `count` tenants, always the same ones."""
    return [TenantKey(f"org{number:03}", "prod") for number in range(count)]


def event(tenant: TenantKey, event_id: str) -> bytes:
    """Returns an e-mail bounce of the tenant."""
    return _TEMPLATE.replace(b"myImsOrg", tenant.org.encode()).replace(_EVENT_ID, event_id.encode())


def webhook_id_of(tenant: TenantKey, event_id: str) -> str:
    """Returns the webhook-id of `event(tenant, event_id)`."""
    return webhook_id(tenant, event_id, Origin("", 0, 0))


# Receiving


@dataclass(frozen=True, slots=True)
class Arrived:
    """One request, whatever it was answered."""

    path: str
    headers: Mapping[str, str]
    body: bytes
    at: float


@dataclass(slots=True)
class Sent:
    """One request of an event, in the ledger of `Receiver.of_event`."""

    sender: str
    """The URL's query: tests give each process a webhook with a query of its own."""
    attempt: int
    at: float
    accepted_at: float | None = None
    """Both in seconds of the monotonic clock; None if it was not answered 2xx."""


_SENT = web.RequestKey("sent", Sent)


class Receiver:
    """An HTTPS server. `accepted` counts how often each webhook-id was answered 2xx: the ledger."""

    def __init__(
        self, authority: trustme.CA | None = None, host: str = "localhost", valid_until: datetime | None = None
    ) -> None:
        """Its certificate is for `host`; another authority or host, or a date gone by, makes it a wrong one."""
        self.authority = authority or trustme.CA()
        self._host = host
        self._valid_until = valid_until
        self.accepted: Counter[str] = Counter()
        self.accepted_at: dict[str, float] = {}
        self.seen: Counter[str] = Counter()
        """Requests by webhook-id, whatever they were answered."""
        self.of_event: dict[str, list[Sent]] = {}
        """The same requests one by one, in order."""
        self.requests: list[Arrived] = []
        """The first thousand."""
        self._behaviours: dict[str, Behaviour] = {}
        self._runner: web.AppRunner | None = None
        self.port = 0

    def url(self, path: str) -> str:
        """Returns the URL of a path, which begins with a slash."""
        return f"https://localhost:{self.port}{path}"

    def behave(self, path: str, behaviour: Behaviour | None) -> None:
        """Sets how the path answers from now on; None: it accepts."""
        if behaviour is None:
            self._behaviours.pop(path, None)
        else:
            self._behaviours[path] = behaviour

    def accept(self, request: web.Request) -> web.Response:
        """Answers 200 and records the event in the ledger."""
        name, now = request.headers["webhook-id"], time.monotonic()
        self.accepted[name] += 1
        self.accepted_at.setdefault(name, now)
        request[_SENT].accepted_at = now
        return web.Response()

    def repeats(self) -> int:
        """Acceptances beyond the first of each event."""
        return self.accepted.total() - len(self.accepted)

    def at(self, path: str) -> list[Arrived]:
        """Returns the requests that came to a path."""
        return [one for one in self.requests if one.path == path]

    async def _handle(self, request: web.Request) -> web.StreamResponse:
        body = await request.read()
        name, attempt = request.headers.get("webhook-id", ""), request.headers.get("webhook-attempt", "0")
        self.seen[name] += 1
        request[_SENT] = sent = Sent(request.query_string, int(attempt), time.monotonic())
        self.of_event.setdefault(name, []).append(sent)
        if len(self.requests) < 1000:
            self.requests.append(Arrived(request.path, request.headers.copy(), body, time.monotonic()))
        behaviour = self._behaviours.get(request.path)
        return self.accept(request) if behaviour is None else await behaviour(request, self)

    def _context(self) -> ssl.SSLContext:
        context = ssl.SSLContext(ssl.PROTOCOL_TLS_SERVER)
        self.authority.issue_cert(self._host, not_after=self._valid_until).configure_cert(context)
        return context

    async def __aenter__(self) -> Self:
        app = web.Application()
        app.router.add_post("/{path:.*}", self._handle)
        self._runner = web.AppRunner(app, access_log=None, shutdown_timeout=0.2)
        await self._runner.setup()
        await web.TCPSite(self._runner, "127.0.0.1", 0, ssl_context=self._context(), backlog=1000).start()
        self.port = int(self._runner.addresses[0][1])
        return self

    async def __aexit__(
        self, kind: type[BaseException] | None, error: BaseException | None, traceback: TracebackType | None
    ) -> None:
        if self._runner is not None:
            await self._runner.cleanup()


def at_first(behaviour: Behaviour, times: int = 1) -> Behaviour:
    """Returns a behaviour that misbehaves on the first requests of each event and accepts later ones."""

    async def answer(request: web.Request, receiver: Receiver) -> web.StreamResponse:
        if receiver.seen[request.headers["webhook-id"]] <= times:
            return await behaviour(request, receiver)
        return receiver.accept(request)

    return answer


def status(code: int, **headers: str) -> Behaviour:
    """Answers with a status; `retry_after="1"` is the header Retry-After."""

    async def answer(_request: web.Request, _receiver: Receiver) -> web.StreamResponse:
        return web.Response(status=code, headers={name.replace("_", "-"): value for name, value in headers.items()})

    return answer


def slowly(seconds: float) -> Behaviour:
    """Accepts, after a while."""

    async def answer(request: web.Request, receiver: Receiver) -> web.StreamResponse:
        await asyncio.sleep(seconds)
        return receiver.accept(request)

    return answer


# The program


@dataclass(frozen=True, slots=True)
class Left:
    """Of a process that has nothing to do."""

    tasks: int
    files: int
    """Sockets among them, kept-alive connections too."""


class Dispatcher:
    """`dispatcher run -c` as a process of its own, over any number of starts. Leaving the context kills it."""

    program: tuple[str, ...] = ("-m", "dispatcher")
    """Python's options, before the command."""

    def __init__(self, directory: Path, settings: Mapping[str, Any], *, name: str = "dispatcher") -> None:
        self._directory = directory
        self._name = name
        self.ops_port = free_ports(1)[0]
        self.settings = merged(settings, {"ops": {"host": "127.0.0.1", "port": self.ops_port}})
        self.path = directory / f"{name}.yaml"
        self.path.write_text(yaml.safe_dump(self.settings))
        self._runs = 0
        self._process: subprocess.Popen[bytes] | None = None
        self._watch: asyncio.Task[None] | None = None
        self.peak_rss = 0
        self.left: Left | None = None
        """Known once the context has been left with the process running."""

    @property
    def running(self) -> bool:
        return self._process is not None and self._process.poll() is None

    @property
    def log(self) -> str:
        """Log of the present run, or of the last one."""
        return self.log_path.read_text(errors="replace") if self.log_path.exists() else ""

    @property
    def all_logs(self) -> str:
        """Logs of all runs."""
        return "".join(path.read_text(errors="replace") for path in sorted(self._directory.glob(f"{self._name}.*.log")))

    @property
    def log_path(self) -> Path:
        """File of the present run's log."""
        return self._directory / f"{self._name}.{self._runs:03}.log"

    def start(self) -> None:
        """Starts the process; returns at once."""
        assert not self.running
        self._runs += 1
        with self.log_path.open("wb") as output:
            command = [sys.executable, *self.program, "run", "-c", str(self.path)]
            self._process = subprocess.Popen(command, stdin=subprocess.DEVNULL, stdout=output, stderr=output)
        if self._watch is None:
            self._watch = asyncio.get_running_loop().create_task(self._watch_rss())

    def kill9(self) -> None:
        """Sends SIGKILL and waits until the process is gone."""
        assert self._process is not None
        self._process.kill()
        self._process.wait()

    def sigterm(self) -> None:
        """Sends SIGTERM, which starts the drain."""
        assert self._process is not None
        self._process.terminate()

    async def wait(self, timeout_s: float = 90) -> int:
        """Its exit status."""
        assert self._process is not None
        process = self._process
        await until(lambda: process.poll() is not None, f"the end of {self._name}", timeout_s, self)
        return int(process.returncode)

    async def get(self, path: str) -> tuple[int, str]:
        """Returns status and text of a page of the ops endpoint; status 0 while nothing listens."""
        try:
            async with (
                aiohttp.ClientSession() as session,
                session.get(f"http://127.0.0.1:{self.ops_port}{path}") as answer,
            ):
                return answer.status, await answer.text()
        except (aiohttp.ClientError, OSError):
            return 0, ""

    async def ready(self, timeout_s: float = 90) -> None:
        """Waits until /readyz answers 200."""
        await until(lambda: self.answers("/readyz"), f"{self._name} to be ready", timeout_s, self)

    async def answers(self, path: str) -> bool:
        """Returns True if a page of the ops endpoint answers 200."""
        return (await self.get(path))[0] == 200

    async def in_flight(self) -> int:
        """Returns the number of POSTs in flight now; 0 if the ops endpoint doesn't answer."""
        _, text = await self.get("/metrics")
        found = re.search(r"^dispatcher_deliveries_in_flight (\S+)$", text, re.M)
        return 0 if found is None else int(float(found[1]))

    async def least_left(self, looks: int = 5) -> "Left":
        """Returns the least of several looks: what leaks is there in each, a commit or a reconnect in one of them."""
        found = []
        for _ in range(looks):
            found.append(await self.count_left())
            await asyncio.sleep(0.2)
        return Left(min(one.tasks for one in found), min(one.files for one in found))

    async def count_left(self) -> "Left":
        """Returns what the running process has open and alive once it is idle."""
        values: dict[str, float] = {}

        async def idle() -> bool:
            _, text = await self.get("/metrics")
            values.update((name, float(value)) for name, value in re.findall(r"^(\w+) ([\d.e+]+)$", text, re.M))
            under_way = ("dispatcher_unfinished_records", "dispatcher_deliveries_in_flight")
            return bool(text) and not any(values[name] for name in under_way)

        await until(idle, "nothing under way", 60, self)
        return Left(int(values["dispatcher_asyncio_tasks"]), int(values["process_open_fds"]))

    async def _watch_rss(self) -> None:
        while True:
            if self._process is not None and self.running:
                with suppress(psutil.Error):  # it has just ended
                    self.peak_rss = max(self.peak_rss, psutil.Process(self._process.pid).memory_info().rss)
            await asyncio.sleep(0.25)

    async def __aenter__(self) -> Self:
        return self

    async def __aexit__(
        self, kind: type[BaseException] | None, error: BaseException | None, traceback: TracebackType | None
    ) -> None:
        if self._watch is not None:
            self._watch.cancel()
        if self.running:
            if kind is None:
                self.left = await self.count_left()
            self.kill9()


def merged(base: Mapping[str, Any], more: Mapping[str, Any]) -> Json:
    """Returns `base` with the values of `more`, group by group."""
    result: Json = deepcopy(dict(base))
    for key, value in more.items():
        inner = result.get(key)
        result[key] = merged(inner, value) if isinstance(inner, dict) and isinstance(value, Mapping) else value
    return result


async def until(
    condition: Callable[[], object | Awaitable[object]],
    what: str,
    timeout_s: float = 60,
    dispatcher: Dispatcher | None = None,
) -> None:
    """Waits until the condition, plain or awaitable, holds; fails with the end of the log if it does not in time."""
    give_up_at = time.monotonic() + timeout_s
    while True:
        holds = condition()
        if await holds if isinstance(holds, Awaitable) else holds:
            return
        if time.monotonic() > give_up_at:
            log_end = "" if dispatcher is None else f"\n{dispatcher.log[-6000:]}"
            raise AssertionError(f"waited {timeout_s} s in vain for {what}{log_end}")
        await asyncio.sleep(0.05)


# Everything together


@dataclass
class Stage:
    """Topics, webhooks and a receiver of one test, and the events it has produced."""

    bootstrap_servers: str
    directory: Path
    receiver: Receiver
    topic: str
    volume: MountedVolume
    expected: dict[str, TenantKey] = field(default_factory=dict)
    """Webhook-ids of all good events that were produced."""
    _producer: AIOKafkaProducer | None = None

    @property
    def dead_topic(self) -> str:
        return dead_letter_topic(self.prefix)

    @property
    def prefix(self) -> str:
        """Prefix of the dispatcher's own topics: the group."""
        return group_of(self.topic)

    async def create_topics(self, prefix: str) -> None:
        """Creates the own topics of another group, or of former names."""
        await create_own_topics(self.bootstrap_servers, prefix, 4)

    @property
    def tier_topics(self) -> list[str]:
        return list(retry_topics(group_of(self.topic), TIERS))

    @property
    def group_id(self) -> str:
        return group_of(self.topic)

    @property
    def settings(self) -> Json:
        """Settings that fit a test: short retry delays, everything local."""
        return {
            "apiVersion": "dispatcher/v1",
            "kafka": {
                "bootstrap_servers": self.bootstrap_servers,
                "topic": self.topic,
                "group_id": group_of(self.topic),
                # A restart then needs no rebalance, so that a kill costs no session timeout.
                "group_instance_id": "one",
            },
            "webhooks": {
                "path": str(self.volume.path),
                "reload_interval": "1s",
                "secrets": {"files": [str(self.volume.path), str(self.directory / "webhook-secrets")]},
            },
            # A handshake that a busy machine delays would be an attempt that failed.
            "delivery": {"connect_timeout": "30s"},
            "egress": {"allow": ["127.0.0.0/8", "localhost"], "ca_bundle": str(self.directory / "ca.pem")},
            "retry": {"tiers": [f"{tier:g}s" for tier in TIERS], "max_age": "1h"},
            "log": {"format": "json", "level": "info"},
        }

    def dispatcher(self, name: str = "dispatcher", **changes: Any) -> Dispatcher:
        """Returns a dispatcher of these topics, with changes to the settings by group."""
        return Dispatcher(self.directory, merged(self.settings, changes), name=name)

    def secret(self, name: str, content: bytes) -> Json:
        """Writes a secret file. Returns the reference to it from a webhook."""
        secrets = self.directory / "webhook-secrets"
        secrets.mkdir(exist_ok=True)
        (secrets / name).write_bytes(content)
        return {"file": str(secrets / name)}

    def mount(self, webhooks: Iterable[Mapping[str, Any]], **files: str) -> None:
        """Swaps the mounted webhooks as the kubelet does. `files`: further ones, by name without the ending."""
        text = yaml.safe_dump({"apiVersion": "dispatcher/v1", "webhooks": list(webhooks)})
        self.volume.update({"webhooks.yaml": text} | {f"{name}.yaml": content for name, content in files.items()})

    def webhook(self, tenant: TenantKey, path: str | None = None, **fields: Any) -> Json:
        """Returns a webhook of the tenant; its path is `/org` if none is given."""
        url = self.receiver.url(path or f"/{tenant.org}")
        return {"name": tenant.org, "org": tenant.org, "sandbox": tenant.sandbox, "url": url} | fields

    async def send(
        self,
        value: bytes | None,
        key: bytes | None = None,
        partition: int | None = None,
        topic: str | None = None,
    ) -> Origin:
        """Writes one record, by default to the topic of events. Returns its metadata: partition and offset."""
        written = await (await self.producer()).send_and_wait(topic or self.topic, value, key, partition=partition)
        return Origin(written.topic, written.partition, written.offset)

    async def produce(self, of: Sequence[TenantKey], count: int, prefix: str = "e") -> set[str]:
        """Writes events of the tenants in turn, spread over all partitions, and remembers them. Returns their ids.

        Raises aiokafka's error if one of them is not written: it would look like one that the dispatcher has lost.
        """
        producer, written, ids = await self.producer(), [], set[str]()
        for number in range(count):
            tenant, event_id = of[number % len(of)], f"{prefix}-{number}"
            written.append(await producer.send(self.topic, event(tenant, event_id)))
            ids.add(webhook_id := webhook_id_of(tenant, event_id))
            self.expected[webhook_id] = tenant
        await asyncio.gather(*written)
        return ids

    async def producer(self) -> AIOKafkaProducer:
        """Returns the producer of all tests' records, started."""
        if self._producer is None:
            self._producer = AIOKafkaProducer(
                bootstrap_servers=self.bootstrap_servers,
                max_request_size=LARGEST_RECORD,
                acks="all",  # with fewer, a leader that is killed takes events with it that count as written
                linger_ms=5,
                request_timeout_ms=300_000,  # a broker's restart under load takes longer than the default, 40 s
            )
            await self._producer.start()
        return self._producer

    async def close(self) -> None:
        if self._producer is not None:
            producer, self._producer = self._producer, None
            await producer.stop()

    def missing(self) -> set[str]:
        """Events that no receiver has accepted yet."""
        return self.expected.keys() - self.receiver.accepted.keys()

    async def all_accepted(self, dispatcher: Dispatcher, timeout_s: float = 60) -> None:
        """Waits until the ledger has every event."""
        await until(lambda: not self.missing(), "every event in the ledger", timeout_s, dispatcher)

    async def accepted(self, count: int, dispatcher: Dispatcher, timeout_s: float = 60) -> None:
        """Waits until the ledger has this number of events."""
        await until(lambda: len(self.receiver.accepted) >= count, f"{count} events", timeout_s, dispatcher)

    async def dead(self) -> dict[str, str]:
        """Returns the reason by webhook-id of the good events in the dead-letter topic."""
        found: dict[str, str] = {}
        for record in await topics.read_all(self.bootstrap_servers, self.dead_topic):
            try:
                read = read_event(record, RetryState.of(record).origin)
            except Exception:
                continue
            if isinstance(read, DeliveryEvent):
                found[read.webhook_id] = dict(record.headers)["feedback-reason"].decode()
        return found

    async def lost(self) -> int:
        """Returns the number of good events that neither the ledger nor the dead-letter topic has."""
        return len(self.missing() - (await self.dead()).keys())

    async def committed(self) -> dict[int, int]:
        """Returns the committed offset by partition of the topic of events."""
        found = await topics.committed(self.bootstrap_servers, group_of(self.topic))
        return {tp.partition: state.offset for tp, state in found.items() if tp.topic == self.topic}


@asynccontextmanager
async def stage(
    bootstrap_servers: str, directory: Path, partitions: int = 4, replication: int = 1
) -> AsyncIterator[Stage]:
    """Topics with names of their own, an empty volume of webhooks, and a receiver that accepts everything."""
    topic = f"ev-{uuid4().hex[:8]}"
    async with Receiver() as receiver:
        await create_topics(bootstrap_servers, topic, partitions, replication)
        receiver.authority.cert_pem.write_to_path(str(directory / "ca.pem"))
        made = Stage(bootstrap_servers, directory, receiver, topic, MountedVolume(directory / "webhooks.d"))
        try:
            yield made
        finally:
            await made.close()


def group_of(topic: str) -> str:
    """Returns the consumer group of a stage with this topic of events."""
    return f"group-{topic}"


async def create_topics(bootstrap_servers: str, topic: str, partitions: int, replication: int = 1) -> None:
    """Creates the topic of events, and the tiers and dead letters of its group."""
    await _create(bootstrap_servers, [topic], partitions, replication)
    await create_own_topics(bootstrap_servers, group_of(topic), partitions, replication)


async def create_own_topics(bootstrap_servers: str, prefix: str, partitions: int, replication: int = 1) -> None:
    """Creates the tiers and the dead letters."""
    names = [*retry_topics(prefix, TIERS), held_topic(prefix), dead_letter_topic(prefix)]
    await _create(bootstrap_servers, names, partitions, replication)


async def _create(bootstrap_servers: str, names: Sequence[str], partitions: int, replication: int) -> None:
    config = {"max.message.bytes": str(LARGEST_RECORD)}
    async with topics.admin_client(bootstrap_servers) as admin:
        response = await admin.create_topics(
            [NewTopic(name, partitions, replication, topic_configs=config) for name in names]
        )
    for _, code, message, *_ in response.topic_errors:
        if code:
            raise for_code(code)(message)
