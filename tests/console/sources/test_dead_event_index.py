"""Dead events as they are shown: whose they are, which are left, and what is kept of too many."""

import json
from collections.abc import Sequence
from dataclasses import replace

import pytest

from dispatcher.console.model import DeadQuery
from dispatcher.console.sources.dead_event_index import DeadEventIndex, dead_event_of
from dispatcher.contract.events import DeliveryEvent
from dispatcher.contract.recipient import recipient_of
from dispatcher.contract.records import Origin, Record, RetryState
from dispatcher.contract.tenant import TenantKey
from dispatcher.errors import NotFound
from dispatcher.kafka.dead_letters import TRUNCATED
from dispatcher.kafka.offset_tracker import encode_runs
from dispatcher.kafka.redrive import MARK
from tests.console.sources.dead_letter_builders import LUMA, OTHER
from tests.unit.examples import REMOVED, a_record, email_event, read, sms_event

NOW = 1_790_000_000.0


def letter(offset: int, tenant: TenantKey | None = LUMA, **changes: object) -> Record:
    """A record of the dead-letter topic, dead `offset` seconds after NOW."""
    org = "" if tenant is None else tenant.org
    event = email_event(imsOrgId=org, **changes)
    value = b"{" if tenant is None else json.dumps(event).encode()
    journey = RetryState(Origin("events", 2, offset + 500), NOW - 60, attempts=9, last_status=503, reason="expired")
    headers = (*journey.headers(), ("feedback-detail", b"answered 503"))
    return a_record(value, b"key", headers, "events.dead", 1, offset, int((NOW + offset) * 1000))


def mark(offset: int, *of: int) -> Record:
    headers = ((MARK, encode_runs(0, [(one, one) for one in of]).encode()),)
    return a_record(None, MARK.encode(), headers, "events.dead", 1, offset, int(NOW * 1000))


def memory(records: Sequence[Record], most: int = 1000) -> DeadEventIndex:
    made = DeadEventIndex(most)
    made.append(records)
    return made


def ids(index: DeadEventIndex, query: DeadQuery = DeadQuery(), orgs: frozenset[str] | None = None) -> list[str]:  # noqa: B008
    return [fact.id for fact in index.search(query, orgs=orgs).items]


def test_a_dead_event_has_its_details_and_its_reason() -> None:
    fact = memory([letter(7)]).get("1-7", orgs=None)
    assert fact.tenant == LUMA
    assert fact.event_id == read(email_event(imsOrgId=LUMA.org)).webhook_id
    assert (fact.reason, fact.detail, fact.attempts, fact.last_status) == ("expired", "answered 503", 9, 503)
    assert (fact.died_at, fact.first_seen, fact.origin) == (NOW + 7, NOW - 60, Origin("events", 2, 507))
    assert (fact.message_status, fact.channel, fact.recipient) == ("bounce", "email", "john.doe@luma.com")
    assert not fact.redriven


def test_an_unreadable_dead_record_is_shown_without_an_event() -> None:
    fact = dead_event_of(letter(7, None))
    assert (fact.tenant, fact.event_id, fact.message_status, fact.recipient) == (None, None, None, None)
    strange = dead_event_of(a_record(b"\xff", None, (), "events.dead", 0, 3, 5000))
    assert (strange.first_seen, strange.reason, strange.origin) == (None, "", Origin("events.dead", 0, 3))
    with_headers = replace(letter(7, None), headers=(("imsOrgId", b"luma@AdobeOrg"), ("sandboxName", b"prod")))
    assert dead_event_of(with_headers).tenant == LUMA


def test_marks_say_what_was_sent_again() -> None:
    index = memory([letter(1), letter(2), letter(3), mark(4, 1, 3), letter(5)])
    assert ids(index) == ["1-5", "1-2"]
    assert ids(index, DeadQuery(redriven=True)) == ["1-3", "1-1"]
    assert ids(index, DeadQuery(redriven=None)) == ["1-5", "1-3", "1-2", "1-1"]
    assert index.get("1-3", orgs=None).redriven
    assert index.count(LUMA, NOW) == 2
    assert index.count(LUMA, NOW + 3) == 1
    assert index.count(OTHER, NOW) == 0


def test_a_page_counts_the_matching_events_of_each_tenant() -> None:
    index = memory([letter(1), letter(2), letter(3, OTHER), letter(4, None), mark(5, 2)])
    assert index.search(DeadQuery(limit=1), orgs=None).by_tenant == {LUMA: 1, OTHER: 1}
    assert index.search(DeadQuery(redriven=None, before="1790000002000-1-2"), orgs=None).by_tenant == {
        LUMA: 2,
        OTHER: 1,
    }
    assert index.search(DeadQuery(since=NOW + 3), orgs=None).by_tenant == {OTHER: 1}
    assert index.search(DeadQuery(), orgs=frozenset({LUMA.org})).by_tenant == {LUMA: 1}


def test_only_what_a_redrive_can_send_counts_as_such() -> None:
    """Records that can't be read, are too large, or are kept in part stay in the topic, though they have a tenant."""
    whose = (("imsOrgId", LUMA.org.encode()), ("sandboxName", b"prod"))
    unreadable = replace(letter(2), value=b"{", headers=(*letter(2).headers, *whose))
    in_part = replace(letter(3), headers=(*letter(3).headers, (TRUNCATED, b"headers")))
    too_large = replace(letter(4), value=(letter(4).value or b"") + b" " * 5_000)
    index = DeadEventIndex(max_record_bytes=5_000)
    index.append([letter(1), unreadable, in_part, too_large, letter(5), letter(6, OTHER), letter(7, None), mark(8, 5)])
    page = index.search(DeadQuery(), orgs=None)
    assert {one.id for one in page.items if one.can_be_sent} == {"1-1", "1-6"}
    assert page.by_tenant == {LUMA: 4, OTHER: 1}
    assert page.sendable == {LUMA: 1, OTHER: 1}
    assert index.search(DeadQuery(sendable=True), orgs=None).total == 2


def test_no_other_organisations_event_is_ever_shown() -> None:
    index = memory([letter(1), letter(2, OTHER), letter(3, None)])
    assert ids(index) == ["1-3", "1-2", "1-1"]
    mine = frozenset({LUMA.org})
    assert ids(index, orgs=mine) == ["1-1"]
    assert ids(index, DeadQuery(tenant=OTHER), orgs=mine) == []
    assert index.search(DeadQuery(), orgs=mine).total == 1
    for dead_id in ("1-2", "1-3", "1-99"):
        with pytest.raises(NotFound) as caught:
            index.get(dead_id, orgs=mine)
        assert str(caught.value) == "there is no such dead event, or it is no longer kept"
    assert ids(index, orgs=frozenset()) == []


@pytest.mark.parametrize(
    ("query", "found"),
    [
        (DeadQuery(tenant=LUMA), ["1-4", "1-2", "1-1"]),
        (DeadQuery(message_statuses=frozenset({"sent"})), ["1-2"]),
        (DeadQuery(event_ids=frozenset({read(email_event(imsOrgId=OTHER.org)).webhook_id})), ["1-3"]),
        (DeadQuery(event_ids=frozenset({"msg_unknown"})), []),
        (DeadQuery(channels=frozenset({"sms"})), []),
        (DeadQuery(channels=frozenset({"sms", "email"})), ["1-4", "1-3", "1-2", "1-1"]),
        (DeadQuery(campaign_id="c-7"), ["1-4"]),
        (DeadQuery(reasons=frozenset({"rejected"})), []),
        (
            DeadQuery(reasons=frozenset({"rejected", "expired"}), message_statuses=frozenset({"bounce"})),
            ["1-4", "1-3", "1-1"],
        ),
        (DeadQuery(since=NOW + 2, until=NOW + 4), ["1-3", "1-2"]),
    ],
)
def test_every_condition_must_hold(query: DeadQuery, found: list[str]) -> None:
    index = memory([letter(1), letter(2, feedbackStatus="sent"), letter(3, OTHER), letter(4, campaignID="c-7")])
    assert ids(index, query) == found


def test_pages_follow_each_other_whatever_dies_meanwhile() -> None:
    index = memory([letter(number) for number in range(7)])
    first = index.search(DeadQuery(limit=3), orgs=None)
    index.append([letter(8)])
    second = index.search(DeadQuery(limit=3, before=first.next), orgs=None)
    third = index.search(DeadQuery(limit=3, before=second.next, tenant=LUMA), orgs=None)
    assert [[fact.id for fact in page.items] for page in (first, second, third)] == [
        ["1-6", "1-5", "1-4"], ["1-3", "1-2", "1-1"], ["1-0"],
    ]  # fmt: skip
    assert (first.total, second.total, third.next) == (7, 8, None)
    for wrong in ("", "1-2", "a-b-c", "1-2-3-4", "-1-2-3"):
        with pytest.raises(NotFound, match="no such page"):
            index.search(DeadQuery(before=wrong), orgs=None)


def test_one_tenants_flood_does_not_evict_other_tenants_events() -> None:
    index = memory([letter(number, OTHER) for number in range(20)], most=200)
    index.append([letter(number) for number in range(100, 3000)])
    assert len(index) <= 200
    assert len(ids(index, DeadQuery(tenant=OTHER))) == 20
    assert ids(index)[0] == "1-2999"
    assert not index.is_all
    index.append([mark(3000, 101, 2999)])  # of which one is no longer kept
    assert index.get("1-2999", orgs=None).redriven
    index.reset()
    assert (len(index), index.is_all, ids(index)) == (0, True, [])


@pytest.mark.parametrize("dead_id", ["", "1", "1-", "-1", "x-1", "1-2-3", "٣-1", "1-" + "9" * 30])
def test_an_id_that_is_none_is_not_found(dead_id: str) -> None:
    with pytest.raises(NotFound):
        memory([letter(1)]).get(dead_id, orgs=None)


@pytest.mark.parametrize(
    ("event", "recipient"),
    [
        (email_event(), "john.doe@luma.com"),
        (sms_event(), "+4915112345678"),
        (sms_event(smsChannelContext=REMOVED), "+4915112345678"),
        (email_event(emailChannelContext=REMOVED, identityMap={"EMAIL": [{"id": "a@x"}, {"id": "b@x", "primary": True}]}), "b@x"),
        (email_event(emailChannelContext=REMOVED, identityMap={"ECID": [{"id": "17"}]}), None),
        (email_event(emailChannelContext=REMOVED, identityMap=None), None),
    ],
)  # fmt: skip
def test_the_recipient_is_found_in_every_place_of_the_event(event: dict[str, object], recipient: str | None) -> None:
    found = read(event)
    assert isinstance(found, DeliveryEvent)
    assert recipient_of(found) == recipient
