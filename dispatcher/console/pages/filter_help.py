"""What the filters of lists offer and say: the known reasons and message statuses, and until when entries are kept."""

from typing import Final

from dispatcher.config.settings import HistoryKeepSettings
from dispatcher.config.units import format_duration
from dispatcher.config.webhooks import MESSAGE_STATUSES
from dispatcher.console.pages.time_range import TimeRange
from dispatcher.contract.reason_texts import DEAD, FAILED, SKIPPED, WAITING
from dispatcher.telemetry.metrics import STATUS_REASONS

REASONS: Final = tuple(sorted({*SKIPPED, *FAILED, *WAITING, *DEAD, *STATUS_REASONS}))
STATUSES: Final = tuple(status for status in MESSAGE_STATUSES if status != "unknown")


def kept_for(time: TimeRange, outcome: str, keep: HistoryKeepSettings, now: float) -> str:
    """Returns sentences about the entries that are kept for less than the chosen time; empty if all are kept.

    Args:
        outcome: the chosen outcome; empty for any.
    """
    begin = time.begin(now)
    if begin is None:
        return ""
    kinds = {"delivered": ("Delivered", keep.delivered), "skipped": ("Skipped", keep.skipped)}
    chosen = kinds.values() if not outcome else (kinds.get(outcome, ("Such", keep.failed)),)
    sentences = [
        f"{kind} events are listed for {format_duration(kept)}." for kind, kept in chosen if now - kept > begin + 60
    ]
    return " ".join(sentences)
