"""Corrects aiokafka where it would lose what a broker or a transport says.

On uvloop, a write to a connection that has just closed counts as a lost connection, not as a bug. After a connection
has ended and before aiokafka notices, uvloop's transports raise `RuntimeError`; asyncio's raise `OSError` or
nothing. aiokafka expects only the latter (its issue 1038, open), and the tasks that fetch, commit and produce fail on
the former. A broker that went away at the wrong moment would end the process.

An answer to OffsetFetch with an error of the whole group is raised as this error.

Batches are compressed by zstd's level 1 instead of 3, which a producer can't choose. Records in JSON that resemble each
other, as the history's do, take half the time and a sixth less room.
"""

from collections.abc import Awaitable, Callable
from functools import partial, wraps
from importlib import import_module
from typing import Any, Final, ParamSpec, TypeVar

from aiokafka import codec
from aiokafka.client import AIOKafkaClient
from aiokafka.conn import AIOKafkaConnection, CloseReason
from aiokafka.errors import KafkaConnectionError, for_code
from aiokafka.protocol.commit import OffsetFetchRequest
from aiokafka.record.default_records import DefaultRecordBatchBuilder

from dispatcher.kafka import error_codes, reconnecting, unreadable_records

Parameters = ParamSpec("Parameters")
Answer = TypeVar("Answer")

ZSTD_LEVEL: Final = 1


def apply() -> None:
    """Patches aiokafka's classes with these corrections, those of `reconnecting`, and those of `unreadable_records`."""
    AIOKafkaConnection.send = _reporting_lost_connections(AIOKafkaConnection.send)
    AIOKafkaConnection._send_sasl_token = _reporting_lost_connections(AIOKafkaConnection._send_sasl_token)  # noqa: SLF001
    AIOKafkaClient.send = _raising_errors_of_groups(AIOKafkaClient.send)
    batches: Any = import_module(DefaultRecordBatchBuilder.__module__)  # in C, or in Python if there is no other
    batches.zstd_encode = partial(codec.zstd_encode, level=ZSTD_LEVEL)
    error_codes.register()
    reconnecting.apply()
    unreadable_records.apply(reconnecting.problems_of)


def _reporting_lost_connections(send: Callable[Parameters, Answer]) -> Callable[Parameters, Answer]:
    @wraps(send)
    def sent(*arguments: Parameters.args, **named: Parameters.kwargs) -> Answer:
        try:
            return send(*arguments, **named)
        except RuntimeError as error:
            connection = arguments[0]
            if not isinstance(connection, AIOKafkaConnection):
                raise
            connection.close(reason=CloseReason.CONNECTION_BROKEN)
            place = f"{connection.host}:{connection.port}"
            raise KafkaConnectionError(f"Connection at {place} broken: {error}") from error

    return sent


def _raising_errors_of_groups(send: Callable[..., Awaitable[Any]]) -> Callable[..., Awaitable[Any]]:
    """Raises the error that an answer to OffsetFetch has for the whole group, since version 2 of the request.

    aiokafka reads the errors of partitions only. While the coordinator loads or moves, the answer names no partition,
    and would be taken for that of a group that has committed nothing.
    """

    @wraps(send)
    async def patched(client: Any, node_id: Any, request: Any, **named: Any) -> Any:
        response = await send(client, node_id, request, **named)
        code = getattr(response, "error_code", 0) if isinstance(request, OffsetFetchRequest) else 0
        if code:
            raise for_code(code)(request._consumer_group)  # noqa: SLF001
        return response

    return patched
