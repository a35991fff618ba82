"""Mends aiokafka on uvloop: writing to a connection that has just closed is a lost connection, not a bug.

Between a connection's end and aiokafka's hearing of it, uvloop's transports raise `RuntimeError` where asyncio's raise
`OSError` or nothing; aiokafka expects only the latter (its issue 1038, open), and the tasks that fetch, commit and
produce die of the former. So a broker that went away at the wrong moment ended the process.
"""

from collections.abc import Callable
from functools import wraps
from typing import ParamSpec, TypeVar

from aiokafka.conn import AIOKafkaConnection, CloseReason
from aiokafka.errors import KafkaConnectionError

from dispatcher.kafka import reconnecting, unreadable_records

Parameters = ParamSpec("Parameters")
Answer = TypeVar("Answer")


def apply() -> None:
    """Make both ways that aiokafka writes to a broker tell of a closed transport as it tells of any lost connection."""
    AIOKafkaConnection.send = _telling(AIOKafkaConnection.send)
    AIOKafkaConnection._send_sasl_token = _telling(AIOKafkaConnection._send_sasl_token)  # noqa: SLF001
    reconnecting.apply()
    unreadable_records.apply(reconnecting.problems_of)


def _telling(send: Callable[Parameters, Answer]) -> Callable[Parameters, Answer]:
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
