"""Checks the dispatcher's own topics while it runs: their configuration, and topics of former names."""

import asyncio
from collections import defaultdict
from collections.abc import Iterable
from typing import Final

import structlog
from aiokafka.errors import KafkaError

from dispatcher.config.settings import Settings
from dispatcher.contract.kafka_problems import KafkaReason
from dispatcher.kafka.former_topics import FormerTopics, find_former_topics
from dispatcher.kafka.problems import KafkaProblems
from dispatcher.kafka.topic_comparison import TopicWarning, known_topics

EVERY_S: Final = 50.0
ANSWER_S: Final = 30.0

log = structlog.get_logger(__name__)


class TopicWatch:
    """Compares the topics with the settings periodically; `run` is its task."""

    def __init__(self, settings: Settings, problems: KafkaProblems) -> None:
        self._settings = settings
        self._problems = problems
        self._reported: set[str] = set()
        self.notices: tuple[str, ...] = ()
        """Lines about records that former topics still hold, as of the last check."""

    async def run(self) -> None:
        """Repeats the comparison until cancelled."""
        while True:
            try:
                async with asyncio.timeout(ANSWER_S):
                    warnings = (await known_topics(self._settings)).warnings
                    former = await find_former_topics(self._settings)
            except (KafkaError, OSError, TimeoutError, KeyError, AttributeError, ValueError) as error:
                # aiokafka raises the last three on answers that it doesn't know.
                log.info("topics can't be compared with the settings", error=type(error).__name__)
            else:
                self._report(warnings)
                self._note(former)
            await asyncio.sleep(EVERY_S)

    def _report(self, warnings: Iterable[TopicWarning]) -> None:
        by_topic: defaultdict[str, list[str]] = defaultdict(list)
        for warning in warnings:
            by_topic[warning.topic].append(warning.message)
        for topic in self._reported - by_topic.keys():
            self._problems.clear(KafkaReason.TOPIC_CONFIGURATION, source=topic)
        for topic, messages in by_topic.items():
            text = f"topic {topic}: {'; '.join(messages)}"
            self._problems.report(KafkaReason.TOPIC_CONFIGURATION, text, source=topic)
        self._reported = set(by_topic)

    def _note(self, former: FormerTopics) -> None:
        notices = former.messages()
        for notice in notices:
            if notice not in self.notices:
                log.warning("topics of an earlier version", notice=notice)
        self.notices = notices
