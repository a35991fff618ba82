"""Sends operational webhooks: signed by Standard Webhooks, through the egress guard, like any other webhook."""

import asyncio
from collections.abc import Mapping
from typing import Final

import orjson

from dispatcher.auth.signatures import Signer, problem_of_signing
from dispatcher.config.notification_settings import OperationalWebhookSettings
from dispatcher.config.secrets import RotatingSecret, Secret
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
        for secret in settings.signing.secrets:
            _check_signs(secret)
        self._signing = settings.signing
        self._secrets = [
            RotatingSecret(secret, "notifications.webhook.signing", _check_signs) for secret in settings.signing.secrets
        ]
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
        signer = await asyncio.to_thread(self._current_signer)
        if signer is not None:
            headers.append(("webhook-signature", signer.sign(webhook_id, int(now), body)))
        attempt = await self._transport.post(
            Request(self._endpoint, tuple(headers), body, TIMEOUT_S, CONNECT_TIMEOUT_S)
        )
        if attempt.status is None or not 200 <= attempt.status < 300:
            why = attempt.detail or (f"answered {attempt.status}" if attempt.status else reason_of(attempt))
            raise NotSent(
                f": {why[:200]}", is_final=attempt.status == 410, where=self.name,
                for_tenants="the operator's endpoint doesn't take it",
            )  # fmt: skip

    def _current_signer(self) -> Signer | None:
        """Returns the signer with the secrets as their files have them now. Blocks."""
        secrets = [secret.current() for secret in self._secrets]
        return Signer.of(self._signing.model_copy(update={"secrets": secrets}))


def _check_signs(secret: Secret) -> None:
    problem = problem_of_signing(secret)
    if problem is not None:
        raise ValueError(problem)
