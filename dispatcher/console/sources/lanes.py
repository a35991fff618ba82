"""Queries the state of a tenant's lane from all running dispatchers: each address of each configured name."""

import asyncio
import socket
import time
from collections import OrderedDict
from collections.abc import AsyncIterator, Callable, Coroutine, Sequence
from contextlib import asynccontextmanager
from dataclasses import dataclass
from typing import Final, Self, TypeVar
from urllib.parse import quote, urlsplit

import aiohttp
import orjson
import structlog
from pydantic import TypeAdapter
from yarl import URL

from dispatcher.config.console_settings import ConsoleSettings
from dispatcher.config.ops_tls import OpsTls
from dispatcher.config.secrets import RotatingSecret, Secret
from dispatcher.console.model import LaneModel
from dispatcher.contract.tenant import TenantKey
from dispatcher.tasks import SingleFlight
from dispatcher.transport.failures import TransportError
from dispatcher.transport.tls_contexts import TlsContexts
from dispatcher.transport.tls_sessions import TlsContext

REMEMBERED_S: Final = 2.0
MOST_REMEMBERED: Final = 10_000
WITHIN_S: Final = 2.0
"""Seconds for one dispatcher's response; one that doesn't answer is left out."""
ANSWERS_COUNT_S: Final = 10.0
"""Seconds for which an answer shows that dispatchers run: longer than a cached answer and a deadline together."""
AT_ONCE: Final = 16
ADDRESSES_FOR_S: Final = 10.0
"""Seconds for which a name's addresses are cached; pods change."""

T = TypeVar("T")

_LANE: Final = TypeAdapter(LaneModel)
_STATES: Final = ("active", "unstable", "disabled")
_BREAKERS: Final = ("closed", "half_open", "open")

log = structlog.get_logger(__name__)


@dataclass(frozen=True, slots=True)
class _Instance:
    """One dispatcher: an address behind a name."""

    url: str
    host: str
    """The name, for its certificate and its `Host` header."""


class RunningLanes:
    """State of lanes, queried from the running dispatchers with a deadline and cached for two seconds.

    An async context manager that owns the HTTP connections.
    """

    def __init__(
        self,
        settings: ConsoleSettings,
        clock: Callable[[], float] = time.monotonic,
        token: Secret | None = None,
        tls: OpsTls | None = None,
    ) -> None:
        """Prepares without connecting.

        Args:
            token: the bearer token for the dispatchers' ops ports (`ops.token`).
            tls: how their certificates are verified (`ops.tls`).
        """
        self._urls = settings.dispatchers
        self._token = None if token is None else RotatingSecret(token, "ops.token", Secret.reveal_text)
        self._contexts = TlsContexts(None if tls is None else tls.ca)
        self._server_name = None if tls is None else tls.server_name
        self._clock = clock
        self._addresses: dict[str, tuple[float, tuple[_Instance, ...]]] = {}
        self._known: OrderedDict[TenantKey, tuple[float, LaneModel | None]] = OrderedDict()
        self._queries = SingleFlight[TenantKey, LaneModel | None]("query of a lane")
        self._permits = asyncio.Semaphore(AT_ONCE)
        self._session: aiohttp.ClientSession | None = None
        self._reported: set[str] = set()
        self._answered_at: float | None = None

    async def __aenter__(self) -> Self:
        self._session = aiohttp.ClientSession(
            timeout=aiohttp.ClientTimeout(total=WITHIN_S), trust_env=False, cookie_jar=aiohttp.DummyCookieJar()
        )
        return self

    async def __aexit__(self, *_: object) -> None:
        await self._queries.close()
        await self._contexts.close()
        if self._session is not None:
            await self._session.close()

    @property
    def is_answering(self) -> bool | None:
        """True if a dispatcher has answered lately; None if `console.dispatchers` names none to ask."""
        if not self._urls:
            return None
        return self._answered_at is not None and self._clock() - self._answered_at < ANSWERS_COUNT_S

    async def of(self, tenant: TenantKey) -> LaneModel | None:
        """Returns the tenant's lane, or None if no dispatcher has one or none answers."""
        if not self._urls:
            return None
        known = self._known.get(tenant)
        if known is not None and self._clock() - known[0] < REMEMBERED_S:
            return known[1]
        task = self._queries.start(tenant, lambda: self._fetch_lane(tenant))
        await asyncio.wait({task})  # unlike awaiting it, doesn't cancel it when the caller is cancelled
        return None if task.cancelled() else task.result()

    async def enable(self, tenant: TenantKey) -> None:
        """Asks each dispatcher to enable the tenant. Only those on this host accept; the others notice it later."""
        answers = await self._call_each(lambda one: self._post(one, f"{_path(tenant)}/enable"))
        log.info("tenant enabled", tenant=str(tenant), dispatchers=sum(answers), of=len(answers))
        self._known.pop(tenant, None)

    async def _fetch_lane(self, tenant: TenantKey) -> LaneModel | None:
        found = await self._call_each(lambda one: self._get(one, _path(tenant)))
        lane = worst([lane for lane in found if lane is not None])
        self._known[tenant] = (self._clock(), lane)
        self._known.move_to_end(tenant)
        if len(self._known) > MOST_REMEMBERED:
            self._known.popitem(last=False)
        return lane

    async def _call_each(self, ask: Callable[[_Instance], Coroutine[object, object, T]]) -> list[T]:
        async def limited(instance: _Instance) -> T:
            async with self._permits:
                return await ask(instance)

        instances = [one for url in self._urls for one in await self._instances_of(url)]
        return await asyncio.gather(*map(limited, instances))

    async def _get(self, instance: _Instance, path: str) -> LaneModel | None:
        try:
            async with self._request("GET", instance, path) as answer:
                lane = None
                if answer.status != 404:
                    answer.raise_for_status()
                    lane = parse_lane(await answer.read())
        except (aiohttp.ClientError, TransportError, OSError, TimeoutError, ValueError) as error:
            self._report_unreachable(instance.url, error)
            return None
        self._reported.discard(instance.url)
        self._answered_at = self._clock()
        return lane

    async def _post(self, instance: _Instance, path: str) -> bool:
        try:
            async with self._request("POST", instance, path) as answer:
                return answer.status == 200
        except (aiohttp.ClientError, TransportError, OSError, TimeoutError, ValueError) as error:
            self._report_unreachable(instance.url, error)
            return False

    @asynccontextmanager
    async def _request(self, method: str, instance: _Instance, path: str) -> AsyncIterator[aiohttp.ClientResponse]:
        if self._session is None:
            raise RuntimeError("the lanes are not open")
        url, name = URL(instance.url + path, encoded=True), instance.host
        is_tls = url.scheme == "https"
        headers = {"host": name}
        context: TlsContext | bool = True
        if is_tls:
            await self._contexts.prepare(None, WITHIN_S)
            context = self._contexts.of_operator()
        if self._token is not None:
            token = await asyncio.to_thread(self._token.current)
            headers["authorization"] = f"Bearer {token.reveal_text().strip()}"
        async with self._session.request(
            method,
            url,
            headers=headers,
            ssl=context,
            server_hostname=(self._server_name or name) if is_tls else None,
            allow_redirects=False,
        ) as answer:
            yield answer

    async def _instances_of(self, url: str) -> Sequence[_Instance]:
        """Returns the dispatchers behind a URL, one for each address of its host."""
        found_at, instances = self._addresses.get(url, (0.0, ()))
        if instances and self._clock() - found_at < ADDRESSES_FOR_S:
            return instances
        parts = urlsplit(url)
        host, port = parts.hostname or "", parts.port or (443 if parts.scheme == "https" else 80)
        try:
            async with asyncio.timeout(WITHIN_S):
                found = await asyncio.get_running_loop().getaddrinfo(host, port, type=socket.SOCK_STREAM)
        except (OSError, TimeoutError) as error:
            self._report_unreachable(url, error)
            return instances
        addresses = dict.fromkeys(str(one[4][0]) for one in found)
        base = parts.path.rstrip("/")
        instances = tuple(
            _Instance(f"{parts.scheme}://{_bracketed(address)}:{port}{base}", host) for address in addresses
        )
        self._addresses[url] = (self._clock(), instances)
        return instances

    def _report_unreachable(self, url: str, error: Exception) -> None:
        if url not in self._reported:
            if len(self._reported) > 1000:
                self._reported.clear()
            self._reported.add(url)
            log.warning("a dispatcher does not report its lanes", url=url, error=type(error).__name__)


def parse_lane(answer: bytes) -> LaneModel:
    """Parses a dispatcher's description of a lane. Raises ValueError if the response is anything else."""
    document = orjson.loads(answer)
    return _LANE.validate_python({**document, "instances": 1} if isinstance(document, dict) else document)


def worst(lanes: Sequence[LaneModel]) -> LaneModel | None:
    """Merges the lanes of several dispatchers: counts are added up, other fields take the worst value."""
    if not lanes:
        return None
    return LaneModel(
        state=max((lane.state for lane in lanes), key=_STATES.index),
        breaker=max((lane.breaker for lane in lanes), key=_BREAKERS.index),
        breaker_retry_in_s=max(lane.breaker_retry_in_s for lane in lanes),
        suspended=any(lane.suspended for lane in lanes),
        held_for_s=max(lane.held_for_s for lane in lanes),
        in_flight=sum(lane.in_flight for lane in lanes),
        waiting=sum(lane.waiting for lane in lanes),
        concurrency_limit=min(lane.concurrency_limit for lane in lanes),
        usual_latency_s=max(lane.usual_latency_s for lane in lanes),
        instances=sum(lane.instances for lane in lanes),
    )


def _path(tenant: TenantKey) -> str:
    return f"/lanes/{quote(tenant.org, safe='')}/{quote(tenant.sandbox, safe='')}"


def _bracketed(address: str) -> str:
    return f"[{address}]" if ":" in address else address
