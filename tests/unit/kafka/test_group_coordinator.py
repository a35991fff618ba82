"""The mark in the subscription by which dispatchers know each other."""

import pytest
from aiokafka.coordinator.assignors.roundrobin import RoundRobinPartitionAssignor
from aiokafka.coordinator.protocol import ConsumerProtocolMemberMetadata

from dispatcher.kafka.group_coordinator import DispatcherAssignor, is_marked


def test_a_dispatcher_is_marked_and_joins_with_the_protocol_of_older_versions() -> None:
    joined_with = DispatcherAssignor.metadata(["t"])

    assert is_marked(joined_with.encode())
    assert joined_with.subscription == ["t"]
    assert DispatcherAssignor.name == RoundRobinPartitionAssignor.name


def test_newer_clients_of_the_protocol_append_fields() -> None:
    assert is_marked(DispatcherAssignor.metadata(["t"]).encode() + b"\0\0\0\0")


@pytest.mark.parametrize(
    "subscription",
    [
        b"", b"\0", b"\0" * 40, b"\xff" * 40,
        RoundRobinPartitionAssignor.metadata(["t"]).encode(),
        ConsumerProtocolMemberMetadata(1, ["t"], b"other").encode(),
        ConsumerProtocolMemberMetadata(1, ["feedback-dispatcher"], None).encode(),
    ],
)  # fmt: skip
def test_any_other_subscription_is_not_marked(subscription: bytes) -> None:
    assert not is_marked(subscription)
