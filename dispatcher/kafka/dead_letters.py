"""Dead letters: what will never be delivered is kept, with its reason."""

from dispatcher.contract.outcomes import DeadReason
from dispatcher.contract.records import PREFIX, Record, RetryState, without_retry_state
from dispatcher.kafka.producer import Producer
from dispatcher.kafka.topics import dead_letter_topic

MAX_DETAIL = 1000


class DeadLetters:
    """The dead-letter topic. A record keeps its key, value and headers, and gets its journey and the reason."""

    def __init__(self, producer: Producer, topic: str) -> None:
        self._producer = producer
        self._topic = dead_letter_topic(topic)

    @property
    def topic(self) -> str:
        """`<topic>.dead`"""
        return self._topic

    async def dead_letter(self, record: Record, retry_state: RetryState, reason: DeadReason, detail: str) -> None:
        """Write the record; returns when the broker has it.

        Raises:
            NotWritten: it has not.
        """
        headers = [(name, value) for name, value in retry_state.headers() if name != PREFIX + "reason"]
        headers.append((PREFIX + "reason", reason.value.encode()))
        headers.append((PREFIX + "detail", detail[:MAX_DETAIL].encode()))
        await self._producer.write(
            self._topic, record.key, record.value, [*without_retry_state(record.headers), *headers], "dead"
        )
