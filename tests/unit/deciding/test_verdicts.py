"""The table of verdicts, walked over all of HTTP and every failure."""

import pytest

from dispatcher.contract.outcomes import Attempt, DeadReason, FailureReason
from dispatcher.delivery.verdicts import Judgement, Verdict, judge, reason_of
from dispatcher.telemetry.metrics import ATTEMPT_OUTCOMES, STATUS_REASONS
from tests.transport import verdict_table

STATUSES = range(100, 700)
SOON, LATER, DISABLE, DEAD = Verdict.RETRY_SOON, Verdict.RETRY_LATER, Verdict.DISABLE_ENDPOINT, Verdict.DEAD

VERDICTS = {
    "delivered": (Verdict.DELIVERED, False),
    "retry soon": (SOON, False),
    "retry in the tiers": (LATER, False),
    "payload refused": (LATER, True),
    "disable": (DISABLE, False),
    "dead": (DEAD, False),
}
"""The words of docs/verdicts.md: the verdict, and whether the payload is what is refused."""

NEVER_REACHED = {
    FailureReason.DNS, FailureReason.CONNECT_REFUSED, FailureReason.CONNECT_TIMEOUT, FailureReason.CONNECT,
    FailureReason.TLS,
}  # fmt: skip
OUR_OWN = {
    FailureReason.PROXY, FailureReason.LOCAL, FailureReason.EGRESS_DENIED, FailureReason.URL_DENIED,
}  # fmt: skip


def answer(status: int, wish: str | None = None) -> Judgement:
    return judge(Attempt(0.1, status=status, webhook_delivery=wish))


def failure(reason: FailureReason) -> Judgement:
    return judge(Attempt(0.1, failure=reason))


def test_every_status_has_the_verdict_of_the_table_for_users() -> None:
    table = verdict_table.statuses()
    assert set(STATUSES) == set(table)
    for status in STATUSES:
        words, is_evidence = table[status]
        judgement = answer(status)

        assert (judgement.verdict, judgement.payload_refused) == VERDICTS[words], status
        assert judgement.failing is is_evidence, status


def test_the_table_for_users_has_the_intended_verdicts() -> None:
    """Repeats the table of docs/verdicts.md, so that a change of it has to be made twice."""
    table = {status: words for status, (words, _) in verdict_table.statuses().items()}
    refused = {400, 406, *range(411, 416), 417, 422, 428, 431}
    for status in range(100, 600):
        if 200 <= status < 300:
            expected = "delivered"
        elif status in (408, 409, 423, 425, 429) or (status >= 500 and status not in (501, 505)):
            expected = "retry soon"
        elif status in refused:
            expected = "payload refused"
        elif status == 410:
            expected = "disable"
        elif 300 <= status < 400 or status in (501, 505):
            expected = "dead"
        else:
            expected = "retry in the tiers" if status >= 400 else "retry soon"
        assert table[status] == expected, status


@pytest.mark.parametrize("reason", FailureReason)
def test_every_failure_has_the_verdict_of_the_table_for_users(reason: FailureReason) -> None:
    words, is_evidence = verdict_table.failures()[reason.value]
    judgement = failure(reason)

    assert (judgement.verdict, judgement.payload_refused) == VERDICTS[words]
    assert judgement.failing is is_evidence
    assert judgement.is_evidence is (reason not in OUR_OWN)
    assert judgement.connect_failure is (reason in NEVER_REACHED)
    assert judgement.throttled is (reason is FailureReason.TIMEOUT)


def test_the_table_names_every_failure_and_no_other() -> None:
    assert set(verdict_table.failures()) == {reason.value for reason in FailureReason}


def test_why_an_event_dies_at_once() -> None:
    assert {answer(status).dead_reason for status in range(300, 400)} == {DeadReason.REDIRECTED}
    assert [answer(status).dead_reason for status in (501, 505)] == [DeadReason.REJECTED] * 2
    assert failure(FailureReason.URL_DENIED).dead_reason is DeadReason.EGRESS_DENIED


def test_a_payload_may_be_refused_three_times_and_not_a_fourth() -> None:
    for status, (words, _) in verdict_table.statuses().items():
        if words != "payload refused":
            assert judge(Attempt(0.1, status=status), refusals=99) == answer(status), status
            continue
        judgements = [judge(Attempt(0.1, status=status), refusals=refusals) for refusals in range(5)]

        assert [judgement.verdict for judgement in judgements] == [LATER, LATER, LATER, DEAD, DEAD]
        assert [judgement.dead_reason for judgement in judgements[2:4]] == [None, DeadReason.REJECTED]
        assert all(judgement.failing and judgement.payload_refused for judgement in judgements)
        assert judge(Attempt(0.1, status=status, webhook_delivery="disable"), refusals=3).verdict is DISABLE


def test_only_410_and_the_header_suspend_a_webhook() -> None:
    """An ordinary delivery that suspended its webhook would park every later event."""
    assert {status for status in STATUSES if answer(status).suspends} == {410}
    assert {status for status in STATUSES if answer(status, "abort-message").suspends} == {410}
    assert not any(failure(reason).suspends for reason in FailureReason)
    assert not any(judge(Attempt(0.1, status=status), refusals=3).suspends for status in STATUSES if status != 410)


def test_only_429_503_and_timeouts_say_that_the_endpoint_is_overloaded() -> None:
    for status in STATUSES:
        judgement = answer(status)

        assert judgement.throttled is (status in (429, 503))
        assert not judgement.connect_failure
        assert judgement.is_evidence


def test_the_header_webhook_delivery_decides_unless_it_was_delivered() -> None:
    for status in STATUSES:
        delivered = 200 <= status < 300

        assert answer(status, "disable").suspends, "also where this one event was taken"
        assert answer(status, "disable").verdict is (Verdict.DELIVERED if delivered else DISABLE)
        aborted = answer(status, "abort-message")
        if delivered:
            assert aborted.verdict is Verdict.DELIVERED
        elif status == 410:
            assert aborted.verdict is DISABLE
        else:
            assert (aborted.verdict, aborted.dead_reason) == (DEAD, DeadReason.ABORTED)
            assert not aborted.failing


@pytest.mark.parametrize("wish", [" Disable ", "DISABLE", "disable"])
def test_the_headers_case_and_spaces_do_not_matter(wish: str) -> None:
    assert answer(500, wish).verdict is DISABLE


@pytest.mark.parametrize("wish", ["", "disabled", "disable, abort-message", "abort", "retry"])
def test_an_unknown_wish_is_none(wish: str) -> None:
    assert answer(500, wish) == answer(500)


def test_every_status_has_a_metric_label_of_the_closed_set() -> None:
    for status in STATUSES:
        expected = "http_429" if status == 429 else f"http_{status // 100}xx"
        if not 200 <= status < 600:
            expected = "protocol"

        assert reason_of(Attempt(0.1, status=status)) == expected
        assert expected in {*STATUS_REASONS, *FailureReason}
        assert answer(status).metric_outcome in ATTEMPT_OUTCOMES


def test_the_metric_outcomes() -> None:
    assert answer(204).metric_outcome == "success"
    assert [answer(status).metric_outcome for status in (503, 404, 410, 400)] == ["retryable"] * 4
    assert [answer(status).metric_outcome for status in (302, 501)] == ["permanent"] * 2
    assert judge(Attempt(0.1, status=400), refusals=3).metric_outcome == "permanent"
    assert reason_of(Attempt(0.1, failure=FailureReason.TLS)) == "tls"
