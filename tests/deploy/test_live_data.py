"""A dispatcher at work under a real Prometheus: every expression of dashboards and rules gives data or is empty for a
reason, and an alert finds its way through a real Alertmanager.
"""

import asyncio
import re
import subprocess
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from pathlib import Path
from typing import NamedTuple
from zlib import crc32

import aiohttp
import pytest
import yaml
from aiohttp import web

from deploy.dashboards.queries import filled, queries
from tests.conftest import Broker
from tests.deploy.metric_names import RECORDED, selectors_in
from tests.deploy.prometheus import PLACE, answered, broken_rules, free_port, has_data, scraping
from tests.deploy.rendering import only
from tests.deploy.test_rules import ALERTS
from tests.deploy.tools import DEPLOY, debian_tool, run
from tests.integration.harness import Receiver, Stage, slowly, stage, status, tenants, until

OF_THE_CLUSTER = re.compile(r"\b(?:container|kube)_[a-z_]+")
"""The kubelet's and kube-state-metrics' own: no dispatcher has them."""
EMPTY = {
    "Two versions": "there are two only during a rollout",
    "Problems with Kafka": "there are none here",
    "History behind": "no history worker runs here",
    "Webhooks that changed their state": "no history worker runs here",
}
"""Panels and annotations that are rightly empty here, by title."""

pytestmark = pytest.mark.timeout(300)

*TENANTS, SOMEBODY_ELSE = tenants(6)
GOOD, TIRED, BROKEN, REFUSING, GONE = TENANTS


Annotations = dict[str, str]
Notified = asyncio.Queue[tuple[str, str, Annotations]]
"""Receiver, alert and annotations of each notification."""


class Watched(NamedTuple):
    """A Prometheus that watches a dispatcher, and what Alertmanager sends to whom."""

    prometheus: str
    notified: Notified


@pytest.fixture(scope="module")
async def watched(kafka: Broker, tmp_path_factory: pytest.TempPathFactory) -> AsyncIterator[Watched]:
    """Endpoints that fail in every way, unreadable records, a wrong file, and a Prometheus that watches."""
    directory = tmp_path_factory.mktemp("watched")
    (directory / "prometheus").mkdir()
    async with (
        stage(kafka.bootstrap_servers, directory) as scene,
        scene.dispatcher(retry={"soon_attempts": 0}) as dispatcher,
        scene.dispatcher("second", kafka={"group_instance_id": "two"}) as second,
        people(directory) as (alertmanager, notified),
    ):
        _misbehave(scene)
        _mount(scene, number=0)
        url, process = scraping(
            f"127.0.0.1:{dispatcher.ops_port}", directory / "prometheus", alertmanager=alertmanager, at_once=True
        )
        await asyncio.to_thread(answered, f"{url}/-/ready")
        dispatcher.start()
        traffic = asyncio.get_running_loop().create_task(_traffic(scene))
        try:
            await dispatcher.ready()
            await _all_have_data(url, {"the first member's count": "dispatcher_kafka_rebalances_total"})
            second.start()  # another rebalance, seen to be counted
            await second.ready()
            yield Watched(url, notified)
        finally:
            traffic.cancel()
            process.terminate()
            await asyncio.to_thread(process.wait)


def _misbehave(scene: Stage) -> None:
    scene.receiver.behave(f"/{GOOD.org}", slowly(0.05))
    scene.receiver.behave(f"/{TIRED.org}", _sometimes_at_first)
    scene.receiver.behave(f"/{BROKEN.org}", status(500))
    scene.receiver.behave(f"/{REFUSING.org}", status(400))
    scene.receiver.behave(f"/{GONE.org}", status(410))


async def _sometimes_at_first(request: web.Request, receiver: Receiver) -> web.StreamResponse:
    """Refuses the first attempt of every fourth event or so: too few to open a breaker."""
    name = request.headers["webhook-id"]
    if receiver.seen[name] == 1 and crc32(name.encode()) % 4 == 0:
        return web.Response(status=503)
    return receiver.accept(request)


def _mount(scene: Stage, number: int) -> None:
    """Webhooks that differ each time, and now and then a file beside them that is wrong."""
    webhooks = [scene.webhook(tenant) | {"name": f"{tenant.org} {number}"} for tenant in TENANTS]
    scene.mount(webhooks, **({"spoilt": "apiVersion: nonsense\n"} if number % 2 else {}))


async def _traffic(scene: Stage) -> None:
    """A few events each half second, until it is cancelled."""
    for number in range(1000):
        await scene.produce([*TENANTS, SOMEBODY_ELSE], 12, prefix=f"round-{number}")
        await scene.send(b"rubbish")
        if number % 10 == 9:
            _mount(scene, number // 10)
        await asyncio.sleep(0.5)


@asynccontextmanager
async def people(directory: Path) -> AsyncIterator[tuple[str, Notified]]:
    """An Alertmanager with the example's routes, and its receivers: its address, and what they got."""
    notified: Notified = asyncio.Queue()

    async def hear(request: web.Request) -> web.Response:
        for alert in (await request.json())["alerts"]:
            if alert["status"] == "resolved":
                continue
            notified.put_nowait((request.match_info["who"], alert["labels"]["alertname"], alert["annotations"]))
        return web.Response()

    app = web.Application()
    app.router.add_post("/{who}", hear)
    runner = web.AppRunner(app, access_log=None)
    await runner.setup()
    await web.TCPSite(runner, "127.0.0.1", 0).start()
    text = (DEPLOY / "alertmanager" / "example.yaml").read_text()
    text = text.replace("127.0.0.1:9099", f"127.0.0.1:{runner.addresses[0][1]}")
    (directory / "alertmanager.yml").write_text(re.sub(r"(group_wait|group_interval): \S+", r"\1: 1s", text))
    port = free_port()
    command = [
        debian_tool("prometheus-alertmanager"),
        f"--config.file={directory}/alertmanager.yml",
        f"--storage.path={directory}/alertmanager",
        f"--web.listen-address=127.0.0.1:{port}",
        "--cluster.listen-address=",
    ]
    process = subprocess.Popen(command, stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL)  # noqa: ASYNC220
    try:
        yield f"127.0.0.1:{port}", notified
    finally:
        process.terminate()
        await asyncio.to_thread(process.wait)
        await runner.cleanup()


async def _all_have_data(prometheus: str, expressions: dict[str, str]) -> None:
    """Return once each expression, by name, has given data."""
    without = dict(expressions)

    def asked() -> bool:
        for name, expr in list(without.items()):
            if has_data(prometheus, expr):
                del without[name]
        return not without

    try:
        await until(lambda: asyncio.to_thread(asked), "data", 60)
    except AssertionError:
        pytest.fail("no data: " + "\n".join(f"{name}: {expr}" for name, expr in without.items()))


async def test_every_query_of_every_dashboard_has_data(watched: Watched) -> None:
    expressions = {
        f"{one.dashboard} / {one.panel} / {one.legend}": filled(one.expr)
        for one in queries()
        if one.panel not in EMPTY and not OF_THE_CLUSTER.search(one.expr)
    }
    assert len(expressions) > 80
    await _all_have_data(watched.prometheus, expressions)


async def test_panels_listed_as_empty_have_no_data(watched: Watched) -> None:
    excused = [one for one in queries() if one.panel in EMPTY or OF_THE_CLUSTER.search(one.expr)]
    assert {one.panel for one in excused} >= EMPTY.keys()
    for one in excused:
        assert not await asyncio.to_thread(has_data, watched.prometheus, filled(one.expr)), f"{one.panel}: not so empty"


async def test_every_recording_rule_has_data(watched: Watched) -> None:
    await _all_have_data(watched.prometheus, {name: name for name in RECORDED})
    assert await asyncio.to_thread(broken_rules, watched.prometheus) == {}


async def test_the_queries_of_keda_have_data(watched: Watched) -> None:
    triggers = only("keda", "ScaledObject")["spec"]["triggers"]
    asked = {one["name"]: one["metadata"]["query"] for one in triggers if one["type"] == "prometheus"}
    assert asked.keys() == {"oldest-event-age", "slots-in-use"}
    here = 'namespace="messaging", pod=~"feedback-feedback-dispatcher-.*"'
    assert all(here in expr for expr in asked.values())
    there = ", ".join(f'{key}="{value}"' for key, value in PLACE.items())
    await _all_have_data(watched.prometheus, {name: expr.replace(here, there) for name, expr in asked.items()})


async def test_every_alert_looks_at_series_that_there_are(watched: Watched) -> None:
    """An alert's result is empty if all is well; the series it selects must exist, and the alerts it looks at."""
    selectors = {
        f"{name}: {selector}": selector
        for name, alert in ALERTS.items()
        for selector in selectors_in(alert["expr"])
        if not OF_THE_CLUSTER.search(selector)
    }
    of_alerts = {name: selector for name, selector in selectors.items() if selector.startswith("ALERTS{")}
    for name, selector in of_alerts.items():
        assert re.search(r'alertname="(\w+)"', selector)[1] in ALERTS, name  # type: ignore[index]
        del selectors[name]
    assert len(selectors) > 40
    await _all_have_data(watched.prometheus, selectors)


async def test_a_fault_becomes_an_alert_that_reaches_the_rightpeople(watched: Watched) -> None:
    wanted = {"DispatcherDeadLettersOurs", "DispatcherTenantSuspended"}
    heard: dict[str, tuple[str, Annotations]] = {}

    async def listen() -> None:
        while not wanted <= heard.keys():
            who, name, annotations = await watched.notified.get()
            heard[name] = (who, annotations)

    try:
        await asyncio.wait_for(listen(), 60)
    except TimeoutError:
        pytest.fail(f"no notification of {wanted - heard.keys()}, only of {heard.keys()}")
    for name, (who, annotations) in heard.items():
        assert who == {"critical": "pager", "warning": "tickets"}[ALERTS[name]["labels"]["severity"]]
        assert annotations["runbook_url"] == f"docs/runbooks/{name}.md"
    assert all("messaging" in heard[name][1]["description"] for name in wanted)


# The example for Alertmanager


def test_amtool_finds_the_example_sound() -> None:
    done = run(debian_tool("amtool"), "check-config", DEPLOY / "alertmanager" / "example.yaml")
    assert done.returncode == 0, done.stdout + done.stderr


async def test_a_consequence_is_silent_beside_its_cause_and_only_there(tmp_path: Path) -> None:
    def alert(name: str, namespace: str) -> dict[str, Annotations]:
        return {"labels": {"alertname": name, "namespace": namespace, "job": "dispatcher", "severity": "warning"}}

    causes = [
        alert("DispatcherEgressBroken", "here"), alert("DispatcherProduceFailing", "there"),
        alert("DispatcherNoActiveConsumers", "elsewhere"),
    ]  # fmt: skip
    consequences = [alert(name, "here") for name in ("DispatcherBreakerOpenLong", "DispatcherTlsFailing")]
    others = [
        alert("DispatcherBreakerOpenLong", "there"), alert("DispatcherStoreFailing", "here"),
        alert("DispatcherFreshnessBudgetBurnFast", "elsewhere"),  # what has no reader may be a retry topic
    ]  # fmt: skip
    async with people(tmp_path) as (alertmanager, _), aiohttp.ClientSession(f"http://{alertmanager}") as session:
        await asyncio.to_thread(answered, f"http://{alertmanager}/-/ready")
        async with session.post("/api/v2/alerts", json=[*causes, *consequences, *others]) as answer:
            assert answer.status == 200
        async with session.get("/api/v2/alerts") as answer:
            known = await answer.json()
    silent = [one["labels"] for one in known if one["status"]["inhibitedBy"]]
    assert len(known) == len([*causes, *consequences, *others])
    assert len(silent) == len(consequences)
    assert all(one["labels"] in silent for one in consequences)


def test_the_example_names_only_alerts_that_there_are() -> None:
    example = yaml.safe_load((DEPLOY / "alertmanager" / "example.yaml").read_text())
    for rule in example["inhibit_rules"]:
        for matcher in [*rule["source_matchers"], *rule["target_matchers"]]:
            pattern = re.fullmatch(r'alertname(?:=~|=|!=)"(.+)"', matcher)
            assert pattern
            named = [name for name in ALERTS if re.fullmatch(pattern[1], name)]
            assert named, matcher
            for branch in re.findall(r"\w+", pattern[1].replace("Dispatcher", "")):
                assert any(branch in name for name in named), f"{branch} in {matcher}"
