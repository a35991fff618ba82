"""The tracker against a naive reference made of sets, through crashes and with any number of gaps."""

from hypothesis import settings
from hypothesis import strategies as st
from hypothesis.stateful import RuleBasedStateMachine, initialize, invariant, precondition, rule

from dispatcher.kafka.offset_tracker import MAX_METADATA_BYTES, OffsetTracker, decode_runs


class TrackerOfOnePartition(RuleBasedStateMachine):
    """A partition whose records are begun in order and finished in any, by one owner after another."""

    def __init__(self) -> None:
        super().__init__()
        self.tracker = OffsetTracker()
        self.existing: list[int] = []
        """Every record of the partition that was ever begun, rising; between them are gaps."""
        self.finished: set[int] = set()
        """By any owner."""
        self.first_result: list[int] = []
        """By this owner."""
        self.done: set[int] = set()
        """Of those, finished or skipped."""
        self.next_new = 0
        self.committed: tuple[int, str] | None = None
        self.promised: set[int] = set()
        """Finished beyond the last commit's position, by its metadata."""
        self.restored: set[int] = set()
        """The same of the commit that this owner began with."""
        self.to_read: list[int] = []
        """Existing records that this owner will be given before new ones."""

    @initialize(first=st.integers(0, 2**40))
    def begin_somewhere(self, first: int) -> None:
        self.next_new = first

    @rule(gap=st.sampled_from([0, 0, 0, 0, 1, 2, 300]), how_many=st.integers(1, 8))
    def read(self, gap: int, how_many: int) -> None:
        for _ in range(how_many):
            if self.to_read:
                offset = self.to_read.pop(0)
            else:
                offset = self.next_new + gap
                self.next_new = offset + 1
                self.existing.append(offset)
            skip = self.tracker.was_finished(offset)
            assert skip is (offset in self.restored)
            self.tracker.start(offset)
            self.first_result.append(offset)
            if skip:
                assert offset in self.finished, "skipped without ever having been finished"
                self.tracker.finish(offset)
                self.done.add(offset)

    def unfinished(self) -> list[int]:
        return [offset for offset in self.first_result if offset not in self.done]

    @precondition(lambda self: self.unfinished())
    @rule(data=st.data(), how_many=st.integers(1, 6))
    def finish(self, data: st.DataObject, how_many: int) -> None:
        for _ in range(min(how_many, len(self.unfinished()))):
            offset = data.draw(st.sampled_from(self.unfinished()))
            self.tracker.finish(offset)
            self.done.add(offset)
            self.finished.add(offset)

    @precondition(lambda self: self.tracker.position is not None)
    @rule(most=st.sampled_from([MAX_METADATA_BYTES, MAX_METADATA_BYTES, 12, 16, 24, 60]))
    def commit(self, most: int) -> None:
        position, metadata = self.tracker.position, self.tracker.metadata(most)
        assert position is not None
        assert len(metadata.encode()) <= most
        named = {offset for first, last in decode_runs(position, metadata) for offset in range(first, last + 1)}
        exist = {offset for offset in self.existing if offset >= position}
        assert named & exist <= self.finished, "names a record that is not finished"
        if most == MAX_METADATA_BYTES:
            assert named & exist == self.known() & exist, "leaves out what would have fitted"
        self.committed = (position, metadata)
        self.promised = named & exist

    @rule()
    def crash(self) -> None:
        """Another owner takes over, from the last commit."""
        if self.committed is None:
            self.tracker, position = OffsetTracker(), self.existing[0] if self.existing else self.next_new
        else:
            position, metadata = self.committed
            self.tracker = OffsetTracker(position, decode_runs(position, metadata))
        self.to_read = [offset for offset in self.existing if offset >= position]
        assert set(self.existing) - set(self.to_read) <= self.finished, "lost"
        self.first_result, self.done = [], set()
        self.restored = self.promised

    def known(self) -> set[int]:
        """What this owner knows to be finished: its own, and what the last owner left word of."""
        return self.done | {
            offset for offset in self.restored if not self.first_result or offset > self.first_result[-1]
        }

    @invariant()
    def the_position_is_that_of_the_first_record_not_known_to_be_finished(self) -> None:
        position = self.tracker.position
        if self.unfinished():
            assert position == self.unfinished()[0]
        elif self.first_result:
            assert position == self.first_result[-1] + 1
        elif self.committed is not None:
            assert position == self.committed[0]
        else:
            assert position is None

    @invariant()
    def nothing_before_the_position_is_unfinished(self) -> None:
        position = self.tracker.position
        if position is not None:
            assert {offset for offset in self.existing if offset < position} <= self.finished

    @invariant()
    def it_counts_rightly(self) -> None:
        unfinished = self.unfinished()
        assert self.tracker.unfinished == len(unfinished)
        assert self.tracker.span == (sum(offset >= unfinished[0] for offset in self.first_result) if unfinished else 0)
        if self.first_result:
            assert self.tracker.highest == self.first_result[-1]


TestTrackerOfOnePartition = TrackerOfOnePartition.TestCase
TestTrackerOfOnePartition.settings = settings(max_examples=60, stateful_step_count=30)
