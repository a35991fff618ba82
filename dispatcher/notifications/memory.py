"""The state that planning keeps in the store between two runs. Times are Unix seconds.

Fields are added at the end, so that bytes of an older version are read.
"""

from typing import Final

import msgspec

from dispatcher.contract.fleet_state import FleetState

CALM_S: Final = 3600.0
"""A shorter break does not end a spell: whatever flaps has not changed each time."""


class Spell(msgspec.Struct, array_like=True, frozen=True):
    """A time in which something was so, with breaks of less than an hour."""

    began_at: float = 0.0
    """0: it never was."""
    ended_at: float = 0.0
    """0: it is so now."""

    def noted(self, now: float, began_at: float, *, is_so: bool) -> "Spell":
        """Returns the spell after another look.

        Args:
            began_at: when it began, if it is so and was not.
        """
        if not is_so:
            return Spell(self.began_at, now) if self.began_at and not self.ended_at else self
        if not self.began_at or (self.ended_at and now - self.ended_at >= CALM_S):
            return Spell(began_at)
        return Spell(self.began_at) if self.ended_at else self


class Memory(msgspec.Struct, array_like=True):
    """News that was reported about one tenant; kept in the store."""

    reported: FleetState = FleetState.ACTIVE
    """State that was reported last."""
    sent: list[float] = []
    """Times of the notifications of the last day."""
    disabled_at: float = 0.0
    """When "disabled" was reported last."""
    dead_at: float = 0.0
    """Time of the latest dead event that is known."""
    dead_waits: bool = False
    """The first dead event is not reported yet."""
    expiries: list[str] = []
    """Steps of expiries that were reported."""
    reported_at: float = 0.0
    """When `reported` was reported."""
    revision: str = ""
    """Of the webhook, the latest that is known since `reported` was reported."""
    is_edited: bool = False
    """The webhook was edited or replaced since then."""
    trouble: Spell = Spell()
    disabled: Spell = Spell()
    ill_since: float = 0.0
    """When the trouble began that lasts without a break; 0 if there is none now."""
    dead_since: float = 0.0
    """When the event died whose report waits, or was the last to wait."""
    withheld_change: float = 0.0
    """Time of the change of which the operator was notified instead, as one of many."""
    withheld_at: float = 0.0
    """When it was withheld."""

    def __post_init__(self) -> None:
        """Fills in what an older version did not store."""
        if not self.reported_at:
            self.reported_at = max(self.sent, default=0.0)


class FleetMemory(msgspec.Struct, array_like=True):
    """News that was reported to the operator about all tenants; kept in the store."""

    mass_at: float = 0.0
    broken_at: float = 0.0
    sent_at: float = 0.0
    expiries: list[str] = []
    """Steps of the operator's own expiries that were reported."""
    has_more: bool = False
    """Changes were withheld since `mass_at`."""
    broken: Spell = Spell()
    planned_at: float = 0.0
    """When a worker planned last, up to `planning.NOTED_EVERY_S` ago; 0: never."""


def copied(memory: Memory) -> Memory:
    """Returns a copy that can be changed."""
    return msgspec.structs.replace(memory, sent=list(memory.sent), expiries=list(memory.expiries))


def encode_memory(memory: Memory | FleetMemory) -> bytes:
    """Returns the bytes that the store keeps."""
    return msgspec.msgpack.encode(memory)


def decode_memory(data: bytes) -> Memory:
    """Returns the memory in the store's bytes; empty if another version of this program wrote them."""
    try:
        return msgspec.msgpack.decode(data, type=Memory)
    except msgspec.DecodeError:
        return Memory()


def decode_fleet_memory(data: bytes) -> FleetMemory:
    """Returns the operator's memory in the store's bytes; empty if another version of this program wrote them."""
    try:
        return msgspec.msgpack.decode(data, type=FleetMemory)
    except msgspec.DecodeError:
        return FleetMemory()
