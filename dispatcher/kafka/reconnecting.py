"""Makes aiokafka's clients find brokers again: fresh credentials, named failures, and a second bootstrap.

Patches, applied once by `aiokafka_patches`:
- Each connection gets the credentials that are in the files now (`BrokerAccess`), and a deadline of its own.
- A client that needs no topic requests the brokers only. aiokafka requests all topics of the cluster, once a minute.
- Metadata is requested at most five times a second. aiokafka asks without a pause while a partition has no leader.
- A broker that slows the process down by a quota is noted (`throttling`).
- If no known broker answers for 30 s, the client bootstraps again (KIP-899): all brokers may have moved.
- A request that any broker can answer goes to the others if one is away, and why all are is reported (`known_brokers`).
- A failure to bootstrap carries its cause, which aiokafka only logs.
- A heartbeat or an offset fetch that is refused for good makes the member join again once it is permitted. aiokafka
  raises the refusal, but never starts the heartbeat again: the member would be dead until a restart.
- A topic that may not be read pauses its own partitions for 5 s and is reported. aiokafka raises an error for each
  partition, one a poll, which keeps the other topics waiting, and repeats the errors long after the permission is back.
- A write that a topic refuses for now (too few replicas in sync, a failed disk) is reported while aiokafka repeats it.
- An OAUTHBEARER error message of the broker counts as a refusal (RFC 7628, section 3.2.2); aiokafka ignores it.
"""

import asyncio
from collections import deque
from collections.abc import Awaitable, Callable
from functools import wraps
from typing import Any, Final

import structlog
from aiokafka import errors as kafka_errors
from aiokafka.admin import AIOKafkaAdminClient
from aiokafka.client import AIOKafkaClient
from aiokafka.conn import AIOKafkaConnection, OAuthAuthenticator, create_conn
from aiokafka.consumer.fetcher import Fetcher
from aiokafka.consumer.group_coordinator import GroupCoordinator
from aiokafka.producer.sender import SendProduceReqHandler
from aiokafka.protocol.coordination import FindCoordinatorRequest
from aiokafka.protocol.metadata import MetadataRequest

from dispatcher.connecting import ConnectingLoop
from dispatcher.contract.kafka_problems import KafkaReason
from dispatcher.kafka.broker_access import CONNECT_S
from dispatcher.kafka.connection_errors import missing_permission
from dispatcher.kafka.known_brokers import access_of, at_any_broker, why_none_answers
from dispatcher.kafka.problems import KafkaProblems
from dispatcher.kafka.throttling import noting_throttling
from dispatcher.telemetry import metrics

log = structlog.get_logger(__name__)

BOOTSTRAP_AGAIN_S: Final = 30.0
"""Time without an answer of any broker after which the bootstrap servers are tried again: brokers may have moved."""
DENIED_PAUSE_S: Final = 5.0
REPEATED_WRITE_S: Final = 60.0
"""Time since its last refusal for which a repeated write stays a problem."""
LEAST_ATTEMPT_S: Final = 1.0
UPDATES_A_SECOND: Final = 5
"""Requests for metadata that one client makes in a second."""
_SOURCE: Final = "bootstrap"

Method = Callable[..., Awaitable[Any]]


class _NoTopics(tuple[str, ...]):
    """An empty tuple that is true, so that aiokafka requests the brokers only, and not every topic."""

    __slots__ = ()

    def __bool__(self) -> bool:
        return True


_NO_TOPICS: Final = _NoTopics()


def apply() -> None:
    """Patches aiokafka's classes. Call it once, before any client is created."""
    AIOKafkaConnection.connect = _with_fresh_credentials(AIOKafkaConnection.connect)
    AIOKafkaClient.bootstrap = _raising_with_cause(AIOKafkaClient.bootstrap)
    AIOKafkaClient._metadata_update = _bootstrapping_again(AIOKafkaClient._metadata_update)  # noqa: SLF001
    AIOKafkaClient.send = noting_throttling(AIOKafkaClient.send)
    AIOKafkaClient.coordinator_lookup = _find_coordinator
    AIOKafkaAdminClient._send_request = _asking_any_broker(AIOKafkaAdminClient._send_request)  # noqa: SLF001
    for name in ("_heartbeat_routine", "_commit_refresh_routine"):
        setattr(GroupCoordinator, name, _joining_again(getattr(GroupCoordinator, name)))
    Fetcher._set_error = _pausing_denied_partitions(Fetcher._set_error)  # noqa: SLF001
    SendProduceReqHandler._can_retry = _reporting_repeated_writes(SendProduceReqHandler._can_retry)  # noqa: SLF001
    OAuthAuthenticator.step = _raising_refusals(OAuthAuthenticator.step)


def problems_of(client: Any) -> KafkaProblems | None:
    """Returns the object to which a client's problems are reported; None if there is none, as for a command."""
    access = access_of(client)
    return None if access is None else access.problems


def _with_fresh_credentials(connect: Method) -> Method:
    @wraps(connect)
    async def patched(connection: Any) -> Any:
        connection._loop = ConnectingLoop(CONNECT_S)  # noqa: SLF001
        access = access_of(connection)
        if access is None:
            return await connect(connection)
        credentials = await access.prepare(connection)
        try:
            async with asyncio.timeout(CONNECT_S):
                result = await connect(connection)
        except (kafka_errors.KafkaError, OSError, TimeoutError) as error:
            await access.failed(connection, error, credentials)
            raise
        except (ValueError, KeyError, AssertionError) as error:  # what aiokafka makes of an odd answer
            odd = kafka_errors.KafkaConnectionError(f"odd answer while connecting: {type(error).__name__}")
            await access.failed(connection, odd, credentials)
            raise odd from error
        access.connected(connection)
        return result

    return patched


def _raising_with_cause(bootstrap: Method) -> Method:
    @wraps(bootstrap)
    async def patched(client: Any) -> None:
        access = access_of(client)
        try:
            await bootstrap(client)
        except kafka_errors.KafkaConnectionError as error:
            if access is None:
                raise
            if access.last_error is None:  # connected, but the first request was not answered
                host, port, _ = client.hosts[0]
                await access.not_answered(host, port, error)
            raise error from access.last_error

    return patched


def _bootstrapping_again(update: Method) -> Method:
    @wraps(update)
    async def patched(client: Any, cluster: Any, topics: Any) -> bool:
        loop, topics = asyncio.get_running_loop(), topics or _NO_TOPICS
        # While a partition has no leader, each fetch and write asks for new metadata at once, again and again.
        updates: deque[float] = client.__dict__.setdefault("_update_times", deque(maxlen=UPDATES_A_SECOND))
        if len(updates) == UPDATES_A_SECOND:
            await asyncio.sleep(updates[0] + 1.0 - loop.time())
        updates.append(loop.time())
        silent_since: float | None = getattr(client, "_silent_since", None)
        left = BOOTSTRAP_AGAIN_S if silent_since is None else silent_since + BOOTSTRAP_AGAIN_S - loop.time()
        began = loop.time()
        updated = await _logging_bugs(update(client, cluster, topics), max(left, LEAST_ATTEMPT_S))
        if not updated:
            silent_since = began if silent_since is None else silent_since
            if loop.time() - silent_since >= BOOTSTRAP_AGAIN_S:
                updated = await _logging_bugs(_bootstrap_again(client, cluster, topics), None)
        client._silent_since = None if updated else silent_since  # noqa: SLF001
        _report_silence(client, is_silent=not updated)
        return updated

    return patched


async def _logging_bugs(work: Awaitable[bool], most_s: float | None) -> bool:
    """Returns the result of `work`; False after `most_s`, or if it raises, whatever that is.

    An error would end the client's only task that asks for metadata, and everything that waits for metadata would hang.
    """
    try:
        async with asyncio.timeout(most_s):
            return await work
    except TimeoutError:
        log.debug("no broker answers a request for metadata")
    except Exception:
        metrics.ERRORS.labels("consumer").inc()
        log.exception("metadata could not be read because of a bug")
    return False


async def _bootstrap_again(client: Any, cluster: Any, topics: Any) -> bool:
    """Requests the brokers and the topics' leaders from the bootstrap servers. Returns True if one answered."""
    problems = problems_of(client)
    for host, port, _ in client.hosts:
        try:
            connection = await create_conn(host, port, **_connection_options(client))
        except (OSError, kafka_errors.KafkaError, TimeoutError) as error:
            log.debug("bootstrap server does not answer", host=host, port=port, error=type(error).__name__)
            continue
        try:
            metadata = await connection.send(MetadataRequest(list(topics)))
        except (kafka_errors.KafkaError, TimeoutError):
            continue
        finally:
            connection.close()
        if metadata.brokers:
            cluster.update_metadata(metadata)
            if problems is not None:
                problems.clear(KafkaReason.BROKERS_MOVED, source=_SOURCE)
            if not await _can_connect(client):
                return False  # `_report_silence` names the address that fails
            log.warning("brokers found again at the bootstrap servers", brokers=len(metadata.brokers))
            return True
    if problems is not None:
        problems.report(
            KafkaReason.BROKERS_MOVED,
            f"no known broker answered for {BOOTSTRAP_AGAIN_S:.0f} s, and none of the bootstrap servers does: "
            "check kafka.bootstrap_servers",
            source=_SOURCE,
            lasts_s=2 * BOOTSTRAP_AGAIN_S,
        )
    return False


async def _can_connect(client: Any) -> bool:
    """Returns True if a broker can be reached at the address that the cluster gives: that may be wrong."""

    async def connect(number: int) -> None:
        if not await client.ready(number):
            raise kafka_errors.NodeNotReadyError

    try:
        await at_any_broker(client, connect)
    except (kafka_errors.KafkaError, OSError, TimeoutError):
        return False
    return True


def _report_silence(client: Any, *, is_silent: bool) -> None:
    """Reports why no known broker can be reached, or that one can be: a client that waits for one raises nothing."""
    problems = problems_of(client)
    if problems is None:
        return
    explained = why_none_answers(client) if is_silent else None
    for reason in (KafkaReason.UNREACHABLE, KafkaReason.NAME_NOT_FOUND):
        if explained is not None and explained[0] == reason:
            problems.report(reason, explained[1], source=_SOURCE, lasts_s=2 * BOOTSTRAP_AGAIN_S)
        else:
            problems.clear(reason, source=_SOURCE)


def _asking_any_broker(request: Method) -> Method:
    """Wraps the admin client's `_send_request`, which asks one broker at random if none is named."""

    @wraps(request)
    async def patched(admin: Any, what: Any, node_id: int | None = None) -> Any:
        if node_id is not None:
            return await request(admin, what, node_id)
        return await at_any_broker(admin._client, lambda number: request(admin, what, number))  # noqa: SLF001

    return patched


async def _find_coordinator(client: Any, kind: int, key: str) -> int:
    """Replaces aiokafka's `coordinator_lookup`, which asks one broker at random."""

    async def ask(number: int) -> Any:
        return await client.send(number, FindCoordinatorRequest(key, kind))

    answer = await at_any_broker(client, ask)
    error = kafka_errors.for_code(answer.error_code)
    if error is not kafka_errors.NoError:
        raise error
    return int(answer.coordinator_id)


def _connection_options(client: Any) -> dict[str, Any]:
    return {
        "client_id": client._client_id,  # noqa: SLF001
        "request_timeout_ms": client._request_timeout_ms,  # noqa: SLF001
        "ssl_context": client._ssl_context,  # noqa: SLF001
        "security_protocol": client._security_protocol,  # noqa: SLF001
        "max_idle_ms": client._connections_max_idle_ms,  # noqa: SLF001
        "sasl_mechanism": client._sasl_mechanism,  # noqa: SLF001
        "sasl_plain_username": client._sasl_plain_username,  # noqa: SLF001
        "sasl_plain_password": client._sasl_plain_password,  # noqa: SLF001
        "sasl_oauth_token_provider": client._sasl_oauth_token_provider,  # noqa: SLF001
    }


def _joining_again(routine: Method) -> Method:
    @wraps(routine)
    async def patched(coordinator: Any, *arguments: Any) -> None:
        try:
            await routine(coordinator, *arguments)
        except kafka_errors.KafkaError:
            coordinator.request_rejoin()
            raise
        except Exception as error:
            # Of another kind it would end the process.
            metrics.ERRORS.labels("consumer").inc()
            log.exception("a task of the kafka client ended because of a bug: the member joins again")
            coordinator.request_rejoin()
            raise kafka_errors.KafkaError(f"{type(error).__name__} in the kafka client") from error

    return patched


def _pausing_denied_partitions(set_error: Callable[..., None]) -> Callable[..., None]:
    @wraps(set_error)
    def patched(fetcher: Any, tp: Any, error: BaseException) -> None:
        access = access_of(fetcher._client)  # noqa: SLF001
        problems = None if access is None else access.problems
        if access is None or problems is None or not isinstance(error, kafka_errors.TopicAuthorizationFailedError):
            set_error(fetcher, tp, error)
            return
        detail = missing_permission(access.peer(""), ("READ",), f"topic {tp.topic}")
        problems.report(KafkaReason.PERMISSION_MISSING, detail, source=f"topic {tp.topic}", lasts_s=3 * DENIED_PAUSE_S)
        assignment = fetcher._subscriptions.subscription.assignment  # noqa: SLF001
        if assignment is not None and tp in assignment.tps:
            state = assignment.state_value(tp)
            state.pause()
            asyncio.get_running_loop().call_later(DENIED_PAUSE_S, state.resume)

    return patched


def _reporting_repeated_writes(can_retry: Callable[..., bool]) -> Callable[..., bool]:
    @wraps(can_retry)
    def patched(handler: Any, error: BaseException, batch: Any) -> bool:
        is_repeated = can_retry(handler, error, batch)
        problems = problems_of(handler._client)  # noqa: SLF001
        if is_repeated and problems is not None and _is_refused_for_now(error):
            topic = batch.tp.topic
            detail = f"topic {topic} accepts no records now: {type(error).__name__}"
            problems.report(KafkaReason.WRITE_REFUSED, detail, source=topic, lasts_s=REPEATED_WRITE_S)
        return is_repeated

    return patched


def _is_refused_for_now(error: BaseException) -> bool:
    """Returns True for a broker's refusal, but not for a change of leader: the client finds the new one by itself."""
    if isinstance(error, kafka_errors.KafkaStorageError):
        return True
    return isinstance(error, kafka_errors.BrokerResponseError) and not error.invalid_metadata


def _raising_refusals(step: Method) -> Method:
    @wraps(step)
    async def patched(authenticator: Any, payload: bytes | None) -> Any:
        if payload and authenticator._token_sent:  # noqa: SLF001
            raise kafka_errors.SaslAuthenticationFailed(payload.decode("utf-8", "replace")[:200])
        return await step(authenticator, payload)

    return patched
