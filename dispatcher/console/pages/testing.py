"""The page that sends a test event and shows its steps."""

from dataclasses import dataclass
from typing import Final

from aiohttp import web
from multidict import MultiMapping

from dispatcher.config.webhooks import Channel
from dispatcher.console.actions import send_test
from dispatcher.console.model import TestResultModel
from dispatcher.console.pages.renderer import Renderer, admin_of
from dispatcher.console.request_body import form_body
from dispatcher.console.webhook_state import state_of
from dispatcher.errors import ConfigError
from dispatcher.stores.sql.records import StoredWebhook

STATUSES: Final = ("delivered", "sent", "bounce", "error", "exclude", "delay", "duplicate", "denylist", "read")


@dataclass(frozen=True, slots=True)
class Sample:
    """The selected sample event."""

    channel: Channel = Channel.EMAIL
    message_status: str = "delivered"

    @classmethod
    def of(cls, posted: MultiMapping[object]) -> "Sample":
        """Reads the form's fields; uses defaults for invalid ones."""
        channel, status = str(posted.get("test_channel", "")), str(posted.get("test_status", ""))
        return cls(
            Channel(channel) if channel in list(Channel) else Channel.EMAIL,
            status if status in STATUSES else "delivered",
        )

    @property
    def channels(self) -> tuple[Channel, ...]:
        return tuple(Channel)

    @property
    def statuses(self) -> tuple[str, ...]:
        return STATUSES


def add_to(app: web.Application, renderer: Renderer) -> None:
    """Adds this module's routes to the console."""
    pages = TestPage(renderer)
    app.router.add_get("/webhooks/{webhook_id}/test", pages.show)
    app.router.add_post("/webhooks/{webhook_id}/test", pages.send)


class TestPage:
    """Serves the page that sends a test event."""

    def __init__(self, renderer: Renderer) -> None:
        self._renderer = renderer

    async def show(self, request: web.Request) -> web.StreamResponse:
        admin_of(request)
        webhook = await self._renderer.webhook(request)
        first = webhook.channels[0] if webhook.channels else Channel.EMAIL
        return await self._page(request, webhook, Sample(first), None)

    async def send(self, request: web.Request) -> web.StreamResponse:
        person = admin_of(request)
        webhook = await self._renderer.webhook(request)
        sample = Sample.of(await form_body(request))
        try:
            config = await self._renderer.services.webhooks.for_delivery(webhook.id, orgs=person.orgs)
            result = await send_test(
                self._renderer.services, person, config, sample.channel, sample.message_status, webhook.id
            )
        except ConfigError as error:
            return await self._page(request, webhook, sample, None, [str(one) for one in error.problems])
        return await self._page(request, webhook, sample, result)

    async def _page(
        self,
        request: web.Request,
        webhook: StoredWebhook,
        sample: Sample,
        result: TestResultModel | None,
        problems: list[str] | None = None,
    ) -> web.StreamResponse:
        return await self._renderer.page(
            request,
            "test.html",
            at="webhooks",
            tab="test",
            status=422 if problems else 200,
            webhook=webhook,
            webhook_state=await state_of(self._renderer.services, webhook),
            sample=sample,
            result=result,
            problems=problems or [],
        )
