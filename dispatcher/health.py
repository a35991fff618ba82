"""The operators' endpoint, on a port of its own: /livez, /readyz, /metrics, and the state of lanes.

Liveness asks only for our own progress: a broker or a tenant that is away never restarts the process. Readiness says
whether events flow, with the reasons why not. Nothing here holds a secret or an address.
"""

import asyncio
import hmac
import time
from collections.abc import Awaitable, Callable, Mapping, Sequence
from dataclasses import dataclass
from datetime import UTC, datetime
from types import TracebackType
from typing import Self

import structlog
from aiohttp import web
from prometheus_client import CONTENT_TYPE_LATEST, REGISTRY, generate_latest
from prometheus_client.openmetrics import exposition as openmetrics

from dispatcher import __version__
from dispatcher.config.secrets import RotatingSecret
from dispatcher.config.settings import OpsSettings
from dispatcher.contract.tenant import TenantKey
from dispatcher.delivery.breaker import BreakerState
from dispatcher.delivery.endpoint_health import TenantState
from dispatcher.delivery.lane_scheduler import Lane, LaneScheduler
from dispatcher.listener import Listener
from dispatcher.server_certificate import ServerCertificate
from dispatcher.telemetry import metrics

log = structlog.get_logger(__name__)

Handler = Callable[[web.Request], Awaitable[web.StreamResponse]]

STUCK_S = 120.0
"""Time without a turn of the poll loop after which the process counts as stuck."""
_METRICS_FRESH_S = 1.0
_BY_HAND = "use kubectl exec or port-forward"
SUSPENDED = "suspended"
LANE_STATES = (*TenantState, *BreakerState, SUSPENDED)
"""Values of the parameter `state` of `/lanes`."""
MAX_LANES = 1000
"""Lanes that `/lanes` describes; the rest are only counted."""


@dataclass(frozen=True, slots=True)
class HealthCheck:
    """One condition of liveness or readiness."""

    name: str
    ok: bool
    reason: str = ""
    required: bool = True
    """False: reported, but no reason for a 503."""


@dataclass(frozen=True, slots=True)
class OpsCallbacks:
    """The parts and functions of a process that its ops port shows and calls."""

    alive: Callable[[], Sequence[HealthCheck]]
    ready: Callable[[], Sequence[HealthCheck]]
    observe: Callable[[], None]
    """Sets the gauges that are only worth their time for a scrape."""
    lanes: LaneScheduler
    release_brakes: Callable[[], int]
    configuration: Mapping[str, object]
    """The settings in force, secrets masked."""


def state_of(lane: Lane) -> TenantState:
    """Returns the state of a lane as it is shown.

    A tenant whose endpoint gets nothing is never shown as active: not if it is suspended, and not if every attempt
    fails in a way that proves nothing against the endpoint.
    """
    endpoint = lane.endpoint
    is_failing = endpoint.is_failing or endpoint.suspended
    return TenantState.UNSTABLE if is_failing and endpoint.health.state is TenantState.ACTIVE else endpoint.health.state


def _states_of(lane: Lane) -> tuple[str, ...]:
    states = (state_of(lane), lane.endpoint.breaker.state)
    return (*states, SUSPENDED) if lane.endpoint.suspended else states


def _place_in_list(lane: Lane) -> tuple[bool, bool, bool, str]:
    """Returns the key by which lanes are sorted: those with problems come first."""
    endpoint = lane.endpoint
    is_active, is_closed = state_of(lane) is TenantState.ACTIVE, endpoint.breaker.state is BreakerState.CLOSED
    return not endpoint.suspended, is_active, is_closed, lane.tenant.org


def describe_lane(lane: Lane, now: float) -> dict[str, object]:
    """Describes a lane, for `/lanes` and `dispatcher explain`."""
    failure = lane.endpoint.last_failure

    def at(moment: float | None) -> str | None:
        if moment is None:
            return None
        return datetime.fromtimestamp(time.time() - (now - moment), UTC).isoformat(timespec="seconds")

    return {
        "org": lane.tenant.org,
        "sandbox": lane.tenant.sandbox,
        "state": state_of(lane).value,
        "breaker": lane.endpoint.breaker.state.value,
        "breaker_retry_in_s": round(lane.endpoint.breaker.retry_in_s(now), 1),
        "suspended": lane.endpoint.suspended,
        "held_for_s": round(max(0.0, lane.endpoint.paused_until - now), 1),
        "concurrency_limit": lane.endpoint.limit.now,
        "in_flight": lane.in_flight,
        "waiting": lane.waiting,
        "usual_latency_s": round(lane.endpoint.limit.usual_s, 4),
        "failures_in_a_row": lane.endpoint.failures_in_a_row,
        "last_failure": None if failure is None else failure.reason,
        "last_status": None if failure is None else failure.status,
        "last_failure_detail": None if failure is None else failure.detail,
        "last_failure_at": None if failure is None else at(failure.at),
        "last_success_at": at(lane.endpoint.last_success),
    }


class HealthServer:
    """The HTTP server of the ops port. Entering the context starts it."""

    def __init__(self, settings: OpsSettings, callbacks: OpsCallbacks) -> None:
        self._settings = settings
        self._callbacks = callbacks
        self._listener: Listener | None = None
        self._rendered: dict[bool, tuple[float, bytes]] = {}
        self._token = None if settings.token is None else RotatingSecret(settings.token, "ops.token")
        self.port = settings.port
        """The port in use, once started."""

    async def __aenter__(self) -> Self:
        """Starts to listen.

        Raises:
            ConfigError: the certificate of `ops.tls` can't be used.
            DispatcherError: the address or port can't be used.
        """
        app = web.Application(middlewares=[self._guard])
        app.router.add_get("/", self._index)
        app.router.add_get("/livez", self._livez)
        app.router.add_get("/readyz", self._readyz)
        app.router.add_get("/metrics", self._metrics)
        app.router.add_get("/configz", self._configz)
        app.router.add_get("/lanes", self._lanes)
        app.router.add_get("/lanes/{org}/{sandbox}", self._lane)
        app.router.add_post("/lanes/{org}/{sandbox}/enable", self._enable)
        app.router.add_post("/brakes/release", self._release)
        settings = self._settings
        certificate = None if settings.tls is None else ServerCertificate(settings.tls)
        self._listener = Listener(app, setting="ops", host=settings.host, port=settings.port, certificate=certificate)
        await self._listener.__aenter__()
        self.port = self._listener.port
        log.info(
            "ops endpoint listens",
            host=settings.host or "all addresses",
            port=self.port,
            scheme="http" if certificate is None else "https",
        )
        return self

    async def __aexit__(
        self, kind: type[BaseException] | None, error: BaseException | None, traceback: TracebackType | None
    ) -> None:
        if self._listener is not None:
            await self._listener.__aexit__(kind, error, traceback)

    @web.middleware
    async def _guard(self, request: web.Request, handler: Handler) -> web.StreamResponse:
        """Requires the token in requests from other hosts for everything that concerns tenants and settings."""
        token = self._token
        closed = ("/lanes", "/configz") if token is None else ("/lanes", "/configz", "/metrics")
        if request.path.startswith(closed) and not _is_own_host(request):
            if token is None:
                raise web.HTTPForbidden(text=f"{request.path} is closed to other hosts: set ops.token, or {_BY_HAND}\n")
            if not await _is_token(request.headers.get("Authorization", ""), token):
                raise web.HTTPUnauthorized(
                    text="the bearer token of ops.token is needed\n", headers={"WWW-Authenticate": "Bearer"}
                )
        return await handler(request)

    async def _index(self, _request: web.Request) -> web.Response:
        paths = ["/livez", "/readyz", "/metrics", "/configz", "/lanes", "/lanes/{org}/{sandbox}"]
        return web.json_response({"name": "feedback-dispatcher", "version": __version__, "paths": paths})

    async def _livez(self, _request: web.Request) -> web.Response:
        return probe_response(self._callbacks.alive())

    async def _readyz(self, _request: web.Request) -> web.Response:
        return probe_response(self._callbacks.ready())

    async def _metrics(self, request: web.Request) -> web.Response:
        # Only OpenMetrics has exemplars; Prometheus requests it, curl doesn't.
        exemplars = "application/openmetrics-text" in request.headers.get("Accept", "")
        rendered_at, text = self._rendered.get(exemplars, (0.0, b""))
        if not text or time.monotonic() - rendered_at > _METRICS_FRESH_S:
            self._callbacks.observe()
            render = openmetrics.generate_latest if exemplars else generate_latest
            text = await asyncio.to_thread(render, REGISTRY)  # off the loop: rendering takes milliseconds
            self._rendered[exemplars] = (time.monotonic(), text)
        kind = openmetrics.CONTENT_TYPE_LATEST if exemplars else CONTENT_TYPE_LATEST
        return web.Response(body=text, headers={"Content-Type": kind, "Vary": "Accept"})

    async def _configz(self, _request: web.Request) -> web.Response:
        return web.json_response(self._callbacks.configuration)

    async def _lanes(self, request: web.Request) -> web.Response:
        now = self._callbacks.lanes.now()
        wanted = request.query.get("state")
        if wanted is not None and wanted not in LANE_STATES:
            raise web.HTTPBadRequest(text=f"no such state; there are {', '.join(LANE_STATES)}\n")
        lanes = [lane for lane in self._callbacks.lanes if wanted is None or wanted in _states_of(lane)]
        lanes.sort(key=_place_in_list)
        described = [describe_lane(lane, now) for lane in lanes[:MAX_LANES]]  # thousands would hold up the event loop
        return web.json_response({"total": len(lanes), "lanes": described})

    def _found(self, request: web.Request) -> Lane:
        tenant = TenantKey(request.match_info["org"], request.match_info["sandbox"])
        lane = self._callbacks.lanes.get(tenant)
        if lane is None:
            raise web.HTTPNotFound(text="no lane: this process has lately sent nothing for that tenant\n")
        return lane

    async def _lane(self, request: web.Request) -> web.Response:
        return web.json_response(describe_lane(self._found(request), self._callbacks.lanes.now()))

    async def _enable(self, request: web.Request) -> web.Response:
        _refuse_strangers(request)
        lane = self._found(request)
        lane.enable()
        log.warning("tenant enabled by hand", tenant=str(lane.tenant))
        return web.json_response(describe_lane(lane, self._callbacks.lanes.now()))

    async def _release(self, request: web.Request) -> web.Response:
        _refuse_strangers(request)
        on_cancelled = self._callbacks.release_brakes()
        log.warning("dead-letter brakes released by hand", partitions=on_cancelled)
        return web.json_response({"released": on_cancelled})


async def _is_token(header: str, token: RotatingSecret) -> bool:
    """Returns True if the header `Authorization` has the token as its file has it now."""
    known = (await asyncio.to_thread(token.current)).reveal().strip()
    scheme, _, shown = header.partition(" ")
    return scheme.lower() == "bearer" and hmac.compare_digest(shown.strip().encode(errors="surrogateescape"), known)


def _is_own_host(request: web.Request) -> bool:
    return request.remote in ("127.0.0.1", "::1", "::ffff:127.0.0.1")


def _refuse_strangers(request: web.Request) -> None:
    # What changes something is for an operator in the pod (kubectl exec, port-forward), not for the network.
    if not _is_own_host(request):
        raise web.HTTPForbidden(text=f"only from the process's own host: {_BY_HAND}\n")
    # Nor for a web page that an operator visits while a port is forwarded: browsers let any page post to localhost.
    if "Origin" in request.headers or "Sec-Fetch-Site" in request.headers:
        raise web.HTTPForbidden(text="not from a browser: use curl\n")


def probe_response(checks: Sequence[HealthCheck]) -> web.Response:
    """Returns a probe's answer: 503 if a required check fails, with each check's reason."""
    ok = all(check.ok for check in checks if check.required)
    results = {
        check.name: {"ok": check.ok, "required": check.required} | ({"reason": check.reason} if check.reason else {})
        for check in checks
    }
    return web.json_response({"ok": ok, "checks": results}, status=200 if ok else 503)


class LoopLag:
    """Measures how late the event loop is: what stalls it stalls every tenant."""

    INTERVAL_S = 0.5

    def __init__(self) -> None:
        self.worst_s = 0.0
        """Since the start."""

    async def run(self) -> None:
        """Measures until cancelled."""
        loop = asyncio.get_running_loop()
        while True:
            before = loop.time()
            await asyncio.sleep(self.INTERVAL_S)
            late = max(0.0, loop.time() - before - self.INTERVAL_S)
            self.worst_s = max(self.worst_s, late)
            metrics.LOOP_LAG.observe(late)
