"""Pages to search dead events and to send some or all of them again, after a confirmation that names their number."""

import asyncio
import time
from collections import defaultdict
from collections.abc import Collection, Iterable
from dataclasses import dataclass, replace
from typing import Final
from urllib.parse import urlencode

from aiohttp import web
from multidict import MultiMapping

from dispatcher.console import actions
from dispatcher.console.model import DeadEventModel, DeadQuery, Person, RedriveModel
from dispatcher.console.pages.renderer import Renderer, admin_of, to
from dispatcher.console.pages.scope import Scope
from dispatcher.console.pages.seen import campaigns_of
from dispatcher.console.pages.time_range import TimeRange, with_offsets
from dispatcher.console.request_body import form_body
from dispatcher.console.services import person_of
from dispatcher.console.webhook_state import state_of
from dispatcher.contract import redaction
from dispatcher.contract.outcomes import DeadReason
from dispatcher.contract.tenant import TenantKey
from dispatcher.errors import DispatcherError, NotFound

PAGE: Final = 50
MAX_CHOSEN: Final = 500
MAX_GROUPS: Final = 50
"""Most sandboxes whose events are sent again in one go."""
SPANS: Final = ("1h", "24h", "7d")
STATUSES: Final = ("sent", "delivered", "bounce", "error", "exclude", "delay", "duplicate", "denylist", "read")


@dataclass(frozen=True, slots=True)
class DeadEventFilter:
    """The chosen filters, as text: the same in a URL and in a form."""

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
        """Reads the filters of a query or form; ignores invalid ones."""
        reasons = tuple(str(one) for one in given.getall("reason", []))
        status, span = str(given.get("status", ""))[:200], str(given.get("span", ""))
        sent_again = str(given.get("again", "no"))
        return cls(
            reasons=tuple(one for one in reasons if one in list(DeadReason)),
            message_status=status,
            channel=str(given.get("channel", "")).strip()[:200],
            campaign=str(given.get("campaign", "")).strip()[:200],
            span=span if span in SPANS else "",
            since=str(given.get("since", "")).strip()[:64],
            until=str(given.get("until", "")).strip()[:64],
            sent_again=sent_again if sent_again in ("yes", "both") else "no",
            before=str(given.get("before", ""))[:200],
        )

    @property
    def time(self) -> TimeRange:
        return TimeRange(self.span, self.since, self.until)

    @property
    def is_filtered(self) -> bool:
        return self != DeadEventFilter(before=self.before)

    def query(self, tenant: TenantKey | None, now: float) -> DeadQuery:
        return DeadQuery(
            tenant=tenant,
            reasons=frozenset(self.reasons),
            message_statuses=frozenset({self.message_status} if self.message_status else ()),
            channels=frozenset({self.channel} if self.channel else ()),
            campaign_id=self.campaign or None,
            since=self.time.begin(now),
            until=self.time.end,
            redriven={"no": False, "yes": True, "both": None}[self.sent_again],
            before=self.before or None,
            limit=PAGE,
        )

    def fields(self) -> list[tuple[str, str]]:
        """Returns names and values for a URL or hidden fields."""
        fields = [("reason", one) for one in self.reasons]
        fields += [("status", self.message_status)] if self.message_status else []
        named = ("channel", "campaign", "span", "since", "until")
        fields += [(name, value) for name in named if (value := getattr(self, name))]
        return fields + ([("again", self.sent_again)] if self.sent_again != "no" else [])

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
    warnings: tuple[str, ...] = ()
    """Sentences that say why they may fail again."""


def add_to(app: web.Application, renderer: Renderer) -> None:
    """Adds this module's routes to the console."""
    pages = DeadEventsPages(renderer)
    app.router.add_get("/dead-events", pages.show)
    app.router.add_post("/dead-events/confirm", pages.confirm)
    app.router.add_post("/dead-events/redrive", pages.redrive)


class DeadEventsPages:
    """Serves the dead events, and the orders to send them again."""

    def __init__(self, renderer: Renderer) -> None:
        self._renderer = renderer

    async def show(self, request: web.Request) -> web.StreamResponse:
        if (address := with_offsets(request)) is not None:
            return to(address)
        wanted = DeadEventFilter.of(request.query)
        return await self._list(request, wanted, wanted.time.problem)

    async def _list(self, request: web.Request, wanted: DeadEventFilter, problem: str = "") -> web.StreamResponse:
        person = person_of(request)
        scope, dead = Scope.of(request, person), self._renderer.services.dead_events
        page = dead.search(wanted.query(scope.tenant, time.time()), orgs=scope.orgs(person))
        webhooks = {webhook.tenant: webhook for webhook in await self._renderer.webhooks(person, scope)}
        matching = self._matching(scope, webhooks, wanted) if person.is_admin else []
        whole = matching[:MAX_GROUPS]
        return await self._renderer.page(
            request,
            "dead_events.html",
            at="dead",
            status=422 if problem else 200,
            items=page.items,
            total=page.total,
            whole=whole,
            whole_events=sum(group.events for group in whole),
            is_whole_cut=len(matching) > MAX_GROUPS,
            is_complete=page.is_complete,
            older=None if page.next is None else wanted.older(page.next),
            wanted=wanted,
            webhooks=webhooks,
            shown_to=lambda dead_event: _recipient(dead_event, person),
            reasons=[reason.value for reason in DeadReason],
            statuses=STATUSES,
            spans=SPANS,
            campaigns=await campaigns_of(self._renderer.services, scope.tenant),
            problem=problem,
            source_problem=dead.problem,
        )

    async def confirm(self, request: web.Request) -> web.StreamResponse:
        person = admin_of(request)
        posted = await form_body(request)
        wanted = DeadEventFilter.of(posted)
        if wanted.time.problem:
            return await self._list(request, wanted, wanted.time.problem)
        try:
            groups = await self._groups(posted, person, Scope.of(request, person), wanted)
        except NotFound as error:
            return await self._list(request, wanted, f"{error}: look through the list again")
        if not groups:
            return await self._list(request, wanted, "Select the events to send again, or choose all that match.")
        return await self._renderer.page(
            request,
            "redrive_confirm.html",
            at="dead",
            groups=await asyncio.gather(*(self._with_warnings(group, person) for group in groups)),
            total=sum(group.events for group in groups),
            is_at_least=any(group.is_at_least for group in groups),
            wanted=wanted,
            chose_all=_chose_all(posted),
        )

    async def redrive(self, request: web.Request) -> web.StreamResponse:
        person = admin_of(request)
        posted = await form_body(request)
        wanted = DeadEventFilter.of(posted)
        if wanted.time.problem:
            return await self._list(request, wanted, wanted.time.problem)
        jobs: list[RedriveModel] = []
        problems: list[str] = []
        try:
            groups = await self._groups(posted, person, Scope.of(request, person), wanted)
        except NotFound as error:
            return await self._list(request, wanted, f"{error}: look through the list again")
        for group in groups:
            try:
                ids, query = frozenset(group.ids) or None, replace(wanted.query(group.tenant, time.time()), before=None)
                jobs.append(await actions.redrive(self._renderer.services, person, group.tenant, ids, query))
            except DispatcherError as error:
                problems.append(f"{group.tenant}: {error.for_tenants}.")
        if not jobs:
            return await self._list(request, wanted, " ".join(problems) or "Nothing was selected.")
        left = [("left", str(len(problems)))] if problems else []
        return to("/jobs?" + urlencode([*(("job", job.id) for job in jobs), *left]))

    def _matching(self, scope: Scope, tenants: Collection[TenantKey], wanted: DeadEventFilter) -> list[RedriveGroup]:
        """Returns all that match, in the scope's sandbox or in each with a webhook; the largest groups first."""
        query, dead = wanted.query(None, time.time()), self._renderer.services.dead_events
        groups: list[RedriveGroup] = []
        for tenant in tenants if scope.tenant is None else [scope.tenant]:
            own = replace(query, tenant=tenant, redriven=False, before=None, limit=1)
            found = dead.search(own, orgs=frozenset({tenant.org}))
            if found.total:
                groups.append(RedriveGroup(tenant, found.total, (), is_at_least=not found.is_complete))
        return sorted(groups, key=lambda group: (-group.events, group.tenant))

    async def _with_warnings(self, group: RedriveGroup, person: Person) -> RedriveGroup:
        services = self._renderer.services
        webhook = await services.webhooks.of_tenant(group.tenant, orgs=person.orgs)
        if webhook is None:
            return replace(group, warnings=("There is no webhook for it: they would be skipped.",))
        return replace(group, warnings=(await state_of(services, webhook)).reasons)

    async def _groups(
        self, posted: MultiMapping[object], person: Person, scope: Scope, wanted: DeadEventFilter
    ) -> list[RedriveGroup]:
        """Returns the selected events by tenant. Raises NotFound if the person can't see an id."""
        dead = self._renderer.services.dead_events
        if _chose_all(posted):
            tenants = {webhook.tenant for webhook in await self._renderer.webhooks(person, scope)}
            return self._matching(scope, tenants, wanted)[:MAX_GROUPS]
        ids = list(dict.fromkeys(str(one)[:100] for one in posted.getall("id", [])))[:MAX_CHOSEN]
        return list(_by_tenant(dead.get(one, orgs=person.orgs) for one in ids))


def _by_tenant(dead_events: Iterable[DeadEventModel]) -> Iterable[RedriveGroup]:
    found: defaultdict[TenantKey, list[str]] = defaultdict(list)
    for dead_event in dead_events:
        if dead_event.tenant is not None:
            found[dead_event.tenant].append(dead_event.id)
    return (RedriveGroup(tenant, len(ids), tuple(ids)) for tenant, ids in sorted(found.items()))


def _chose_all(posted: MultiMapping[object]) -> bool:
    return posted.get("which") == "all"


def _recipient(dead_event: DeadEventModel, person: Person) -> str:
    if not dead_event.recipient:
        return ""
    return dead_event.recipient if person.is_admin else redaction.recipient(dead_event.recipient)
