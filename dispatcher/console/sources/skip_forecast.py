"""Counts the events that a webhook would skip if they were sent again: its lists may have changed since. Pure."""

from collections import Counter
from collections.abc import Iterable

from dispatcher.config.webhook_revision import Subscription
from dispatcher.config.webhooks import WebhookConfig
from dispatcher.console.model import DeadEventModel
from dispatcher.console.resend_model import SkippedCount
from dispatcher.contract.history import HistoryEntry
from dispatcher.contract.outcomes import SkipReason
from dispatcher.flow.decision import skipped_by_lists


def count_skipped(config: WebhookConfig, events: Iterable[HistoryEntry | DeadEventModel]) -> tuple[SkippedCount, ...]:
    """Returns how many of the events the webhook would skip, by rule, the most frequent one first.

    Values that an event lacks are unknown and fail no rule.
    """
    reasons: Counter[SkipReason] = Counter()
    wanted = Subscription.of(config)
    for one in events:
        reason = skipped_by_lists(wanted, one.channel, one.message_status, one.campaign_id)
        if reason is not None:
            reasons[reason] += 1
    return tuple(SkippedCount(reason, number) for reason, number in reasons.most_common())


def add_skipped(*counts: Iterable[SkippedCount]) -> tuple[SkippedCount, ...]:
    """Returns the sum of several counts, the most frequent rule first."""
    total: Counter[SkipReason] = Counter()
    for one in counts:
        for skipped in one:
            total[skipped.reason] += skipped.events
    return tuple(SkippedCount(reason, number) for reason, number in total.most_common())
