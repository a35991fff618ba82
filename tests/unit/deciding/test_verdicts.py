"""The table of verdicts (design, section 5), walked over all of HTTP and every failure."""

import pytest

from dispatcher.contract.outcomes import Attempt, DeadReason, FailureReason
from dispatcher.delivery.verdicts import Judgement, Verdict, judge, reason_of
from dispatcher.telemetry.metrics import ATTEMPT_OUTCOMES, STATUS_REASONS

STATUSES = range(100, 600)
SOON, LATER, SUSPEND, DEAD = Verdict.RETRY_SOON, Verdict.RETRY_LATER, Verdict.DISABLE_ENDPOINT, Verdict.DEAD


def by_the_design(status: int) -> tuple[Verdict, DeadReason | None]:
    """Section 5 of the design, in its words and its order."""
    if status in (200, 201, 202, 203, 204, 205, 206) or 200 <= status <= 299:
        return Verdict.DELIVERED, None
    if status in (408, 409, 423, 425, 429):
        return SOON, None
    if status >= 500 and status != 501 and status != 505:
        return SOON, None
    if status in (401, 403, 404):
        return LATER, None
    if status == 410:
        return SUSPEND, None
    if 300 <= status <= 399:
        return DEAD, DeadReason.REDIRECTED
    return DEAD, DeadReason.REJECTED


FAILURES = {
    FailureReason.DNS: (SOON, None),
    FailureReason.CONNECT_REFUSED: (SOON, None),
    FailureReason.CONNECT_TIMEOUT: (SOON, None),
    FailureReason.CONNECT: (SOON, None),
    FailureReason.TLS: (SOON, None),
    FailureReason.TIMEOUT: (SOON, None),
    FailureReason.RESET: (SOON, None),
    FailureReason.PROTOCOL: (SOON, None),
    FailureReason.PROXY: (SOON, None),
    FailureReason.TOKEN: (SOON, None),
    FailureReason.EGRESS_DENIED: (DEAD, DeadReason.EGRESS_DENIED),
}

NEVER_REACHED = {
    FailureReason.DNS, FailureReason.CONNECT_REFUSED, FailureReason.CONNECT_TIMEOUT, FailureReason.CONNECT,
    FailureReason.TLS,
}  # fmt: skip


def answer(status: int, wish: str | None = None) -> Judgement:
    return judge(Attempt(0.1, status=status, webhook_delivery=wish))


def failure(reason: FailureReason) -> Judgement:
    return judge(Attempt(0.1, failure=reason))


def test_every_status_has_the_verdict_of_the_design() -> None:
    for status in STATUSES:
        judgement = answer(status)

        assert (judgement.verdict, judgement.dead_reason) == by_the_design(status), status


@pytest.mark.parametrize("reason", FailureReason)
def test_every_failure_has_the_verdict_of_the_design(reason: FailureReason) -> None:
    judgement = failure(reason)

    assert (judgement.verdict, judgement.dead_reason) == FAILURES[reason]


def test_what_is_tried_again_counts_against_the_endpoint_and_nothing_else_does() -> None:
    """A 4xx about one event says nothing against the endpoint; 401, 403 and 404 do."""
    for status in STATUSES:
        judgement = answer(status)

        assert judgement.failing is (judgement.verdict in (SOON, LATER))
        assert judgement.throttled is (status in (429, 503))
        assert not judgement.connect_failure
        assert judgement.tells_of_endpoint


@pytest.mark.parametrize("reason", FailureReason)
def test_what_a_failure_says_of_the_endpoint(reason: FailureReason) -> None:
    """Our own proxy and our own egress guard are never held against a tenant."""
    judgement = failure(reason)
    ours = reason in (FailureReason.PROXY, FailureReason.EGRESS_DENIED)

    assert judgement.tells_of_endpoint is not ours
    assert judgement.failing is not ours
    assert judgement.connect_failure is (reason in NEVER_REACHED)
    assert judgement.throttled is (reason is FailureReason.TIMEOUT)


def test_the_header_webhook_delivery_decides_unless_it_was_delivered() -> None:
    for status in STATUSES:
        delivered = 200 <= status < 300

        assert answer(status, "disable").suspends, "also where this one event was taken"
        assert answer(status, "disable").verdict is (Verdict.DELIVERED if delivered else SUSPEND)
        aborted = answer(status, "abort-message")
        if delivered:
            assert aborted.verdict is Verdict.DELIVERED
        elif status == 410:
            assert aborted.verdict is SUSPEND
        else:
            assert (aborted.verdict, aborted.dead_reason) == (DEAD, DeadReason.ABORTED)
            assert not aborted.failing


@pytest.mark.parametrize("wish", [" Disable ", "DISABLE", "disable"])
def test_the_headers_case_and_spaces_do_not_matter(wish: str) -> None:
    assert answer(500, wish).verdict is SUSPEND


@pytest.mark.parametrize("wish", ["", "disabled", "disable, abort-message", "abort", "retry"])
def test_an_unknown_wish_is_none(wish: str) -> None:
    assert answer(500, wish) == answer(500)


def test_every_status_has_a_metric_label_of_the_closed_set() -> None:
    for status in STATUSES:
        expected = "http_429" if status == 429 else f"http_{max(status // 100, 2)}xx"

        assert reason_of(Attempt(0.1, status=status)) == expected
        assert expected in STATUS_REASONS
        assert answer(status).metric_outcome in ATTEMPT_OUTCOMES


def test_the_metric_outcomes() -> None:
    assert answer(204).metric_outcome == "success"
    assert [answer(status).metric_outcome for status in (503, 404, 410)] == ["retryable"] * 3
    assert [answer(status).metric_outcome for status in (302, 400, 501)] == ["permanent"] * 3
    assert reason_of(Attempt(0.1, failure=FailureReason.TLS)) == "tls"
