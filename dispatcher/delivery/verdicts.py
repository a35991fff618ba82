"""Decides what follows from one attempt: what is retried and when, and what is given up.

Pure. `docs/verdicts.md` is the same table for users; a test compares the two.
"""

from dataclasses import dataclass
from enum import Enum, auto
from typing import Final, assert_never

from dispatcher.contract.outcomes import Attempt, DeadReason, FailureReason


class Verdict(Enum):
    """The consequence of an attempt for its event."""

    DELIVERED = auto()
    RETRY_SOON = auto()
    """Quick tries first, then the tiers."""
    RETRY_LATER = auto()
    """In the tiers only: a set-up mistake or a maintenance page lasts longer than quick tries."""
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
    is_evidence: bool = True
    """Says something about the endpoint. False if our own side failed."""
    payload_refused: bool = False
    """The endpoint refuses this payload. The fourth such answer to an event is final."""

    @property
    def metric_outcome(self) -> str:
        """Outcome label in the metrics: `success`, `retryable` or `permanent`."""
        if self.verdict is Verdict.DELIVERED:
            return "success"
        return "permanent" if self.verdict is Verdict.DEAD else "retryable"


DELIVERED: Final = Judgement(Verdict.DELIVERED)
_DELIVERED_AS_THE_LAST: Final = Judgement(Verdict.DELIVERED, suspends=True)
_SOON: Final = Judgement(Verdict.RETRY_SOON, failing=True)
_SOON_THROTTLED: Final = Judgement(Verdict.RETRY_SOON, failing=True, throttled=True)
_UNREACHABLE: Final = Judgement(Verdict.RETRY_SOON, failing=True, connect_failure=True)
_LATER: Final = Judgement(Verdict.RETRY_LATER, failing=True)
_OUR_OWN: Final = Judgement(Verdict.RETRY_SOON, is_evidence=False)
_DENIED_FOR_NOW: Final = Judgement(Verdict.RETRY_LATER, is_evidence=False)
_SUSPEND: Final = Judgement(Verdict.DISABLE_ENDPOINT, suspends=True)
_PAYLOAD_REFUSED: Final = Judgement(Verdict.RETRY_LATER, failing=True, payload_refused=True)
_REJECTED: Final = Judgement(Verdict.DEAD, DeadReason.REJECTED, failing=True, payload_refused=True)
_UNSUPPORTED: Final = Judgement(Verdict.DEAD, DeadReason.REJECTED)
_REDIRECTED: Final = Judgement(Verdict.DEAD, DeadReason.REDIRECTED)
_ABORTED: Final = Judgement(Verdict.DEAD, DeadReason.ABORTED)
_DENIED: Final = Judgement(Verdict.DEAD, DeadReason.EGRESS_DENIED, is_evidence=False)

RETRY_SOON: Final = frozenset({408, 409, 423, 425, 429})
"""4xx that pass by themselves; every 5xx but 501 and 505 does too."""
PAYLOAD_REFUSED: Final = frozenset({400, 406, 411, 412, 413, 414, 415, 417, 422, 428, 431})
"""4xx that refuse what was sent. Every other 4xx but 410 concerns the set-up: access, path, proxies, maintenance."""
MAX_REFUSALS: Final = 4
"""POSTs that the endpoint may refuse the payload of: now and in the first three tiers, within minutes."""
NEVER_AGAIN: Final = frozenset({501, 505})
GONE: Final = 410
TOO_MANY: Final = 429
_THROTTLING: Final = frozenset({TOO_MANY, 503})


def judge(attempt: Attempt, refusals: int = 0) -> Judgement:
    """Returns the judgement of one finished attempt.

    Args:
        attempt: how it ended.
        refusals: earlier attempts at the same event whose payload the endpoint refused.
    """
    if attempt.failure is not None:
        return _judge_failure(attempt.failure)
    judgement = _judge_answer(attempt.status or 0, (attempt.webhook_delivery or "").strip().lower())
    return _REJECTED if judgement is _PAYLOAD_REFUSED and refusals >= MAX_REFUSALS - 1 else judgement


def _judge_failure(failure: FailureReason) -> Judgement:
    match failure:
        case FailureReason.URL_DENIED:
            return _DENIED
        case FailureReason.EGRESS_DENIED:
            return _DENIED_FOR_NOW
        case FailureReason.PROXY | FailureReason.LOCAL:
            return _OUR_OWN
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
    if 300 <= status < 400:
        return _REDIRECTED
    if status in NEVER_AGAIN:
        return _UNSUPPORTED
    if status in PAYLOAD_REFUSED:
        return _PAYLOAD_REFUSED
    if 400 <= status < 500 and status not in RETRY_SOON:
        return _LATER
    return _SOON_THROTTLED if status in _THROTTLING else _SOON  # an invalid status is an answer that isn't HTTP


_NO_HTTP: Final = FailureReason.PROTOCOL.value
_STATUS_CLASSES: Final = {2: "http_2xx", 3: "http_3xx", 4: "http_4xx", 5: "http_5xx"}


def reason_of(attempt: Attempt) -> str:
    """Returns the metric label of an attempt: its failure, or the class of its status."""
    if attempt.failure is not None:
        return attempt.failure.value
    status = attempt.status or 0
    return "http_429" if status == TOO_MANY else _STATUS_CLASSES.get(status // 100, _NO_HTTP)
