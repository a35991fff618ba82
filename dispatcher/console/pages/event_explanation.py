"""Explains the decision about one event and its request, as `dispatcher explain` does; secrets are masked."""

import asyncio
from collections.abc import Sequence
from dataclasses import dataclass

import orjson
from pydantic import JsonValue

from dispatcher.config.kafka_settings import KafkaSettings
from dispatcher.config.settings import Settings
from dispatcher.config.webhook_revision import Webhook
from dispatcher.console import masking
from dispatcher.console.sources.redrive_jobs import CHECK_S
from dispatcher.contract import redaction
from dispatcher.contract.feedback import encode_feedback
from dispatcher.contract.reason_texts import SKIPPED
from dispatcher.contract.records import Origin, Record
from dispatcher.errors import BrokerUnavailable, NotFound
from dispatcher.flow.explain import Explanation, Limits, Line, explain
from dispatcher.kafka.topic_reader import fetch_record
from dispatcher.kafka.topics import dead_letter_topic
from dispatcher.stores.sql.records import StoredWebhook


@dataclass(frozen=True, slots=True)
class Rule:
    """One rule and its result."""

    name: str
    passes: bool | None
    """None if the rule was not evaluated."""
    why: str


@dataclass(frozen=True, slots=True)
class Decision:
    """An explained decision, for the page."""

    read: tuple[Line, ...]
    """Lines about the event."""
    rules: tuple[Rule, ...]
    verdict: str
    headers: tuple[tuple[str, str], ...]
    payload: str
    """The payload as indented JSON; empty if nothing is sent."""


async def record_at(settings: KafkaSettings, origin: Origin) -> Record:
    """Reads the record at a position.

    Raises:
        NotFound: the topic no longer contains it.
        DispatcherError: the broker can't be reached.
    """
    try:
        async with asyncio.timeout(CHECK_S):
            return await fetch_record(settings, origin)
    except TimeoutError:
        raise BrokerUnavailable from None


async def decision_on(
    places: Sequence[Origin],
    webhook: StoredWebhook,
    settings: Settings,
    now: float,
    event_id: str,
    *,
    shows_people: bool,
) -> Decision:
    """Returns the decision on the event's record with the current configuration of the webhook.

    Args:
        places: positions of the record; the first that still exists is read.
        event_id: the `webhook-id` of the event, which must belong to the webhook's tenant.
        shows_people: whether recipients are shown.

    Raises:
        NotFound: the record no longer exists, or is another event.
        DispatcherError: the broker can't be reached.
    """
    record = await _first_kept(settings.kafka, places)
    known = Webhook.of(webhook.config(), webhook.id)
    limits = Limits(
        settings.kafka.max_record_bytes, settings.delivery.max_body, settings.delivery.timeout, settings.kafka.topic
    )
    explained = explain(record, [known], limits, now)
    event = explained.event
    if event is None or event.tenant != webhook.tenant or event.webhook_id != event_id:
        raise NotFound("the topic has another event at its place by now")
    return _shown_decision(explained, orjson.loads(encode_feedback(event, known.config.payload)), shows_people)


def _shown_decision(explained: Explanation, value: JsonValue, shows_people: bool) -> Decision:
    if not shows_people:
        value = masking.payload(value)
    lines = explained.lines
    if not shows_people:
        lines = tuple(Line(line.section, line.name, redaction.in_text(line.text)) for line in lines)
    shown = (lambda text: text) if shows_people else redaction.in_text
    return Decision(
        read=tuple(line for line in lines if line.section == "read"),
        rules=tuple(Rule(SKIPPED[rule.reason].rule, rule.passes, shown(rule.why)) for rule in explained.rules),
        verdict="; ".join(f"{line.name}: {line.text}" for line in lines if line.section == "verdict"),
        headers=tuple((name, shown(value)) for name, value in explained.headers),
        payload=orjson.dumps(value, option=orjson.OPT_INDENT_2).decode(),
    )


async def _first_kept(settings: KafkaSettings, places: Sequence[Origin]) -> Record:
    known = (settings.topic, dead_letter_topic(settings.prefix))
    missing = NotFound("the event came from another topic than is read now")
    for place in places:
        if place.topic in known:
            try:
                return await record_at(settings, place)
            except NotFound as error:
                missing = error
    raise missing
