"""Asks a cluster's brokers one after the other until one answers, and says which of them don't.

aiokafka draws one broker at random for each request that any broker can answer, and fails if it is the one that is
away. The brokers' addresses come from the cluster (`advertised.listeners`), not from the settings: they may be wrong
although the bootstrap servers answer.
"""

import asyncio
import random
from collections.abc import Awaitable, Callable
from typing import Any, Final, TypeVar

from aiokafka.client import AIOKafkaClient
from aiokafka.errors import KafkaConnectionError, NodeNotReadyError, RequestTimedOutError

from dispatcher.contract.kafka_problems import KafkaReason
from dispatcher.kafka.broker_access import BrokerAccess, address_of
from dispatcher.kafka.connection_errors import ExplainedError, Explanation

ATTEMPT_S: Final = 3.0
"""Time for one broker while there are others to ask."""
AVOIDED_S: Final = 60.0
"""A broker that didn't answer is tried last for this time."""
MOST_LOOKED_AT: Final = 30

Answer = TypeVar("Answer")


def access_of(client: Any) -> BrokerAccess | None:
    """Returns the access that a client or connection was made with; aiokafka passes it on as a token provider."""
    access = client._sasl_oauth_token_provider  # noqa: SLF001
    return access if isinstance(access, BrokerAccess) else None


async def at_any_broker(client: AIOKafkaClient, ask: Callable[[int], Awaitable[Answer]]) -> Answer:
    """Calls `ask` with the number of one known broker after the other until one answers.

    Raises:
        KafkaConnectionError: none answers; it names the reason if that is known.
    """
    now = asyncio.get_running_loop().time
    avoided: dict[int, float] = client.__dict__.setdefault("_avoided_brokers", {})
    numbers: list[int] = [broker.nodeId for broker in client.cluster.brokers()]
    random.shuffle(numbers)
    numbers.sort(key=lambda number: now() < avoided.get(number, 0.0))
    failure: BaseException = NodeNotReadyError("no broker is known")
    for number in numbers:
        try:
            async with asyncio.timeout(None if number == numbers[-1] else ATTEMPT_S):
                answer = await ask(number)
        except (NodeNotReadyError, KafkaConnectionError, RequestTimedOutError, OSError, TimeoutError) as error:
            avoided[number] = now() + AVOIDED_S
            failure = error
        else:
            avoided.pop(number, None)
            return answer
    explained = why_none_answers(client)
    if explained is None:
        raise failure
    raise ExplainedError(*explained) from failure


async def silent_brokers(client: AIOKafkaClient, within_s: float) -> list[str]:
    """Connects to each known broker. Returns a sentence for each that can't be reached, as far as the time allows."""
    found: list[str] = []
    ends_at = asyncio.get_running_loop().time() + within_s
    for broker in sorted(client.cluster.brokers(), key=lambda one: one.nodeId)[:MOST_LOOKED_AT]:
        if asyncio.get_running_loop().time() + ATTEMPT_S > ends_at:
            break
        try:
            async with asyncio.timeout(ATTEMPT_S):
                is_ready = await client.ready(broker.nodeId)
        except TimeoutError:
            is_ready = False
        if not is_ready:
            found.append(why_silent(client, broker)[1])
    return found


def why_none_answers(client: Any) -> Explanation | None:
    """Returns why no known broker can be reached, of the first one that has failed; None if none has."""
    access = access_of(client)
    if access is None:
        return None
    for broker in sorted(client.cluster.brokers(), key=lambda one: one.nodeId):
        if address_of(broker.host, broker.port) in access.failures:
            return why_silent(client, broker)
    return None


def why_silent(client: Any, broker: Any) -> Explanation:
    """Returns the reason why a broker can't be reached, and a sentence that names its address and who gave it."""
    access, address = access_of(client), address_of(broker.host, broker.port)
    failure = None if access is None else access.failures.get(address)
    reason, cause = failure or (KafkaReason.UNREACHABLE, "no answer in time")
    if any(address == address_of(host, port) for host, port, _ in client.hosts):
        return reason, f"broker {broker.nodeId} at {address}: {cause}"
    return reason, f"the cluster says its broker {broker.nodeId} is {address}: {cause}; check its advertised.listeners"
