"""The state of one partition of the topic of held events, as long as it is assigned to this member."""

import asyncio
from collections import deque
from dataclasses import dataclass, field, replace

from aiokafka import TopicPartition
from aiokafka.structs import ConsumerRecord

from dispatcher.contract.records import AssignmentEpoch, ProcessingAttempt
from dispatcher.kafka.commit_metadata import AT_START, Fingerprint, encode_metadata
from dispatcher.kafka.held_partition import HeldPartition
from dispatcher.kafka.held_start import HeldStart
from dispatcher.kafka.held_topic import Snapshot
from dispatcher.kafka.offset_tracker import OffsetTracker


@dataclass(slots=True, eq=False)
class HeldAssignment:
    """One assignment of one partition."""

    tp: TopicPartition
    epoch: AssignmentEpoch
    state: HeldPartition | None = None
    """None until the committed position is known."""
    buffer: deque[ConsumerRecord[bytes, bytes]] = field(default_factory=deque)
    tasks: dict["asyncio.Task[None]", ProcessingAttempt] = field(default_factory=dict)
    committed: tuple[int, Snapshot] | None = None
    last: ConsumerRecord[bytes, bytes] | None = None
    """The last record that was read: it identifies the log."""
    is_dirty: bool = True
    left: HeldStart | None = None
    """Where reading began, with the group's newest commit. Until `state` is known: what was finished earlier."""
    source: "tuple[object, ...] | None" = None
    """Where the log was read from when it was checked last: the leader and the connection to it."""

    @property
    def fingerprint(self) -> Fingerprint | None:
        """Identifies the log, as far as it was read; None if nothing was."""
        if self.last is not None:
            return Fingerprint.of(self.last)
        return None if self.left is None else self.left.fingerprint

    def what_is_finished(self) -> HeldStart | None:
        """Returns what is finished, for the time when this process is assigned the partition again."""
        if self.state is None or self.left is None:
            return self.left
        position, snapshot = self.state.to_commit()
        return replace(self.left, position=position, snapshot=snapshot, fingerprint=self.fingerprint)

    def metadata_at(self, position: int) -> str:
        """Returns what a commit of this position says of the log that it was made of."""
        if self.fingerprint is None and self.left is not None and self.left.log_start == position:
            return AT_START
        return encode_metadata(OffsetTracker(position), self.fingerprint)
