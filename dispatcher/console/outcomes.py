"""Counts of a webhook's requests for charts: from the tailed topic, for a week completed by the history store."""

import time
from collections.abc import Sequence
from dataclasses import replace
from typing import Final

from dispatcher.console.model import BucketModel, Outcomes, Window
from dispatcher.console.services import Services
from dispatcher.contract.history import HistoryOutcome
from dispatcher.contract.outcomes import DeadReason
from dispatcher.contract.tenant import TenantKey
from dispatcher.errors import DispatcherError
from dispatcher.stores.sql.history_search import SlotCount

_REFUSED: Final = frozenset({DeadReason.REJECTED, DeadReason.REDIRECTED, DeadReason.ABORTED})
"""Reasons of events that died with their last request."""


async def outcomes_of(services: Services, tenant: TenantKey, window: Window) -> Outcomes:
    """Returns the counts of a window.

    The topic keeps less than a week by default, so a console that was restarted lacks earlier requests; the store has
    them. The newest requests are in the topic first. Each bucket is taken from the one that has more.
    """
    found = services.attempts.outcomes(tenant, window)
    if window != "7d" or services.history is None:
        return found
    try:
        slots = await services.history.slots(tenant, found.buckets[0].start, time.time() + found.bucket_s)
    except DispatcherError:
        return found
    buckets = tuple(_completed(one, found.bucket_s, slots) for one in found.buckets)
    return replace(found, buckets=buckets, is_completed=True)


def known_since(services: Services, outcomes: Outcomes) -> float | None:
    """Returns the time from which on requests are known, if it is within the window."""
    since = services.attempts.known_since
    return None if since is None or outcomes.is_completed or since <= outcomes.buckets[0].start else since


def _completed(bucket: BucketModel, span_s: float, slots: Sequence[SlotCount]) -> BucketModel:
    own = [one for one in slots if bucket.start <= one.start < bucket.start + span_s]
    delivered = sum(one.events for one in own if one.outcome is HistoryOutcome.DELIVERED)
    tried = sum(one.events for one in own if one.outcome is HistoryOutcome.ATTEMPT)
    dead = min(tried, sum(one.events for one in own if one.outcome is HistoryOutcome.DEAD and one.reason in _REFUSED))
    has_more = delivered + tried > bucket.delivered + bucket.failed + bucket.dead
    return BucketModel(bucket.start, delivered, tried - dead, dead) if has_more else bucket
