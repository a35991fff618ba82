"""What one attempt means: the one table that says what is retried, when, and what is given up (design section 5).

Pure. The last line of each branch is the rule's reason.
"""

from dataclasses import dataclass
from enum import Enum, auto
from typing import assert_never

from dispatcher.contract.outcomes import Attempt, DeadReason, FailureReason


class Verdict(Enum):
    """What is done with the event after an attempt."""

    DELIVERED = auto()
    RETRY_SOON = auto()
    """Quick tries first, then the tiers."""
    RETRY_LATER = auto()
    """In the tiers only: a mistake in set-up that someone will mend."""
    DISABLE_ENDPOINT = auto()
    """Park, and send nothing more until the webhook is edited."""
    DEAD = auto()
    """Never again: another try would get the same answer."""


@dataclass(frozen=True, slots=True)
class Judgement:
    """A verdict with what follows from it for the tenant's lane and for the metrics."""

    verdict: Verdict
    dead_reason: DeadReason | None = None
    failing: bool = False
    """Counts against the endpoint: evidence for the breaker and for the tenant's state."""
    connect_failure: bool = False
    """The endpoint could not even be reached."""
    throttled: bool = False
    """The endpoint is overloaded: send fewer at once."""
    suspends: bool = False
    """The endpoint wants no more until the webhook is edited."""
    tells_of_endpoint: bool = True
    """False where the failure is ours or our proxy's: nothing is learnt of the endpoint."""

    @property
    def metric_outcome(self) -> str:
        """success, retryable or permanent."""
        if self.verdict is Verdict.DELIVERED:
            return "success"
        return "permanent" if self.verdict is Verdict.DEAD else "retryable"


DELIVERED = Judgement(Verdict.DELIVERED)
_DELIVERED_AS_THE_LAST = Judgement(Verdict.DELIVERED, suspends=True)
_SOON = Judgement(Verdict.RETRY_SOON, failing=True)
_SOON_THROTTLED = Judgement(Verdict.RETRY_SOON, failing=True, throttled=True)
_UNREACHABLE = Judgement(Verdict.RETRY_SOON, failing=True, connect_failure=True)
_LATER = Judgement(Verdict.RETRY_LATER, failing=True)
_NOT_THE_TENANTS_FAULT = Judgement(Verdict.RETRY_SOON, tells_of_endpoint=False)
_SUSPEND = Judgement(Verdict.DISABLE_ENDPOINT, suspends=True)
_REJECTED = Judgement(Verdict.DEAD, DeadReason.REJECTED)
_REDIRECTED = Judgement(Verdict.DEAD, DeadReason.REDIRECTED)
_ABORTED = Judgement(Verdict.DEAD, DeadReason.ABORTED)
_DENIED = Judgement(Verdict.DEAD, DeadReason.EGRESS_DENIED, tells_of_endpoint=False)

RETRY_SOON = frozenset({408, 409, 423, 425, 429})
"""4xx that pass by themselves; every 5xx but 501 and 505 does too."""
RETRY_LATER = frozenset({401, 403, 404})
NEVER_AGAIN = frozenset({501, 505})
GONE = 410
_THROTTLING = frozenset({429, 503})


def judge(attempt: Attempt) -> Judgement:
    """The judgement of one finished attempt."""
    if attempt.failure is not None:
        return _judge_failure(attempt.failure)
    return _judge_answer(attempt.status or 0, (attempt.webhook_delivery or "").strip().lower())


def _judge_failure(failure: FailureReason) -> Judgement:
    match failure:
        case FailureReason.EGRESS_DENIED:
            return _DENIED
        case FailureReason.PROXY:
            return _NOT_THE_TENANTS_FAULT
        case FailureReason.TIMEOUT:
            return _SOON_THROTTLED
        case (
            FailureReason.DNS
            | FailureReason.CONNECT
            | FailureReason.CONNECT_REFUSED
            | FailureReason.CONNECT_TIMEOUT
            | FailureReason.TLS
        ):
            return _UNREACHABLE
        case FailureReason.RESET | FailureReason.PROTOCOL | FailureReason.TOKEN:
            return _SOON
        case _:
            assert_never(failure)


def _judge_answer(status: int, wish: str) -> Judgement:
    if 200 <= status < 300:
        return _DELIVERED_AS_THE_LAST if wish == "disable" else DELIVERED
    if status == GONE or wish == "disable":
        return _SUSPEND
    if wish == "abort-message":
        return _ABORTED
    if status in RETRY_LATER:
        return _LATER
    if status in RETRY_SOON or (status >= 500 and status not in NEVER_AGAIN):
        return _SOON_THROTTLED if status in _THROTTLING else _SOON
    return _REDIRECTED if 300 <= status < 400 else _REJECTED


_STATUS_CLASSES = ("", "", "http_2xx", "http_3xx", "http_4xx", "http_5xx")


def reason_of(attempt: Attempt) -> str:
    """The metric label of an attempt: its failure, or the class of its status."""
    if attempt.failure is not None:
        return attempt.failure.value
    status = attempt.status or 0
    return "http_429" if status == 429 else _STATUS_CLASSES[min(max(status // 100, 2), 5)]
