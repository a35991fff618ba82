"""Checks that no message and no repr on the hot path reveals a person."""

import json

import pytest

from dispatcher.contract.events import read_event
from dispatcher.contract.records import AssignmentEpoch, ProcessingAttempt
from dispatcher.delivery.pending_delivery import PendingDelivery
from dispatcher.delivery.permits import Priority
from dispatcher.errors import UnreadableEvent
from tests.unit.examples import ORIGIN, email_event, read, record, webhook


@pytest.mark.parametrize("key", ["+4915112345678", "4915112345678", "john.doe%40luma.com"])
def test_a_namespace_that_contains_a_phone_number_is_not_logged(key: str) -> None:
    """A producer that confuses namespace and identity puts a person into a key, and so into log and dead letter."""
    with pytest.raises(UnreadableEvent) as refused:
        read_event(record(json.dumps(email_event(identityMap={key: [{"id": []}]}, feedbackStatus=5)).encode()), ORIGIN)
    assert key not in str(refused.value)


def test_no_repr_on_the_hot_path_shows_a_person() -> None:
    """As `secrets.Secret` and `transport.Request` have it: a message with {event!r} in it must reveal no person."""
    event = read(email_event())
    pending = PendingDelivery.of(
        event, webhook(), b'{"to":"john.doe@luma.com"}', 0, Priority.NEW, ProcessingAttempt(AssignmentEpoch())
    )
    assert "john.doe" not in repr(event) + repr(pending)
