"""Records of the history topic, written and read as the product does."""

from collections.abc import Iterable

from dispatcher.contract.encoded_entries import EncodedEntries
from dispatcher.contract.history import HistoryEntry, decode_record
from dispatcher.delivery.history_recorder import HistoryRecorder


def record_of(writer: int, first: int, entries: Iterable[HistoryEntry]) -> bytes:
    """Returns the value of a record that holds the entries, however many."""
    encoded = EncodedEntries()
    for entry in entries:
        encoded.add(entry)
    return encoded.value(writer, first)


def entries_of(encoded: EncodedEntries) -> list[HistoryEntry]:
    """Returns encoded entries as a reader of their record decodes them."""
    found = decode_record(encoded.value(1, 0))
    assert not found.unreadable, found.problem
    return [entry for run in found.runs for entry in run.entries]


def taken_from(recorder: HistoryRecorder, *, at_end: bool = True) -> list[HistoryEntry]:
    """Removes and returns all entries of a recorder, the counts of the current minute with them."""
    return [entry for _, encoded in recorder.take_all(at_end=at_end) for entry in entries_of(encoded)]
