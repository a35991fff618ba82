"""Checks which events a webhook receives, and the one reason if it does not, in the order of docs/events.md."""

import pytest

from dispatcher.contract.feedback import encode_feedback
from dispatcher.contract.outcomes import ParkReason, SkipReason
from dispatcher.flow.decision import decide, eligibility
from dispatcher.flow.explain import rule_answers
from tests.unit.examples import email_event, read, sms_event, webhook

FINE = {"channels": ["email"], "events": ["bounce"], "campaigns": ["16f24a15-7e21-477c-848a-d5695ca7f137"]}

WRONG_FROM_LAST_TO_FIRST = [
    (SkipReason.CAMPAIGN, {"campaignID": "another"}, {}),
    (SkipReason.STATUS, {"feedbackStatus": "delay"}, {}),
    (SkipReason.CHANNEL, {"channel": {"_id": "https://ns.adobe.com/xdm/channels/push"}}, {}),
    (SkipReason.WEBHOOK_DISABLED, {}, {"enabled": False}),
    (SkipReason.NO_WEBHOOK, {}, {"sandbox_id": "of another sandbox"}),
    (SkipReason.TEST_EXECUTION, {"isTestExecution": True}, {}),
]
"""Each thing that can be wrong, the last asked first: whatever is added to them takes over the reason."""


def test_an_event_that_is_wanted_is_not_skipped() -> None:
    assert eligibility(read(email_event()), webhook(**FINE)) is None
    assert eligibility(read(sms_event()), webhook()) is None


def test_the_first_reason_in_the_designs_order_is_the_one_that_counts() -> None:
    event_changes: dict[str, object] = {}
    webhook_changes: dict[str, object] = dict(FINE)
    for expected, in_event, in_webhook in WRONG_FROM_LAST_TO_FIRST:
        event_changes |= in_event
        webhook_changes |= in_webhook

        assert eligibility(read(email_event(**event_changes)), webhook(**webhook_changes)) is expected


def test_the_explanation_of_the_rules_agrees_with_the_decision_for_every_reason() -> None:
    for expected, in_event, in_webhook in [(None, {}, {}), *WRONG_FROM_LAST_TO_FIRST]:
        event, one = read(email_event(**in_event)), webhook(**(FINE | in_webhook))

        assert eligibility(event, one) is expected
        assert [answer.reason for answer in rule_answers(event, one) if not answer.passes] == (
            [] if expected is None else [expected]
        )

    in_order = [reason for reason, _, _ in reversed(WRONG_FROM_LAST_TO_FIRST)]
    assert [SkipReason.NOT_FEEDBACK, *in_order] == list(SkipReason), "each reason has its case here, in its place"
    assert [answer.reason for answer in rule_answers(event, None)] == in_order


def test_the_decision_is_what_to_send_or_why_nothing_is_sent() -> None:
    event, fine = read(email_event()), webhook(**FINE)

    assert decide(event, fine) == (fine, encode_feedback(event, fine.config.payload))
    assert decide(event, webhook(**FINE, paused=True)) is ParkReason.PAUSED
    assert decide(event, webhook(**FINE, paused=True, enabled=False)) is SkipReason.WEBHOOK_DISABLED
    assert decide(event, None) is SkipReason.NO_WEBHOOK


def test_a_test_execution_is_skipped_as_such_even_without_a_webhook() -> None:
    assert eligibility(read(email_event(isTestExecution=True)), None) is SkipReason.TEST_EXECUTION
    assert eligibility(read(email_event()), None) is SkipReason.NO_WEBHOOK


@pytest.mark.parametrize(
    ("status", "wanted"),
    [("sent", True), ("delivered", True), ("bounce", True), ("error", True), ("exclude", False), ("delay", False),
     ("duplicate", False), ("denylist", False), ("read", False), ("unknown", False), ("of a later version", False)],
)  # fmt: skip
def test_by_default_four_statuses_are_wanted(status: str, wanted: bool) -> None:
    reason = eligibility(read(email_event(feedbackStatus=status)), webhook())

    assert reason is (None if wanted else SkipReason.STATUS)


def test_a_status_of_a_later_version_can_be_selected() -> None:
    assert eligibility(read(email_event(feedbackStatus="new")), webhook(events=["new"])) is None


@pytest.mark.parametrize(
    ("changes", "enabled", "campaigns", "wanted"),
    [
        ({}, None, "all", True),
        ({}, True, "all", True),
        ({}, False, "all", False),
        ({"campaignID": None}, None, "all", False),
        ({"campaignID": ""}, None, "all", False),
        ({"campaignType": None}, None, "all", True),
        ({"campaignType": "Scheduled"}, None, "all", False),
        ({"campaignID": "a"}, None, ["a", "b"], True),
        ({"campaignID": "ab"}, None, ["a", "b"], False),
        ({"campaignID": "all"}, None, ["a"], False),
        ({"campaignID": "a"}, False, ["a"], False),
    ],
)
def test_campaigns(changes: dict[str, object], enabled: bool | None, campaigns: object, wanted: bool) -> None:
    event = email_event(**changes)
    if enabled is not None:
        event["header"]["webhooksEnabled"] = enabled

    assert eligibility(read(event), webhook(campaigns=campaigns)) is (None if wanted else SkipReason.CAMPAIGN)


@pytest.mark.parametrize(
    ("in_webhook", "in_event", "wanted"),
    [("a", "a", True), ("a", "b", False), (None, "b", True), ("a", None, True), (None, None, True)],
)
def test_a_sandbox_id_must_match_where_both_give_one(
    in_webhook: str | None, in_event: str | None, wanted: bool
) -> None:
    event = read(email_event(sandbox={"name": "prod", "id": in_event}))

    assert eligibility(event, webhook(sandbox_id=in_webhook)) is (None if wanted else SkipReason.NO_WEBHOOK)
