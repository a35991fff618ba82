"""What every scenario uses: a real broker, the receiver, topics full of events, and processes pinned to a core.

The subject (the dispatcher, or a program it is compared with) has one core for itself; broker, receiver and
the benchmark itself share the other. On a machine with one core nothing is pinned, and the figures say so.
"""

import asyncio
import os
import sys
import tempfile
import time
from collections.abc import AsyncIterator, Callable, Mapping, Sequence
from contextlib import asynccontextmanager, suppress
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, Final
from uuid import uuid4

import psutil
import yaml
from aiokafka import AIOKafkaProducer
from aiokafka.admin import NewTopic
from aiokafka.errors import for_code

from benchmarks.events import event
from benchmarks.forms import Form
from benchmarks.nginx import Nginx
from dispatcher.contract.tenant import TenantKey
from dispatcher.demo.child_process import ChildProcess, free_ports
from dispatcher.kafka.topics import dead_letter_topic, held_topic, retry_topics
from tests.integration.harness import merged
from tests.kafka import topics
from tests.kafka.apache_kafka import ApacheKafka
from tests.kafka.server_properties import KafkaOptions

PARTITIONS: Final = 4
TIERS: Final = (1.0, 2.0, 4.0)
BATCH: Final = 200
"""Events of a batch in a preloaded topic."""

Json = dict[str, Any]


@dataclass(frozen=True, slots=True)
class Cores:
    """Which core is whose."""

    subject: int | None
    others: int | None

    @classmethod
    def of_this_machine(cls) -> "Cores":
        allowed = sorted(os.sched_getaffinity(0))
        return cls(allowed[0], allowed[1]) if len(allowed) > 1 else cls(None, None)

    def busy_s(self) -> float:
        """Seconds that processes have kept the subject's core busy since the machine started; 0 if nothing is pinned."""
        if self.subject is None:
            return 0.0
        times = psutil.cpu_times(percpu=True)[self.subject]
        return float(times.user + times.nice + times.system + times.steal)


def pin(pid: int, core: int | None) -> None:
    """Keep a process, with its threads to come, on one core."""
    if core is not None:
        os.sched_setaffinity(pid, {core})


class Subject:
    """A process under measurement, on its own core. Leaving the context ends it."""

    def __init__(self, name: str, command: Sequence[str], rig: "Rig", env: Mapping[str, str] | None = None) -> None:
        self.name = name
        self._rig = rig
        self._log = rig.directory / f"{name}-{uuid4().hex[:6]}.log"
        self._child = ChildProcess(command, log=self._log, env=None if env is None else {**os.environ, **env})
        self.started_at = 0.0

    @property
    def log(self) -> str:
        """The end of what it wrote."""
        return self._child.log_tail()

    @property
    def running(self) -> bool:
        return self._child.running

    @property
    def process(self) -> psutil.Process:
        return psutil.Process(self._child.pid)

    def cpu_s(self) -> float:
        """Processor time used so far, user and system."""
        with suppress(psutil.Error):
            times = self.process.cpu_times()
            return float(times.user + times.system)
        return 0.0

    def rss_mb(self) -> float:
        return float(self.process.memory_info().rss) / 1e6

    def start(self, core: int | None = None) -> None:
        """Start it on the subject's core, or on another one."""
        self.started_at = time.time()
        self._child.start()
        pin(self._child.pid, self._rig.cores.subject if core is None else core)

    async def stop(self) -> None:
        """SIGTERM, and no patience."""
        await self._child.stop(timeout_s=5)

    async def __aenter__(self) -> "Subject":
        return self

    async def __aexit__(self, *_: object) -> None:
        self._child.kill()


@dataclass
class Rig:
    """Everything that runs beside the subject."""

    kafka: ApacheKafka
    receiver: Nginx
    directory: Path
    cores: Cores
    form: Form | None = None
    """How the dispatcher runs if a scenario doesn't say otherwise; None: as this process would run it."""
    _producer: AIOKafkaProducer | None = None
    _webhooks: int = 0
    topics: list[str] = field(default_factory=list)

    @property
    def bootstrap_servers(self) -> str:
        return self.kafka.bootstrap_servers

    @property
    def broker(self) -> psutil.Process:
        """The broker's process."""
        return next(one for one in psutil.Process().children() if one.name() == "java")

    async def topic(self, *, append_time: bool = False) -> str:
        """A new topic of events with its tiers and dead letters. `append_time`: its timestamps are the broker's."""
        name = f"bench-{uuid4().hex[:8]}"
        config = {"message.timestamp.type": "LogAppendTime"} if append_time else {}
        names = [name, *retry_topics(name, TIERS), held_topic(name), dead_letter_topic(name)]
        async with topics.admin_client(self.bootstrap_servers) as admin:
            new = [NewTopic(one, PARTITIONS, 1, topic_configs=config if one == name else {}) for one in names]
            response = await admin.create_topics(new)
        for _, code, message, *_ in response.topic_errors:
            if code:
                raise for_code(code)(message)
        self.topics += names
        return name

    async def delete_topics(self) -> None:
        """Give their disk back."""
        async with topics.admin_client(self.bootstrap_servers) as admin:
            await admin.delete_topics(self.topics)
        self.topics = []

    async def preload(self, topic: str, of: Sequence[TenantKey], count: int, first: int = 0) -> None:
        """Write this number of events by turns of the tenants, in batches, round the partitions."""
        producer = await self.producer()
        made = range(first, first + count)
        for number, start in enumerate(range(0, count, BATCH)):
            batch = producer.create_batch()
            for one in made[start : start + BATCH]:
                added = batch.append(key=None, value=event(of[one % len(of)], one), timestamp=None)
                assert added is not None, "a batch holds fewer events than planned"
            await producer.send_batch(batch, topic, partition=number % PARTITIONS)
        await producer.flush()

    async def producer(self) -> AIOKafkaProducer:
        """One for all."""
        if self._producer is None:
            self._producer = AIOKafkaProducer(
                bootstrap_servers=self.bootstrap_servers, max_batch_size=1 << 20, max_request_size=1 << 23
            )
            await self._producer.start()
        return self._producer

    def webhook(self, tenant: TenantKey, path: str | None = None, **fields: Any) -> Json:
        """A webhook of the tenant at the receiver."""
        url = self.receiver.url(path or f"/{tenant.org}")
        return {"name": tenant.org, "org": tenant.org, "sandbox": tenant.sandbox, "url": url} | fields

    def mount(self, webhooks: Sequence[Json]) -> Path:
        """A directory of webhooks."""
        self._webhooks += 1
        directory = self.directory / f"webhooks-{self._webhooks}"
        directory.mkdir()
        # JSON is YAML too, and many times as fast to write.
        text = yaml.dump({"apiVersion": "dispatcher/v1", "webhooks": list(webhooks)}, Dumper=yaml.CSafeDumper)
        (directory / "webhooks.yaml").write_text(text)
        os.utime(directory / "webhooks.yaml", (0, 0))  # a start waits for files that were written just now
        return directory

    def dispatcher(
        self,
        topic: str,
        webhooks: Path,
        name: str = "dispatcher",
        group: str = "",
        prelude: str = "",
        form: Form | None = None,
        **changes: Any,
    ) -> Subject:
        """`dispatcher run` over the topic, with changes to the settings by group.

        `prelude`: a statement that is run in the process before it, to hold something still that adapts.
        """
        settings = merged(
            {
                "apiVersion": "dispatcher/v1",
                "kafka": {"bootstrap_servers": self.bootstrap_servers, "topic": topic, "topic_prefix": topic, "group_id": group or f"g-{uuid4().hex[:8]}"},
                "webhooks": {"path": str(webhooks), "secrets": {"files": [str(self.directory / "webhook-secrets")]}},
                "egress": {"allow": ["127.0.0.0/8", "localhost"], "ca_bundle": str(self.receiver.ca)},
                "retry": {"tiers": [f"{tier:g}s" for tier in TIERS], "max_age": "1h"},
                "log": {"level": "warning"},
                "ops": {"host": "127.0.0.1", "port": free_ports(1)[0]},
            },
            changes,
        )  # fmt: skip
        path = self.directory / f"{name}-{uuid4().hex[:6]}.yaml"
        path.write_text(yaml.safe_dump(settings))
        form = form or self.form or Form("", sys.executable, Path(__file__).parents[1], "")
        return Subject(name, [*form.command(prelude), "run", "-c", str(path)], self)


@asynccontextmanager
async def rig() -> AsyncIterator[Rig]:
    """Broker and receiver, on the other core with us."""
    cores = Cores.of_this_machine()
    pin(0, cores.others)
    options = KafkaOptions(partitions=PARTITIONS, message_max_bytes=1 << 21, heap_mb=768)
    with tempfile.TemporaryDirectory(prefix="bench-") as name:
        directory = Path(name)
        async with ApacheKafka(options) as kafka, Nginx(directory) as receiver:
            made = Rig(kafka, receiver, directory, cores)
            try:
                yield made
            finally:
                if made._producer is not None:
                    await made._producer.stop()


async def until(
    condition: Callable[[], bool], what: str, subject: Subject, timeout_s: float, every_s: float = 0.05
) -> None:
    """Return when it holds; raise with the end of the subject's log when it does not in time."""
    give_up_at = time.monotonic() + timeout_s
    while not condition():
        if time.monotonic() > give_up_at or not subject.running:
            raise RuntimeError(f"waited in vain for {what}:\n{subject.log}")
        await asyncio.sleep(every_s)
