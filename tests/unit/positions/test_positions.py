"""Checks a consumer's start positions against a broker in memory whose logs are lost, truncated and trimmed."""

import asyncio
from typing import Any

import pytest
from aiokafka import TopicPartition
from aiokafka.errors import OffsetMetadataTooLargeError, RequestTimedOutError
from structlog.testing import capture_logs

from dispatcher.contract.kafka_problems import KafkaReason
from dispatcher.contract.records import Lease, Record
from dispatcher.kafka.commit_metadata import decode_metadata
from dispatcher.kafka.group_coordinator import FencedMember
from dispatcher.kafka.offset_tracker import MAX_METADATA_BYTES
from dispatcher.telemetry import metrics
from tests.unit.delivering.test_consumer import ONE, OTHER, Bench, takes
from tests.unit.simulation.broker import Member
from tests.unit.virtual_time import virtual_time


def resets(reason: str) -> float:
    return metrics.LOG_RESETS.labels("t", reason)._value.get()


def removed() -> float:
    return metrics.RECORDS_REMOVED_UNREAD.labels("t")._value.get()


async def crash(bench: Bench) -> None:
    bench.group.members[0].die()
    bench.tasks[-1].cancel()
    await asyncio.wait([bench.tasks[-1]])


async def thirty_with_one_unfinished(bench: Bench) -> None:
    """Position 5; 6 to 29 in the metadata."""
    bench.produce(0, 30)
    bench.script = takes({5: 1000.0})
    await bench.run()
    await asyncio.sleep(1)
    assert bench.committed() == (5, [(6, 29)])


def offsets_begun(bench: Bench, since: int = 0) -> list[int]:
    return [offset for partition, offset in bench.first_result[since:] if partition == 0]


# Logs that are other logs


@virtual_time
@pytest.mark.parametrize(("grown", "reason"), [(60, "replaced"), (30, "replaced"), (29, "truncated"), (3, "truncated")])
async def test_a_log_lost_while_the_process_is_down_is_read_from_its_start(grown: int, reason: str) -> None:
    bench, before = Bench(), resets(reason)
    await thirty_with_one_unfinished(bench)
    await crash(bench)
    bench.broker.truncate(ONE, 0)
    bench.produce(0, grown)
    bench.script = takes({})
    begun = len(bench.first_result)
    await bench.run()
    await asyncio.sleep(5)

    assert offsets_begun(bench, begun) == list(range(grown))
    assert bench.committed() == (grown, [])
    assert resets(reason) == before + 1
    await bench.stop()


@virtual_time
async def test_a_log_that_is_still_the_same_repeats_nothing() -> None:
    bench = Bench()
    await thirty_with_one_unfinished(bench)
    await crash(bench)
    bench.broker.sources[ONE] += 1
    bench.script = takes({})
    begun = len(bench.first_result)
    await bench.run()
    await asyncio.sleep(5)

    assert offsets_begun(bench, begun) == [5]
    await bench.stop()


@virtual_time
@pytest.mark.parametrize("grown", [60, 30, 12, 0])
async def test_a_log_lost_while_the_process_runs_is_read_from_its_start_and_the_old_records_are_finished(
    grown: int,
) -> None:
    bench = Bench()
    bench.produce(0, 30)
    bench.script = takes({5: 20.0})
    await bench.run()
    await asyncio.sleep(1)
    bench.broker.truncate(ONE, 0)
    bench.script = takes({})
    begun = len(bench.first_result)
    bench.produce(0, grown)
    await asyncio.sleep(10)
    assert bench.finished[0, 5] == (grown > 5), "the old one takes longer"
    assert offsets_begun(bench, begun) == list(range(grown))
    assert bench.committed() == (grown, [])
    await asyncio.sleep(20)

    assert bench.finished[0, 5] == 1 + (grown > 5)
    assert bench.committed() == (grown, [])
    assert bench.consumers[0].unfinished == 0
    bench.produce(0, 5)
    await asyncio.sleep(1)
    assert bench.committed() == (grown + 5, [])
    await bench.stop()


@virtual_time
async def test_what_was_read_of_a_lost_log_outlives_a_revocation_and_a_drain() -> None:
    bench = Bench()
    bench.produce(0, 10)
    bench.script = takes({5: 8.0, 6: 9.0})
    await bench.run()
    bench.broker.truncate(ONE, 0)
    await asyncio.sleep(1)
    await bench.run()  # a second member: the first one's partitions are revoked
    await asyncio.sleep(6)
    assert bench.under_way == {(0, 5), (0, 6)}
    bench.consumers[0].stop()
    await bench.tasks[0]

    assert bench.finished[0, 5] == bench.finished[0, 6] == 1
    await bench.stop(1)


@virtual_time
async def test_a_tail_that_an_unclean_election_took_and_that_has_grown_again_is_noticed() -> None:
    """The position's own record is still there; what the metadata names is not."""
    bench = Bench()
    await thirty_with_one_unfinished(bench)
    await crash(bench)
    bench.broker.truncate(ONE, 20)
    bench.produce(0, 15)
    bench.script = takes({})
    begun = len(bench.first_result)
    await bench.run()
    await asyncio.sleep(5)

    assert offsets_begun(bench, begun) == list(range(35))
    await bench.stop()


@virtual_time
async def test_another_connection_or_leader_alone_repeats_nothing() -> None:
    bench = Bench()
    await bench.run()
    for wave in range(5):
        bench.broker.sources[ONE] += 1
        bench.produce(0, 10)
        await asyncio.sleep(1)
        assert bench.committed() == (10 * (wave + 1), [])

    assert offsets_begun(bench) == list(range(50))
    await bench.stop()


@virtual_time
async def test_offsets_that_go_back_without_a_word_never_end_the_process() -> None:
    """No connection was lost, no error came: the records themselves show it."""
    bench = Bench()
    bench.produce(0, 30)
    consumer = await bench.run()
    await asyncio.sleep(1)
    bench.broker.truncate(ONE, 0)
    bench.broker.sources[ONE] -= 1
    bench.produce(0, 10)
    await asyncio.sleep(10)

    assert not bench.tasks[0].done()
    assert offsets_begun(bench) == [*range(30), *range(10)]
    assert consumer.unfinished == 0
    await bench.stop()


# Retention


@virtual_time
async def test_unread_records_that_retention_took_while_the_process_was_down_are_counted_once() -> None:
    bench, before = Bench(), removed()
    await thirty_with_one_unfinished(bench)
    await crash(bench)
    bench.produce(0, 30)
    bench.broker.remove_before(ONE, 40)
    bench.script = takes({})
    begun = len(bench.first_result)
    await bench.run()
    await asyncio.sleep(5)

    assert removed() == before + 11
    assert offsets_begun(bench, begun) == list(range(40, 60))
    assert bench.committed() == (60, [])
    await bench.stop()
    await bench.run()
    await asyncio.sleep(5)
    assert removed() == before + 11
    await bench.stop()


@virtual_time
async def test_runs_that_retention_has_not_reached_are_still_skipped() -> None:
    bench, before = Bench(), removed()
    await thirty_with_one_unfinished(bench)
    await crash(bench)
    bench.broker.remove_before(ONE, 10)
    bench.script = takes({})
    begun = len(bench.first_result)
    await bench.run()
    await asyncio.sleep(5)

    assert removed() == before + 1
    assert offsets_begun(bench, begun) == []
    assert bench.committed() == (30, [])
    await bench.stop()


@virtual_time
async def test_unread_records_that_retention_took_while_the_partition_stood_still_are_counted() -> None:
    bench, before = Bench(partition_window=5), removed()
    bench.produce(0, 5)
    bench.script = lambda record: 20.0 if record.partition == 0 and record.offset < 5 else None
    await bench.run()
    bench.produce(0, 3)
    await asyncio.sleep(1)
    bench.produce(0, 92)
    bench.broker.remove_before(ONE, 80)
    await asyncio.sleep(60)

    assert removed() == before + 72
    assert offsets_begun(bench) == [*range(8), *range(80, 100)]
    assert bench.committed() == (100, [])
    await bench.stop()


# The very first start


@virtual_time
async def test_the_very_first_start_at_the_end_is_committed_at_once_for_all_partitions() -> None:
    """By the member that has the first partition; the other waits for it, and neither reads what was there before."""
    bench = Bench(auto_offset_reset="latest")
    bench.produce(0, 10)
    bench.produce(1, 10)
    bench.consumers += [bench.consumer(), bench.consumer()]
    bench.tasks += [asyncio.create_task(one.run()) for one in bench.consumers]
    await asyncio.sleep(5)

    assert {tp: state[0] for tp, state in bench.group.commits.items()} == {ONE: 10, OTHER: 10}
    bench.produce(0, 3)
    bench.produce(1, 3)
    await asyncio.sleep(2)
    assert sorted(bench.first_result) == [(partition, offset) for partition in (0, 1) for offset in (10, 11, 12)]
    await bench.stop(0)
    await bench.stop(1)


@virtual_time
async def test_records_produced_while_down_are_read_though_none_was_read_before() -> None:
    bench = Bench(auto_offset_reset="latest")
    bench.produce(0, 10)
    await bench.run()
    await crash(bench)
    bench.produce(0, 5)
    await bench.run()
    await asyncio.sleep(2)

    assert bench.first_result == [(0, offset) for offset in range(10, 15)]
    await bench.stop()


@virtual_time
@pytest.mark.parametrize("running", [True, False])
async def test_partitions_added_later_are_read_from_their_start(running: bool) -> None:
    bench = Bench(auto_offset_reset="latest")
    bench.group.tps.remove(OTHER)
    bench.produce(0, 10)
    await bench.run()
    if not running:
        await bench.stop()
    bench.group.tps.append(OTHER)
    bench.produce(1, 6)
    if running:
        bench.group.rebalance_soon()
    else:
        await bench.run()
    await asyncio.sleep(3)

    assert bench.first_result == [(1, offset) for offset in range(6)]
    await bench.stop()


@virtual_time
@pytest.mark.usefixtures("_with_logs")
@pytest.mark.parametrize("reset", ["latest", "earliest"])
async def test_without_positions_a_group_that_was_started_before_begins_at_the_start_and_says_so(reset: str) -> None:
    """Kafka forgets the positions of a group that had no members for long."""

    async def find_earlier_start() -> str | None:
        return "g.dead"

    bench = Bench(auto_offset_reset=reset)
    bench.produce(0, 10)
    bench.produce(1, 10)
    bench.consumers += [bench.consumer(find_earlier_start=find_earlier_start) for _ in range(2)]
    with capture_logs() as lines:
        bench.tasks += [asyncio.create_task(one.run()) for one in bench.consumers]
        await asyncio.sleep(5)

    assert sorted(bench.first_result) == [(partition, offset) for partition in (0, 1) for offset in range(10)]
    warnings = [line for line in lines if "positions of the group are gone" in line["event"]]
    assert {line["evidence"] for line in warnings} == {"topic g.dead has had records"}
    await bench.stop(0)
    await bench.stop(1)


@virtual_time
async def test_the_first_start_waits_until_it_is_known_to_be_the_first_one() -> None:
    answers = iter([RequestTimedOutError(), None])

    async def find_earlier_start() -> str | None:
        answer = next(answers)
        if answer is not None:
            raise answer
        return None

    bench = Bench(auto_offset_reset="latest")
    bench.produce(0, 10)
    await bench.run(bench.consumer(find_earlier_start=find_earlier_start))
    assert ONE not in bench.group.commits
    await asyncio.sleep(3)
    bench.produce(0, 2)
    await asyncio.sleep(2)
    assert offsets_begun(bench) == [10, 11]
    await bench.stop()


@virtual_time
@pytest.mark.usefixtures("_with_logs")
async def test_partitions_added_later_do_not_count_as_gone_positions() -> None:
    """Nor is a member that starts while the first one has written to the own topics already."""
    bench = Bench(auto_offset_reset="latest")
    bench.group.tps.remove(OTHER)
    bench.produce(0, 10)

    async def find_earlier_start() -> str | None:
        return "g.dead" if bench.group.commits else None

    await bench.run(bench.consumer(find_earlier_start=find_earlier_start))
    await bench.stop()
    bench.group.tps.append(OTHER)
    bench.produce(1, 6)
    with capture_logs() as lines:
        await bench.run(bench.consumer(find_earlier_start=find_earlier_start))
        await asyncio.sleep(3)
    assert bench.first_result == [(1, offset) for offset in range(6)]
    assert not [line for line in lines if "gone" in line["event"]]
    await bench.stop()


# Commits that are too large


@virtual_time
@pytest.mark.parametrize("largest", [64, 19, 10, 0])
async def test_a_broker_that_takes_only_short_metadata_still_gets_commits(largest: int) -> None:
    bench = Bench()
    refused: list[int] = []
    bench.produce(0, 60)
    bench.script = takes(dict.fromkeys(range(3, 60, 2), 30.0))

    async def connect(listener: object) -> Member:
        member = Member(bench.group, listener)  # type: ignore[arg-type]
        commit = member.commit

        async def strict(offsets: dict[TopicPartition, tuple[int, str]]) -> None:
            longest = max(len(metadata) for _, metadata in offsets.values())
            if longest > largest:
                refused.append(longest)
                raise OffsetMetadataTooLargeError
            await commit(offsets)

        member.commit = strict  # type: ignore[method-assign]
        return member

    await bench.run(bench.consumer(connect=connect))
    await asyncio.sleep(5)
    claim = decode_metadata(*bench.group.commits[ONE])
    assert claim.position == 3
    assert (claim.fingerprint is not None) is (largest >= 19)
    tried = len(refused)
    assert tried <= 8
    await asyncio.sleep(40)

    assert bench.committed() == (60, [])
    assert len(refused) == tried, "the limit is remembered"
    assert MAX_METADATA_BYTES not in refused
    await bench.stop()


# Members that may be none any more


@virtual_time
async def test_nothing_is_begun_once_the_lease_is_over_and_everything_once_it_is_renewed() -> None:
    bench = Bench()
    loop = asyncio.get_running_loop()
    consumer = await bench.run(bench.consumer(lease=Lease(now=loop.time)))
    consumer.heard(loop.time())
    bench.produce(0, 3)
    await asyncio.sleep(1)
    assert len(bench.first_result) == 3
    await asyncio.sleep(consumer.session._settings.session_timeout)
    assert consumer.session.lease.is_over
    bench.produce(0, 3)
    await asyncio.sleep(5)
    assert len(bench.first_result) == 3
    consumer.heard(loop.time())
    await asyncio.sleep(1)

    assert offsets_begun(bench) == list(range(6))
    assert bench.committed() == (6, [])
    await bench.stop()


@virtual_time
async def test_a_record_that_waits_for_its_turn_is_not_sent_once_the_lease_is_over() -> None:
    bench = Bench()
    loop = asyncio.get_running_loop()
    sent: list[float] = []

    async def process(record: Record, attempt: object) -> object:
        await asyncio.sleep(30)  # in its lane
        attempt.start()  # type: ignore[attr-defined]
        sent.append(loop.time())
        return None

    bench.process = process  # type: ignore[assignment,method-assign]
    consumer = await bench.run(bench.consumer(lease=Lease(now=loop.time)))
    consumer.heard(loop.time())
    bench.produce(0, 3)
    await asyncio.sleep(60)
    assert sent == []
    for _ in range(12):
        consumer.heard(loop.time())
        await asyncio.sleep(3)

    assert len(sent) == 3
    assert bench.committed() == (3, [])
    await bench.stop()


@virtual_time
async def test_a_fenced_member_reports_it_and_stops_by_itself() -> None:
    bench = Bench()
    told: list[bool] = []
    members: list[Member] = []

    async def connect(listener: object) -> Member:
        members.append(Member(bench.group, listener))  # type: ignore[arg-type]
        return members[0]

    consumer = await bench.run(bench.consumer(connect=connect, on_fenced=lambda: told.append(True)))

    async def fenced(*_: object, **__: object) -> object:
        raise FencedMember("another process has joined group g as one")

    members[0].getmany = fenced  # type: ignore[assignment,method-assign]
    await asyncio.wait_for(bench.tasks[0], 10)

    assert consumer.session.fenced == "another process has joined group g as one"
    assert told == [True]
    assert len(members) == 1, "it doesn't join again"


@virtual_time
@pytest.mark.parametrize("grown", [0, 3, 20])
async def test_what_fills_a_gap_before_the_position_in_a_truncated_log_is_read(grown: int) -> None:
    """The record of the fingerprint is left, the position lay further on: at a record that was not finished."""
    bench = Bench()
    bench.produce(0, 6)
    await bench.run()
    await asyncio.sleep(1)
    bench.broker.ends[ONE] = 13
    bench.script = takes({13: 1000.0})
    bench.produce(0, 1)
    await asyncio.sleep(1)
    assert bench.committed() == (6, [])
    await crash(bench)
    await bench.run()
    bench.group.commits[ONE] = (13, bench.group.commits[ONE][1])
    await crash(bench)
    bench.broker.truncate(ONE, 8)
    bench.produce(0, grown)
    bench.script = takes({})
    begun = len(bench.first_result)
    await bench.run()
    await asyncio.sleep(30)

    assert offsets_begun(bench, begun) == list(range(6, 6 + grown))
    await bench.stop()


@virtual_time
@pytest.mark.parametrize("begins", ["at 7, because of retention", "at 0, with a gap before the first record"])
@pytest.mark.parametrize("running", [False, True])
async def test_a_log_that_is_lost_before_anything_of_it_was_finished_is_read_from_its_start(
    begins: str, running: bool
) -> None:
    """No record can be named then as the log's fingerprint: where it began is known."""
    bench, before = Bench(), resets("replaced")
    bench.produce(0, 10)
    if begins.startswith("at 7"):
        bench.broker.remove_before(ONE, 7)
    else:
        del bench.broker.partitions[ONE][:7]
    bench.script = takes(dict.fromkeys(range(10), 1000.0))
    await bench.run()
    await asyncio.sleep(2)
    assert bench.committed() == (7 if begins.startswith("at 7") else 0, [])
    if not running:
        await crash(bench)
    bench.broker.truncate(ONE, 0)
    bench.produce(0, 20)
    bench.script = takes({})
    begun = len(bench.first_result)
    if not running:
        await bench.run()
    await asyncio.sleep(10)

    assert offsets_begun(bench, begun) == list(range(20))
    assert bench.committed() == (20, [])
    assert resets("replaced") == before + (running or begins.startswith("at 7"))
    await bench.stop()


@virtual_time
async def test_a_log_of_which_nothing_was_finished_and_that_is_still_the_same_is_continued() -> None:
    bench, before, gone = Bench(), resets("replaced"), removed()
    bench.produce(0, 10)
    bench.broker.remove_before(ONE, 3)
    bench.script = takes(dict.fromkeys(range(10), 1000.0))
    await bench.run()
    await asyncio.sleep(2)
    await crash(bench)
    bench.broker.remove_before(ONE, 5)
    bench.script = takes({})
    begun = len(bench.first_result)
    await bench.run()
    await asyncio.sleep(5)

    assert offsets_begun(bench, begun) == [5, 6, 7, 8, 9]
    assert (resets("replaced") - before, removed() - gone) == (0, 2)
    await bench.stop()


def lag() -> float:
    return float(metrics.LAG.labels("t", "0")._value.get())


@virtual_time
@pytest.mark.parametrize("records", [0, 10])
@pytest.mark.parametrize("markers", [1, 500])
async def test_offsets_without_a_record_at_the_end_are_not_lag_and_not_lost(records: int, markers: int) -> None:
    bench, before, gone = Bench(), resets("replaced"), removed()
    bench.produce(0, records)
    bench.script = takes({5: 20.0})
    consumer = await bench.run()
    bench.broker.append_markers(ONE, markers)
    await asyncio.sleep(7)
    consumer.observe()
    assert lag() == (markers + 5 if records else 0), "a record is unfinished before them"
    await asyncio.sleep(30)
    consumer.observe()
    assert lag() == 0
    assert bench.group.commits[ONE][0] == records + markers

    bench.broker.remove_before(ONE, records + markers)
    bench.broker.sources[ONE] += 1  # the log is looked at while the process runs
    await asyncio.sleep(5)
    await crash(bench)
    await bench.run()
    begun = len(bench.first_result)
    bench.produce(0, 3)
    await asyncio.sleep(5)
    assert len(offsets_begun(bench, begun)) == 3
    assert bench.group.commits[ONE][0] == records + markers + 3
    assert (resets("replaced") - before, removed() - gone) == (0, 0)
    await bench.stop()


@virtual_time
@pytest.mark.parametrize("records", [0, 10])
@pytest.mark.parametrize("grown", [1, 30])
@pytest.mark.parametrize("running", [False, True])
async def test_what_fills_the_place_of_markers_in_a_truncated_log_is_read(
    records: int, grown: int, running: bool
) -> None:
    bench = Bench()
    bench.produce(0, records)
    await bench.run()
    bench.broker.append_markers(ONE, 20)
    await asyncio.sleep(7)
    assert bench.group.commits[ONE][0] == records + 20
    if not running:
        await crash(bench)
    bench.broker.truncate(ONE, records)
    bench.produce(0, grown)
    begun = len(bench.first_result)
    if not running:
        await bench.run()
    await asyncio.sleep(30)

    assert offsets_begun(bench, begun) == list(range(records, records + grown))
    await bench.stop()


@virtual_time
async def test_a_position_behind_an_open_transaction_waits_for_it_and_is_named() -> None:
    """An operator has reset the group to the end, or it has read uncommitted records before."""
    bench, before = Bench(), resets("truncated")
    bench.produce(0, 10)
    stable = 6
    members: list[Member] = []

    async def joined(listener: Any) -> Member:
        member = Member(bench.group, listener)
        taken = member._taken

        def up_to_the_transaction(tps: Any, most: int) -> Any:
            return {} if stable <= member.positions.get(ONE, 0) else taken(tps, most)

        member._taken = up_to_the_transaction  # type: ignore[method-assign]
        member.stable_end_of = lambda _: stable  # type: ignore[method-assign]
        members.append(member)
        return member

    bench.group.commits[ONE] = (10, "")
    consumer = await bench.run(bench.consumer(connect=joined))
    await asyncio.sleep(100)
    (problem,) = [one for one in consumer.session.problems.current if one.reason is KafkaReason.OPEN_TRANSACTION]
    assert "t/0 waits for a transaction that has been open since offset 6" in problem.detail
    assert not problem.stops_reading
    stable = 100
    bench.produce(0, 2)
    await asyncio.sleep(10)

    assert offsets_begun(bench, 0) == [10, 11]
    assert resets("truncated") == before
    assert not consumer.session.problems.current
    await bench.stop()
