"""The attempt log: one compact record an attempt on `<group_id>.attempts`, without personal data. Off by default.

It tells of deliveries and must never slow one down: records wait in a bounded queue, and what does not fit is counted
and left out. Keys are `org/sandbox`, so that one tenant's attempts stand in one partition. A record names where its
event first stood, so that who may read the topic of events can read it there. What a failed attempt was answered is in
it where the operator wants that; what an endpoint echoes of people and of our headers is masked before.
"""

import asyncio
import re
import time
from collections.abc import Callable, Iterable
from typing import Final

import orjson

from dispatcher.contract.outcomes import Attempt
from dispatcher.contract.redaction import in_text
from dispatcher.delivery.pending_delivery import PendingDelivery
from dispatcher.delivery.verdicts import Judgement, Verdict, reason_of
from dispatcher.errors import NotWritten
from dispatcher.kafka.producer import Producer
from dispatcher.kafka.topics import attempts_topic
from dispatcher.telemetry import metrics

MOST_WAITING = 10_000
KEEP_ANSWER: Final = 2048
"""Bytes of an answer's body."""
_AT_ONCE = 100
_TOKEN: Final = re.compile(r"\beyJ[\w-]{5,}(\.[\w-]*)*|(?<=\bbearer )\S+", re.IGNORECASE)
"""A JWT, whole or cut off, or what else stands behind Bearer: whoever echoes our headers echoes it."""
_SHORTEST_SECRET: Final = 6


class AttemptTopic:
    """Writes the attempt log; `run` is its task."""

    def __init__(self, producer: Producer, prefix: str, clock: Callable[[], float] = time.time) -> None:
        self._producer = producer
        self._topic = attempts_topic(prefix)
        self._clock = clock
        self._waiting: asyncio.Queue[tuple[bytes, bytes]] = asyncio.Queue(MOST_WAITING)

    def record(self, pending: PendingDelivery, number: int, attempt: Attempt, judgement: Judgement) -> None:
        """Note one attempt; returns at once."""
        try:
            self._waiting.put_nowait((str(pending.tenant).encode(), self._encoded(pending, number, attempt, judgement)))
        except asyncio.QueueFull:
            metrics.ATTEMPT_LOG_DROPPED.inc()

    def _encoded(self, pending: PendingDelivery, number: int, attempt: Attempt, judgement: Judgement) -> bytes:
        config = pending.webhook.config
        origin = pending.origin
        told = attempt.body and judgement.verdict is not Verdict.DELIVERED  # kept only where that is wanted
        return orjson.dumps(
            {
                "at": round(self._clock(), 3),
                "org": config.org,
                "sandbox": config.sandbox,
                "webhookId": pending.webhook_id,
                "messageStatus": pending.status,
                "channel": pending.channel,
                "attempt": number,
                "status": attempt.status,
                "reason": reason_of(attempt),
                "detail": attempt.detail,
                "verdict": judgement.verdict.name.lower(),
                "elapsedMs": round(attempt.elapsed_s * 1000, 1),
                "reused": attempt.reused,
                "origin": None if origin is None else [origin.topic, origin.partition, origin.offset],
                **({"answer": _masked(attempt.answer, config.header_texts().values())} if told else {}),
            }
        )

    async def run(self) -> None:
        """Write until cancelled. A broker that is away leaves gaps in the log, and nothing else."""
        while True:
            batch = [await self._waiting.get()]
            while len(batch) < _AT_ONCE and not self._waiting.empty():
                batch.append(self._waiting.get_nowait())
            writes = [self._producer.write(self._topic, key, value, (), "attempts") for key, value in batch]
            for result in await asyncio.gather(*writes, return_exceptions=True):
                if isinstance(result, NotWritten):
                    metrics.ATTEMPT_LOG_DROPPED.inc()
                elif isinstance(result, BaseException):
                    raise result


def _masked(answer: str, headers: Iterable[str]) -> str:
    """The answer without the tenant's header parameters, tokens, addresses and numbers."""
    for value in headers:
        if len(value) >= _SHORTEST_SECRET:
            answer = answer.replace(value, "(header)")
    return in_text(_TOKEN.sub("(token)", answer))
