"""Sends a sample event on the real delivery path: guard, authentication, headers, signature, transport, verdict.

A test bypasses the tenant's lane, because tests are needed most while deliveries are stopped. Each test opens new
connections, so that its result includes every step: address, connect, TLS.
"""

import asyncio
import time
from collections.abc import Callable
from dataclasses import dataclass, field
from datetime import UTC, datetime
from typing import Final, Literal
from weakref import WeakValueDictionary

from dispatcher.config.settings import Settings
from dispatcher.config.webhook_revision import Webhook
from dispatcher.config.webhooks import Channel, WebhookConfig
from dispatcher.console.model import StepModel, TestResultModel
from dispatcher.console.sources.sample_events import sample_event
from dispatcher.contract.feedback import encode_feedback
from dispatcher.contract.outcomes import Attempt, FailureReason, Phases, shown_to_tenants
from dispatcher.contract.records import AssignmentEpoch, ProcessingAttempt
from dispatcher.contract.values import HttpHeader
from dispatcher.delivery.deliverer import PreparedWebhook
from dispatcher.delivery.pending_delivery import PendingDelivery, request_headers
from dispatcher.delivery.permits import Priority
from dispatcher.delivery.remedies import remedy_for, verdict_in_words
from dispatcher.delivery.verdicts import judge, reason_of
from dispatcher.errors import ConfigError, Problem, TokenUnavailable
from dispatcher.flow.explain import masked, shown_headers
from dispatcher.transport import open_transport
from dispatcher.transport.addresses import AddressKind, kind_of
from dispatcher.transport.egress import literal
from dispatcher.transport.endpoint import Endpoint
from dispatcher.transport.request import Request, Transport
from dispatcher.transport.token_client import TokenClient

KEEP_BODY: Final = 2048
AT_ONCE: Final = 8
"""Tests that run at once; others wait."""
AT_ONCE_EACH: Final = 2
"""The same for one organisation, whose endpoint may hang and must not block the tests of others."""


@dataclass(slots=True)
class _Sent:
    """Observations during one test."""

    attempt: Attempt
    token: HttpHeader | None = None
    token_ms: float | None = None
    tokens: int = 0
    """Tokens that were requested."""
    headers: tuple[tuple[str, str], ...] = field(default=())


class SampleSender:
    """Sends sample events on the real delivery path."""

    def __init__(self, settings: Settings, clock: Callable[[], float] = time.time) -> None:
        self._settings = settings
        self._clock = clock
        self._permits = asyncio.Semaphore(AT_ONCE)
        self._permits_of: WeakValueDictionary[str, asyncio.Semaphore] = (
            WeakValueDictionary()
        )  # kept while a test uses it

    def preview(self, config: WebhookConfig, channel: Channel, message_status: str) -> TestResultModel:
        """Returns the request that would be sent, with masked secrets. Fetches no token and signs nothing."""
        pending = self._pending(config, channel, message_status)
        return TestResultModel(
            steps=(), event_id=pending.webhook_id, verdict="", reason="", status=None, elapsed_ms=0.0,
            verdict_in_words="", remedy="", answer="",
            request=tuple(shown_headers(pending, self._clock())), body=pending.body.decode(),
        )  # fmt: skip

    async def send(self, config: WebhookConfig, channel: Channel, message_status: str) -> TestResultModel:
        """Sends a sample event once, or twice if the endpoint refused a fetched token.

        Takes at most twice the timeout. Never raises for errors of the endpoint or network.

        Raises:
            ConfigError: a key can't be used.
        """
        pending = self._pending(config, channel, message_status)
        own = self._permits_of.setdefault(config.org, asyncio.Semaphore(AT_ONCE_EACH))
        async with own, self._permits, open_transport(self._settings.delivery, self._settings.egress) as opened:
            try:
                destination = PreparedWebhook.of(pending.webhook, TokenClient(opened), self._settings.delivery)
            except ValueError as error:
                raise ConfigError([Problem(str(error), "auth")]) from None
            try:
                sent = await self._deliver(pending, destination, opened)
            finally:
                await destination.authenticator.close()
        return self._result(pending, destination, sent)

    def _pending(self, config: WebhookConfig, channel: Channel, message_status: str) -> PendingDelivery:
        event = sample_event(config, channel, message_status, self._clock())
        body = encode_feedback(event, config.payload)
        return PendingDelivery.of(
            event, Webhook.of(config, "test"), body, 0, Priority.NEW, ProcessingAttempt(AssignmentEpoch())
        )

    async def _deliver(self, pending: PendingDelivery, destination: PreparedWebhook, transport: Transport) -> _Sent:
        began, sent = time.monotonic(), _Sent(Attempt(0.0, failure=FailureReason.TIMEOUT))
        try:
            async with asyncio.timeout(2 * destination.timeout_s):
                await self._post(sent, pending, destination, transport)
                refused = sent.attempt.status == 401 and sent.token is not None
                if refused and destination.authenticator.invalidate(sent.token or ("", ""), now=self._clock()):
                    await self._post(sent, pending, destination, transport)  # as a delivery does
        except TimeoutError:
            detail = f"no whole answer within {2 * destination.timeout_s:g} s, token included"
            sent.attempt = Attempt(time.monotonic() - began, failure=FailureReason.TIMEOUT, detail=detail)
        return sent

    async def _post(
        self, sent: _Sent, pending: PendingDelivery, destination: PreparedWebhook, transport: Transport
    ) -> None:
        began, now = time.monotonic(), self._clock()
        try:
            sent.tokens += destination.authenticator.is_fetched
            sent.token = await destination.authenticator.header(
                webhook_id=pending.webhook_id, body=pending.body, now=now
            )
        except TokenUnavailable as error:
            failed = FailureReason.TOKEN
            sent.attempt = Attempt(time.monotonic() - began, failure=failed, detail=str(error)[:256])
            return
        sent.token_ms = (time.monotonic() - began) * 1000
        sent.headers = request_headers(pending, 1, now, destination.signer, sent.token)
        request = Request(
            destination.endpoint, sent.headers, pending.body, destination.timeout_s, destination.connect_timeout_s,
            keep_body=KEEP_BODY,
        )  # fmt: skip
        sent.attempt = shown_to_tenants(await transport.post(request))

    def _result(self, pending: PendingDelivery, destination: PreparedWebhook, sent: _Sent) -> TestResultModel:
        attempt, judgement, config = sent.attempt, judge(sent.attempt), pending.webhook.config
        reason = reason_of(attempt)
        answer = attempt.answer
        return TestResultModel(
            steps=ladder(sent, destination.endpoint, len(pending.body)),
            event_id=pending.webhook_id,
            verdict=judgement.verdict.name.lower(),
            reason=reason,
            status=attempt.status,
            elapsed_ms=round(attempt.elapsed_s * 1000, 1),
            verdict_in_words=verdict_in_words(judgement, self._settings.retry),
            remedy=remedy_for(reason, attempt.status, attempt.detail, config),
            answer=masked(answer, (*sent.headers, *destination.endpoint.headers), sent.token, pending.webhook.config),
            request=tuple(shown_headers(pending, self._clock())),
            body=pending.body.decode(),
        )


_Name = Literal["address", "connect", "tls", "request", "first_byte", "answer"]
_STEPS: Final[tuple[_Name, ...]] = ("address", "connect", "tls", "request", "first_byte", "answer")
_ENDS_AT: Final[dict[FailureReason, _Name]] = {
    FailureReason.DNS: "address",
    FailureReason.EGRESS_DENIED: "address",
    FailureReason.URL_DENIED: "address",
    FailureReason.LOCAL: "connect",
    FailureReason.CONNECT_REFUSED: "connect",
    FailureReason.CONNECT_TIMEOUT: "connect",
    FailureReason.CONNECT: "connect",
    FailureReason.PROXY: "connect",
    FailureReason.TLS: "tls",
    FailureReason.TIMEOUT: "first_byte",
    FailureReason.RESET: "first_byte",
    FailureReason.PROTOCOL: "first_byte",
}
"""The step at which each failure is noticed; TOKEN comes before all of them."""


def ladder(sent: _Sent, endpoint: Endpoint, size: int) -> tuple[StepModel, ...]:
    """Returns the steps of a POST of `size` bytes: which ones succeeded, and how long each took."""
    failure, phases = sent.attempt.failure, sent.attempt.phases
    if failure is FailureReason.TOKEN:
        rungs = [StepModel(name, None) for name in _STEPS[:3]]
        return (
            *rungs,
            StepModel("token", False, detail=sent.attempt.detail),
            *(StepModel(name, None) for name in _STEPS[3:]),
        )
    last = len(_STEPS) if failure is None else _STEPS.index(_ENDS_AT[failure])
    details = _details_of(phases, sent.attempt.status, endpoint.host) | {
        "connect": f"port {endpoint.port}",
        "request": f"{size:,} bytes",
    }
    taken = _durations_ms(phases)
    steps: list[StepModel] = []
    for number, name in enumerate(_STEPS):
        if name == "tls" and endpoint.scheme != "https":
            steps.append(StepModel("tls", None, detail="not used"))
        elif number < last:
            steps.append(StepModel(name, True, taken.get(name), details.get(name, "")))
        else:
            steps.append(StepModel(name, False, None, sent.attempt.detail) if number == last else StepModel(name, None))
    steps.insert(3, _token_step(sent))
    return tuple(steps)


def _token_step(sent: _Sent) -> StepModel:
    if not sent.tokens and sent.token is None:
        return StepModel("token", None, detail="none is needed")
    details = "signed by us"
    if sent.tokens:
        details = "a fresh one, as the first was refused" if sent.tokens > 1 else "fetched"
    return StepModel("token", True, None if sent.token_ms is None else round(sent.token_ms, 1), details)


def _details_of(phases: Phases, status: int | None, host: str) -> dict[str, str]:
    details = {"answer": "" if status is None else str(status)}
    if phases.address is not None:
        details["address"] = _shown_address(phases.address, host)
    if phases.tls_version is not None:
        details["tls"] = phases.tls_version
        if phases.certificate_expires is not None:
            details["tls"] += f", certificate until {datetime.fromtimestamp(phases.certificate_expires, UTC):%Y-%m-%d}"
    return details


def _shown_address(text: str, host: str) -> str:
    """Returns the address, or a placeholder if it is in the operator's network and the host name doesn't show it."""
    address = literal(text)
    is_known = literal(host) is not None or host == "localhost"
    return (
        text if is_known or address is None or kind_of(address) is AddressKind.PUBLIC else "in the operator's network"
    )


def _durations_ms(phases: Phases) -> dict[str, float]:
    taken = {
        "address": phases.dns_s,
        "connect": phases.connect_s,
        "tls": phases.tls_s,
        "request": phases.request_s,
        "first_byte": phases.first_byte_s,
        "answer": phases.body_s,
    }
    return {name: round(seconds * 1000, 1) for name, seconds in taken.items() if seconds is not None}
