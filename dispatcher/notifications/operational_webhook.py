"""Sends operational webhooks: signed by Standard Webhooks, through the egress guard, like any other webhook."""

from collections.abc import Mapping
from typing import Final

import orjson

from dispatcher.auth.signatures import Signer
from dispatcher.config.notification_settings import OperationalWebhookSettings
from dispatcher.delivery.verdicts import reason_of
from dispatcher.notifications.mail import NotSent
from dispatcher.transport.endpoint import Endpoint
from dispatcher.transport.request import Request, Transport

TIMEOUT_S: Final = 10.0
CONNECT_TIMEOUT_S: Final = 3.0


class OperationalWebhook:
    """The operator's endpoint."""

    def __init__(self, settings: OperationalWebhookSettings, transport: Transport) -> None:
        """Raises ValueError if a signing secret can't sign."""
        self._endpoint = Endpoint.at(settings.url)
        self._signer = Signer.of(settings.signing)
        self._transport = transport
        self.name: Final = f"{self._endpoint.scheme}://{self._endpoint.authority}"
        """Origin of the endpoint, without its path, which may hold a secret."""

    async def send(self, webhook_id: str, event: Mapping[str, object], now: float) -> None:
        """Sends one event. Repeats have the same `webhook_id`.

        Raises:
            NotSent: it was not answered with 2xx.
        """
        body = orjson.dumps(event)
        headers = [("webhook-id", webhook_id), ("webhook-timestamp", str(int(now)))]
        if self._signer is not None:
            headers.append(("webhook-signature", self._signer.sign(webhook_id, int(now), body)))
        attempt = await self._transport.post(
            Request(self._endpoint, tuple(headers), body, TIMEOUT_S, CONNECT_TIMEOUT_S)
        )
        if attempt.status is None or not 200 <= attempt.status < 300:
            why = attempt.detail or (f"answered {attempt.status}" if attempt.status else reason_of(attempt))
            raise NotSent(
                f": {why[:200]}", is_final=attempt.status == 410, where=self.name,
                for_tenants="the operator's endpoint doesn't take it",
            )  # fmt: skip
