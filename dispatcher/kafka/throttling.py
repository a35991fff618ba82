"""Knows which brokers slow this process down by a quota.

A broker that has answered more than the quota allows reads nothing from the connection for a while, by default up to
ten seconds. Its answer says for how long. Until then it answers no other request there either: it must not look like
one that is away.
"""

import asyncio
from collections.abc import Awaitable, Callable
from functools import wraps
from typing import TYPE_CHECKING, Any, Final, TypeVar

from dispatcher.tasks import cancel_and_wait

if TYPE_CHECKING:
    from aiokafka.client import AIOKafkaClient

LONGEST_THROTTLE_S: Final = 30.0
"""The longest time that a broker which slows this process down is waited for."""
ANSWERS_AFTER_S: Final = 2.5
"""Time for the answers to the requests that waited."""

Answer = TypeVar("Answer")


def noting_throttling(send: Callable[..., Awaitable[Any]]) -> Callable[..., Awaitable[Any]]:
    """Returns the client's method `send`, extended: it notes how long a broker reads nothing, if its answer says so."""

    @wraps(send)
    async def patched(client: Any, node_id: int, request: Any, **options: Any) -> Any:
        answer = await send(client, node_id, request, **options)
        throttled_s = min((getattr(answer, "throttle_time_ms", 0) or 0) / 1000, LONGEST_THROTTLE_S)
        if throttled_s > 0:
            ends = client.__dict__.setdefault("_throttled_until", {})
            ends[node_id] = asyncio.get_running_loop().time() + throttled_s
        return answer

    return patched


def is_throttled(client: "AIOKafkaClient", node_id: int | None) -> bool:
    """Returns True if a quota may be the reason why the broker has not answered yet."""
    until: float = getattr(client, "_throttled_until", {}).get(node_id, 0.0)
    return until > 0.0 and asyncio.get_running_loop().time() < until + ANSWERS_AFTER_S


async def answered(client: "AIOKafkaClient", node_id: int | None, asking: Awaitable[Answer], within_s: float) -> Answer:
    """Returns what a broker answers within a time, which is longer while the broker slows this process down.

    Raises:
        TimeoutError: it doesn't answer.
    """
    loop = asyncio.get_running_loop()
    gives_up_at = loop.time() + within_s + LONGEST_THROTTLE_S
    task = asyncio.ensure_future(asking)
    try:
        while True:
            done, _ = await asyncio.wait({task}, timeout=within_s)
            if done:
                return task.result()
            if not is_throttled(client, node_id) or loop.time() >= gives_up_at:
                raise TimeoutError
    finally:
        await cancel_and_wait(task)
