"""A member that gets a partition back knows what it has finished, though it could not commit that."""

import asyncio

import pytest
from aiokafka.errors import OffsetMetadataTooLargeError

from dispatcher.kafka.commit_metadata import CommittedPosition, Fingerprint, FinishedHere
from dispatcher.kafka.partition import MOST_RUNS_KEPT, Partition
from tests.unit.delivering.test_consumer import ONE, Bench, takes
from tests.unit.examples import a_record
from tests.unit.positions.test_positions import offsets_begun, removed, resets
from tests.unit.simulation.broker import Member
from tests.unit.virtual_time import virtual_time

NEVER = 1_000.0
MARK, LATER_MARK = Fingerprint(29, 5, 1), Fingerprint(60, 6, 2)


async def finished_and_uncommitted(bench: Bench, unfinished: int = 5, records: int = 30) -> int:
    """One record is in flight, all others are finished, and no commit has gone through. Returns the records begun."""
    bench.produce(0, records)
    bench.script = takes({unfinished: NEVER})
    await bench.run()
    return len(bench.first_result)


async def taken_away(bench: Bench) -> None:
    """The group gives the partitions away, and back to its only member. The commit in between is refused."""
    bench.group.generation += 1
    bench.group.rebalance_soon()
    await bench.group.settled()
    bench.script = takes({})


async def second_member(bench: Bench) -> Member:
    """Another process takes partition 0 over, and commits only what the test does."""

    class Silent:
        async def on_partitions_assigned(self, _: object) -> None: ...
        async def on_partitions_revoked(self, _: object) -> None: ...
        def on_heartbeat(self, _: float) -> None: ...

    bench.chance.shuffle = lambda members: members.reverse()  # type: ignore[method-assign, assignment]
    member = Member(bench.group, Silent())  # type: ignore[arg-type]
    bench.group.generation += 1
    await bench.group.settled()
    assert ONE in member.assigned
    return member


def refuse_metadata(bench: Bench, longest: int) -> None:
    def on_commit(_group: str, _tp: object, _position: int, metadata: str) -> None:
        if len(metadata) > longest:
            raise OffsetMetadataTooLargeError

    bench.broker.on_commit = on_commit


@virtual_time
async def test_finished_records_are_not_begun_again_though_their_commit_was_refused() -> None:
    bench = Bench(commits=False)
    begun = await finished_and_uncommitted(bench)
    await taken_away(bench)
    await asyncio.sleep(5)

    assert bench.group.commits.get(ONE) is None
    assert offsets_begun(bench, begun) == [5], "it was in flight"
    await bench.stop()
    assert bench.committed() == (30, [])


@virtual_time
async def test_records_finished_beyond_an_older_commit_are_not_begun_again() -> None:
    bench = Bench()
    begun = await finished_and_uncommitted(bench)
    await asyncio.sleep(1)
    assert bench.committed() == (5, [(6, 29)])
    bench.broker.faults.away = True
    bench.script = takes({})
    bench.produce(0, 20)  # never fetched
    await asyncio.sleep(0.1)
    bench.broker.faults.away = False
    await taken_away(bench)
    await asyncio.sleep(5)

    assert offsets_begun(bench, begun) == [5, *range(30, 50)]
    await bench.stop()


@virtual_time
async def test_a_partition_that_is_taken_away_again_before_its_position_is_known_is_still_remembered() -> None:
    bench = Bench(commits=False)
    begun = await finished_and_uncommitted(bench)
    bench.broker.faults.metadata_unreadable = True
    for _ in range(3):
        await taken_away(bench)
        await asyncio.sleep(2)
    bench.broker.faults.metadata_unreadable = False
    await asyncio.sleep(20)

    assert offsets_begun(bench, begun) == [5]
    await bench.stop()


@virtual_time
async def test_if_the_broker_takes_no_metadata_a_rebalance_repeats_only_what_was_in_flight() -> None:
    bench = Bench()
    refuse_metadata(bench, 0)
    begun = await finished_and_uncommitted(bench)
    await asyncio.sleep(5)
    assert bench.committed() == (5, [])
    bench.group.rebalance_soon()
    await bench.group.settled()
    bench.script = takes({})
    await asyncio.sleep(5)

    assert offsets_begun(bench, begun) == [5]
    await bench.stop()


@virtual_time
@pytest.mark.parametrize("theirs", [None, 3, 12, 40])
async def test_another_member_that_had_the_partition_in_between_changes_nothing(theirs: int | None) -> None:
    """It may have committed nothing, less, or more than was finished here."""
    bench = Bench(commits=False)
    begun = await finished_and_uncommitted(bench)
    other = await second_member(bench)
    bench.produce(0, 20)
    if theirs is not None:
        there = bench.broker.partitions[ONE]
        partition = Partition(ONE)
        partition.restore(CommittedPosition(0).tracker, None)
        for record in there[:theirs]:
            partition.tracker.start(record.offset)
            partition.finish(record)  # type: ignore[arg-type]
        state = partition.to_commit()
        assert state is not None
        await other.commit({ONE: state})
    bench.script = takes({})
    other.die()
    await bench.group.settled()
    await asyncio.sleep(5)

    expected = [5, *range(30, 50)] if theirs in (None, 3) else list(range(max(30, theirs or 0), 50))
    assert offsets_begun(bench, begun) == expected
    await bench.stop()
    assert bench.committed() == (50, [])


@virtual_time
@pytest.mark.parametrize("back_to", [0, 4, 20])
async def test_a_position_that_was_set_back_by_hand_is_replayed(back_to: int) -> None:
    """The group's members were all away: Kafka refuses it otherwise. Tools write no metadata."""
    bench = Bench()
    bench.produce(0, 30)
    await bench.run()
    await asyncio.sleep(1)
    begun = len(bench.first_result)
    other = await second_member(bench)
    bench.group.commits[ONE] = (back_to, "")
    other.die()
    await bench.group.settled()
    await asyncio.sleep(5)

    assert offsets_begun(bench, begun) == list(range(back_to, 30))
    await bench.stop()


@virtual_time
@pytest.mark.parametrize("back_to", [None, 0, 9])
async def test_a_position_that_was_set_back_counts_also_before_the_first_commit_of_an_assignment(
    back_to: int | None,
) -> None:
    bench = Bench()
    bench.produce(0, 10)
    await bench.run()
    await asyncio.sleep(1)
    await bench.stop()
    bench.settings = bench.settings.model_copy(update={"commit_interval": 3600.0})
    begun = await finished_and_uncommitted(bench, unfinished=1_000, records=20)
    assert bench.committed() == (10, [])
    other = await second_member(bench)
    bench.group.commits.pop(ONE)
    if back_to is not None:
        bench.group.commits[ONE] = (back_to, "")
    other.die()
    await bench.group.settled()
    await asyncio.sleep(5)

    assert offsets_begun(bench, begun) == list(range(back_to or 0, 30))
    await bench.stop()


@virtual_time
async def test_a_position_that_was_deleted_by_hand_is_replayed() -> None:
    bench = Bench()
    bench.produce(0, 30)
    await bench.run()
    await asyncio.sleep(1)
    begun = len(bench.first_result)
    other = await second_member(bench)
    del bench.group.commits[ONE]
    other.die()
    await bench.group.settled()
    await asyncio.sleep(5)

    assert offsets_begun(bench, begun) == list(range(30))
    await bench.stop()


@virtual_time
@pytest.mark.parametrize("committed", [False, True])
@pytest.mark.parametrize("grown", [3, 29, 30, 60])
async def test_records_finished_in_a_lost_log_do_not_count_in_the_new_one(grown: int, *, committed: bool) -> None:
    bench = Bench(commits=committed)
    begun, before = await finished_and_uncommitted(bench), resets("truncated") + resets("replaced")
    other = await second_member(bench)
    bench.broker.truncate(ONE, 0)
    bench.produce(0, grown)
    bench.script = takes({})
    other.die()
    await bench.group.settled()
    await asyncio.sleep(20)

    assert offsets_begun(bench, begun) == list(range(grown))
    assert resets("truncated") + resets("replaced") == before + committed
    await bench.stop()
    assert bench.committed() == (grown, [])


@virtual_time
@pytest.mark.parametrize("left", [0, 10, 29])
async def test_a_new_log_that_another_member_has_committed_already_is_not_skipped(left: int) -> None:
    """The group's position fits the log as it is now; what was finished here doesn't."""
    bench = Bench(commits=False)
    begun = await finished_and_uncommitted(bench)
    other = await second_member(bench)
    bench.broker.truncate(ONE, left)
    bench.produce(0, 60)
    first = bench.broker.partitions[ONE][0]
    partition = Partition(ONE)
    partition.restore(CommittedPosition(0).tracker, None)
    partition.tracker.start(0)
    partition.finish(first)  # type: ignore[arg-type]
    state = partition.to_commit()
    assert state is not None
    await other.commit({ONE: state})
    bench.script = takes({})
    other.die()
    await bench.group.settled()
    await asyncio.sleep(20)

    assert offsets_begun(bench, begun) == list(range(1, left + 60))
    await bench.stop()


@virtual_time
async def test_records_that_retention_took_after_they_were_finished_here_are_not_missed() -> None:
    bench, before = Bench(commits=False), removed()
    begun = await finished_and_uncommitted(bench)
    other = await second_member(bench)
    bench.produce(0, 10)
    bench.broker.remove_before(ONE, 20)
    bench.script = takes({})
    other.die()
    await bench.group.settled()
    await asyncio.sleep(5)

    assert offsets_begun(bench, begun) == list(range(30, 40))
    assert removed() == before + (bench.group.commits.get(ONE) is not None)
    await bench.stop()


@virtual_time
async def test_a_log_that_was_cut_off_inside_a_gap_hides_no_record() -> None:
    """The record in flight lay behind a gap in the offsets. What fills the gap later was never seen."""
    bench = Bench(commits=False)
    bench.produce(0, 10)
    bench.broker.ends[ONE] = 20
    bench.produce(0, 1)
    bench.script = takes({20: NEVER})
    await bench.run()
    begun = len(bench.first_result)
    other = await second_member(bench)
    bench.broker.truncate(ONE, 20)
    bench.broker.sources[ONE] -= 1
    bench.produce(0, 15)
    bench.script = takes({})
    other.die()
    await bench.group.settled()
    await asyncio.sleep(5)

    assert offsets_begun(bench, begun) == list(range(10, 25))
    await bench.stop()


# What is kept, and when it counts


@pytest.mark.parametrize(
    ("one", "other", "both"),
    [
        (CommittedPosition(5), CommittedPosition(9), CommittedPosition(9)),
        (CommittedPosition(5, ((7, 9),)), CommittedPosition(7), CommittedPosition(10)),
        (CommittedPosition(5, ((7, 9),)), CommittedPosition(6), CommittedPosition(6, ((7, 9),))),
        (CommittedPosition(5, ((7, 9), (20, 29))), CommittedPosition(8), CommittedPosition(10, ((20, 29),))),
        (CommittedPosition(5, ((7, 9),)), CommittedPosition(5, ((10, 12), (8, 8))), CommittedPosition(5, ((7, 12),))),
        (CommittedPosition(5, ((7, 20),)), CommittedPosition(5, ((9, 12),)), CommittedPosition(5, ((7, 20),))),
        (CommittedPosition(5, (), MARK), CommittedPosition(3, (), LATER_MARK), CommittedPosition(5, (), LATER_MARK)),
        (CommittedPosition(5, (), MARK), CommittedPosition(3), CommittedPosition(5, (), MARK)),
    ],
)
def test_two_positions_of_one_log_are_merged(
    one: CommittedPosition, other: CommittedPosition, both: CommittedPosition
) -> None:
    assert one.merged(other) == other.merged(one) == both


@pytest.mark.parametrize(
    ("committed", "found", "counts"),
    [
        (None, None, True),
        (None, CommittedPosition(3, (), MARK), True),
        (CommittedPosition(3, (), MARK), None, False),
        (CommittedPosition(3, (), MARK), CommittedPosition(3, (), MARK), True),
        (CommittedPosition(3, (), MARK), CommittedPosition(2, (), MARK), False),
        (CommittedPosition(3, (), MARK), CommittedPosition(4), False),
        (CommittedPosition(3), CommittedPosition(3), True),
        (CommittedPosition(3), CommittedPosition(2), False),
    ],
)
def test_records_finished_here_count_unless_the_position_was_set_by_hand(
    committed: CommittedPosition | None, found: CommittedPosition | None, *, counts: bool
) -> None:
    assert FinishedHere(CommittedPosition(9, (), MARK), committed).may_extend(found) is counts


def test_the_data_kept_of_a_partition_is_bounded() -> None:
    partition = Partition(ONE)
    partition.restore(CommittedPosition(0).tracker, None)
    assert partition.what_is_finished() is None, "nothing is finished"
    for offset in range(4 * MOST_RUNS_KEPT):
        partition.tracker.start(offset)
    for offset in range(1, 4 * MOST_RUNS_KEPT, 2):
        partition.finish(a_record(b"", b"", (), "t", 0, offset, 0))  # type: ignore[arg-type]
    kept = partition.what_is_finished()

    assert kept is not None
    assert kept.claim.finished == tuple((one, one) for one in range(1, 2 * MOST_RUNS_KEPT, 2))
