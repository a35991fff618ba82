"""Batches as clients in other languages write them: header names of any bytes, each codec."""

from typing import Any

from aiokafka import AIOKafkaProducer, TopicPartition
from aiokafka.record.default_records import _DefaultRecordBatchBuilderPy

NOT_UTF8 = b"na\xffme\xfe"
AS_READ = "na\ufffdme\ufffd"


class AnyBytes(str):
    """A header name that is written as these bytes. Only aiokafka's Python builder accepts it."""

    raw: bytes

    def __new__(cls, raw: bytes) -> "AnyBytes":
        made = super().__new__(cls, raw.decode("latin-1"))
        made.raw = raw
        return made

    def encode(self, encoding: str = "utf-8", errors: str = "strict") -> bytes:
        """Returns the raw bytes."""
        return self.raw


def builder(codec: int = 0) -> Any:
    """Returns a builder of batches, uncompressed or with the codec of this number."""
    return _DefaultRecordBatchBuilderPy(2, codec, 0, -1, -1, 0, 1 << 30)


def batch(values: list[bytes], base_offset: int = 0, codec: int = 0, name: bytes = NOT_UTF8) -> bytes:
    """Returns a batch as in the broker's log. Each record has one header."""
    building = builder(codec)
    for number, value in enumerate(values):
        building.append(number, 1_700_000_000_000, b"key", value, [(AnyBytes(name), b"1")])
    built = bytearray(building.build())
    built[:8] = base_offset.to_bytes(8)
    return bytes(built)


async def send(producer: AIOKafkaProducer, tp: TopicPartition, value: bytes, name: bytes = NOT_UTF8) -> None:
    """Writes one record with a header of this name."""
    building = producer.create_batch()
    building._builder = builder()
    building.append(key=None, value=value, timestamp=None, headers=[(AnyBytes(name), b"1")])
    await (await producer.send_batch(building, tp.topic, partition=tp.partition))
