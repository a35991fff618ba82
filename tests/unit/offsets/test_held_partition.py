"""The held events of one partition: which is next, what is committed, what a restart repeats."""

from collections.abc import Sequence
from dataclasses import replace

import pytest
from hypothesis import given
from hypothesis import strategies as st

from dispatcher.contract.tenant import TenantKey
from dispatcher.kafka import held_topic
from dispatcher.kafka.held_partition import ROOM, HeldPartition
from dispatcher.kafka.held_topic import Directory, Progress, Snapshot, SnapshotOffsets, UnfinishedRange
from tests.unit.examples import a_record

A, B, C = (TenantKey(name, "prod") for name in "abc")
MAX_AGE_S = 1000.0
SNAPSHOT_HEADERS = (("feedback-held-snapshot", b"1"),)


class Topic:
    """A partition of held events, read as the reader reads it."""

    def __init__(self, tenants: Sequence[TenantKey], partition: HeldPartition | None = None) -> None:
        self.tenants = list(tenants)
        self.partition = partition or HeldPartition(0, {}, MAX_AGE_S)
        self.now = 0.0
        self.under_way: list[tuple[TenantKey, int]] = []
        self.begun: list[int] = []
        self.read = 0

    def step(self, count: int = 7) -> bool:
        """Read one batch; False if there is nothing to do."""
        place = self.partition.next_seek(self.now)
        at = self.partition.cursor if place is None else place
        for offset in range(at, min(at + count, len(self.tenants))):
            key = self.tenants[offset]
            accepted = self.partition.offer(offset, key, 0.0, self.now, self.now)
            if accepted is None:
                return False
            self.read += 1
            if accepted:
                self.under_way.append((key, offset))
                self.begun.append(offset)
        return at < len(self.tenants)

    def until_idle(self, *, finish: bool = True) -> list[int]:
        """Read on, finishing whatever begins; the offsets that began."""
        before = len(self.begun)
        while self.step() or (finish and self.under_way):
            while finish and self.under_way:
                self.partition.finish(*self.under_way.pop())
        return self.begun[before:]


def as_written(snapshot: Snapshot) -> Snapshot:
    """Returns the snapshot as it is read from its record."""
    read = Snapshot.of(a_record(snapshot.encode(), None, SNAPSHOT_HEADERS, "g.held", 0, 1))
    assert read is not None
    return read


def restarted(topic: Topic, directory: Directory | None = None) -> Topic:
    """Returns the topic as the next reader finds it."""
    position, snapshot = topic.partition.to_commit()
    return Topic(topic.tenants, HeldPartition(position, as_written(snapshot).tenants, MAX_AGE_S, directory))


def test_held_events_are_passed_over_and_nothing_is_kept_of_each() -> None:
    topic = Topic([A] * 500 + [B] + [A] * 500)
    assert topic.until_idle() == []
    assert topic.partition.events == 1001
    assert topic.partition.to_commit()[0] == 0
    assert not topic.step(), "nothing is read twice"


def test_a_released_tenant_is_read_from_its_first_event() -> None:
    topic = Topic([A] * 500 + [B] * 3 + [A] * 500 + [B])
    topic.until_idle()
    read = topic.read
    topic.partition.set_released(B, is_released=True)
    assert topic.until_idle() == [500, 501, 502, 1003]
    assert topic.read - read <= 510, "what lies before its first event is not read again"
    position, snapshot = topic.partition.to_commit()
    assert position == 0
    assert snapshot.tenants[B].below > 1003
    topic.partition.set_released(A, is_released=True)
    assert len(topic.until_idle()) == 1000
    assert topic.partition.to_commit()[0] == len(topic.tenants)
    assert topic.partition.events == 0


def test_events_in_flight_per_tenant_are_limited_and_other_tenants_continue() -> None:
    topic = Topic([A] * 300 + [B] * 300)
    topic.until_idle()
    topic.partition.set_released(A, is_released=True)
    topic.partition.set_released(B, is_released=True)
    for _ in range(300):
        topic.step()
    assert len(topic.under_way) == 2 * ROOM
    assert {key for key, _ in topic.under_way} == {A, B}
    topic.until_idle()
    assert sorted(topic.begun) == list(range(600))


def test_an_event_that_still_has_to_wait_is_read_again_after_the_rest() -> None:
    topic = Topic([A] * 10)
    topic.partition.set_released(A, is_released=True)
    topic.step(10)
    topic.step(10)
    topic.partition.set_released(A, is_released=True)
    assert topic.begun == []
    topic = Topic([A] * 10)
    topic.until_idle()
    topic.partition.set_released(A, is_released=True)
    topic.until_idle(finish=False)
    for key, offset in topic.under_way:
        if offset == 4:
            topic.partition.hold_again(key, offset, topic.now + 5)
        else:
            topic.partition.finish(key, offset)
    topic.under_way.clear()
    assert topic.partition.to_commit()[0] == 4
    assert not topic.until_idle()
    topic.now += 5
    assert topic.until_idle() == [4]
    assert topic.partition.to_commit()[0] == 10


def test_events_at_the_age_limit_are_processed_though_their_tenant_is_held() -> None:
    topic = Topic([A] * 3)
    topic.until_idle()
    topic.now = MAX_AGE_S
    topic.partition.release_aged(topic.now)
    assert topic.until_idle() == [0, 1, 2]


def test_many_events_at_the_age_limit_are_processed_in_one_go() -> None:
    """Though each batch of them is finished before the next one is read."""
    topic = Topic([A, B] * 300)
    topic.until_idle()
    topic.now = MAX_AGE_S
    topic.partition.release_aged(topic.now)
    assert sorted(topic.until_idle()) == list(range(600))


def test_an_event_at_the_age_limit_that_is_held_again_waits_for_the_next_review() -> None:
    topic = Topic([A] * 3)
    topic.until_idle()
    topic.now = MAX_AGE_S
    topic.partition.release_aged(topic.now)
    topic.step()
    topic.step()
    for key, offset in topic.under_way:
        topic.partition.hold_again(key, offset, topic.now)
    topic.under_way.clear()
    assert topic.until_idle() == []
    topic.partition.release_aged(topic.now)
    assert topic.until_idle() == [0, 1, 2]


def test_a_restart_repeats_only_what_was_under_way() -> None:
    tenants = [A, B, C] * 40
    topic = Topic(tenants)
    topic.until_idle()
    topic.partition.set_released(B, is_released=True)
    topic.until_idle(finish=False)
    done = set()
    for number, (key, offset) in enumerate(topic.under_way):
        if number % 3:
            topic.partition.finish(key, offset)
            done.add(offset)
    again = restarted(topic)
    again.until_idle()
    again.partition.set_released(B, is_released=True)
    assert sorted(again.until_idle()) == [offset for offset in range(1, 120, 3) if offset not in done]


def test_behind_a_stuck_event_nothing_is_kept_of_each_finished_one() -> None:
    """Its dead letter can't be written perhaps: everything else of its tenant goes on."""
    topic = Topic([A, B] * 3_000)
    topic.until_idle()
    topic.partition.set_released(A, is_released=True)
    while topic.step():
        for key, offset in [one for one in topic.under_way if one[1] not in (0, 2_000)]:
            topic.partition.finish(key, offset)
            topic.under_way.remove((key, offset))
    assert topic.begun == list(range(0, 6_000, 2))
    position, snapshot = topic.partition.to_commit()
    assert position == 0
    assert len(snapshot.encode()) < 60
    again = restarted(topic)
    again.until_idle()
    again.partition.set_released(A, is_released=True)
    assert again.until_idle() == [0, 2_000]


def test_an_unfinished_event_that_retention_removed_holds_no_position() -> None:
    topic = Topic([A] * 6)
    topic.until_idle()
    topic.partition.set_released(A, is_released=True)
    topic.until_idle(finish=False)
    for offset in (1, 2, 4):
        topic.partition.finish(A, offset)
    _, snapshot = topic.partition.to_commit()
    again = HeldPartition(0, snapshot.tenants, MAX_AGE_S)
    again.set_released(A, is_released=True)
    for offset in (1, 2, 4):
        assert again.offer(offset, A, 0.0, 0.0, 0.0) is False, "it is finished"
    again.set_released(A, is_released=True)
    assert again.offer(5, A, 0.0, 0.0, 0.0)
    again.finish(A, 5)
    assert again.to_commit()[0] == 6


def test_a_snapshot_is_bounded_and_what_it_leaves_out_is_repeated() -> None:
    keys = [TenantKey(str(number), "prod") for number in range(held_topic.MAX_UNFINISHED // ROOM + 1)]
    progress = Progress(5, 5 + 2 * ROOM, tuple(range(5, 5 + 2 * ROOM, 2)))
    written = as_written(Snapshot(dict.fromkeys(keys, progress)))
    assert [*written.tenants.values()] == [progress] * (len(keys) - 1) + [Progress(5, 5)]


def test_a_snapshot_of_version_0_2_is_read_as_far_as_it_says_that_all_is_finished() -> None:
    old = a_record(b'[["a", "prod", 3, [5, 6]]]', None, SNAPSHOT_HEADERS, "g.held", 0, 1)
    assert Snapshot.of(old) == Snapshot({A: Progress(3, 3)})


def test_a_second_restart_before_anything_is_read_keeps_what_the_first_one_knew() -> None:
    tenants = [A, C, C]
    topic = Topic(tenants)
    topic.until_idle()
    topic.partition.set_released(C, is_released=True)
    assert topic.until_idle() == [1, 2]
    for _ in range(2):
        topic = restarted(topic)
    topic.until_idle()
    topic.partition.set_released(C, is_released=True)
    assert topic.until_idle() == []


def test_a_restart_with_a_directory_reads_nothing_of_what_was_read_before() -> None:
    tenants = [A] * 500 + [B] * 2 + [A] * 500 + [B] + [C] * 3
    topic = Topic(tenants)
    topic.until_idle()
    topic.partition.set_released(C, is_released=True)
    assert topic.until_idle() == [1003, 1004, 1005]
    directory = topic.partition.directory()
    assert directory.end == len(tenants)
    topic.tenants.append(B)
    again = restarted(topic, directory)
    assert again.partition.events == 1003
    assert again.until_idle() == []
    assert again.read == 1, "only what came since"
    for key in (B, C):
        again.partition.set_released(key, is_released=True)
    assert again.until_idle() == [500, 501, 1002, 1006]
    assert again.read < 600, "what lies before the released tenant's first event is not read"
    assert again.partition.events == 1000
    again.now = MAX_AGE_S
    again.partition.release_aged(again.now)
    assert len(again.until_idle()) == 1000
    assert again.partition.to_commit()[0] == len(tenants) + 1


def test_a_shorter_age_limit_counts_for_events_of_a_directory_too() -> None:
    topic = Topic([A] * 3)
    topic.until_idle()
    again = Topic([A] * 3, HeldPartition(0, {}, 10.0, topic.partition.directory()))
    again.now = 9.0
    again.partition.release_aged(again.now)
    assert again.until_idle() == []
    again.now = 10.0
    again.partition.release_aged(again.now)
    assert again.until_idle() == [0, 1, 2]


def test_a_directory_that_ends_before_the_position_says_nothing() -> None:
    old = Directory(3, {A: UnfinishedRange(0, 2, 5.0, 3)})
    partition = HeldPartition(3, {}, MAX_AGE_S, old)
    assert (partition.cursor, partition.seen_to, partition.tenants, partition.events) == (3, 3, [], 0)
    longer = HeldPartition(
        3, {}, MAX_AGE_S, Directory(9, {A: UnfinishedRange(0, 2, 5.0, 3), B: UnfinishedRange(1, 3, 5.0, 2)})
    )
    assert (longer.cursor, longer.seen_to, longer.tenants) == (9, 9, [B])
    assert longer.to_commit()[0] == 3


@given(st.integers(0, 2**40), st.dictionaries(st.sampled_from([A, B, C]), st.integers(0, 2**40)))
def test_a_directory_is_read_as_it_was_written(end: int, tenants: dict[TenantKey, int]) -> None:
    directory = Directory(
        end, {key: UnfinishedRange(first, first + 1, first + 0.5, 2) for key, first in tenants.items()}
    )
    record = a_record(directory.encode(), None, SNAPSHOT_HEADERS, "g.held", 0, 1)
    assert Directory.of(record) == directory
    assert Snapshot.of(record) is None
    assert Directory.of(replace(record, headers=())) is None
    assert Directory.of(replace(record, value=Snapshot({}).encode())) is None


@given(
    st.none() | st.integers(0, 10**18 - 1),
    st.none() | st.integers(0, 10**18 - 1),
    st.sampled_from(["", "f2:start,", "f2:x,f1:y,"]),
)
def test_the_offsets_of_snapshots_are_read_from_the_metadata(
    progress: int | None, directory: int | None, before: str
) -> None:
    offsets = SnapshotOffsets(progress, directory)
    assert SnapshotOffsets.of(before + offsets.encode()) == offsets


@pytest.mark.parametrize("text", ["h1:", "h2:-1", "h1:x,h2:", "h1:\u0663", "h1:" + "9" * 19, "x1:5"])
def test_damaged_metadata_names_no_snapshot(text: str) -> None:
    assert SnapshotOffsets.of(text) == SnapshotOffsets()


_KEYS = st.sampled_from([A, B, C])


@given(st.data(), st.lists(_KEYS, max_size=60))
def test_every_event_is_processed_once_whatever_happens(data: st.DataObject, tenants: list[TenantKey]) -> None:
    topic = Topic(tenants)
    finished: list[int] = []
    directories: list[Directory | None] = [None]

    def do(action: str) -> None:
        nonlocal topic
        if action == "read":
            topic.step(data.draw(st.integers(1, 9)))
        elif action == "release":
            topic.partition.set_released(data.draw(_KEYS), is_released=data.draw(st.booleans()))
        elif action == "restart":
            topic = restarted(topic, data.draw(st.sampled_from(directories)))
        elif action == "write directory":
            directories.append(topic.partition.directory())
        elif topic.under_way:
            key, offset = topic.under_way.pop(data.draw(st.integers(0, len(topic.under_way) - 1)))
            if action == "finish":
                topic.partition.finish(key, offset)
                finished.append(offset)
            else:
                topic.partition.hold_again(key, offset, topic.now + data.draw(st.integers(0, 3)))
        topic.now += 1

    actions = ["read", "release", "finish", "return", "restart", "write directory"]
    for action in data.draw(st.lists(st.sampled_from(actions), max_size=60)):
        do(action)
        position, _ = topic.partition.to_commit()
        assert set(range(position)) <= set(finished)
    topic.now += 10
    finished += _release_and_finish_all(topic)
    assert sorted(finished) == list(range(len(tenants)))
    assert topic.partition.to_commit()[0] == len(tenants)
    assert topic.partition.events == 0


def _release_and_finish_all(topic: Topic) -> list[int]:
    """Returns the offsets that were finished by that."""
    finished = []
    for _ in range(200):
        for key in (A, B, C):
            topic.partition.set_released(key, is_released=True)
        topic.step(100)
        while topic.under_way:
            key, offset = topic.under_way.pop()
            topic.partition.finish(key, offset)
            finished.append(offset)
    return finished
