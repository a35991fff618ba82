"""Delivers one event: waits for a permit, sends the POST, judges the answer, and retries soon if that helps."""

import asyncio
import random
import time
from collections.abc import Callable
from dataclasses import dataclass
from typing import Final, Self

import structlog
from tenacity import AsyncRetrying, RetryCallState, retry_if_result

from dispatcher.auth.authenticator import Authenticator
from dispatcher.auth.signatures import Signer
from dispatcher.auth.token_answers import TokenEndpoint
from dispatcher.config.settings import DeliverySettings
from dispatcher.config.webhook_revision import Webhook
from dispatcher.contract.outcomes import Attempt, Delivered, FailureReason, ParkReason
from dispatcher.contract.tenant import TenantKey
from dispatcher.contract.values import HttpHeader
from dispatcher.delivery.breaker import BreakerState
from dispatcher.delivery.history_recorder import HistoryRecorder
from dispatcher.delivery.lane_scheduler import Lane, LaneScheduler
from dispatcher.delivery.pending_delivery import (
    GOOD,
    AttemptResult,
    Delivery,
    PendingDelivery,
    WebhookChanged,
    request_headers,
)
from dispatcher.delivery.permits import LaneRefusal, Permit, Priority
from dispatcher.delivery.retry_policy import RetryPolicy, retry_after_s
from dispatcher.delivery.verdicts import DELIVERED, Judgement, Verdict, judge, reason_of
from dispatcher.errors import DispatcherError, Draining, TokenUnavailable
from dispatcher.telemetry import metrics
from dispatcher.transport.endpoint import Endpoint
from dispatcher.transport.request import Exchange, Request, Transport

log = structlog.get_logger(__name__)


_NOT_SOON: Final = LaneRefusal(ParkReason.LANE_FULL, 0)
"""Refusal of a quick retry: the event is parked with the reason of its last attempt."""

IsCurrent = Callable[[Webhook], bool]
"""Returns whether a webhook is still the one to use, without waiting for a store."""


@dataclass(frozen=True, slots=True)
class PreparedWebhook:
    """Objects derived once from a revision of a webhook: endpoint, authenticator, signer and timeouts."""

    webhook: Webhook
    endpoint: Endpoint
    authenticator: Authenticator
    needs_token: bool
    signer: Signer | None
    timeout_s: float
    connect_timeout_s: float

    @classmethod
    def of(cls, webhook: Webhook, tokens: TokenEndpoint, settings: DeliverySettings) -> Self:
        config = webhook.config
        timeout_s = config.timeout or settings.timeout
        authenticator = Authenticator.of(config, tokens)
        return cls(
            webhook=webhook,
            endpoint=Endpoint.of(config),
            authenticator=authenticator,
            needs_token=not authenticator.is_none,
            signer=None if config.signing is None else Signer.of(config.signing),
            timeout_s=timeout_s,
            connect_timeout_s=min(config.connect_timeout or settings.connect_timeout, timeout_s),
        )


class Deliverer:
    """Delivers pending events. There is one per process."""

    def __init__(
        self,
        settings: DeliverySettings,
        policy: RetryPolicy,
        lanes: LaneScheduler,
        transport: Transport,
        tokens: TokenEndpoint,
        is_current: IsCurrent,
        history: HistoryRecorder | None = None,
        clock: Callable[[], float] = time.time,
        chance: Callable[[], float] = random.random,
    ) -> None:
        self._settings = settings
        self._policy = policy
        self._lanes = lanes
        self._transport = transport
        self._tokens = tokens
        self.is_current = is_current
        self._history = history
        self._keep_answer = 0 if history is None else history.keep_answer
        self._clock = clock
        self._chance = chance
        self._good = metrics.ATTEMPTS.labels("success", "http_2xx"), metrics.ATTEMPT_SECONDS.labels("success")
        self._prepared: dict[TenantKey, PreparedWebhook] = {}
        self._retired: list[PreparedWebhook] = []

    async def deliver(self, pending: PendingDelivery, first_result: AttemptResult | None = None) -> Delivery:
        """Delivers the event, with quick retries after a transient failure.

        Args:
            first_result: the result of its first attempt, if that was made already (`direct_attempt`).

        Raises:
            Draining: the record is no longer ours, and the event was not sent.
        """
        if self._retired:
            await self._close_retired()
            if first_result is None and not self.is_current(pending.webhook):
                return WebhookChanged(pending.attempts)
        lane, last = self._lanes.lane(pending.tenant), first_result
        if last is None:
            lane, entry = self.acquire(pending)
            entry = entry or await lane.wait(pending.priority)
            if isinstance(entry, Permit):
                if not self.is_current(pending.webhook):
                    lane.cancel(entry)
                    return WebhookChanged(pending.attempts)
                self._start(lane, pending, entry)
            last = await self._try(lane, pending, entry, pending.attempts + 1)
        if last.judgement is DELIVERED:
            return Delivered(last.number)
        if last.is_retried_soon and self._policy.soon_attempts:
            last = await self._try_soon(lane, pending, last)
        return last.as_delivery()

    # Used by direct attempts, too

    @property
    def is_busy_closing(self) -> bool:
        """True if `deliver` has yet to close authenticators of old revisions."""
        return bool(self._retired)

    def now(self) -> float:
        """Returns the seconds of the loop's clock."""
        return self._lanes.now()

    def acquire(self, pending: PendingDelivery) -> tuple[Lane, Permit | LaneRefusal | None]:
        """Returns the event's lane with a permit or a refusal, or with None if the event has to wait."""
        lane = self._lanes.lane(pending.tenant)
        lane.apply_webhook(pending.webhook.revision, pending.webhook.subscription.rate_limit)
        return lane, lane.try_acquire(pending.priority)

    def start_attempt(self, pending: PendingDelivery, on_result: Callable[[Attempt], None]) -> Exchange | None:
        """Makes the first attempt without waiting. Returns None, and sends nothing, if that is impossible."""
        prepared = self.prepared(pending.webhook)
        now, token = self._clock(), None
        if prepared.needs_token:
            authenticator = prepared.authenticator
            # After a 401 a fetched token may have to be renewed: `post` handles that.
            token = None if authenticator.is_fetched else authenticator.cached_header(now)
            if token is None:
                return None
        request = self._request(pending, prepared, pending.attempts + 1, now, token)
        return self._transport.start_post(request, on_result)

    def prepared(self, webhook: Webhook) -> PreparedWebhook:
        """Returns the prepared form of this revision of the webhook, cached while the revision is in use."""
        kept = self._prepared.get(webhook.tenant)
        if kept is not None and kept.webhook.config is webhook.config:
            return kept
        if len(self._prepared) > 2 * len(self._lanes) + 100:
            self._forget_freed_lanes()
        if kept is not None:
            self._retired.append(kept)
        made = self._prepared[webhook.tenant] = PreparedWebhook.of(webhook, self._tokens, self._settings)
        return made

    def _start(self, lane: Lane, pending: PendingDelivery, permit: Permit) -> None:
        try:
            pending.processing.start()
        except Draining:
            lane.cancel(permit)
            raise

    def _forget_freed_lanes(self) -> None:
        freed = [tenant for tenant in self._prepared if self._lanes.get(tenant) is None]
        self._retired += [self._prepared.pop(tenant) for tenant in freed]

    async def close(self) -> None:
        """Cancels the requests that authenticators have in progress."""
        self._retired += self._prepared.values()
        self._prepared.clear()
        await self._close_retired()

    async def _close_retired(self) -> None:
        while self._retired:
            await self._retired.pop().authenticator.close()

    async def _try_soon(self, lane: Lane, pending: PendingDelivery, last: AttemptResult) -> AttemptResult:
        """Makes up to `soon_attempts` more attempts, with full jitter, while the lane has a free permit."""

        def wait_s(result: int) -> float:
            reset = last.attempt is not None and last.attempt.failure is FailureReason.RESET and last.attempt.reused
            return self._policy.soon_wait_s(result, at_once=reset, jitter=self._chance())

        async def again() -> AttemptResult:
            nonlocal last
            if pending.processing.epoch.lease.is_over:  # no POST without the lease: the event is parked
                last = AttemptResult(last.number, last.attempt, last.judgement, refusal=_NOT_SOON)
                return last
            if not self.is_current(pending.webhook):
                last = AttemptResult(last.number, last.attempt, last.judgement, changed=True)
                return last
            entry = lane.try_acquire(Priority.RETRY)
            if isinstance(entry, Permit):
                last = await self._try(lane, pending, entry, last.number + 1)
            else:
                last = AttemptResult(last.number, last.attempt, last.judgement, refusal=entry or _NOT_SOON)
            return last

        def enough(state: RetryCallState) -> bool:
            late = self._lanes.now() + state.upcoming_sleep > until
            return late or state.attempt_number >= self._policy.soon_attempts

        until = self._lanes.now() + self._policy.soon_within_s
        await asyncio.sleep(wait_s(0))
        retrying = AsyncRetrying(
            sleep=asyncio.sleep,
            stop=enough,
            wait=lambda state: wait_s(state.attempt_number),
            retry=retry_if_result(lambda result: result.is_retried_soon),
            retry_error_callback=lambda _: last,
        )
        result: AttemptResult = await retrying(again)
        return result

    async def _try(
        self, lane: Lane, pending: PendingDelivery, entry: Permit | LaneRefusal, number: int
    ) -> AttemptResult:
        if isinstance(entry, LaneRefusal):
            return AttemptResult(number - 1, refusal=entry)
        try:
            attempt = await self.post(pending, number)
            return self.conclude(lane, pending, entry, number, attempt)
        except BaseException:
            lane.cancel(entry)
            raise

    def conclude(
        self, lane: Lane, pending: PendingDelivery, permit: Permit, number: int, attempt: Attempt
    ) -> AttemptResult:
        """Judges an attempt, records it, and finally releases its permit. If this raises, the permit isn't released.

        If the webhook was edited since the attempt began, the lane learns nothing from it, and the event is decided
        again unless it was delivered or is dead.
        """
        judgement = judge(attempt, pending.refusals)
        if lane.is_outdated(permit):
            self._log_attempt(pending, number, attempt, judgement)
            lane.cancel(permit)
            is_over = judgement.verdict in (Verdict.DELIVERED, Verdict.DEAD)
            return AttemptResult(number, attempt, judgement, changed=not is_over)
        hold = None
        if attempt.retry_after is not None and judgement.verdict in (Verdict.RETRY_SOON, Verdict.RETRY_LATER):
            now = self._clock()
            hold = retry_after_s(
                attempt.retry_after, now, self._policy.max_hold_s(attempt.status, pending.first_seen, now)
            )
        self._log_attempt(pending, number, attempt, judgement)
        if judgement.verdict is not Verdict.DELIVERED:
            lane.note_failure(reason_of(attempt), attempt.status, attempt.detail)
        if judgement.suspends:
            lane.suspend()  # first, so that no waiting event gets the permit
        if judgement.is_evidence:
            before = lane.endpoint.breaker.state
            lane.release(permit, judgement, hold)
            if lane.endpoint.breaker.state is not before:
                self._log_breaker(lane, before, attempt)
        else:
            lane.cancel(permit)
        return (
            GOOD if judgement is DELIVERED and number == 1 else AttemptResult(number, attempt, judgement, hold_s=hold)
        )

    def _log_breaker(self, lane: Lane, before: BreakerState, attempt: Attempt) -> None:
        """Logs that a breaker opened, with the last failure, or closed. Failed probes are logged at debug level."""
        tenant, breaker = str(lane.tenant), lane.endpoint.breaker
        if breaker.state is BreakerState.CLOSED:
            log.info("breaker closed: the endpoint answers again", tenant=tenant)
            return
        write = log.warning if before is BreakerState.CLOSED else log.debug
        write(
            "breaker opened: the tenant's events are parked", tenant=tenant, last_failure=reason_of(attempt),
            status=attempt.status, detail=attempt.detail, retry_in_s=round(breaker.retry_in_s(self._lanes.now()), 1),
        )  # fmt: skip

    async def post(self, pending: PendingDelivery, number: int) -> Attempt:
        """Makes one attempt, repeated with a fresh token if a fetched one gets a 401. The caller owns the permit.

        A bug that the attempt meets is its failure: an exception would keep the record, and in time its partition.
        """
        began = self._lanes.now()
        try:
            return await self._post(pending, number)
        except DispatcherError:
            raise
        except Exception as error:
            metrics.ERRORS.labels("lanes").inc()
            log.exception("attempt failed because of a bug", tenant=str(pending.tenant), webhook_id=pending.webhook_id)
            detail = f"a bug: {type(error).__name__}"
            return Attempt(self._lanes.now() - began, failure=FailureReason.LOCAL, detail=detail)

    async def _post(self, pending: PendingDelivery, number: int) -> Attempt:
        prepared = self.prepared(pending.webhook)
        if not prepared.needs_token:
            return await self._transport.post(self._request(pending, prepared, number, self._clock(), None))
        attempt, sent = await self._post_with_token(pending, prepared, number)
        if attempt.status == 401 and sent is not None and prepared.authenticator.invalidate(sent, now=self._clock()):
            # The token may have been revoked: try once with a fresh one, at once, with the same permit.
            attempt, _ = await self._post_with_token(pending, prepared, number)
        return attempt

    async def _post_with_token(
        self, pending: PendingDelivery, prepared: PreparedWebhook, number: int
    ) -> tuple[Attempt, HttpHeader | None]:
        began, now = self._lanes.now(), self._clock()
        try:
            token = prepared.authenticator.cached_header(now) or await prepared.authenticator.header(
                webhook_id=pending.webhook_id, body=pending.body, now=now
            )
        except TokenUnavailable as error:
            metrics.TOKEN_FAILURES.inc()
            reason = FailureReason.LOCAL if error.is_local else FailureReason.TOKEN
            return Attempt(self._lanes.now() - began, failure=reason, detail=str(error)[:256]), None
        return await self._transport.post(self._request(pending, prepared, number, now, token)), token

    def _request(
        self, pending: PendingDelivery, prepared: PreparedWebhook, number: int, now: float, token: HttpHeader | None
    ) -> Request:
        return Request(
            endpoint=prepared.endpoint,
            headers=request_headers(pending, number, now, prepared.signer, token),
            body=pending.body,
            timeout_s=prepared.timeout_s,
            connect_timeout_s=prepared.connect_timeout_s,
            keep_body=self._keep_answer,
        )

    def _log_attempt(self, pending: PendingDelivery, number: int, attempt: Attempt, judgement: Judgement) -> None:
        if judgement is DELIVERED:
            attempts, seconds, reason = *self._good, ""
        else:
            outcome, reason = judgement.metric_outcome, reason_of(attempt)
            attempts, seconds = metrics.ATTEMPTS.labels(outcome, reason), metrics.ATTEMPT_SECONDS.labels(outcome)
        attempts.inc()
        seconds.observe(attempt.elapsed_s, None if attempt.trace_id is None else {"trace_id": attempt.trace_id})
        if judgement.verdict is not Verdict.DELIVERED:
            log.debug(
                "attempt failed", tenant=str(pending.tenant), webhook_id=pending.webhook_id, attempt=number,
                status=attempt.status, reason=reason, detail=attempt.detail, elapsed_s=round(attempt.elapsed_s, 4),
            )  # fmt: skip
        if self._history is not None:
            self._history.record_attempt(pending, number, attempt, judgement)
