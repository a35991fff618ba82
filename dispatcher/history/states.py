"""Judges the states of webhooks every few seconds, and records that this worker runs."""

import asyncio
import time
from collections.abc import Awaitable, Callable, Mapping, Sequence
from contextlib import suppress
from typing import Final

import structlog

from dispatcher.config.webhook_lookup import ListWebhooks
from dispatcher.config.webhook_revision import Webhook
from dispatcher.contract.tenant import TenantKey
from dispatcher.errors import DispatcherError
from dispatcher.stores.sql.history_states import StateChange, TenantStates, WebhookInUse
from dispatcher.stores.sql.repeating import keep_trying
from dispatcher.telemetry import metrics

EVERY_S: Final = 10.0
CURRENT_LAG: Final = 50
"""Number of records that may be not stored yet while the store counts as current."""
CURRENT_AGE_S: Final = 90.0
"""A worker with more to store is current if the newest entry of its latest batch is younger than this."""
SIGN_OFF_WITHIN_S: Final = 2.0
_LISTED: Final = 20
"""Changes of one judgement that are logged one by one."""

log = structlog.get_logger(__name__)


class StateJudge:
    """Owns the task that judges. Changes are given to `on_change`, if there is one."""

    def __init__(
        self,
        states: TenantStates,
        webhooks: ListWebhooks = lambda: None,
        on_change: Callable[[Sequence[StateChange]], Awaitable[None]] | None = None,
        clock: Callable[[], float] = time.time,
    ) -> None:
        self._states = states
        self._webhooks = webhooks
        self._on_change = on_change
        self._clock = clock

    async def run(self, progress: Callable[[], tuple[int | None, float]]) -> None:
        """Judges until cancelled.

        Args:
            progress: returns the records that are not stored yet, None if nothing is being stored; and the time of
                the newest entry of the latest batch, Unix seconds.
        """
        try:
            await keep_trying(
                lambda: self.judge_once(*progress()),
                EVERY_S,
                component="history",
                if_unavailable="states of webhooks are not judged",
                if_bug="states of webhooks are not judged because of a bug",
            )
        finally:
            with suppress(DispatcherError, TimeoutError):  # its sign of life is worth nothing after a minute
                async with asyncio.timeout(SIGN_OFF_WITHIN_S):
                    await self._states.sign_off()

    async def judge_once(self, lag: int | None, newest: float) -> Sequence[StateChange]:
        """Records a sign of life, and judges if every worker has stored everything.

        Raises:
            StoreUnavailable: the database did not answer in time.
        """
        age_s = self._clock() - newest
        is_current = lag is not None and (lag <= CURRENT_LAG or 0 <= age_s <= CURRENT_AGE_S)
        if not await self._states.sign_of_life(lag or 0, is_current=is_current):
            return []
        changes = await self._states.judge(_facts(self._webhooks()))
        for change in changes:
            metrics.WEBHOOK_STATE_CHANGES.labels(change.report.state.value).inc()
        for change in changes[:_LISTED]:
            report = change.report
            log.info("webhook changed its state", tenant=str(report.tenant), state=report.state, before=change.before)
        if len(changes) > _LISTED:
            log.info("more webhooks changed their states", more=len(changes) - _LISTED)
        if changes and self._on_change is not None:
            await self._on_change(changes)
        return changes


def _facts(webhooks: Sequence[Webhook] | None) -> Mapping[TenantKey, WebhookInUse] | None:
    if webhooks is None:
        return None
    return {
        one.tenant: WebhookInUse(one.revision, one.config.paused or not one.config.enabled, one.changed_at)
        for one in webhooks
    }
