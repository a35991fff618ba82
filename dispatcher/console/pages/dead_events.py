"""Pages to search dead events and to send some or all of them again, after a confirmation that names their number."""

import asyncio
import time
from collections import defaultdict
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass, replace
from typing import Final
from urllib.parse import urlencode

from aiohttp import web
from multidict import MultiMapping

from dispatcher.config.webhooks import Channel
from dispatcher.console import actions
from dispatcher.console.actions import why_skipped
from dispatcher.console.model import DeadEventModel, DeadPage, DeadQuery, Person
from dispatcher.console.pages.filter_help import STATUSES
from dispatcher.console.pages.known_values import unknown_value
from dispatcher.console.pages.renderer import Renderer, admin_of, to
from dispatcher.console.pages.scope import Scope
from dispatcher.console.pages.seen import campaigns_of
from dispatcher.console.pages.time_range import TimeRange, with_offsets
from dispatcher.console.request_body import form_body, in_any_case
from dispatcher.console.resend_model import RedriveModel, SkippedCount
from dispatcher.console.resending import would_be_skipped
from dispatcher.console.services import person_of
from dispatcher.console.webhook_state import state_of
from dispatcher.contract import redaction
from dispatcher.contract.outcomes import DeadReason
from dispatcher.contract.search_text import MAX_TYPED
from dispatcher.contract.tenant import TenantKey
from dispatcher.errors import DispatcherError, NotFound
from dispatcher.stores.sql.records import ListedWebhook

PAGE: Final = 50
MAX_CHOSEN: Final = 500
MAX_GROUPS: Final = 50
"""Most sandboxes whose events are sent again in one go."""
MAX_REASONS: Final = 20
SPANS: Final = ("1h", "24h", "7d")
REDRIVEN: Final = {"no": False, "yes": True, "both": None}
_NOTHING: Final = DeadPage((), 0, None)


@dataclass(frozen=True, slots=True)
class DeadEventFilter:
    """The chosen filters, as text: the same in a URL and in a form."""

    org: str = ""
    """Organisation whose events are shown; empty for those of the selection in the top bar."""
    sandbox: str = ""
    """Empty for all sandboxes of `org`."""
    reasons: tuple[str, ...] = ()
    message_status: str = ""
    channel: str = ""
    campaign: str = ""
    span: str = ""
    since: str = ""
    until: str = ""
    sent_again: str = "no"
    """`no`, `yes` or `both`"""
    before: str = ""

    @classmethod
    def of(cls, given: MultiMapping[object]) -> "DeadEventFilter":
        """Reads the filters of a query or form; cuts long values."""
        org = str(given.get("org", ""))[:200]
        return cls(
            org=org,
            sandbox=str(given.get("sandbox", ""))[:200] if org else "",
            reasons=tuple(str(one)[:64].lower() for one in given.getall("reason", [])[:MAX_REASONS]),
            message_status=str(given.get("status", "")).strip()[:200],
            channel=str(given.get("channel", "")).strip()[:200],
            campaign=str(given.get("campaign", "")).strip()[:MAX_TYPED],
            span=str(given.get("span", ""))[:64],
            since=str(given.get("since", "")).strip()[:64],
            until=str(given.get("until", "")).strip()[:64],
            sent_again=str(given.get("again", ""))[:64] or "no",
            before=str(given.get("before", ""))[:200],
        )

    @property
    def time(self) -> TimeRange:
        return TimeRange(self.span, self.since, self.until)

    @property
    def problem(self) -> str:
        """A sentence about a filter that can't be meant; empty if there is none."""
        return (
            self.time.problem
            or unknown_value("reason", self.reasons, tuple(DeadReason))
            or unknown_value("channel", [self.channel.lower()], tuple(Channel))
            or unknown_value("choice of events sent again", [self.sent_again], tuple(REDRIVEN))
        )

    @property
    def is_filtered(self) -> bool:
        return self != DeadEventFilter(before=self.before)

    @property
    def shows_sent_again(self) -> bool:
        """True if events are shown that were sent again, which "all that match" can't send."""
        return self.sent_again != "no"

    def scope(self, request: web.Request, person: Person) -> Scope:
        """Returns the tenants whose events are shown. Raises NotFound if the person can't see the organisation."""
        if not self.org:
            return Scope.of(request, person)
        if not person.may_see(self.org):
            raise NotFound("there is no such organisation and sandbox")
        return Scope(self.org, self.sandbox or None)

    def as_of(self, now: float) -> "DeadEventFilter":
        """Returns the filter with a fixed begin and end: events that die later, or leave the span, change nothing."""
        fixed = self.time.as_of(now)
        return replace(self, span="", since=fixed.since, until=fixed.until)

    def query(self, tenant: TenantKey | None, now: float) -> DeadQuery:
        return DeadQuery(
            tenant=tenant,
            reasons=frozenset(self.reasons),
            message_statuses=in_any_case([self.message_status] if self.message_status else ()),
            channels=in_any_case([self.channel] if self.channel else ()),
            campaign_id=self.campaign or None,
            since=self.time.begin(now),
            until=self.time.end,
            redriven=REDRIVEN[self.sent_again],
            before=self.before or None,
            limit=PAGE,
        )

    def fields(self) -> list[tuple[str, str]]:
        """Returns names and values for a URL or hidden fields."""
        fields = [("reason", one) for one in self.reasons]
        fields += [("status", self.message_status)] if self.message_status else []
        named = ("org", "sandbox", "channel", "campaign", "span", "since", "until")
        fields += [(name, value) for name in named if (value := getattr(self, name))]
        return fields + ([("again", self.sent_again)] if self.sent_again != "no" else [])

    @property
    def address(self) -> str:
        return "/dead-events?" + urlencode(self.fields())

    def older(self, cursor: str) -> str:
        return "/dead-events?" + urlencode([*self.fields(), ("before", cursor)])


@dataclass(frozen=True, slots=True)
class RedriveGroup:
    """Dead events of one tenant to send again."""

    tenant: TenantKey
    events: int
    ids: tuple[str, ...]
    """Empty if all that match the filters are selected."""
    is_at_least: bool = False
    """True if more may match than the console keeps: all that match are sent."""
    refusal: str = ""
    """Why they can't be sent: they would be skipped. Empty if they can."""
    warnings: tuple[str, ...] = ()
    """Sentences that say why they may fail again."""
    skipped: tuple[SkippedCount, ...] = ()
    """How many of them the webhook would skip, because its lists have changed."""


@dataclass(frozen=True, slots=True)
class RedriveChoice:
    """Selected dead events: those that can be sent again, and those that would be skipped."""

    sent: list[RedriveGroup]
    left_out: list[RedriveGroup]
    unsendable: int = 0
    """Events that match and that no redrive can send; they are in no group."""
    is_cut: bool = False
    """True if more groups than `MAX_GROUPS` could be sent: the largest ones are."""

    @property
    def events(self) -> int:
        return sum(group.events for group in self.sent)

    @property
    def events_left_out(self) -> int:
        return sum(group.events for group in self.left_out)

    @property
    def problem(self) -> str:
        """Why nothing can be sent; empty if something can."""
        if self.sent:
            return ""
        if self.left_out:
            return " ".join(f"{group.tenant}: {group.refusal}." for group in self.left_out[:MAX_GROUPS])
        if self.unsendable:
            return "None of these events can be sent again: they are unreadable, too large, or only a part is kept."
        return "Select the events to send again, or choose all that match."


def add_to(app: web.Application, renderer: Renderer) -> None:
    """Adds this module's routes to the console."""
    pages = DeadEventsPages(renderer)
    app.router.add_get("/dead-events", pages.show)
    app.router.add_post("/dead-events/confirm", pages.confirm)
    app.router.add_get("/dead-events/confirm", pages.leave_confirmation)
    app.router.add_post("/dead-events/redrive", pages.redrive)


class DeadEventsPages:
    """Serves the dead events, and the orders to send them again."""

    def __init__(self, renderer: Renderer) -> None:
        self._renderer = renderer

    async def show(self, request: web.Request) -> web.StreamResponse:
        if (address := with_offsets(request)) is not None:
            return to(address)
        wanted = DeadEventFilter.of(request.query)
        return await self._list(request, wanted)

    async def _list(self, request: web.Request, wanted: DeadEventFilter, problem: str = "") -> web.StreamResponse:
        """Shows the list; nothing of it, which could be sent again, if a filter has a problem."""
        person = person_of(request)
        scope, dead = wanted.scope(request, person), self._renderer.services.dead_events
        page, problem = _NOTHING, wanted.problem or problem
        if not wanted.problem:
            page = dead.search(wanted.query(scope.tenant, time.time()), orgs=scope.orgs(person))
        webhooks = await self._webhooks_of(page, person)
        return await self._renderer.page(
            request,
            "dead_events.html",
            at="dead",
            status=422 if problem else 200,
            items=page.items,
            total=page.total,
            whole=_whole(page, webhooks, wanted),
            is_complete=page.is_complete,
            older=None if page.next is None else wanted.older(page.next),
            wanted=wanted,
            shown_scope=scope,
            webhooks=webhooks,
            why_skipped=why_skipped,
            shown_to=lambda dead_event: _recipient(dead_event, person),
            reasons=[reason.value for reason in DeadReason],
            statuses=[(one, one) for one in STATUSES],
            spans=SPANS,
            campaigns=await campaigns_of(self._renderer.services, scope.tenant),
            problem=problem,
            source_problem=dead.problem,
        )

    async def leave_confirmation(self, _request: web.Request) -> web.StreamResponse:
        """Redirects to the list: a sign-in after the end of the session leads back to this path."""
        return to("/dead-events")

    async def confirm(self, request: web.Request) -> web.StreamResponse:
        person = admin_of(request)
        posted = await form_body(request)
        wanted = DeadEventFilter.of(posted)
        if wanted.problem:
            return await self._list(request, wanted)
        try:
            scope = wanted.scope(request, person)
            checked = self._as_of(time.time(), wanted, scope, person)
            choice = await self._choice(posted, person, scope, checked)
        except NotFound as error:
            return await self._list(request, wanted, f"{error}: look through the list again")
        if choice.problem:
            return await self._list(request, wanted, choice.problem)
        return await self._renderer.page(
            request,
            "redrive_confirm.html",
            at="dead",
            groups=await self._with_warnings(choice.sent, person, checked),
            left_out=choice.left_out,
            total=choice.events,
            is_at_least=any(group.is_at_least for group in choice.sent),
            wanted=wanted,
            checked=checked,
            chose_all=_chose_all(posted),
        )

    async def redrive(self, request: web.Request) -> web.StreamResponse:
        person = admin_of(request)
        posted = await form_body(request)
        wanted = DeadEventFilter.of(posted)
        if wanted.problem:
            return await self._list(request, wanted)
        try:
            choice = await self._choice(posted, person, wanted.scope(request, person), wanted)
        except NotFound as error:
            return await self._list(request, wanted, f"{error}: look through the list again")
        if choice.problem:
            return await self._list(request, wanted, choice.problem)
        jobs: list[RedriveModel] = []
        problems: list[str] = []
        for group in choice.sent:
            try:
                ids, query = frozenset(group.ids) or None, replace(wanted.query(group.tenant, time.time()), before=None)
                jobs.append(await actions.redrive(self._renderer.services, person, group.tenant, ids, query))
            except DispatcherError as error:
                problems.append(f"{group.tenant}: {error.for_tenants}.")
        if not jobs:
            return await self._list(request, wanted, " ".join(problems))
        number = len(problems) + (0 if _chose_all(posted) else len(choice.left_out))
        left = [("left", str(number))] if number else []
        return to("/jobs?" + urlencode([*(("job", job.id) for job in jobs), *left]))

    def _as_of(self, now: float, wanted: DeadEventFilter, scope: Scope, person: Person) -> DeadEventFilter:
        """Returns the filter as `DeadEventFilter.as_of` does, and with the campaign as the events have it."""
        query = wanted.query(scope.tenant, now)
        known = self._renderer.services.dead_events.with_known_campaign(query, orgs=scope.orgs(person))
        return replace(wanted.as_of(now), campaign=known.campaign_id or "")

    async def _webhooks_of(self, page: DeadPage, person: Person) -> dict[TenantKey, ListedWebhook]:
        return await self._renderer.services.webhooks.list_tenants(page.by_tenant, orgs=person.orgs)

    async def _with_warnings(
        self, groups: Sequence[RedriveGroup], person: Person, wanted: DeadEventFilter
    ) -> list[RedriveGroup]:
        """Returns the groups with the reasons why their events may fail again, or would be skipped."""
        services = self._renderer.services
        listed = await services.webhooks.list_tenants([group.tenant for group in groups], orgs=person.orgs)
        found = await services.webhooks.get_all([one.id for one in listed.values()], orgs=person.orgs)
        webhooks = {one.tenant: one for one in found}

        async def one_with(group: RedriveGroup) -> RedriveGroup:
            webhook = webhooks.get(group.tenant)
            if webhook is None:  # deleted a moment ago
                return group
            skipped = would_be_skipped(
                services, webhook, frozenset(group.ids) or None, wanted.query(group.tenant, time.time())
            )
            return replace(group, warnings=(await state_of(services, webhook)).reasons, skipped=skipped)

        return list(await asyncio.gather(*map(one_with, groups)))

    async def _choice(
        self, posted: MultiMapping[object], person: Person, scope: Scope, wanted: DeadEventFilter
    ) -> RedriveChoice:
        """Returns the selected events by tenant. Raises NotFound if the person can't see an id."""
        services = self._renderer.services
        if _chose_all(posted):
            query = replace(wanted.query(scope.tenant, time.time()), before=None, limit=1)
            page = services.dead_events.search(query, orgs=scope.orgs(person))
            return _whole(page, await self._webhooks_of(page, person), wanted)
        ids = list(dict.fromkeys(str(one)[:100] for one in posted.getall("id", [])))[:MAX_CHOSEN]
        groups = list(_by_tenant(services.dead_events.get(one, orgs=person.orgs) for one in ids))
        webhooks = await services.webhooks.list_tenants([group.tenant for group in groups], orgs=person.orgs)
        unsendable = len(ids) - sum(group.events for group in groups)
        return replace(_choice_of(groups, webhooks), unsendable=unsendable)


def _whole(page: DeadPage, webhooks: Mapping[TenantKey, ListedWebhook], wanted: DeadEventFilter) -> RedriveChoice:
    """Returns all that match, the largest groups first; nothing if events are shown that were sent again already."""
    found = {} if wanted.shows_sent_again else page.sendable
    groups = [RedriveGroup(tenant, events, (), not page.is_complete) for tenant, events in found.items()]
    choice = _choice_of(sorted(groups, key=lambda group: (-group.events, group.tenant)), webhooks)
    unsendable = 0 if wanted.shows_sent_again else page.total - sum(found.values())
    return replace(choice, sent=choice.sent[:MAX_GROUPS], unsendable=unsendable, is_cut=len(choice.sent) > MAX_GROUPS)


def _choice_of(groups: Iterable[RedriveGroup], webhooks: Mapping[TenantKey, ListedWebhook]) -> RedriveChoice:
    """Separates the groups that can be sent from those that would be skipped."""
    judged = [replace(group, refusal=why_skipped(webhooks.get(group.tenant))) for group in groups]
    return RedriveChoice([one for one in judged if not one.refusal], [one for one in judged if one.refusal])


def _by_tenant(dead_events: Iterable[DeadEventModel]) -> Iterable[RedriveGroup]:
    found: defaultdict[TenantKey, list[str]] = defaultdict(list)
    for dead_event in dead_events:
        if dead_event.tenant is not None and dead_event.can_be_sent:
            found[dead_event.tenant].append(dead_event.id)
    return (RedriveGroup(tenant, len(ids), tuple(ids)) for tenant, ids in sorted(found.items()))


def _chose_all(posted: MultiMapping[object]) -> bool:
    return posted.get("which") == "all"


def _recipient(dead_event: DeadEventModel, person: Person) -> str:
    if not dead_event.recipient:
        return ""
    return dead_event.recipient if person.is_admin else redaction.recipient(dead_event.recipient)
