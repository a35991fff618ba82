"""The events that every benchmark sends: the reference e-mail bounce, 1.2 KB of compact JSON, by tenant and number."""

from collections.abc import Iterator
from typing import Final

import orjson
from aiokafka.record.default_records import DefaultRecordBatchBuilder

from dispatcher.contract.tenant import TenantKey
from tests.unit.examples import EMAIL_EVENT

_ID: Final = EMAIL_EVENT["body"]["xdmEntity"]["_id"].encode()
_ORG: Final = b"myImsOrg"
_TEMPLATE: Final = orjson.dumps(EMAIL_EVENT)


def tenants(count: int) -> list[TenantKey]:
    """Some tenants, always the same ones."""
    return [TenantKey(f"org{number:05}", "prod") for number in range(count)]


def event(tenant: TenantKey, number: int) -> bytes:
    """The event of this number. Its id has the length of the real one, so that all events of a run are as long."""
    return _TEMPLATE.replace(_ORG, tenant.org.encode(), 1).replace(_ID, b"event-%030d" % number, 1)


def events(of: list[TenantKey], count: int, first: int = 0) -> Iterator[bytes]:
    """Events by turns of the tenants."""
    for number in range(first, first + count):
        yield event(of[number % len(of)], number)


def record_batch(values: list[bytes], timestamp_ms: int) -> bytes:
    """A batch as a broker gives it, of records without key and headers; its offsets begin at 0."""
    builder = DefaultRecordBatchBuilder(
        magic=2, compression_type=0, is_transactional=0, producer_id=-1, producer_epoch=-1, base_sequence=-1,
        batch_size=1 << 24,
    )  # fmt: skip
    for offset, value in enumerate(values):
        builder.append(offset, timestamp_ms, None, value, [])
    return bytes(builder.build())
