"""Dead letters: what will never be delivered is kept, with its reason."""

from dispatcher.kafka.producer import Producer
from dispatcher.kafka.topics import dead_letter_topic
from dispatcher.outcomes import DeadReason
from dispatcher.records import PREFIX, Journey, Record, without_journey

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

    async def bury(self, record: Record, journey: Journey, reason: DeadReason, detail: str) -> None:
        """Write the record; returns when the broker has it.

        Raises:
            NotWritten: it has not.
        """
        headers = [(name, value) for name, value in journey.headers() if name != PREFIX + "reason"]
        headers.append((PREFIX + "reason", reason.value.encode()))
        headers.append((PREFIX + "detail", detail[:MAX_DETAIL].encode()))
        await self._producer.write(
            self._topic, record.key, record.value, [*without_journey(record.headers), *headers], "dead"
        )
