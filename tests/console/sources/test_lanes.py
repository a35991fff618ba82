"""The state of lanes, from ops endpoints that answer, lie, hang and go."""

import asyncio
from collections.abc import AsyncIterator, Awaitable, Callable
from contextlib import asynccontextmanager
from pathlib import Path
from typing import Any

import pytest
import trustme
from aiohttp import web

from dispatcher.cli.ops_client import ask
from dispatcher.config.console_settings import ConsoleSettings
from dispatcher.config.ops_tls import OpsTls
from dispatcher.config.secrets import Secret
from dispatcher.config.settings import DeliverySettings, OpsSettings
from dispatcher.console.sources import lanes as module
from dispatcher.console.sources.lanes import RunningLanes, worst
from dispatcher.contract.tenant import TenantKey
from dispatcher.delivery.lane_scheduler import LaneScheduler
from dispatcher.errors import DispatcherError
from dispatcher.health import HealthServer, OpsCallbacks

LUMA = TenantKey("luma/æ@AdobeOrg", "prod")
LANE = {
    "org": LUMA.org, "sandbox": LUMA.sandbox, "state": "active", "breaker": "closed", "breaker_retry_in_s": 0.0,
    "suspended": False, "held_for_s": 0.0, "concurrency_limit": 16, "in_flight": 2, "waiting": 3,
    "usual_latency_s": 0.05,
}  # fmt: skip


class Clock:
    now = 100.0

    def __call__(self) -> float:
        return self.now


@asynccontextmanager
async def listening(answer: Callable[[], Awaitable[web.Response]]) -> AsyncIterator[str]:
    """An ops endpoint that answers so."""
    app = web.Application()

    async def handle(_: web.Request) -> web.Response:
        return await answer()

    app.router.add_route("*", "/{path:.*}", handle)
    runner = web.AppRunner(app, access_log=None, shutdown_timeout=0.1)
    await runner.setup()
    await web.TCPSite(runner, "127.0.0.1", 0).start()
    try:
        yield f"http://127.0.0.1:{runner.addresses[0][1]}"
    finally:
        await runner.cleanup()


def saying(**changes: Any) -> Callable[[], Awaitable[web.Response]]:
    async def answer() -> web.Response:
        return web.json_response(LANE | changes)

    return answer


def settings(*urls: str) -> ConsoleSettings:
    return ConsoleSettings(dispatchers=urls)


async def test_the_worst_of_all_dispatchers_is_shown() -> None:
    async with (
        listening(saying()) as one,
        listening(saying(state="disabled", breaker="half_open", in_flight=5, concurrency_limit=1)) as two,
        listening(saying(state="unstable", breaker="open", breaker_retry_in_s=7.5, suspended=True)) as three,
        RunningLanes(settings(one, two, three)) as lanes,
    ):
        lane = await lanes.of(LUMA)
    assert lane is not None
    assert (lane.state, lane.breaker, lane.breaker_retry_in_s, lane.suspended) == ("disabled", "open", 7.5, True)
    assert (lane.in_flight, lane.waiting, lane.concurrency_limit, lane.instances) == (9, 9, 1, 3)


async def test_each_address_behind_a_name_is_a_dispatcher(monkeypatch: pytest.MonkeyPatch) -> None:
    """As behind a headless Service. The request still names the host."""
    hosts: list[str] = []

    async def handle(request: web.Request) -> web.Response:
        hosts.append(request.host)
        return web.json_response(LANE)

    app = web.Application()
    app.router.add_get("/lanes/{org}/{sandbox}", handle)
    runner = web.AppRunner(app, access_log=None)
    await runner.setup()
    await web.TCPSite(runner, "127.0.0.1", 0).start()
    port = int(runner.addresses[0][1])
    await web.TCPSite(runner, "127.0.0.2", port).start()
    loop = asyncio.get_running_loop()
    asked = 0

    async def getaddrinfo(host: str, port: int, **_: object) -> list[tuple[object, ...]]:
        nonlocal asked
        asked += 1
        assert host == "dispatcher-ops"
        return [(2, 1, 6, "", (address, port)) for address in ("127.0.0.1", "127.0.0.2", "127.0.0.2")]

    monkeypatch.setattr(type(loop), "getaddrinfo", lambda _, *args, **kwargs: getaddrinfo(*args, **kwargs))
    clock = Clock()
    async with RunningLanes(settings(f"http://dispatcher-ops:{port}/"), clock) as lanes:
        lane = await lanes.of(LUMA)
        clock.now += 5
        await lanes.of(LUMA)
    await runner.cleanup()
    assert lane is not None
    assert (lane.instances, lane.waiting) == (2, 6)
    assert (asked, set(hosts)) == (1, {"dispatcher-ops"})


@pytest.mark.parametrize(
    "answer", [web.Response(text="<html>"), web.json_response([]), web.json_response(LANE | {"state": "odd"}),
               web.json_response({"state": "active"}), web.Response(status=500), web.Response(status=404),
               web.Response(status=302, headers={"location": "http://127.0.0.1:1/"})],
)  # fmt: skip
async def test_a_dispatcher_that_does_not_answer_is_left_out(answer: web.Response) -> None:
    async def give() -> web.Response:
        return web.Response(status=answer.status, body=answer.body, headers=answer.headers)

    async with listening(give) as odd, listening(saying()) as good:
        async with RunningLanes(settings(odd, "http://127.0.0.1:1", "http://nobody.invalid:1", good)) as lanes:
            lane = await lanes.of(LUMA)
            assert lane is not None
            assert lane.instances == 1
        async with RunningLanes(settings(odd)) as lanes:
            assert await lanes.of(LUMA) is None
    async with RunningLanes(settings()) as lanes:
        assert await lanes.of(LUMA) is None


async def test_a_dispatcher_that_hangs_is_not_waited_for(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(module, "WITHIN_S", 3.0)

    async def hang() -> web.Response:
        await asyncio.sleep(300)
        return web.Response()

    async with (
        listening(hang) as hanging,
        listening(saying()) as good,
        RunningLanes(settings(hanging, good)) as lanes,
        asyncio.timeout(60),
    ):
        lane = await lanes.of(LUMA)
    assert lane is not None
    assert lane.instances == 1


async def test_many_callers_cause_one_request_in_two_seconds() -> None:
    requests, clock = 0, Clock()

    async def count() -> web.Response:
        nonlocal requests
        requests += 1
        await asyncio.sleep(0.01)
        return web.json_response(LANE)

    async with listening(count) as url, RunningLanes(settings(url), clock) as lanes:
        given_up = asyncio.create_task(lanes.of(LUMA))
        await asyncio.sleep(0)
        given_up.cancel()
        await asyncio.gather(*(lanes.of(LUMA) for _ in range(50)))
        assert requests == 1
        clock.now += 1.9
        await lanes.of(LUMA)
        assert requests == 1
        clock.now += 0.2
        await lanes.of(LUMA)
        assert requests == 2
        await lanes.of(TenantKey("another", "prod"))
        assert requests == 3


async def test_a_real_dispatchers_lane_is_read_and_enabled() -> None:
    """On this host; from elsewhere the ops endpoint refuses, which doesn't count as an error."""
    theirs = LaneScheduler(DeliverySettings())
    callbacks = OpsCallbacks(list, list, lambda: None, theirs, lambda: 0, {})
    clock = Clock()
    async with (
        HealthServer(OpsSettings(host="127.0.0.1", port=0), callbacks) as server,
        RunningLanes(settings(f"http://127.0.0.1:{server.port}"), clock) as lanes,
    ):
        assert await lanes.of(LUMA) is None
        theirs.lane(LUMA).suspend()
        clock.now += 3
        lane = await lanes.of(LUMA)
        assert lane is not None
        assert (lane.state, lane.suspended, lane.instances) == ("unstable", True, 1)
        await lanes.enable(LUMA)
        lane = await lanes.of(LUMA)
        assert lane is not None
        assert not lane.suspended
        await lanes.enable(TenantKey("nobody", "prod"))
    async with RunningLanes(settings("http://127.0.0.1:1")) as lanes:
        await lanes.enable(LUMA)


def test_there_is_no_worst_lane_without_lanes() -> None:
    assert worst([]) is None


async def test_the_ops_ports_token_is_sent_as_its_file_has_it_now(tmp_path: Path) -> None:
    """Dispatchers accept a rotated token at once. A file that is empty for a moment changes nothing."""
    shown: list[str | None] = []

    async def handle(request: web.Request) -> web.Response:
        shown.append(request.headers.get("authorization"))
        return web.json_response(LANE)

    app = web.Application()
    app.router.add_get("/lanes/{org}/{sandbox}", handle)
    runner = web.AppRunner(app, access_log=None)
    await runner.setup()
    await web.TCPSite(runner, "127.0.0.1", 0).start()
    file, clock = tmp_path / "token", Clock()
    try:
        url = f"http://127.0.0.1:{runner.addresses[0][1]}"
        async with RunningLanes(settings(url), clock, token=Secret(b"the token", file=file)) as lanes:
            for content in ("the token\n", "rotated\n", ""):
                file.write_text(content)
                assert await lanes.of(LUMA) is not None
                clock.now += 3
    finally:
        await runner.cleanup()
    assert shown == ["Bearer the token", "Bearer rotated", "Bearer rotated"]


async def test_lanes_are_read_over_tls_by_the_authority_and_the_name_of_the_settings(tmp_path: Path) -> None:
    """The certificate has a name of its own: pods are reached by their addresses."""
    authority = trustme.CA()
    leaf = authority.issue_cert("dispatcher.example")
    authority.cert_pem.write_to_path(tmp_path / "ca.pem")
    trustme.CA().cert_pem.write_to_path(tmp_path / "other.pem")
    leaf.cert_chain_pems[0].write_to_path(tmp_path / "tls.crt")
    leaf.private_key_pem.write_to_path(tmp_path / "tls.key")
    tls = OpsTls(
        certificate=tmp_path / "tls.crt", key=tmp_path / "tls.key",
        ca=tmp_path / "ca.pem", server_name="dispatcher.example",
    )  # fmt: skip
    theirs = LaneScheduler(DeliverySettings())
    theirs.lane(LUMA)
    callbacks = OpsCallbacks(list, list, lambda: None, theirs, lambda: 0, {})
    wrong = (None, {"ca": None}, {"server_name": None}, {"ca": tmp_path / "other.pem"}, {"ca": tmp_path / "absent"})
    async with HealthServer(OpsSettings(host="127.0.0.1", port=0, tls=tls), callbacks) as server:
        url = f"https://127.0.0.1:{server.port}"
        async with RunningLanes(settings(url), tls=tls) as lanes:
            assert await lanes.of(LUMA) is not None
            assert lanes.is_answering
        async with RunningLanes(ConsoleSettings(), tls=tls) as lanes:
            assert await lanes.of(LUMA) is None
            assert lanes.is_answering is None  # there is none to ask
        for change in wrong:
            client = None if change is None else tls.model_copy(update=change)
            async with RunningLanes(settings(url), tls=client) as lanes:
                assert await lanes.of(LUMA) is None
                assert lanes.is_answering is False
        ops = OpsSettings(tls=tls)
        assert await ask(url, "/livez", ops) == (200, {"ok": True, "checks": {}})
        assert (await ask(url, "/lanes/nobody/prod", ops))[0] == 404
        for change in wrong:
            other = None if change is None else OpsSettings(tls=tls.model_copy(update=change))
            with pytest.raises(DispatcherError) as caught:
                await ask(url, "/livez", other)
            assert "does not answer /livez" in str(caught.value)
        with pytest.raises(DispatcherError, match=r"set ops\.tls\.ca and ops\.tls\.server_name"):
            await ask(url, "/livez")
        with pytest.raises(DispatcherError, match="is it https with ops"):
            await ask(url.replace("https", "http"), "/livez")
