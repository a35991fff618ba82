"""The held events of one partition: which is next, what is committed, what a restart repeats."""

from collections.abc import Sequence

from hypothesis import given
from hypothesis import strategies as st

from dispatcher.contract.tenant import TenantKey
from dispatcher.kafka.held_partition import ROOM, HeldPartition

A, B, C = (TenantKey(name, "prod") for name in "abc")
MAX_AGE_S = 1000.0


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
            claimed = self.partition.claim(offset, key, 0.0, self.now, self.now)
            if claimed is None:
                return False
            self.read += 1
            if claimed:
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
    topic.partition.release(B, released=True)
    assert topic.until_idle() == [500, 501, 502, 1003]
    assert topic.read - read <= 510, "what lies before its first event is not read again"
    position, snapshot = topic.partition.to_commit()
    assert position == 0
    assert snapshot.tenants[B].below > 1003
    topic.partition.release(A, released=True)
    assert len(topic.until_idle()) == 1000
    assert topic.partition.to_commit()[0] == len(topic.tenants)
    assert topic.partition.events == 0


def test_a_tenant_has_only_so_many_events_under_way_and_the_others_go_on() -> None:
    topic = Topic([A] * 300 + [B] * 300)
    topic.until_idle()
    topic.partition.release(A, released=True)
    topic.partition.release(B, released=True)
    for _ in range(300):
        topic.step()
    assert len(topic.under_way) == 2 * ROOM
    assert {key for key, _ in topic.under_way} == {A, B}
    topic.until_idle()
    assert sorted(topic.begun) == list(range(600))


def test_an_event_that_still_has_to_wait_is_read_again_after_the_rest() -> None:
    topic = Topic([A] * 10)
    topic.partition.release(A, released=True)
    topic.step(10)
    topic.step(10)
    topic.partition.release(A, released=True)
    assert topic.begun == []
    topic = Topic([A] * 10)
    topic.until_idle()
    topic.partition.release(A, released=True)
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


def test_a_restart_repeats_only_what_was_under_way() -> None:
    tenants = [A, B, C] * 40
    topic = Topic(tenants)
    topic.until_idle()
    topic.partition.release(B, released=True)
    topic.until_idle(finish=False)
    done = set()
    for number, (key, offset) in enumerate(topic.under_way):
        if number % 3:
            topic.partition.finish(key, offset)
            done.add(offset)
    position, snapshot = topic.partition.to_commit()
    again = Topic(tenants, HeldPartition(position, snapshot.tenants, MAX_AGE_S))
    again.until_idle()
    again.partition.release(B, released=True)
    assert sorted(again.until_idle()) == [offset for offset in range(1, 120, 3) if offset not in done]


def test_a_second_restart_before_anything_is_read_keeps_what_the_first_one_knew() -> None:
    tenants = [A, C, C]
    topic = Topic(tenants)
    topic.until_idle()
    topic.partition.release(C, released=True)
    assert topic.until_idle() == [1, 2]
    for _ in range(2):
        position, snapshot = topic.partition.to_commit()
        topic = Topic(tenants, HeldPartition(position, snapshot.tenants, MAX_AGE_S))
    topic.until_idle()
    topic.partition.release(C, released=True)
    assert topic.until_idle() == []


_KEYS = st.sampled_from([A, B, C])


@given(st.data(), st.lists(_KEYS, max_size=60))
def test_every_event_is_processed_once_whatever_happens(data: st.DataObject, tenants: list[TenantKey]) -> None:
    topic = Topic(tenants)
    finished: list[int] = []

    def do(action: str) -> None:
        nonlocal topic
        if action == "read":
            topic.step(data.draw(st.integers(1, 9)))
        elif action == "release":
            topic.partition.release(data.draw(_KEYS), released=data.draw(st.booleans()))
        elif action == "restart":
            position, snapshot = topic.partition.to_commit()
            topic = Topic(tenants, HeldPartition(position, snapshot.tenants, MAX_AGE_S))
        elif topic.under_way:
            key, offset = topic.under_way.pop(data.draw(st.integers(0, len(topic.under_way) - 1)))
            if action == "finish":
                topic.partition.finish(key, offset)
                finished.append(offset)
            else:
                topic.partition.hold_again(key, offset, topic.now + data.draw(st.integers(0, 3)))
        topic.now += 1

    for action in data.draw(st.lists(st.sampled_from(["read", "release", "finish", "return", "restart"]), max_size=60)):
        do(action)
        position, _ = topic.partition.to_commit()
        assert set(range(position)) <= set(finished)
    topic.now += 10
    for key in (A, B, C):
        topic.partition.release(key, released=True)
    for _ in range(200):
        topic.step(100)
        for key in (A, B, C):
            topic.partition.release(key, released=True)
        while topic.under_way:
            key, offset = topic.under_way.pop()
            topic.partition.finish(key, offset)
            finished.append(offset)
    assert sorted(finished) == list(range(len(tenants)))
    assert topic.partition.to_commit()[0] == len(tenants)
    assert topic.partition.events == 0
