"""The state of a webhook, combined from lanes, attempts, retry topics and dead letters."""

import asyncio
import time
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Final

from dispatcher.config.units import format_duration
from dispatcher.console.model import LaneFact, Outcomes, State, WaitingTier, Window
from dispatcher.console.pages.formatting import STATES, exact, failing_sentence, sentence, span
from dispatcher.console.services import Services
from dispatcher.console.sources.remedies import remedy_for
from dispatcher.errors import ConfigError, DispatcherError
from dispatcher.stores.sql.records import StoredWebhook

WINDOW_S: Final[dict[Window, float]] = {"1h": 3600.0, "24h": 86_400.0, "7d": 604_800.0}


@dataclass(frozen=True, slots=True)
class WebhookState:
    """A webhook's state and its reasons."""

    state: State
    reasons: tuple[str, ...]
    """Sentences about what is wrong, and what to do; empty if nothing is wrong."""
    outcomes: Outcomes
    last_delivery: float | None
    tiers: Sequence[WaitingTier] | None
    """None if the broker did not answer."""
    dead: int
    lane: LaneFact | None
    failing: tuple[int, int] | None = None
    """How many of how many latest requests failed the same way; None while they are delivered."""

    @property
    def shown(self) -> tuple[str, str]:
        """The state's word and shape. An active webhook that fails right now is not shown as one that is well."""
        word, shape = STATES[self.state]
        return (word, "retry") if self.state == "active" and self.failing is not None else (word, shape)

    @property
    def waiting(self) -> int | None:
        """Events in all retry tiers."""
        return None if self.tiers is None else sum(tier.events for tier in self.tiers)

    @property
    def waiting_is_at_least(self) -> bool:
        return self.tiers is not None and any(tier.is_at_least for tier in self.tiers)

    @property
    def is_stopped(self) -> bool:
        """True if reactivating the webhook has an effect."""
        return self.state == "disabled" or (self.lane is not None and self.lane.suspended)


async def state_of(services: Services, webhook: StoredWebhook, window: Window = "24h") -> WebhookState:
    """Returns the state of a webhook. If the broker or the dispatchers are unavailable, their part is missing."""
    lane, tiers = await asyncio.gather(services.lanes.of(webhook.tenant), _waiting(services, webhook))
    state = _state(webhook, lane)
    failing = services.attempts.failing(webhook.tenant)
    return WebhookState(
        state=state,
        failing=None if failing is None else failing[1:],
        reasons=tuple(_reasons(services, webhook, state, lane, tiers)),
        outcomes=services.attempts.outcomes(webhook.tenant, window),
        last_delivery=services.attempts.last_delivery(webhook.tenant),
        tiers=tiers,
        dead=services.dead_events.count(webhook.tenant, time.time() - WINDOW_S[window]),
        lane=lane,
    )


def _state(webhook: StoredWebhook, lane: LaneFact | None) -> State:
    if not webhook.enabled:
        return "off"
    if webhook.paused:
        return "paused"
    if lane is not None and lane.suspended:
        return "disabled"
    return "active" if lane is None else lane.state


async def _waiting(services: Services, webhook: StoredWebhook) -> Sequence[WaitingTier] | None:
    try:
        return await services.waiting.of(webhook.tenant)
    except DispatcherError:
        return None  # shown as unknown; the readiness probe and the operator's log report the broker


def _paused_reasons(tiers: Sequence[WaitingTier] | None, max_age_s: float) -> list[str]:
    """Returns how many events wait, and until when."""
    limit = f"An event that is not sent within {format_duration(max_age_s)} is dead; it can be sent again then."
    if tiers is None:
        return ["Paused: events are held until it is resumed. How many is unknown: the broker doesn't answer.", limit]
    held = [tier for tier in tiers if tier.reason is not None]
    number = sum(tier.events for tier in held)
    if not number:
        return ["Paused: events that arrive are held until it is resumed.", limit]
    more = "more than " if any(tier.is_at_least for tier in held) else ""
    waits = "event waits" if number == 1 and not more else "events wait"
    expires = min((tier.expires_at for tier in held if tier.expires_at is not None), default=None)
    until = "" if expires is None else f" The oldest expires on {exact(expires)}."
    return [f"Paused: {more}{number:,} {waits} until it is resumed.{until}", limit]


def _reasons(
    services: Services,
    webhook: StoredWebhook,
    state: State,
    lane: LaneFact | None,
    tiers: Sequence[WaitingTier] | None,
) -> list[str]:
    if state == "off":
        return ["It is switched off in its configuration: events that arrive are skipped, not kept."]
    if state == "paused":
        return _paused_reasons(tiers, services.settings.retry.max_age)
    reasons = []
    if lane is not None and lane.suspended:
        reasons.append(
            "Your server asked for no more events (410 Gone, or webhook-delivery: disable). They wait until the "
            "webhook is edited or reactivated."
        )
    elif state == "disabled":
        reasons.append(
            "Nearly every request failed for 24 hours, so sending stopped. Events wait until the webhook is edited or "
            "reactivated."
        )
    failing = services.attempts.failing(webhook.tenant)
    if failing is not None:
        fact, failed, seen = failing
        reasons.append(failing_sentence(fact, failed, seen))
        try:
            what_to_do = remedy_for(fact.reason, fact.status, fact.detail, webhook.config())
        except ConfigError:  # of another version of this program
            what_to_do = fact.detail
        if what_to_do:
            reasons.append(sentence(what_to_do))
    if lane is not None and lane.breaker != "closed":
        wait = lane.breaker_retry_in_s
        reasons.append(
            f"Sending is held back; the next try is in {span(wait)}." if wait > 0 else "Sending is held back."
        )
    elif lane is not None and lane.held_for_s > 0:
        reasons.append(f"Your server asked for a pause; sending goes on in {span(lane.held_for_s)}.")
    return reasons
