"""How the settings become a connection: one place for the consumer, the producer and the admin client."""

import asyncio
import ssl
from collections.abc import AsyncIterator, Callable, Coroutine
from contextlib import asynccontextmanager, suppress
from typing import Protocol, TypedDict

import structlog
from aiokafka.admin import AIOKafkaAdminClient
from aiokafka.errors import KafkaError

from dispatcher.config.settings import KafkaSettings
from dispatcher.kafka import aiokafka_patches
from dispatcher.tasks import Answer

log = structlog.get_logger(__name__)

aiokafka_patches.mend()  # before there is any client

FIRST_WAIT_S = 0.5
LONGEST_WAIT_S = 15.0
STOP_S = 10.0


class ConnectionArguments(TypedDict, total=False):
    """Arguments that aiokafka's three clients share."""

    bootstrap_servers: str
    client_id: str
    security_protocol: str
    ssl_context: ssl.SSLContext | None
    sasl_mechanism: str
    sasl_plain_username: str
    sasl_plain_password: str
    request_timeout_ms: int
    retry_backoff_ms: int
    metadata_max_age_ms: int


def connection_arguments(settings: KafkaSettings) -> ConnectionArguments:
    """Arguments for any of the clients.

    Raises:
        OSError, ssl.SSLError: a certificate file can't be used. They were checked when the settings were read.
    """
    security = settings.security
    arguments = ConnectionArguments(
        bootstrap_servers=settings.bootstrap_servers,
        client_id=settings.client_id,
        security_protocol=security.protocol,
        request_timeout_ms=20_000,
        retry_backoff_ms=200,
        metadata_max_age_ms=60_000,
    )
    if security.protocol.endswith("SSL"):
        context = ssl.create_default_context(cafile=None if security.ca is None else str(security.ca))
        context.minimum_version = ssl.TLSVersion.TLSv1_2
        if security.certificate is not None and security.key is not None:
            context.load_cert_chain(str(security.certificate), str(security.key))
        arguments["ssl_context"] = context
    if security.mechanism is not None and security.username is not None and security.password is not None:
        arguments["sasl_mechanism"] = security.mechanism
        arguments["sasl_plain_username"] = security.username
        arguments["sasl_plain_password"] = security.password.reveal_text()
    return arguments


@asynccontextmanager
async def admin_client(settings: KafkaSettings) -> AsyncIterator[AIOKafkaAdminClient]:
    """An admin client, started; closed in every case, also where it could not be started."""
    admin = AIOKafkaAdminClient(**connection_arguments(settings))
    try:
        await admin.start()
        yield admin
    finally:
        with suppress(KafkaError, OSError):
            await admin.close()


class Client(Protocol):
    """Any of aiokafka's clients that have `stop`."""

    async def stop(self) -> None: ...


async def stopped(client: Client) -> None:
    """Stop a client, within a deadline and whatever the brokers do.

    Without its broker, aiokafka's producer would wait for ever for what is unsent, and its consumer raises a
    `CancelledError` that nobody asked for.
    """
    try:
        async with asyncio.timeout(STOP_S):
            await client.stop()
    except (KafkaError, OSError, TimeoutError) as error:
        log.warning("kafka client did not stop in order", error=type(error).__name__)
    except asyncio.CancelledError:
        task = asyncio.current_task()
        if task is not None and task.cancelling():
            raise


async def until_answered(what: str, ask: Callable[[], Coroutine[object, object, Answer]]) -> Answer:
    """Ask a broker until it answers, with growing waits: a broker that is away is no reason to die.

    Raises what is not a matter of the broker being away: a bug, or a cancellation.
    """
    wait_s = FIRST_WAIT_S
    while True:
        try:
            return await ask()
        except (KafkaError, OSError, TimeoutError) as error:
            log.warning("kafka does not answer", what=what, error=type(error).__name__, detail=str(error)[:256])
        await asyncio.sleep(wait_s)
        wait_s = min(wait_s * 2, LONGEST_WAIT_S)
