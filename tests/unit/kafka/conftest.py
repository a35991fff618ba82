"""aiokafka's two decoders of batches."""

import pytest
from aiokafka.record import memory_records
from aiokafka.record.default_records import _DefaultRecordBatchPy

from dispatcher.kafka import unreadable_records


@pytest.fixture(params=["compiled", "python"])
def decoder(request: pytest.FixtureRequest, monkeypatch: pytest.MonkeyPatch) -> str:
    """Returns which decoder reads the batches of the test."""
    kind = str(request.param)
    if kind == "python":
        monkeypatch.setattr(memory_records, "DefaultRecordBatch", _DefaultRecordBatchPy)
        monkeypatch.setattr(unreadable_records, "MemoryRecords", memory_records._MemoryRecordsPy)
    return kind
