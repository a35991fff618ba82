"""What the recorder makes of events: masked, bounded, counted, and never in the way."""

import asyncio
import hashlib
import json
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from dispatcher.config.secrets import Secret
from dispatcher.config.settings import HistorySettings
from dispatcher.contract.encoded_entries import FULL_ENTRIES, EncodedEntries
from dispatcher.contract.history import (
    MAX_ANSWER,
    MAX_DETAIL,
    MAX_ID,
    HistoryEntry,
    HistoryOutcome,
    bucket_of,
    decode_record,
)
from dispatcher.contract.outcomes import Attempt, DeadReason, ParkReason, SkipReason
from dispatcher.contract.recipient import recipient_hash, recipient_hashes
from dispatcher.contract.records import AssignmentEpoch, Origin, ProcessingAttempt
from dispatcher.contract.tenant import TenantKey
from dispatcher.delivery import history_recorder
from dispatcher.delivery.history_recorder import HistoryRecorder
from dispatcher.delivery.pending_delivery import PendingDelivery
from dispatcher.delivery.permits import Priority
from dispatcher.delivery.verdicts import judge
from dispatcher.errors import UnreadableEvent
from dispatcher.kafka.history_topic import BATCH_BYTES
from dispatcher.telemetry import metrics
from tests.build_form import interpreted_only
from tests.history_records import entries_of, record_of, taken_from
from tests.unit.examples import email_event, read, webhook

KEY = b"k" * 32
ORIGIN = Origin("delivery-events", 3, 41)


class Clock:
    now = 1_790_000_000.0

    def __call__(self) -> float:
        return self.now


def recorder(clock: Clock | None = None, **settings: Any) -> HistoryRecorder:
    values: dict[str, Any] = {"store": "none", "recipient_key": Secret(KEY), "answers": False} | settings
    return HistoryRecorder(HistorySettings.model_construct(**values), clock or Clock())


def test_every_outcome_has_an_entry_without_address_and_payload() -> None:
    event, made = read(email_event()), recorder()
    made.record_skipped(event, ORIGIN, SkipReason.CHANNEL, has_webhook=True, has_earlier=False)
    made.record_parked(event, ORIGIN, ParkReason.ATTEMPT_FAILED, 2, 1_790_000_030.0, "answered 503")
    made.record_parked(event, ORIGIN, ParkReason.PAUSED, 0, 1_790_000_030.0, "")
    made.record_dead(event, ORIGIN, DeadReason.REJECTED, 3, "no jane@luma.com at +49 170 1234567")
    made.record_dead(None, ORIGIN, DeadReason.UNREADABLE, 0, "not JSON")
    made.record_redriven(event, ORIGIN, "rejected")
    found = taken_from(made)
    by_outcome = {(one.outcome.value, one.reason): one for one in found}
    assert by_outcome.keys() == {
        ("skipped", "channel"), ("parked", "attempt_failed"), ("held", "paused"), ("dead", "rejected"),
        ("dead", "unreadable"), ("redriven", "rejected"),
    }  # fmt: skip
    dead = by_outcome["dead", "rejected"]
    assert "jane" not in dead.detail
    assert "1234567" not in dead.detail
    assert (dead.topic, dead.partition, dead.offset, dead.attempt) == ("delivery-events", 3, 41, 3)
    assert dead.event_id
    assert by_outcome["parked", "attempt_failed"].due_at == 1_790_000_030_000
    assert by_outcome["dead", "unreadable"].org is None
    values = record_of(1, 1, found)
    assert b"jane" not in values
    assert b"john" not in values
    assert {one.recipient for one in found if one.org} == {dead.recipient}
    assert len(dead.recipient or "") == 32


@pytest.mark.parametrize(
    ("retry_after", "shown"),
    [
        ("120", "120"),
        ("1.5", "1.5"),
        (" -3 ", "-3"),
        ("Wed, 21 Oct 2026 07:28:00 GMT", "Wed, 21 Oct 2026 07:28:00 GMT"),
        ("/hooks/a-secret-path?k=v", "(not readable)"),
        ("Bearer abcdef", "(not readable)"),
        ("9" * 200, "(not readable)"),
    ],
)
def test_a_header_of_an_answer_can_not_echo_a_secret_into_the_history(retry_after: str, shown: str) -> None:
    made, attempt = recorder(), Attempt(0.1, status=503, retry_after=retry_after, webhook_delivery=retry_after)
    processing = ProcessingAttempt(AssignmentEpoch())
    pending = PendingDelivery.of(read(email_event()), webhook(), b"{}", 0, Priority.NEW, processing)
    made.record_attempt(pending, 1, attempt, judge(attempt))
    assert [one.headers for one in taken_from(made)] == [{"retry-after": shown, "webhook-delivery": shown}]


@pytest.mark.parametrize(
    ("challenge", "shown"),
    [
        ("Bearer", "Bearer"),
        (
            'Bearer realm="a-secret", error="invalid_token", error_description="a-secret"',
            'Bearer error="invalid_token"',
        ),
        ("bearer error=insufficient_scope", 'bearer error="insufficient_scope"'),
        ('DPoP error="use_dpop_nonce"', 'DPoP error="use_dpop_nonce"'),
        ('Basic realm="x", Bearer error="a-secret"', "Basic"),
        ("Negotiate YS1zZWNyZXQ=", "Negotiate"),
        ("BearerToken a-secret", "(not readable)"),
        ("eyJhbGciOiJ.a-secret", "(not readable)"),
        ('Bearer error="invalid_token-a-secret"', "Bearer"),
        ("", None),
    ],
)
def test_of_a_challenge_only_scheme_and_error_are_kept(challenge: str, shown: str | None) -> None:
    made, attempt = recorder(), Attempt(0.1, status=401, www_authenticate=challenge)
    processing = ProcessingAttempt(AssignmentEpoch())
    pending = PendingDelivery.of(read(email_event()), webhook(), b"{}", 0, Priority.NEW, processing)
    made.record_attempt(pending, 1, attempt, judge(attempt))
    assert [one.headers for one in taken_from(made)] == [None if shown is None else {"www-authenticate": shown}]


def test_without_a_key_there_is_no_trace_of_the_recipient() -> None:
    made = recorder(recipient_key=None)
    made.record_skipped(read(email_event()), ORIGIN, SkipReason.STATUS, has_webhook=True, has_earlier=False)
    assert [one.recipient for one in taken_from(made)] == [None]


def test_the_hash_depends_on_the_key_and_not_on_how_the_address_is_written() -> None:
    assert recipient_hash(KEY, "Jane@Luma.com ") == recipient_hash(KEY, "jane@luma.com")
    assert recipient_hash(KEY, "jane@luma.com") != recipient_hash(b"x" * 32, "jane@luma.com")
    assert recipient_hash(b"k" * 500, "\ud800") != recipient_hash(b"k" * 501, "\ud800")


@pytest.mark.parametrize(
    "written",
    ["+49 170 1234567", "+491701234567", "0049 170 1234567", "+49 (0)170 / 123-45.67", " +49\xa0170\xa01234567 "],
)
def test_a_telephone_number_has_one_hash_however_it_is_written(written: str) -> None:
    """And older entries are found by the number as their event has it."""
    assert recipient_hash(KEY, written) == recipient_hash(KEY, "+491701234567")
    old = hashlib.blake2b(
        written.strip().casefold().encode(), key=hashlib.sha512(KEY).digest(), digest_size=16
    ).hexdigest()
    assert set(recipient_hashes(KEY, written)) >= {recipient_hash(KEY, "+491701234567"), old}


@pytest.mark.parametrize(
    ("one", "other"),
    [("+491701234567", "491701234567"), ("0170 1234567", "+491701234567"), ("a 12345", "a12345"), ("1-2", "12"),
     ("12345@x.example", "1 2345@x.example"), ("4711 08\u0661512", "471108\u0661512")],
)  # fmt: skip
def test_only_numbers_are_normalised(one: str, other: str) -> None:
    assert recipient_hash(KEY, one) != recipient_hash(KEY, other)
    assert recipient_hashes(KEY, "jane@luma.com") == (recipient_hash(KEY, "Jane@luma.com"),)


@interpreted_only
def test_events_of_other_types_are_counted_by_the_minute_without_a_tenant() -> None:
    clock = Clock()
    made = recorder(clock)
    for _ in range(3):
        made.count_other_event()
    assert list(made.take_all()) == []  # the minute isn't over
    clock.now += 60
    made.count_other_event()
    found = taken_from(made, at_end=False)
    assert [(one.org, one.reason, one.count) for one in found] == [(None, "not_feedback", 3)]
    assert [one.count for one in taken_from(made)] == [1]


@interpreted_only
def test_events_of_unknown_tenants_are_counted_by_the_minute_and_bounded(monkeypatch: pytest.MonkeyPatch) -> None:
    """A stranger can invent tenants: past the bound they are counted together."""
    monkeypatch.setattr(history_recorder, "MAX_COUNTS", 3)
    clock = Clock()
    made = recorder(clock)
    for number in range(10):
        event = read(email_event())
        event.tenant = TenantKey(f"org-{number % 5}", "prod")  # type: ignore[misc]
        made.record_skipped(event, ORIGIN, SkipReason.NO_WEBHOOK, has_webhook=False, has_earlier=False)
    assert list(made.take_all()) == []  # the minute isn't over
    clock.now += 60
    found = sorted((one.org or "", one.count) for one in taken_from(made))
    assert found == [("", 4), ("org-0", 2), ("org-1", 2), ("org-2", 2)]


@interpreted_only
def test_a_full_buffer_costs_entries_and_nothing_else(monkeypatch: pytest.MonkeyPatch) -> None:
    made = recorder()
    made.record_skipped(read(email_event()), ORIGIN, SkipReason.CHANNEL, has_webhook=True, has_earlier=False)
    [(_, one)] = made.take_all()
    monkeypatch.setattr(history_recorder, "MAX_BUFFERED", 4 * one.size + 1)
    lost = metrics.HISTORY_LOST.labels("buffer_full")
    before = lost._value.get()
    for _ in range(8):
        made.record_skipped(read(email_event()), ORIGIN, SkipReason.CHANNEL, has_webhook=True, has_earlier=False)
    assert lost._value.get() - before == 3
    assert len(taken_from(made)) == 5
    assert made.buffered == 0
    made.record_skipped(read(email_event()), ORIGIN, SkipReason.CHANNEL, has_webhook=True, has_earlier=False)
    assert len(taken_from(made)) == 1


async def test_a_full_record_is_ready_at_once() -> None:
    made = recorder()
    for number in range(FULL_ENTRIES):
        assert made.ready.is_set() is (number == FULL_ENTRIES)
        made.record_skipped(read(email_event()), ORIGIN, SkipReason.CHANNEL, has_webhook=True, has_earlier=False)
    await asyncio.wait_for(made.ready.wait(), 1)
    [(bucket, encoded)] = made.take_full()
    found = entries_of(encoded)
    assert len(encoded) == len(found) == FULL_ENTRIES
    assert bucket == bucket_of(found[0].org, found[0].sandbox)
    assert list(made.take_full()) == []


_texts = st.text(max_size=MAX_ID)
_entries = st.builds(
    HistoryEntry,
    at=st.integers(0, 2**53),
    outcome=st.sampled_from(list(HistoryOutcome)),
    org=st.none() | _texts,
    request_id=st.none() | _texts,
    detail=_texts,
    headers=st.none() | st.dictionaries(_texts, _texts, min_size=1, max_size=2),
    attempt=st.none() | st.integers(0, 1000),
    answer=_texts,
    reused=st.booleans(),
)


@given(st.lists(_entries, min_size=1, max_size=30), st.integers(0, 2**62))
def test_an_encoded_record_is_decoded_again(made: list[HistoryEntry], writer: int) -> None:
    decoded = decode_record(record_of(writer, 7, made))
    assert decoded.unreadable == 0
    [record] = decoded.runs
    assert (record.writer, record.first, record.entries) == (writer, 7, made)


def test_a_record_of_long_entries_is_full_within_the_limit_of_a_batch() -> None:
    long = "\N{FACE WITH TEARS OF JOY}"
    entry = HistoryEntry(
        2**53, HistoryOutcome.ATTEMPT, *(long * MAX_ID for _ in range(8)), long * MAX_ID, 1, 2, *[long * MAX_ID] * 3,
        detail=long * MAX_DETAIL, headers={long: long * MAX_ID}, answer="\1" * MAX_ANSWER,
    )  # fmt: skip
    encoded, size = EncodedEntries(), 0
    while not encoded.is_full:
        size = encoded.add(entry)
    assert size > 20_000
    assert 1 < len(encoded) < FULL_ENTRIES
    assert len(encoded.value(2**62, 2**62)) < BATCH_BYTES


async def test_what_is_not_yet_taken_stays_if_the_writer_fails() -> None:
    made = recorder()
    for _ in range(2 * FULL_ENTRIES + 1):
        made.record_skipped(read(email_event()), ORIGIN, SkipReason.CHANNEL, has_webhook=True, has_earlier=False)
    assert made.buffered == 2 * FULL_ENTRIES + 1
    for _ in made.take_all():
        break  # the broker refused the first record
    assert made.buffered == FULL_ENTRIES + 1
    assert len(taken_from(made)) == FULL_ENTRIES + 1
    assert made.buffered == 0


@interpreted_only
def test_a_text_that_cannot_be_encoded_costs_its_entry_and_nothing_else(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(history_recorder, "in_text", lambda text: text)  # which replaces it
    lost, bugs = (one._value for one in (metrics.HISTORY_LOST.labels("not_written"), metrics.ERRORS.labels("history")))
    made, before = recorder(), (lost.get(), bugs.get())
    for detail in ("fine", "no \udc80", "fine"):
        made.record_dead(None, ORIGIN, DeadReason.UNREADABLE, 0, detail)
    assert [one.detail for one in taken_from(made)] == ["fine", "fine"]
    assert (lost.get() - before[0], bugs.get() - before[1]) == (1, 1)


@pytest.mark.parametrize(
    "value", [None, b"", b"{}", b"[]", b"\xff", b'{"version":2,"writer":1,"first":1,"entries":[]}', b"[" * 100_000]
)
def test_a_value_that_is_not_a_history_record_is_refused(value: bytes | None) -> None:
    with pytest.raises(UnreadableEvent):
        decode_record(value)


_FINE = {"at": 1, "outcome": "dead", "org": "o"}
_NEWER = [
    _FINE | {"outcome": "expired"}, _FINE | {"at": "1"}, _FINE | {"count": 1.5}, _FINE | {"headers": {"a": 1}}, {"at": 1},
    [1, "dead"], None, 7, "dead", _FINE | {"org": {"id": "o"}},
]  # fmt: skip
"""Entries as a later version, or another writer, may write them."""


@pytest.mark.parametrize("odd", [[0], [2], [1, 2], [4], [0, 2, 4], [0, 1, 2, 3, 4]])
def test_an_entry_that_can_not_be_read_costs_no_other_and_no_number(odd: list[int]) -> None:
    for other in _NEWER:
        made = [other if number in odd else _FINE | {"reason": str(number)} for number in range(5)]
        value = json.dumps({"version": 1, "writer": 9, "first": 100, "entries": made, "sealed": True}).encode()
        decoded = decode_record(value)
        found = {
            run.first + index: (run.writer, entry.reason)
            for run in decoded.runs
            for index, entry in enumerate(run.entries)
        }
        assert found == {100 + number: (9, str(number)) for number in range(5) if number not in odd}
        assert all(run.entries for run in decoded.runs)
        assert (decoded.unreadable, bool(decoded.problem)) == (len(odd), True)


def test_of_an_entry_with_a_broken_character_only_the_entry_is_lost() -> None:
    value = b'{"version":1,"writer":9,"first":3,"entries":[{"at":1,"outcome":"dead","org":"\xff"},{"at":2,"outcome":"dead"}]}'
    decoded = decode_record(value)
    assert [(run.first, [one.at for one in run.entries]) for run in decoded.runs] == [(4, [2])]
    assert decoded.unreadable == 1


@pytest.mark.parametrize("entry", [_FINE, _NEWER[0]])
def test_a_record_of_a_newer_version_is_refused_whatever_is_in_it(entry: object) -> None:
    value = json.dumps({"version": 2, "writer": 9, "first": 3, "entries": [entry]}).encode()
    with pytest.raises(UnreadableEvent, match="history record of version 2: this program reads version 1"):
        decode_record(value)
