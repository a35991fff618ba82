"""Requests for a group's offsets are repeated while its coordinator isn't ready."""

import pytest
from aiokafka import TopicPartition
from aiokafka.errors import (
    GroupAuthorizationFailedError,
    GroupCoordinatorNotAvailableError,
    GroupLoadInProgressError,
    KafkaError,
    NotCoordinatorForGroupError,
)
from aiokafka.structs import OffsetAndMetadata

from dispatcher.kafka.committed_offsets import committed_offsets
from tests.unit.virtual_time import virtual_time

ONE, OTHER = TopicPartition("events", 0), TopicPartition("events", 1)
NOT_READY = [GroupCoordinatorNotAvailableError, NotCoordinatorForGroupError, GroupLoadInProgressError]


class Admin:
    """An admin client whose broker answers with an error a few times; real brokers do so at moments of their own."""

    def __init__(self, error: KafkaError, times: int) -> None:
        self._error = error
        self._times = times
        self.asked = 0

    async def list_consumer_group_offsets(
        self, group_id: str, partitions: list[TopicPartition]
    ) -> dict[TopicPartition, OffsetAndMetadata]:
        assert (group_id, partitions) == ("g", [ONE, OTHER])
        self.asked += 1
        if self.asked <= self._times:
            raise self._error
        return {ONE: OffsetAndMetadata(42, "kept"), OTHER: OffsetAndMetadata(-1, "")}


@virtual_time
@pytest.mark.parametrize("error", NOT_READY)
async def test_a_coordinator_that_is_not_ready_is_waited_for(error: type[KafkaError]) -> None:
    """A new cluster has none yet; one that has just moved denies being it, and then still loads."""
    admin = Admin(error("g"), times=5)
    assert await committed_offsets(admin, "g", [ONE, OTHER]) == {ONE: OffsetAndMetadata(42, "kept")}
    assert admin.asked == 6


@virtual_time
@pytest.mark.parametrize("error", NOT_READY)
async def test_one_that_stays_away_is_given_up(error: type[KafkaError]) -> None:
    admin = Admin(error("g"), times=1_000)
    with pytest.raises(error):
        await committed_offsets(admin, "g", [ONE, OTHER])
    assert 10 < admin.asked < 30


@virtual_time
async def test_other_errors_are_raised_at_once() -> None:
    admin = Admin(GroupAuthorizationFailedError("g"), times=1)
    with pytest.raises(GroupAuthorizationFailedError):
        await committed_offsets(admin, "g", [ONE, OTHER])


async def test_no_partitions_need_no_request() -> None:
    assert await committed_offsets(Admin(KafkaError(), times=1), "g", []) == {}
