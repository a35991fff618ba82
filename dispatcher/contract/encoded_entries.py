"""Entries of the history, encoded as they come and joined to the value of a record."""

from typing import Final

from dispatcher.contract.history import VERSION, HistoryEntry, encode_entry

FULL_ENTRIES: Final = 400
FULL_BYTES: Final = 200_000
"""Either of these fills a record. The last entry may exceed it by some 30 kB, the longest that an entry is."""


class EncodedEntries:
    """Entries that go into one record.

    A waiting entry takes half the memory in this form, and is encoded while it is in the processor's cache.
    """

    __slots__ = ("_parts", "size")

    def __init__(self) -> None:
        self.size = 0
        """Bytes of all entries."""
        self._parts: list[bytes] = []

    def __len__(self) -> int:
        return len(self._parts)

    @property
    def is_full(self) -> bool:
        """True if nothing more should be added."""
        return len(self._parts) >= FULL_ENTRIES or self.size >= FULL_BYTES

    def add(self, entry: HistoryEntry) -> int:
        """Adds an entry. Returns its bytes."""
        part: bytes = encode_entry(entry)
        self._parts.append(part)
        self.size += len(part)
        return len(part)

    def value(self, writer: int, first: int) -> bytes:
        """Returns the value of the record. `first`: number of the first entry; see `HistoryRecord`."""
        start = b'{"version":%d,"writer":%d,"first":%d,"entries":[' % (VERSION, writer, first)
        return start + b",".join(self._parts) + b"]}"
