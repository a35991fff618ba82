"""The events that are made up read as what they were made to be, in both spellings."""

from collections.abc import Sequence
from dataclasses import dataclass

import orjson
import pytest

from dispatcher.contract.events import DeliveryEvent, OtherEvent, read_event
from dispatcher.contract.feedback import encode_feedback
from dispatcher.demo.events import STATUSES, Spelling, make_event, malformed_records
from dispatcher.errors import UnreadableEvent
from tests.unit.examples import ORIGIN, record


@dataclass(frozen=True)
class RecordWithHeaders:
    """A record with headers of its own."""

    value: bytes
    headers: Sequence[tuple[str, bytes]]
    topic: str = "delivery-events"
    partition: int = 0
    offset: int = 0
    timestamp: int = 0
    key: bytes | None = None


def read(value: bytes) -> DeliveryEvent:
    found = read_event(record(value), ORIGIN)
    assert isinstance(found, DeliveryEvent)
    return found


@pytest.mark.parametrize("channel", ["email", "sms"])
@pytest.mark.parametrize("status", STATUSES)
def test_both_spellings_are_the_same_event(channel: str, status: str) -> None:
    xed, xdm = (
        read(make_event(org="luma", event_id="e1", channel=channel, status=status, spelling=spelling))
        for spelling in Spelling
    )

    assert xed == xdm
    assert (xed.tenant, xed.channel, xed.status) == (("luma", "prod"), channel, status)
    assert (xed.sms_number is None) == (channel != "sms")
    assert (xed.email_address is None) == (channel != "email")
    assert (xed.feedback.message_failure is not None) == (status in ("bounce", "error", "delay", "denylist"))
    for version in (1, 2):
        assert encode_feedback(xed, version) == encode_feedback(xdm, version)


def test_the_same_arguments_give_the_same_bytes_and_other_ids_other_events() -> None:
    assert make_event(org="luma", event_id="e1") == make_event(org="luma", event_id="e1")
    events = [read(make_event(org="luma", event_id=f"e{number}")) for number in range(100)]
    assert len({event.webhook_id for event in events}) == 100
    assert len({event.request_id for event in events}) == 100


def test_the_requested_values_are_in_the_event() -> None:
    event = read(
        make_event(org="luma", event_id="e1", campaign=None, campaign_type="Journey", webhooks_enabled=False,
                   test_execution=True, sandbox="dev", at=1_700_000_000.25)
    )  # fmt: skip

    assert event.tenant == ("luma", "dev")
    assert (event.execution.campaign_id, event.execution.campaign_type) == (None, "Journey")
    assert event.webhooks_enabled is False
    assert event.profile.is_test_execution is True
    assert event.timestamp == "2023-11-14T22:13:20.250Z"


def test_another_type_of_event_is_read_as_other_event() -> None:
    for spelling in Spelling:
        value = make_event(org="luma", event_id="e1", event_type="message.tracking", spelling=spelling)
        assert read_event(record(value), ORIGIN) == OtherEvent("message.tracking")


def test_the_tenant_may_be_left_to_record_headers() -> None:
    value = make_event(org=None, sandbox=None, event_id="e1")
    headers = [("imsOrgId", b"luma"), ("sandboxName", b"prod")]
    found = read_event(RecordWithHeaders(value, headers), ORIGIN)
    assert isinstance(found, DeliveryEvent)
    assert found.tenant == ("luma", "prod")


@pytest.mark.parametrize("kind", sorted(malformed_records("luma", "e1")))
def test_a_malformed_record_is_unreadable(kind: str) -> None:
    with pytest.raises(UnreadableEvent):
        read_event(record(malformed_records("luma", "e1")[kind]), ORIGIN)


def test_an_event_has_the_size_of_a_real_one() -> None:
    sizes = [len(make_event(org="9E1005A551ED61CA0A490D45@AdobeOrg", event_id="e1", spelling=one)) for one in Spelling]
    assert all(1_000 < size < 4_000 for size in sizes)
    assert orjson.loads(make_event(org="luma", event_id="e1"))["header"]["imsOrgId"] == "luma"
