"""The page of one event: its attempts, its dead letter, what happens next, and the explained decision."""

import time
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Final

from aiohttp import web

from dispatcher.config.units import format_duration
from dispatcher.console.formatting import VERDICTS
from dispatcher.console.model import AttemptModel, AttemptQuery, DeadEventModel, DeadQuery
from dispatcher.console.pages import event_explanation
from dispatcher.console.pages.renderer import Renderer
from dispatcher.console.services import person_of
from dispatcher.console.sources.attempts import attempt_of
from dispatcher.console.sources.dead_event_index import place_of
from dispatcher.console.webhook_state import state_of
from dispatcher.contract.history import FINAL, HistoryEntry, HistoryOutcome
from dispatcher.contract.outcomes import DeadReason, ParkReason
from dispatcher.contract.reason_texts import HELD_REMEDIES, remedy_of_death
from dispatcher.contract.records import Origin
from dispatcher.delivery.remedies import remedy_for
from dispatcher.errors import ConfigError, DispatcherError, NotFound
from dispatcher.history.timeline import forgotten_end, remedy_of
from dispatcher.kafka.topics import dead_letter_topic
from dispatcher.stores.sql.history_search import HistoryTimeline
from dispatcher.stores.sql.records import StoredWebhook

_DEATH_TAKES_S: Final = 60.0
"""Longest time between a dead letter and its history entry."""


@dataclass(frozen=True, slots=True)
class KnownEvent:
    """An event with its attempts and its dead letter. Attempts are kept for a shorter time than dead letters."""

    attempts: Sequence[AttemptModel]
    """The oldest first."""
    death: DeadEventModel | None
    """Its latest dead letter that the console keeps."""
    history: Sequence[HistoryEntry] = ()
    """The oldest first; empty without a history store."""

    @property
    def last(self) -> AttemptModel | DeadEventModel | None:
        """The latest attempt, else the dead letter: the source of its channel and message status."""
        return self.attempts[-1] if self.attempts else self.death

    @property
    def outcome(self) -> HistoryOutcome | None:
        """What happened last, by history and attempts, or later by the dead letter; None if nothing is known."""
        found, at = self._outcome_without_death
        if self.death is None:
            return found
        if self.death.died_at > at - (_DEATH_TAKES_S if found is HistoryOutcome.DEAD else 0.0):
            return HistoryOutcome.REDRIVEN if self.death.redriven else HistoryOutcome.DEAD
        return found

    @property
    def _outcome_without_death(self) -> tuple[HistoryOutcome | None, float]:
        if self.history:
            last = self.history[-1]
            is_over = last.outcome is HistoryOutcome.ATTEMPT and last.verdict == "dead"
            return HistoryOutcome.DEAD if is_over else last.outcome, last.at / 1000
        if not self.attempts:
            return None, 0.0
        by_verdict = {"delivered": HistoryOutcome.DELIVERED, "dead": HistoryOutcome.DEAD}
        return by_verdict.get(self.attempts[-1].verdict, HistoryOutcome.ATTEMPT), self.attempts[-1].at

    @property
    def is_dead(self) -> bool:
        """True if the event is dead, and was neither redriven nor attempted since."""
        return self.outcome is HistoryOutcome.DEAD

    @property
    def shown(self) -> tuple[str, str]:
        """Word for the event's state, and the shape of its badge."""
        if self.is_dead:
            return VERDICTS["dead"]
        if self.outcome is HistoryOutcome.REDRIVEN:
            return "Sent again", "retry"
        verdict = self.attempts[-1].verdict
        return VERDICTS.get(verdict, (verdict, "retry"))

    @property
    def timeline(self) -> list[AttemptModel | DeadEventModel]:
        """Attempts and dead letter in chronological order."""
        timeline: list[AttemptModel | DeadEventModel] = list(self.attempts)
        if self.death is not None:
            before = sum(attempt.at <= self.death.died_at for attempt in self.attempts)
            timeline.insert(before, self.death)
        return timeline

    @property
    def origin(self) -> Origin | None:
        """Position of the event's original record."""
        tried = (*self.attempts, *(attempt_of(one, one.at / 1000) for one in self.history[-1:]))
        found = next((attempt.origin for attempt in reversed(tried) if attempt.origin is not None), None)
        return self.death.origin if found is None and self.death is not None else found

    def places(self, prefix: str) -> list[Origin]:
        """Returns where the event is stored: its original record, then its dead letter, which is kept for longer."""
        found = [] if self.origin is None else [self.origin]
        return found if self.death is None else [*found, Origin(dead_letter_topic(prefix), *place_of(self.death.id))]


def add_to(app: web.Application, renderer: Renderer) -> None:
    """Adds this module's routes to the console."""
    app.router.add_get("/webhooks/{webhook_id}/deliveries/{event_id}", EventPage(renderer).show)


class EventPage:
    """Handler of the page."""

    def __init__(self, renderer: Renderer) -> None:
        self._renderer = renderer

    async def show(self, request: web.Request) -> web.StreamResponse:
        webhook = await self._renderer.webhook(request)
        event_id = request.match_info["event_id"]
        lookup = self._renderer.services.history
        found = HistoryTimeline(())
        if lookup is not None:
            found = await lookup.timeline(event_id, tenant=webhook.tenant)
        history = found.entries
        known = self._known(webhook, event_id, history)
        forgotten = forgotten_end(history, self._renderer.services.settings.history.keep, time.time())
        decision, problem = await self._decision(request, webhook, known, event_id)
        return await self._renderer.page(
            request,
            "event.html",
            at="webhooks",
            status=404 if known.last is None and not history else 200,
            webhook=webhook,
            event_id=event_id,
            known=known,
            history=history,
            is_cut=found.is_cut,
            can_resend=any(one.outcome is HistoryOutcome.DELIVERED for one in history),
            forgotten=forgotten,
            next_step=forgotten or await self.next_step(webhook, known),
            what_to_do="" if forgotten else self._remedy(webhook, known),
            source_problem=await self._source_problem(),
            decision=decision,
            problem=problem,
            is_gone=isinstance(problem, NotFound),
        )

    def _known(self, webhook: StoredWebhook, event_id: str, history: Sequence[HistoryEntry]) -> KnownEvent:
        services, tenant = self._renderer.services, webhook.tenant
        posts = (HistoryOutcome.ATTEMPT, HistoryOutcome.DELIVERED)
        found: Sequence[AttemptModel] = [attempt_of(one, time.time()) for one in history if one.outcome in posts]
        if not found:
            found = services.attempts.search(tenant, AttemptQuery(event_id=event_id, limit=200)).items
        query = DeadQuery(tenant=tenant, event_ids=frozenset({event_id}), redriven=None, limit=1)
        deaths = services.dead_events.search(query, orgs=frozenset({tenant.org})).items
        return KnownEvent(sorted(found, key=lambda item: item.at), next(iter(deaths), None), history)

    async def _decision(
        self, request: web.Request, webhook: StoredWebhook, known: KnownEvent, event_id: str
    ) -> tuple[event_explanation.Decision | None, DispatcherError | None]:
        """Returns the decision if the request asks for it, and an error if the decision can't be made."""
        settings, shows_people = self._renderer.services.settings, person_of(request).is_admin
        places = known.places(settings.kafka.prefix)
        if "explain" not in request.query or not places:
            return None, None
        try:
            decided = await event_explanation.decision_on(
                places, webhook, settings, time.time(), event_id, shows_people=shows_people
            )
        except DispatcherError as error:
            return None, error
        return decided, None

    async def next_step(self, webhook: StoredWebhook, known: KnownEvent) -> str:
        """Returns what happens to the event next, as a sentence."""
        if (switched := self._step_by_switch(webhook, known)) is not None:
            return switched
        match known.outcome:
            case None:
                return ""
            case HistoryOutcome.DEAD:
                return "Nothing more happens by itself: it is among the dead events. An admin can send it again."
            case HistoryOutcome.REDRIVEN:
                return "It was sent again, and is delivered like a new event."
            case HistoryOutcome.SKIPPED:
                return "Nothing more happens: events like this one are not sent."
            case HistoryOutcome.DELIVERED:
                return "Nothing more happens: your server took the event."
            case HistoryOutcome.HELD:
                return self._held_until(known.history[-1].reason)
        if known.attempts and known.attempts[-1].verdict == "disable_endpoint":
            return "It waits until the webhook is edited or reactivated; then it is tried again."
        webhook_state = await state_of(self._renderer.services, webhook)
        if webhook_state.is_stopped:
            return "It waits: sending is stopped until the webhook is edited or reactivated."
        due = min((tier.next_due for tier in webhook_state.tiers or () if tier.next_due is not None), default=None)
        wait = "" if due is None else f" The webhook's next waiting event is due in {max(0, due - time.time()):.0f} s."
        return f"It is tried again, at growing intervals, until it is too old.{wait}"

    def _step_by_switch(self, webhook: StoredWebhook, known: KnownEvent) -> str | None:
        """Returns what happens to an event that isn't finished if the webhook is off or paused, otherwise None."""
        if known.outcome is None or known.outcome in FINAL:
            return None
        so_far = "It was sent again. " if known.outcome is HistoryOutcome.REDRIVEN else ""
        if not webhook.enabled:
            return f"{so_far}The webhook is switched off: unless it is on by then, the event is skipped when it is due."
        return so_far + self._held_until(ParkReason.PAUSED) if webhook.paused else None

    def _held_until(self, reason: str) -> str:
        age = format_duration(self._renderer.services.settings.retry.max_age)
        until = "the webhook is resumed" if reason == ParkReason.PAUSED else "the cause is gone"
        return f"It waits until {until}; then it is sent. If that takes longer than {age}, it is dead."

    async def _source_problem(self) -> str | None:
        """Returns why something of the event may be missing on the page; None if nothing is."""
        services = self._renderer.services
        problem = services.attempts.problem if services.history is None else await services.history.problem()
        return problem or services.dead_events.problem

    def _remedy(self, webhook: StoredWebhook, known: KnownEvent) -> str:
        """Returns what to change: by what skipped, holds or held the event at last, otherwise by its last attempt.

        For an event that expired without an answer, uses the webhook's latest failure.
        """
        if known.outcome is HistoryOutcome.SKIPPED:
            return remedy_of(HistoryOutcome.SKIPPED, known.history[-1].reason)
        cure = _cure(known)
        if cure:
            return cure
        last, death, edited_at = next(reversed(known.attempts), None), known.death, webhook.updated_at.timestamp()
        if last is None and death is not None and death.reason == DeadReason.EXPIRED and death.last_status is None:
            failing = self._renderer.services.attempts.failing(webhook.tenant, edited_at)
            last = None if failing is None else failing.attempt
        if last is not None:
            attempt, at = (last.reason, last.status, last.detail), last.began_at
        elif death is not None:
            attempt, at = (death.reason, death.last_status, death.detail), death.died_at
        elif known.is_dead and known.history:
            entry = known.history[-1]
            attempt, at = (entry.reason, entry.status, entry.detail), entry.at / 1000
        else:
            return ""
        try:
            return remedy_for(*attempt, webhook.config() if at >= edited_at else None)
        except ConfigError:  # of another version of this program
            return attempt[2]


def _cure(known: KnownEvent) -> str:
    """Returns what ends that an event is held, or that a dead one dies again; empty if attempts show it."""
    if known.outcome is HistoryOutcome.HELD:
        return HELD_REMEDIES.get(known.history[-1].reason, "")
    if not known.is_dead:
        return ""
    if known.death is not None:
        return remedy_of_death(known.death.reason, known.death.detail)
    return remedy_of_death(known.history[-1].reason, known.history[-1].detail) if known.history else ""
