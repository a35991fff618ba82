"""The runbooks whose alerts the drill does not wait for: their commands run in the trouble and show its cause.

The world is the drill's: one Apache Kafka, its dispatchers, and one more with topics of its own that is restarted, has a
bug, no collector and no history topic. Runs with `make faults` only.
"""

import asyncio
import re
from collections.abc import AsyncIterator, Awaitable, Callable, Mapping
from contextlib import AsyncExitStack
from dataclasses import dataclass, field

import pytest
from aiokafka import TopicPartition
from aiokafka.admin import RecordsToDelete

from dispatcher.demo.child_process import free_ports
from tests.deploy.runbooks import NO_SUCH_COMMAND, World
from tests.deploy.test_drill import EVERYBODY, GROUP, HIT, TOPIC, TROUBLES, Drill, drill, pytestmark
from tests.deploy.test_rules import ALERTS
from tests.field import lost_logs
from tests.integration.brokers import USER
from tests.integration.harness import (
    Dispatcher,
    create_own_topics,
    create_topics,
    event,
    slowly,
    status,
    tenants,
    until,
)
from tests.integration.test_history import Worker
from tests.kafka import topics
from tests.kafka.acls import Operation, Resource

__all__ = ["drill", "pytestmark"]

ODD_TOPIC, ODD_GROUP = "odd-events", "odd"
WITH_A_BUG = """
import dispatcher.flow.fast_path, dispatcher.flow.pipeline as pipeline
from dispatcher.cli import main

decide = pipeline.decide

def with_a_bug(event, webhook):
    if event.tenant.org == "org004":
        raise ZeroDivisionError("a bug of ours")
    return decide(event, webhook)

pipeline.decide = dispatcher.flow.fast_path.decide = with_a_bug
main()
"""
"""The program, with a bug that one tenant's events meet."""


@dataclass
class Scene:
    """The drill's world, and the dispatcher that may be restarted."""

    drill: Drill
    odd: Dispatcher
    collector: int
    """A port on which nothing listens."""
    others: list[Dispatcher | Worker] = field(default_factory=list)
    foreign: AsyncExitStack = field(default_factory=AsyncExitStack)
    """The other program's member of the group."""

    def of(self, one: Dispatcher, **names: str) -> World:
        """The world of a dispatcher, with the log of its present run."""
        main = self.drill.world
        own = main.directory.parent / f"of-{one.path.stem}"
        own.mkdir(exist_ok=True)
        return World(
            directory=own, ops_port=one.ops_port, settings=one.path, log=one.log_path, webhooks=main.webhooks,
            bootstrap_servers=main.bootstrap_servers, endpoint=main.endpoint, names=names,
        )  # fmt: skip

    def of_odd(self) -> World:
        return self.of(
            self.odd, **{TOPIC: ODD_TOPIC, GROUP: ODD_GROUP, "collector:4318": f"127.0.0.1:{self.collector}"}
        )

    async def send_odd(self, count: int, tenant: int = 0) -> None:
        for number in range(count):
            value = event(tenants(5)[tenant], f"odd-{number}")
            await self.drill.scene.send(value, topic=ODD_TOPIC, partition=0)


Step = Callable[[Scene], Awaitable[None]]


@dataclass(frozen=True)
class Case:
    """A trouble, and what the commands of its runbooks show of it."""

    cause: Step
    cure: Step
    shows: Mapping[str, tuple[str, ...]]
    """Patterns in the output, by runbook."""
    world: Callable[[Scene], World] = lambda scene: scene.drill.world
    placeholders: Mapping[str, str] = field(default_factory=dict)


async def _nothing(scene: Scene) -> None:
    del scene


async def _webhooks_as_before(scene: Scene) -> None:
    for tenant in EVERYBODY:
        scene.drill.scene.receiver.behave(f"/{tenant.org}", None)
    scene.drill.mount()


# Kafka


async def _dead_letters_refused(scene: Scene) -> None:
    await topics.delete_topic(scene.drill.broker.bootstrap_servers, f"{GROUP}.dead")
    await scene.drill.scene.send(b"rubbish", partition=3)


async def _dead_letters_taken(scene: Scene) -> None:
    """The runbook of DispatcherProduceFailing has created the topic."""
    servers = scene.drill.broker.bootstrap_servers

    async def taken() -> bool:
        return any((await topics.end_offsets(servers, f"{GROUP}.dead")).values())

    await until(taken, "the dead letter", 90, scene.drill.dispatcher)


async def _commits_refused(scene: Scene) -> None:
    await scene.drill.broker.deny(USER, Operation.READ, GROUP, Resource.GROUP)


async def _commits_taken(scene: Scene) -> None:
    await scene.drill.broker.permit(USER, Operation.READ, GROUP, Resource.GROUP)
    await scene.drill.dispatcher.ready(90)


async def _events_removed(scene: Scene) -> None:
    await _odd_stopped(scene)
    await scene.send_odd(20)
    ends = await topics.end_offsets(scene.drill.broker.bootstrap_servers, ODD_TOPIC)
    async with topics.admin_client(scene.drill.broker.bootstrap_servers) as admin:
        await admin.delete_records({TopicPartition(ODD_TOPIC, 0): RecordsToDelete(before_offset=ends[0])})
    scene.odd.start()


async def _log_lost(scene: Scene) -> None:
    await _odd_committed(scene)
    await lost_logs.lose_disk(scene.drill.broker, ODD_TOPIC)
    await scene.send_odd(5)


async def _odd_stopped(scene: Scene) -> None:
    await _odd_committed(scene)
    scene.odd.sigterm()
    await scene.odd.wait()


async def _odd_committed(scene: Scene) -> None:
    await scene.odd.ready(60)
    await scene.send_odd(20)
    servers = scene.drill.broker.bootstrap_servers
    end = (await topics.end_offsets(servers, ODD_TOPIC))[0]

    async def committed() -> bool:
        found = await topics.committed(servers, ODD_GROUP)
        return TopicPartition(ODD_TOPIC, 0) in found and found[TopicPartition(ODD_TOPIC, 0)].offset >= end

    await until(committed, "the third to have committed", 60, scene.odd)


async def _odd_ready(scene: Scene) -> None:
    await scene.odd.ready(60)


async def _group_taken(scene: Scene) -> None:
    """Another program is in the group while the dispatcher starts."""
    await _odd_stopped(scene)
    await scene.foreign.enter_async_context(
        topics.member_with_another_protocol(scene.drill.broker.bootstrap_servers, ODD_TOPIC, ODD_GROUP)
    )
    scene.odd.start()


async def _group_free(scene: Scene) -> None:
    await scene.foreign.aclose()
    await scene.odd.ready(90)


# The process


async def _much_at_once(scene: Scene) -> None:
    """A bug, no collector, no history topic that takes anything, and one series for all tenants."""
    await scene.odd.ready(60)
    await scene.send_odd(20, tenant=4)
    await scene.send_odd(20)


async def _start_refused(scene: Scene) -> None:
    settings = scene.drill.dispatcher.settings | {"retry": {"tires": ["1s"]}}
    one = Dispatcher(scene.drill.scene.directory, settings, name="broken")
    scene.others.append(one)
    one.start()
    assert await one.wait(120) == 78


def _of_broken(scene: Scene) -> World:
    (one,) = [one for one in scene.others if isinstance(one, Dispatcher)]
    return scene.of(one)


async def _flood(scene: Scene) -> None:
    for tenant in EVERYBODY:
        scene.drill.scene.receiver.behave(f"/{tenant.org}", slowly(2))
    await scene.drill.scene.produce(EVERYBODY, 1500, prefix="lag")


async def _history_not_stored(scene: Scene) -> None:
    directory = scene.drill.scene.directory
    (directory / "no-history-url").write_text(f"sqlite+aiosqlite:///{directory}/nowhere/history.db")
    worker = Worker(scene.drill.scene, {"url": {"file": str(directory / "no-history-url")}})
    scene.others.append(worker)
    worker.start()


def _of_worker(scene: Scene) -> World:
    (worker,) = [one for one in scene.others if isinstance(one, Worker)]
    main = scene.drill.world
    own = main.directory.parent / "of-worker"
    own.mkdir(exist_ok=True)
    return World(
        directory=own, ops_port=worker.ops_port, settings=worker.path, log=worker.log_path, webhooks=main.webhooks,
        bootstrap_servers=main.bootstrap_servers, endpoint=main.endpoint,
    )  # fmt: skip


# Webhooks and endpoints


def _more_webhooks(text: str) -> Step:
    """One more file."""

    async def mount(scene: Scene) -> None:
        stage = scene.drill.scene
        stage.mount([stage.webhook(tenant) for tenant in EVERYBODY], more=text)

    return mount


def _only(count: int) -> Step:
    """Returns a check that at most this number of webhooks is in use."""

    async def mount(scene: Scene) -> None:
        stage = scene.drill.scene
        stage.mount([stage.webhook(tenant) for tenant in EVERYBODY[:count]])

    return mount


async def _endpoint_gone(scene: Scene) -> None:
    scene.drill.scene.receiver.behave(f"/{HIT.org}", status(410))


async def _endpoint_down(scene: Scene) -> None:
    scene.drill.mount(url=f"https://localhost:{scene.collector}/")


async def _no_token(scene: Scene) -> None:
    secret = scene.drill.scene.secret("client-secret", b"secret")
    fetch = {
        "grant": "client-credentials", "token_url": f"https://localhost:{scene.collector}/token", "client_id": "a",
        "client_secret": secret,
    }  # fmt: skip
    scene.drill.mount(auth={"type": "jwt", "fetch": fetch})


async def _no_names(scene: Scene) -> None:
    stage = scene.drill.scene
    stage.mount([stage.webhook(tenant) | {"url": "https://nowhere.invalid/"} for tenant in EVERYBODY])


UNUSABLE = """
apiVersion: dispatcher/v1
webhooks:
  - {name: New, org: new@AdobeOrg, sandbox: prod, url: 'https://localhost/', channels: [pigeon]}
"""
KEPT = r"record kept for another try"
REFUSED = rf"{GROUP}\.dead: \w+"

CASES = {
    "dead letters can't be written": Case(
        _dead_letters_refused, _dead_letters_taken,
        {
            "DispatcherPartitionStuck": (KEPT, rf'"place":"{TOPIC}/3/\d+"'),
            "DispatcherConsumerStalled": (KEPT, REFUSED),
            "DispatcherFreshnessBudgetBurnFast": (KEPT, REFUSED),
            "DispatcherFreshnessBudgetBurnSlow": (r"topic_missing",),
            "DispatcherProduceFailing": (KEPT, REFUSED, rf"{GROUP}\.dead: created"),
        },
        placeholders={"<pod>": "dispatcher-0", "<offset>": "0", "<one of them>": "dispatcher-0"},
    ),
    "commits are refused": Case(
        _commits_refused, _commits_taken,
        {
            "DispatcherCommitFailing": (r"permission_missing|commit_refused", r"Stable|Empty|PreparingRebalance"),
        },
    ),
    "events were removed": Case(
        _events_removed, _odd_ready,
        {"DispatcherRecordsRemovedUnread": ("removed from a partition before they were read", r"retention\.ms", ODD_TOPIC)},
        world=Scene.of_odd,
    ),
    "a log is lost": Case(
        _log_lost, _odd_ready,
        {"DispatcherLogReset": ("not the one that was read before", rf"Topic: {ODD_TOPIC}", rf"{ODD_TOPIC}:0:0")},
        world=Scene.of_odd,
    ),
    "another program is in the group": Case(
        _group_taken, _group_free,
        {"DispatcherNoActiveConsumers": (r'dispatcher_kafka_assigned_partitions\{topic="odd', r"kafka: group_protocol", r"aiokafka-")},
        world=Scene.of_odd,
    ),
    "a bug, no collector, no history": Case(
        _much_at_once, _nothing,
        {
            "DispatcherInternalErrors": (r"Traceback", r"ZeroDivisionError|record dies because of a bug"),
            "DispatcherTracingDropping": ("the collector takes no spans", r'spans_dropped_total\{reason="not_taken"\} [1-9]', r"refused"),
            "DispatcherHistoryLosing": (r"history is not written", r'dispatcher_history_lost_total\{reason="not_written"\} [1-9]'),
            "DispatcherKafkaProblem": (r'dispatcher_kafka_problem\{reason="topic_configuration"\} 1', r"odd\.history"),
            "DispatcherTenantSeriesCollapsed": (r'"org": "org000"',),
        },
        world=Scene.of_odd, placeholders={"<chart>": "."},
    ),
    "the start is refused": Case(
        _start_refused, _nothing,
        {
            "DispatcherAbsent": (r"retry\.tires", r"did you mean .*tiers"),
            "DispatcherPodRestarting": (r"retry\.tires", r"Last State"),
            "DispatcherTargetDown": (),
        },
        world=_of_broken, placeholders={"<pod>": "dispatcher-0"},
    ),
    "history has no store": Case(
        _history_not_stored, _nothing,
        {
            "DispatcherHistoryNotStored": (r"history store can't be prepared|history is not stored",),
            "DispatcherHistoryWorkerGone": (r"history store can't be prepared|history is not stored",),
        },
        world=_of_worker,
    ),
    "a new webhook is wrong": Case(
        _more_webhooks(UNUSABLE), _webhooks_as_before, {"DispatcherWebhookUnusable": (r"more\.yaml:4: .*must be one of email, sms",)},
    ),
    "a new file isn't YAML": Case(
        _more_webhooks("webhooks: [ {"), _webhooks_as_before,
        {"DispatcherConfigIncomplete": (r"more\.yaml:1",), "DispatcherConfigDrift": (r"\b[0-9a-f]{64}\b",)},
        placeholders={"<pod>": "dispatcher-0"},
    ),
    "webhooks are gone": Case(_only(1), _webhooks_as_before, {"DispatcherWebhooksVanished": (r"\b1 webhooks?\b",)}),
    "no webhook is left": Case(_only(0), _webhooks_as_before, {"DispatcherNoWebhooks": (r"\b0 webhooks\b|no webhook",)}),
    "an endpoint is gone": Case(
        _endpoint_gone, _webhooks_as_before,
        {"DispatcherTenantSuspended": (r'"state": "unstable"', r'"suspended": true', rf'"org": "{HIT.org}"', r'"state": "active"')},
        placeholders={"<org>/<sandbox>": f"{HIT.org}/{HIT.sandbox}", "<pod>": "dispatcher-0"},
    ),
    "no token can be fetched": Case(
        _no_token, _webhooks_as_before, {"DispatcherTokenFailing": (rf"{HIT.org}", r"token", r"UTC")},
    ),
    "no name is found": Case(
        _no_names, _webhooks_as_before,
        {"DispatcherEgressBroken": (r'dispatcher_tenants_failing\{reason="dns"\} [1-9]', r'"last_failure": "dns"')},
    ),
    "an endpoint is down": Case(
        _endpoint_down, _webhooks_as_before,
        {
            "DispatcherDeliveryBudgetBurnFast": (rf'"org": "{HIT.org}"', r'"last_failure": "connect_refused"'),
            "DispatcherDeliveryBudgetBurnSlow": (rf'"org": "{HIT.org}"', rf"{GROUP}\.dead"),
        },
    ),
    "a flood": Case(
        _flood, _webhooks_as_before,
        {
            "DispatcherEventLoopLag": (), "DispatcherMemoryNearLimit": (), "DispatcherRebalancing": (rf"^{GROUP}\s.*",),
            "DispatcherLagGrowing": (r'"in_flight": [1-9]',),
        },
        placeholders={"<chart>": "."},
    ),
}  # fmt: skip
RUNBOOKS = [(what, name) for what, case in CASES.items() for name in case.shows]
ELSEWHERE = {"DispatcherHistoryUnreadable", "DispatcherNotificationsFailing"}
"""Run in tests/integration/test_history.py, beside records of a later version and a mail server that refuses an address."""


def test_every_runbook_is_run_in_its_trouble() -> None:
    names = [name for _, name in RUNBOOKS]
    assert sorted(names) == sorted(set(names))
    assert {*names, *ELSEWHERE, *(trouble.alert for trouble in TROUBLES.values())} == ALERTS.keys()


@pytest.fixture(scope="module")
async def scene(drill: Drill) -> AsyncIterator[Scene]:
    """The third dispatcher runs, and nothing is wrong but what it was born with."""
    stage, (collector,) = drill.scene, free_ports(1)
    await create_topics(stage.bootstrap_servers, ODD_TOPIC, 4)
    await create_own_topics(stage.bootstrap_servers, ODD_GROUP, 4)
    settings = stage.settings | {
        "tracing": {"enabled": True, "endpoint": f"http://127.0.0.1:{collector}", "sample_ratio": 1},
        "history": {"store": "none"},
        "metrics": {"max_tenant_series": 1},
    }
    settings["kafka"] |= {"topic": ODD_TOPIC, "group_id": ODD_GROUP}
    del settings["kafka"]["group_instance_id"]  # it leaves the group when it stops
    made = Scene(drill, Dispatcher(stage.directory, settings, name="odd"), collector)
    made.odd.program = ("-c", WITH_A_BUG)
    made.odd.start()
    try:
        yield made
    finally:
        for one in (made.odd, *made.others):
            if isinstance(one, Worker) or one.running:
                one.kill9()


@pytest.mark.all_faults
@pytest.mark.parametrize("what", CASES)
async def test_the_commands_of_a_runbook_show_the_cause(scene: Scene, what: str) -> None:
    case = CASES[what]
    await case.cause(scene)
    try:
        for name, shows in case.shows.items():
            await _shown(scene, case, name, shows)
    finally:
        await case.cure(scene)


async def _shown(scene: Scene, case: Case, name: str, shows: tuple[str, ...]) -> None:
    """Runs the commands until they show the cause: the dispatcher needs a while to notice it."""
    give_up_at = asyncio.get_running_loop().time() + 150
    while True:
        ran, without_match = await case.world(scene).run(name, case.placeholders)
        output = "\n".join(f"$ {one.command}\n{one.output}" for one in ran)
        wrong = [one.command for one in ran if one.status in NO_SUCH_COMMAND]
        missing = [one for one in shows if not re.search(one, output, re.MULTILINE)]
        assert wrong == [], output
        if not missing and not (without_match and shows):
            return
        assert asyncio.get_running_loop().time() < give_up_at, f"{name}: {missing}, no match: {without_match}\n{output}"
        await asyncio.sleep(2)
