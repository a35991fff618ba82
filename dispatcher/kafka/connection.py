"""Builds connections from the settings, for the consumer, the producer and the admin client."""

import asyncio
import ssl
from collections.abc import AsyncIterator, Callable, Coroutine
from contextlib import asynccontextmanager
from typing import TYPE_CHECKING, Protocol, TypedDict

import structlog
from aiokafka.admin import AIOKafkaAdminClient
from aiokafka.client import AIOKafkaClient
from aiokafka.errors import KafkaError

from dispatcher.config.kafka_settings import KafkaSettings
from dispatcher.contract.kafka_problems import CONNECTING, KafkaReason
from dispatcher.kafka import aiokafka_patches
from dispatcher.kafka.broker_access import BrokerAccess, peer_of
from dispatcher.kafka.connection_errors import Peer, explain_error
from dispatcher.kafka.problems import KafkaProblems
from dispatcher.tasks import CANCELLED_AGAIN_S, Backoff, Result, cancel_and_wait

if TYPE_CHECKING:
    from aiokafka import AIOKafkaConsumer

log = structlog.get_logger(__name__)

aiokafka_patches.apply()  # before there is any client

FIRST_WAIT_S = 0.5
LONGEST_WAIT_S = 15.0
STOP_S = 10.0
METADATA_S = 60.0
"""How often clients look up topics, partitions and leaders if no error makes them."""


class ConnectionArguments(TypedDict, total=False):
    """Arguments that aiokafka's three clients share."""

    bootstrap_servers: str
    client_id: str
    security_protocol: str
    ssl_context: ssl.SSLContext | None
    sasl_mechanism: str
    sasl_plain_username: str
    sasl_plain_password: str
    sasl_oauth_token_provider: BrokerAccess
    request_timeout_ms: int
    retry_backoff_ms: int
    metadata_max_age_ms: int


def connection_arguments(settings: KafkaSettings, problems: KafkaProblems | None = None) -> ConnectionArguments:
    """Returns the arguments for any of the clients. Each of their connections reads the credentials again.

    `problems`: where connections that fail are reported, if anywhere.

    Raises:
        KafkaConnectionError: a certificate file can't be used any more; it was checked when the settings were read.
    """
    security = settings.security
    access = BrokerAccess(settings, problems)
    arguments = ConnectionArguments(
        bootstrap_servers=settings.bootstrap_servers,
        client_id=settings.client_id,
        security_protocol=security.protocol,
        request_timeout_ms=20_000,
        retry_backoff_ms=200,
        metadata_max_age_ms=int(METADATA_S * 1000),
        sasl_oauth_token_provider=access,
    )
    if security.protocol.endswith("SSL"):
        arguments["ssl_context"] = access.first_context()
    if security.protocol.startswith("SASL") and security.mechanism is not None:
        arguments["sasl_mechanism"] = security.mechanism
        arguments["sasl_plain_username"] = arguments["sasl_plain_password"] = ""  # given to each connection
    return arguments


@asynccontextmanager
async def admin_client(settings: KafkaSettings) -> AsyncIterator[AIOKafkaAdminClient]:
    """Yields a started admin client, and closes it in every case, also if it could not be started."""
    admin = AIOKafkaAdminClient(**connection_arguments(settings))
    try:
        await admin.start()
        yield admin
    finally:
        await closed(admin.close())


def raise_if_fetching_ended(consumer: "AIOKafkaConsumer[bytes, bytes]") -> None:
    """Raises KafkaError if an unexpected error has ended the task that fetches: polls would find nothing for ever."""
    if consumer._fetcher._fetch_task.done():  # noqa: SLF001
        raise KafkaError("the client's fetches ended because of a bug")


class Client(Protocol):
    """Any of aiokafka's clients, or `GroupClient`: they have `stop`."""

    async def stop(self) -> None: ...


async def stopped(client: Client) -> None:
    """Stops a client within a deadline, whatever the brokers do.

    Without its broker, aiokafka's producer would wait for ever for what is unsent.
    """
    error = await closed(client.stop())
    if error is None:
        return
    log.warning("kafka client did not stop in order", error=type(error).__name__)
    connections = getattr(client, "_client", None)  # a consumer whose fetches have failed doesn't close them
    if isinstance(connections, AIOKafkaClient):
        await closed(connections.close())


async def closed(closing: Coroutine[object, object, None]) -> Exception | None:
    """Awaits what ends a client of aiokafka, for at most `STOP_S`. Returns why it failed; None if it didn't.

    It runs in a task of its own. There, aiokafka cancels its own tasks and awaits them: a cancellation of the caller
    that came meanwhile would be lost, and a `CancelledError` may come although the caller was not cancelled.
    """
    task = asyncio.ensure_future(closing)
    try:
        _, late = await asyncio.wait({task}, timeout=STOP_S)
    finally:
        await cancel_and_wait(task, again_s=CANCELLED_AGAIN_S)
    if late:
        return TimeoutError(f"not within {STOP_S:g} s")
    error = None if task.cancelled() else task.exception()
    if error is None or isinstance(error, KafkaError | OSError | TimeoutError):
        return error
    raise error


async def until_answered(
    what: str,
    ask: Callable[[], Coroutine[object, object, Result]],
    settings: KafkaSettings | None = None,
    problems: KafkaProblems | None = None,
    *,
    group_id: str = "",
) -> Result:
    """Calls `ask` until a broker answers, with growing waits, and returns its result.

    `problems` receives the reason for a missing answer; without it, the reason is logged once a minute.
    Any error other than an unavailable broker propagates.
    """
    waiting = problems or KafkaProblems()
    backoff = Backoff(FIRST_WAIT_S, LONGEST_WAIT_S)
    while True:
        try:
            answer = await ask()
        except (KafkaError, OSError, TimeoutError) as error:
            report_error(waiting, what, error, settings, group_id=group_id)
        else:
            waiting.clear_all(what)
            return answer
        await backoff.wait()


def report_error(
    problems: KafkaProblems,
    source: str,
    error: BaseException,
    settings: KafkaSettings | None,
    *,
    group_id: str = "",
    lasts_s: float = 60.0,
) -> KafkaReason:
    """Reports what an error of a Kafka client means. It is forgotten after `lasts_s` without another report.

    Returns its reason.

    A connection's own problem was reported by the connection, for its broker: it is not reported again.
    """
    address = "the brokers" if settings is None else settings.bootstrap_servers
    peer = Peer(address, "PLAINTEXT") if settings is None else peer_of(settings, address, group_id=group_id)
    reason, detail = explain_error(error, peer)
    if reason not in CONNECTING or not problems.reports(reason):
        problems.report(reason, f"kafka at {address}: {detail}", source=source, lasts_s=lasts_s)
    return reason
