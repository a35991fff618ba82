"""Pages to send a webhook's events again: choose, check, confirm; then the jobs with their progress."""

import time
from dataclasses import dataclass, field, replace
from datetime import UTC, datetime
from typing import Final
from urllib.parse import urlencode

from aiohttp import web
from multidict import MultiMapping

from dispatcher.config.webhooks import Channel
from dispatcher.console.pages.known_values import too_many_words, unknown_value
from dispatcher.console.pages.renderer import Renderer, admin_of, to
from dispatcher.console.pages.search import RESENT
from dispatcher.console.pages.time_range import TimeRange, time_in, with_offsets
from dispatcher.console.request_body import MAX_WORDS, as_typed, form_body, number_in, words_in
from dispatcher.console.resend_model import RedriveModel, ResendQuery
from dispatcher.console.resending import ResendOrder, ResendPlan, check_resend, start_resend, stop_job
from dispatcher.console.services import person_of
from dispatcher.console.webhook_state import state_of
from dispatcher.contract.search_text import MAX_TYPED
from dispatcher.errors import DispatcherError, NotFound
from dispatcher.stores.sql.records import StoredWebhook

MAX_CHOSEN: Final = 100
"""Events that are chosen one by one: they fit into a URL."""
MAX_GROUPS: Final = 50
_INCLUDE: Final = ("delivered", "dead")


@dataclass(frozen=True, slots=True)
class ResendChoice:
    """The form's values as text, as they are in a URL and in hidden fields."""

    events: tuple[str, ...] = ()
    time: TimeRange = field(default_factory=TimeRange)
    reason: str = ""
    status: str = ""
    channel: str = ""
    campaign: str = ""
    include: tuple[str, ...] = _INCLUDE
    """Empty if something else was chosen, which can't be sent again."""
    checked: str = ""
    """Events that were sent again since are left out: an order that is given twice, by going back, sends nothing twice.
    The moment of the check, or an earlier one to leave out what was sent before it."""

    @classmethod
    def of(cls, given: MultiMapping[object]) -> "ResendChoice":
        """Reads a query or form; cuts long values."""
        texts = {name: str(given.get(name, "")).strip()[:MAX_TYPED] for name in RESENT}
        events = tuple(dict.fromkeys(str(one)[:256] for one in given.getall("event", [])))[:MAX_CHOSEN]
        chosen = given.getall("include", _INCLUDE)
        include = tuple(one for one in _INCLUDE if one in chosen)
        return cls(
            events=events,
            time=TimeRange.of(given),
            include=include,
            checked=str(given.get("checked", ""))[:64],
            **texts,
        )

    @property
    def problem(self) -> str:
        """Why the choice can't be carried out; empty if it can."""
        if self.checked and self.checked_at is None:
            return f"The time {self.checked} can't be read: check again."
        if not self.include:
            return "Choose delivered events, dead ones or both: others can't be sent again."
        if self.events:
            return ""
        if too_many := too_many_words(reason=self.reason, status=self.status, channel=self.channel):
            return too_many
        if unknown := unknown_value("channel", sorted(map(str.lower, words_in(self.channel))), tuple(Channel)):
            return unknown
        if self.time.problem:
            return self.time.problem
        return "" if self.time.begin(time.time()) is not None else "Choose a time from which on events are sent again."

    @property
    def checked_at(self) -> float | None:
        """Unix seconds since which events that were sent again are left out."""
        return time_in(self.checked)

    def as_of(self, now: float) -> "ResendChoice":
        """Returns the choice with a fixed begin and end, so that the counted events are the ones that are sent."""
        checked = self.checked or _text_of(now)
        return replace(self, checked=checked, time=self.time if self.events else self.time.as_of(now))

    @classmethod
    def rest_of(cls, job: RedriveModel) -> "ResendChoice | None":
        """Returns what a job that is over has left to send; None if nothing, or if it isn't known or fits no URL."""
        if not job.is_over or job.query is None or job.resume is None or len(job.query.event_ids) > MAX_CHOSEN:
            return None
        query, resume = job.query, job.resume
        reasons, statuses, channels = map(as_typed, (query.reasons, query.message_statuses, query.channels))
        if max(map(len, (reasons, statuses, channels))) > MAX_WORDS:
            return None  # ordered by the API
        return cls(
            events=query.event_ids,
            time=TimeRange("", "" if query.since is None else _text_of(query.since), _text_of(resume.until)),
            reason=",".join(reasons),
            status=",".join(statuses),
            channel=",".join(channels),
            campaign=query.campaign_id or "",
            include=("delivered",),
            checked=_text_of(resume.checked_at),
        )

    def address(self, webhook_id: str, checked_at: float | None = None) -> str:
        """Returns the URL of a check of this choice, which leaves out what was sent again since `checked_at`."""
        choice = self if checked_at is None else replace(self, checked=_text_of(checked_at))
        return f"/webhooks/{webhook_id}/resend?{urlencode(choice.fields())}"

    def order(self, now: float) -> ResendOrder:
        """Returns the resend order of this choice."""
        query = ResendQuery(
            event_ids=self.events,
            since=self.time.begin(now),
            until=self.time.end,
            reasons=words_in(self.reason),
            message_statuses=words_in(self.status),
            channels=words_in(self.channel),
            campaign_id=self.campaign or None,
            checked_at=self.checked_at,
        )
        return ResendOrder(query, "delivered" in self.include, "dead" in self.include)

    def fields(self) -> list[tuple[str, str]]:
        """Returns names and values for hidden fields."""
        fields = [*self.time.fields(), *((name, value) for name in RESENT if (value := getattr(self, name)))]
        return [*(("event", one) for one in self.events), *fields, *(("include", one) for one in self.include)] + (
            [("checked", self.checked)] if self.checked else []
        )


def _text_of(at: float) -> str:
    return datetime.fromtimestamp(at, UTC).isoformat()


def add_to(app: web.Application, renderer: Renderer) -> None:
    """Adds this module's routes to the console."""
    pages = ResendPages(renderer)
    app.router.add_get("/webhooks/{webhook_id}/resend", pages.show)
    app.router.add_post("/webhooks/{webhook_id}/resend", pages.start)
    app.router.add_get("/jobs", pages.jobs)
    app.router.add_post("/jobs/{job_id}/stop", pages.stop)


class ResendPages:
    """Serves the orders to send events again, and their jobs."""

    def __init__(self, renderer: Renderer) -> None:
        self._renderer = renderer

    async def show(self, request: web.Request) -> web.StreamResponse:
        admin_of(request)
        webhook = await self._renderer.webhook(request)
        if (address := with_offsets(request)) is not None:
            return to(address)
        choice = ResendChoice.of(request.query)
        return await self._page(request, webhook, choice, is_asked=bool(request.query))

    async def start(self, request: web.Request) -> web.StreamResponse:
        person = admin_of(request)
        webhook = await self._renderer.webhook(request)
        choice = ResendChoice.of(await form_body(request))
        if choice.problem:
            return await self._page(request, webhook, choice, is_asked=True)
        try:
            jobs = await start_resend(self._renderer.services, person, webhook, choice.order(time.time()))
        except DispatcherError as error:
            return await self._page(request, webhook, choice, is_asked=True, problem=error.for_tenants)
        return to("/jobs?" + urlencode([("job", job.id) for job in jobs]))

    async def _page(
        self, request: web.Request, webhook: StoredWebhook, choice: ResendChoice, *, is_asked: bool, problem: str = ""
    ) -> web.StreamResponse:
        plan: ResendPlan | None = None
        now = time.time()
        if is_asked and not problem:
            problem = choice.problem
            try:
                plan = None if problem else await check_resend(self._renderer.services, webhook, choice.order(now))
            except DispatcherError as error:
                problem = error.for_tenants
        confirmed = choice.as_of(now)
        if plan is not None:
            confirmed = replace(confirmed, campaign=plan.campaign_id or "")
        return await self._renderer.page(
            request,
            "resend.html",
            at="webhooks",
            tab="deliveries",
            status=422 if problem else 200,
            webhook=webhook,
            webhook_state=await state_of(self._renderer.services, webhook) if plan is None else plan.webhook_state,
            choice=choice,
            fields=confirmed.fields(),
            plan=plan,
            problem=problem,
            has_history=self._renderer.services.resends is not None,
        )

    async def jobs(self, request: web.Request) -> web.StreamResponse:
        """Shows the chosen jobs, or all that are kept."""
        person = person_of(request)
        asked = set(request.query.getall("job", [])[:MAX_GROUPS])
        jobs = await self._renderer.services.jobs.search(orgs=person.orgs, ids=asked or None)
        if len(jobs) < len(asked):
            raise NotFound("there is no such job, or it is long past")
        left = request.query.get("left", "")
        rests = {job.id: rest for job in jobs if (rest := ResendChoice.rest_of(job)) is not None}
        tenants = {job.tenant for job in jobs if job.id in rests}
        webhooks = await self._renderer.services.webhooks.list_tenants(tenants, orgs=person.orgs) if tenants else {}
        return await self._renderer.page(
            request,
            "redrives.html",
            at="dead",
            jobs=jobs,
            continue_at={
                job.id: rests[job.id].address(webhooks[job.tenant].id)
                for job in jobs
                if job.id in rests and job.tenant in webhooks
            },
            is_all=not asked,
            is_running=not all(job.is_over for job in jobs),
            left=number_in(left, 9_999) or 0,
        )

    async def stop(self, request: web.Request) -> web.StreamResponse:
        person, job_id = admin_of(request), request.match_info["job_id"]
        if len(job_id) > 64:
            raise NotFound("there is no such job")
        await stop_job(self._renderer.services, person, job_id)
        return to("/jobs?" + urlencode({"job": job_id}))
