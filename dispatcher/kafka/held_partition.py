"""Tracks the held events in one partition, and finds the one to process next. Pure.

Events of many tenants lie mixed in the partition. Reading passes over those of tenants that are still held, and
remembers only the offsets of each tenant's first and last events. When a tenant is released, reading goes back to its
first event. Nothing is kept of a single event that only waits: a million of one tenant take as much memory as one.

Nor is anything kept of a single finished event. Each tenant's events are begun in the order of their offsets, so every
one below `high` is finished, except those that are in flight or were put back, which are at most `ROOM`.
"""

from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Final

from dispatcher.contract.tenant import TenantKey
from dispatcher.kafka.held_topic import Directory, Progress, Snapshot, UnfinishedRange

ROOM: Final = 100
"""Events of one tenant that are processed at once: more than a lane has permits."""
TURN: Final = 20_000
"""Number of records read before tenants whose events lie behind get their turn."""


@dataclass(slots=True)
class _Tenant:
    """The events of one tenant in the partition."""

    next: int
    """Offset of its first event that is neither finished nor being processed, or a lower one."""
    last: int
    """Offset of its last event."""
    expires_at: float
    """Unix seconds: no event reaches the age limit earlier."""
    reading: int
    """Number of the reading that has passed over none of its events from `next` on."""
    events: int = 0
    """Events that were seen and are not finished. After a restart, or after retention has removed some, it may be too
    high until none is left."""
    released: bool = False
    is_due: bool = False
    """Its next event has reached the age limit, as far as is known."""
    not_before: float = 0.0
    """Seconds of a steady clock; it rests until then."""
    high: int = 0
    """Offset below which every event was begun at some time."""
    in_flight: set[int] = field(default_factory=set)
    put_back: set[int] = field(default_factory=set)
    """Events from `next` on that were begun and are to be begun again."""
    finished_to: int = 0
    """One above the last finished event; 0 if none is known."""

    def __post_init__(self) -> None:
        self.high = max(self.high, self.next)

    @property
    def below(self) -> int:
        """Offset below which every event is finished."""
        return min(self.next, min(self.in_flight, default=self.next))

    @property
    def progress(self) -> Progress:
        below = self.below
        end = max(below, self.finished_to)
        return Progress(below, end, tuple(sorted(one for one in (*self.in_flight, *self.put_back) if one < end)))

    def apply(self, before: Progress) -> None:
        """Continues from the progress that an earlier reader made."""
        self.next, self.finished_to = max(self.next, before.below), before.end
        self.high = max(self.next, before.end)
        self.put_back = {one for one in before.unfinished if one >= self.next}

    def is_begun(self, offset: int) -> bool:
        """Returns whether one of its events is finished or in flight."""
        return offset < self.next or (offset < self.high and offset not in self.put_back)

    def move_to(self, offset: int) -> None:
        """Goes on at `offset`: no event that is to be begun lies before it."""
        self.next, self.high = offset, max(self.high, offset)
        if self.put_back:
            self.put_back = {one for one in self.put_back if one >= offset}

    @property
    def is_over(self) -> bool:
        return self.next > self.last and not self.in_flight


class HeldPartition:
    """The held events of one partition, from its assignment to its revocation."""

    def __init__(
        self,
        position: int,
        progress: Mapping[TenantKey, Progress],
        max_age_s: float,
        directory: Directory | None = None,
    ) -> None:
        """Begins at the committed position, with the snapshots that the commit names.

        With a directory, reading begins at its end.
        """
        self.cursor = position
        """Offset of the next record to read."""
        self.seen_to = position
        """Every event at a lower offset is known."""
        self._progress = dict(progress)
        """Progress of tenants of which no event was read yet since the assignment. Commits keep it."""
        self._max_age_s = max_age_s
        self._tenants: dict[TenantKey, _Tenant] = {}
        self._active: set[TenantKey] = set()
        """Those that may have an event to process: released, or at the age limit."""
        self._reading = 0
        self._since_seek = 0
        if directory is not None and directory.end > position:
            self._restore(position, directory)

    def _restore(self, position: int, directory: Directory) -> None:
        self.cursor = self.seen_to = directory.end
        for key, place in directory.tenants.items():
            if place.last >= position:
                first = max(place.first, position)
                expires_at = place.first_seen + self._max_age_s
                self._tenants[key] = tenant = _Tenant(first, place.last, expires_at, -1, place.events)
                self._apply_progress(key, tenant)

    def _apply_progress(self, key: TenantKey, tenant: _Tenant) -> None:
        before = self._progress.pop(key, None)
        if before is not None:
            tenant.apply(before)

    @property
    def events(self) -> int:
        """Events that were seen and are not finished."""
        return sum(tenant.events for tenant in self._tenants.values() if not tenant.is_over)

    @property
    def tenants(self) -> list[TenantKey]:
        """Tenants with unfinished events."""
        return [key for key, tenant in self._tenants.items() if not tenant.is_over]

    @property
    def in_flight(self) -> int:
        """Events that are being processed."""
        return sum(len(self._tenants[key].in_flight) for key in self._active)

    # Reading

    def offer(
        self, offset: int, key: TenantKey, first_seen: float, wall: float, now: float, *, has_room: bool = True
    ) -> bool | None:
        """Registers a record that was read. Returns True to process its event now, False to pass over it.

        Returns None if the event is due but there is no room for it: offer the record again later, before any other.

        Args:
            first_seen, wall: Unix seconds, of the event and now.
            now: seconds of a steady clock.
            has_room: the process may take on another event.
        """
        self.cursor = offset
        tenant = self._tenants.get(key)
        if offset >= self.seen_to:
            self.seen_to = offset + 1
            tenant = self._register(offset, key, tenant, first_seen)
        if tenant is None or tenant.is_begun(offset):
            return self._pass(offset)
        is_due = first_seen + self._max_age_s <= wall
        is_next = tenant.reading == self._reading
        if not is_due and is_next and not tenant.released:
            tenant.expires_at, tenant.is_due = first_seen + self._max_age_s, False
            self._active.discard(key)
        if not is_next or not (is_due or self._is_ready(tenant, now)):
            tenant.reading = -1  # this event is passed over: those behind it come after it
            return self._pass(offset)
        self._active.add(key)
        if not has_room or len(tenant.in_flight) >= ROOM:
            return None
        self._pass(offset)
        tenant.in_flight.add(offset)
        tenant.move_to(offset + 1)
        return True

    def _pass(self, offset: int) -> bool:
        self.cursor = offset + 1
        self._since_seek += 1
        return False

    def skip(self, offset: int) -> None:
        """Moves past a record that isn't an event."""
        self._pass(offset)
        self.seen_to = max(self.seen_to, offset + 1)

    def remove_before(self, start: int) -> int:
        """Passes over what retention has removed: the log now begins at `start`. Events in flight go on.

        Returns the lowest offset of an event that was to be read or begun, and is gone; `start` if there is none.
        """
        unbegun = [tenant for tenant in self._tenants.values() if tenant.next <= tenant.last and tenant.next < start]
        first = min([self.seen_to, start, *(tenant.next for tenant in unbegun)])
        for tenant in unbegun:
            tenant.move_to(start)
        self.seen_to = max(self.seen_to, start)
        if self.cursor < start:
            self._move_to(start)
        return first

    def next_seek(self, now: float) -> int | None:
        """Returns the offset to continue reading at, or None for the cursor. To be called after each batch."""
        ready: list[_Tenant] = []
        waiting: list[_Tenant] = []
        for key in self._active:
            tenant = self._tenants[key]
            is_next = tenant.reading == self._reading
            if is_next and self.cursor > tenant.last >= tenant.next:
                tenant.move_to(tenant.last + 1)
            if tenant.next <= tenant.last and (self._is_ready(tenant, now) or not tenant.released):
                if len(tenant.in_flight) < (ROOM if is_next else ROOM // 2):  # going back has to be worth it
                    ready.append(tenant)
                elif is_next:
                    waiting.append(tenant)
        for tenant in waiting if ready else ():
            tenant.reading = -1  # the others are not kept waiting by it
        behind = [tenant for tenant in ready if tenant.reading != self._reading]
        if len(behind) < len(ready) and (not behind or self._since_seek < TURN):
            return None
        if not behind:
            return None if waiting or self.cursor >= self.seen_to else self._move_to(self.seen_to)
        ahead = [tenant.next for tenant in behind if tenant.next >= self.cursor]
        return self._move_to(min(ahead) if ahead else min(tenant.next for tenant in behind))

    def _move_to(self, offset: int) -> int:
        self.cursor, self._since_seek = offset, 0
        self._reading += 1
        for key in self._active:
            tenant = self._tenants[key]
            if tenant.next >= offset:
                tenant.reading = self._reading
        return offset

    def _register(self, offset: int, key: TenantKey, tenant: _Tenant | None, first_seen: float) -> _Tenant:
        if tenant is None:
            tenant = self._tenants[key] = _Tenant(offset, offset, first_seen + self._max_age_s, self._reading)
            self._apply_progress(key, tenant)
        elif tenant.is_over:
            tenant.reading, tenant.expires_at, tenant.events = self._reading, first_seen + self._max_age_s, 0
        tenant.last = offset
        if not tenant.is_begun(offset):
            tenant.events += 1
        return tenant

    @staticmethod
    def _is_ready(tenant: _Tenant, now: float) -> bool:
        return tenant.released and now >= tenant.not_before

    # Tenants

    def set_released(self, key: TenantKey, *, is_released: bool) -> None:
        """Sets whether the tenant's events may be processed."""
        tenant = self._tenants.get(key)
        if tenant is None or tenant.released == is_released:
            return
        tenant.released, tenant.not_before = is_released, 0.0
        if is_released:
            self._active.add(key)
            if tenant.next >= self.cursor:
                tenant.reading = self._reading
        elif not tenant.in_flight:
            self._active.discard(key)

    def release_aged(self, wall: float) -> None:
        """Releases the events that have reached the age limit. `wall`: Unix seconds."""
        for key, tenant in self._tenants.items():
            if tenant.expires_at <= wall and not tenant.is_over:
                tenant.is_due = True
                self._active.add(key)

    def finish(self, key: TenantKey, offset: int) -> None:
        """Marks an event as finished: it has its outcome."""
        tenant = self._tenants[key]
        tenant.in_flight.discard(offset)
        tenant.finished_to = max(tenant.finished_to, offset + 1)
        tenant.events -= 1
        self._leave_if_idle(key, tenant)

    def hold_again(self, key: TenantKey, offset: int, not_before: float) -> None:
        """Puts back an event that still has to wait. Its tenant rests until `not_before` of the steady clock."""
        tenant = self._tenants[key]
        tenant.in_flight.discard(offset)
        tenant.put_back.add(offset)
        tenant.is_due = False
        tenant.next = min(tenant.next, offset)
        tenant.reading = -1
        tenant.not_before = max(tenant.not_before, not_before)
        self._leave_if_idle(key, tenant)

    def _leave_if_idle(self, key: TenantKey, tenant: _Tenant) -> None:
        if not tenant.in_flight and not tenant.released and not tenant.is_due:
            self._active.discard(key)

    # Committing

    def to_commit(self) -> tuple[int, Snapshot]:
        """Returns the offset to commit, before which every event is finished, and the progress beyond it."""
        unfinished = (tenant.below for tenant in self._tenants.values() if not tenant.is_over)
        position = min(unfinished, default=self.seen_to)
        for key in [key for key, tenant in self._tenants.items() if tenant.is_over and tenant.last < position]:
            del self._tenants[key]
            self._active.discard(key)
        beyond = {key: progress for key, progress in self._progress.items() if progress.reaches_beyond(position)}
        beyond |= {
            key: progress
            for key, tenant in self._tenants.items()
            if tenant.finished_to and (progress := tenant.progress).reaches_beyond(position)
        }
        return position, Snapshot(beyond)

    def directory(self) -> Directory:
        """Returns the places of each tenant's unfinished events, as far as they were read."""
        places = {
            key: UnfinishedRange(tenant.below, tenant.last, tenant.expires_at - self._max_age_s, tenant.events)
            for key, tenant in self._tenants.items()
            if not tenant.is_over
        }
        return Directory(self.seen_to, places)
