"""The state of a webhook, combined from lanes, attempts, retry topics and dead letters."""

import asyncio
import time
from collections.abc import Mapping, Sequence
from contextlib import suppress
from dataclasses import dataclass
from typing import Final, Literal, cast

from dispatcher.config.units import format_duration
from dispatcher.console.formatting import STATES, exact, failing_sentence, sentence, span
from dispatcher.console.model import LaneModel, Outcomes, State, TierModel, Window
from dispatcher.console.outcomes import outcomes_of
from dispatcher.console.services import Services
from dispatcher.console.sources.attempt_counts import Failing
from dispatcher.contract.fleet_state import FAILING_ATTEMPTS, FleetState
from dispatcher.contract.tenant import TenantKey
from dispatcher.delivery.remedies import remedy_for
from dispatcher.errors import ConfigError, DispatcherError
from dispatcher.stores.sql.history_states import StateReport
from dispatcher.stores.sql.records import ListedWebhook, StoredWebhook

_AT_A_TURN: Final = 100
"""Webhooks that are judged before other requests have their turn: some milliseconds."""
WINDOW_S: Final[dict[Window, float]] = {"1h": 3600.0, "24h": 86_400.0, "7d": 604_800.0}


@dataclass(frozen=True, slots=True)
class WebhookState:
    """A webhook's state and its reasons."""

    state: State
    reasons: tuple[str, ...]
    """Sentences about what is wrong, and what to do; empty if nothing is wrong."""
    outcomes: Outcomes
    last_delivery: float | None
    tiers: Sequence[TierModel] | None
    """None if the broker did not answer."""
    dead: int
    lane: LaneModel | None
    failing: tuple[int, int] | None = None
    """How many of how many latest requests failed; None while they are delivered."""

    since: float | None = None
    """When the state began; None without a history store."""

    @property
    def shown(self) -> tuple[str, str]:
        """The state's word and shape. An active webhook whose latest requests failed has the shape of a retry."""
        word, shape = STATES[self.state]
        return (word, "retry") if self.state == "active" and self.failing is not None else (word, shape)

    @property
    def waiting(self) -> int | None:
        """Events in all retry tiers, and those that are held."""
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
    lane, tiers, (report, history_problem), outcomes = await asyncio.gather(
        services.lanes.of(webhook.tenant),
        _waiting(services, webhook),
        _report(services, webhook),
        outcomes_of(services, webhook.tenant, window),
    )
    failing = services.attempts.failing(webhook.tenant, webhook.updated_at.timestamp())
    state = judged_state(webhook, report, lane, failing, is_answering=services.lanes.is_answering)
    delivered_at = None if report is None else report.delivered_at
    return WebhookState(
        state=state,
        failing=None if failing is None else (failing.failed, failing.seen),
        reasons=(
            *(sentence(f"the database has a damaged row of it: {one.message}") for one in webhook.problems),
            *_reasons(services, webhook, state, failing, lane, tiers, history_problem),
        ),
        outcomes=outcomes,
        last_delivery=_latest(services.attempts.last_delivery(webhook.tenant), delivered_at),
        tiers=tiers,
        dead=services.dead_events.count(webhook.tenant, time.time() - WINDOW_S[window]),
        lane=lane,
        since=None if report is None or report.state != state else report.since,
    )


def judged_state(
    webhook: StoredWebhook | ListedWebhook,
    report: StateReport | None,
    lane: LaneModel | None,
    failing: Failing | None,
    *,
    is_answering: bool | None,
) -> State:
    """Derives the state from the configuration, else the history's evidence, else the lanes and latest attempts.

    Evidence is of the past: if the dispatchers can be queried and none answers, the state is unknown.

    Args:
        report: None without a history store; `unknown` if it doesn't answer.
        is_answering: whether any dispatcher answers; None if the console knows no dispatcher to ask.
    """
    if not webhook.enabled:
        return "off"
    if webhook.paused:
        return "paused"
    if is_answering is False:
        return "unknown"
    if lane is not None and (lane.suspended or lane.state == "disabled"):
        return "disabled"
    if report is not None and report.state not in (FleetState.UNKNOWN, FleetState.PAUSED):
        return cast(State, report.state.value)
    if failing is not None and failing.failed == failing.seen >= FAILING_ATTEMPTS:
        return "failing"
    if lane is not None:
        return lane.state
    return "active" if report is None and is_answering else "unknown"


@dataclass(frozen=True, slots=True)
class ListedState:
    """One webhook with the values by which the list of all webhooks is filtered and sorted."""

    webhook: ListedWebhook
    state: State
    is_failing: bool
    """True if the latest request failed."""
    last_delivery: float | None
    number: int = 0
    """Events of the last 24 hours that the list is sorted by."""


async def list_reports(services: Services, webhooks: Sequence[ListedWebhook]) -> Mapping[TenantKey, StateReport] | None:
    """Returns the history's reports on webhooks, by one query; None without a history store that answers."""
    if services.history is None:
        return None
    with suppress(DispatcherError):  # the readiness probe and the operator's log report the database
        return await services.history.states(orgs=frozenset(one.tenant.org for one in webhooks))
    return None


async def list_states(
    services: Services,
    webhooks: Sequence[ListedWebhook],
    reports: Mapping[TenantKey, StateReport] | None,
    with_number: Literal["delivered", "waiting", "dead"] | None = None,
    *,
    with_lanes: bool = True,
) -> list[ListedState]:
    """Returns the states of many webhooks. What the database or the broker doesn't answer is unknown.

    Args:
        reports: the result of `list_reports`.
        with_number: the count that the list is sorted by. The others are not queried, because that takes too long,
            and stay 0.
        with_lanes: whether each webhook's lane is queried if there are no reports, which takes too long for many. Else
            one lane is, which shows whether dispatchers answer, and states without a report are guesses.
    """
    asked = webhooks if reports is None and with_lanes else webhooks[:1]
    found = await asyncio.gather(*(services.lanes.of(one.tenant) for one in asked))
    lanes = dict(zip((one.tenant for one in asked), found, strict=True))
    is_answering = services.lanes.is_answering
    attempts, listed = services.attempts, []
    for place, webhook in enumerate(webhooks):
        if place % _AT_A_TURN == 0:
            await asyncio.sleep(0)
        tenant = webhook.tenant
        report = None if reports is None else reports.get(tenant)
        failing = attempts.failing(tenant, webhook.updated_at.timestamp())
        if report is None and services.history is not None:
            report = _no_report(tenant)
        state = judged_state(webhook, report, lanes.get(tenant), failing, is_answering=is_answering)
        number = await _number(services, webhook, with_number)
        times = (attempts.last_delivery(tenant), None if report is None else report.delivered_at)
        listed.append(ListedState(webhook, state, failing is not None, _latest(*times), number))
    return listed


async def _number(services: Services, webhook: ListedWebhook, name: str | None) -> int:
    match name:
        case "delivered":
            return services.attempts.outcomes(webhook.tenant, "24h").delivered
        case "waiting":
            return sum(tier.events for tier in await _waiting(services, webhook) or ())
        case "dead":
            return services.dead_events.count(webhook.tenant, time.time() - WINDOW_S["24h"])
    return 0


def _latest(*times: float | None) -> float | None:
    return max((one for one in times if one is not None), default=None)


async def _report(services: Services, webhook: StoredWebhook) -> tuple[StateReport | None, str]:
    """Returns the history's report, and why it may not be the present one; None without a history store."""
    if services.history is None:
        return None, ""
    try:
        report = await services.history.state(webhook.tenant)
    except DispatcherError as error:  # the readiness probe and the operator's log report the database
        return _no_report(webhook.tenant), error.for_tenants
    return report, "" if report.is_current else "the history is not up to date"


def _no_report(tenant: TenantKey) -> StateReport:
    """Returns the report on a tenant of which nothing is known."""
    return StateReport(tenant, FleetState.UNKNOWN, 0.0, is_current=False)


async def _waiting(services: Services, webhook: StoredWebhook | ListedWebhook) -> Sequence[TierModel] | None:
    try:
        return await services.waiting.of(webhook.tenant)
    except DispatcherError:
        return None  # shown as unknown; the readiness probe and the operator's log report the broker


def _unknown_reason(services: Services, history_problem: str) -> str:
    if services.lanes.is_answering is False:
        return "Its state is unknown: no dispatcher answers. Events wait in Kafka meanwhile; none is lost."
    if history_problem:
        return f"Its state is unknown: {history_problem}. Events are delivered as before."
    return "Nothing was sent yet, or nothing since it was changed: its state shows with the next event."


def _paused_reasons(tiers: Sequence[TierModel] | None, max_age_s: float) -> list[str]:
    """Returns sentences that say how many events wait, and until when."""
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


def _failing_reasons(webhook: StoredWebhook, failing: Failing) -> list[str]:
    """Returns how the latest attempts failed, and what to change."""
    attempt, others = failing.attempt, failing.failed - failing.alike
    try:
        remedy = remedy_for(attempt.reason, attempt.status, attempt.detail, webhook.config())
    except ConfigError:  # of another version of this program
        remedy = attempt.detail
    how = failing_sentence(attempt, failing.alike, failing.seen)
    more = f" {others} other{'' if others == 1 else 's'} failed in another way." if others else ""
    return [how + more, *([sentence(remedy)] if remedy else [])]


def _reasons(
    services: Services,
    webhook: StoredWebhook,
    state: State,
    failing: Failing | None,
    lane: LaneModel | None,
    tiers: Sequence[TierModel] | None,
    history_problem: str,
) -> list[str]:
    if state == "off":
        return ["It is switched off in its configuration: events that arrive are skipped, not kept."]
    if state == "paused":
        return _paused_reasons(tiers, services.settings.retry.max_age)
    if state == "unknown":
        return [_unknown_reason(services, history_problem)]
    reasons = []
    if state == "failing":
        reasons.append("Nothing arrives: every recent request failed.")
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
    if failing is not None:
        reasons += _failing_reasons(webhook, failing)
    if lane is not None and lane.breaker != "closed":
        wait = lane.breaker_retry_in_s
        reasons.append(
            f"Sending is held back; the next try is in {span(wait)}." if wait > 0 else "Sending is held back."
        )
    elif lane is not None and lane.held_for_s > 0:
        reasons.append(f"Your server asked for a pause; sending goes on in {span(lane.held_for_s)}.")
    return reasons
