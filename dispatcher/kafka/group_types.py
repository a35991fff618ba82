"""Kafka requests for groups of the newer types: which type a group has, and the members of one of type consumer.

A broker describes them as "Dead" to clients that ask as for a classic group. A group gets the type consumer if a client
with `group.protocol=consumer` (KIP-848) joins it, and classic members stay in it. Share and streams groups have no
classic members; they keep their type without any member until they are deleted.
"""

from io import BytesIO
from typing import Any, Final

from aiokafka.client import ConnectionGroup
from aiokafka.protocol.abstract import AbstractType
from aiokafka.protocol.api import Request, RequestStruct, Response
from aiokafka.protocol.types import (
    Boolean,
    CompactArray,
    CompactString,
    Int8,
    Int16,
    Int32,
    Schema,
    TaggedFields,
)

from dispatcher.kafka.connection_errors import UNSUPPORTED_REQUEST

CONSUMER: Final = "consumer"
_CONSUMER_MEMBER: Final = 1
_TEXT: Final = CompactString("utf-8")


class _Uuid(AbstractType[bytes]):  # type: ignore[misc]  # aiokafka has no types
    @classmethod
    def encode(cls, value: bytes) -> bytes:
        return value

    @classmethod
    def decode(cls, data: BytesIO) -> bytes:
        return data.read(16)


_ASSIGNMENT: Final = Schema(
    (
        "topic_partitions",
        CompactArray(
            ("topic_id", _Uuid), ("topic_name", _TEXT), ("partitions", CompactArray(Int32)), ("tags", TaggedFields)
        ),
    ),
    ("tags", TaggedFields),
)


class ListGroupsResponseV5(Response):  # type: ignore[misc]
    API_KEY = 16
    API_VERSION = 5
    SCHEMA = Schema(
        ("throttle_time_ms", Int32),
        ("error_code", Int16),
        (
            "groups",
            CompactArray(
                ("group", _TEXT),
                ("protocol_type", _TEXT),
                ("state", _TEXT),
                ("type", _TEXT),
                ("tags", TaggedFields),
            ),
        ),
        ("tags", TaggedFields),
    )


class ListGroupsRequestV5(RequestStruct):  # type: ignore[misc]
    API_KEY = 16
    API_VERSION = 5
    FLEXIBLE_VERSION = True
    RESPONSE_TYPE = ListGroupsResponseV5
    SCHEMA = Schema(("states", CompactArray(_TEXT)), ("types", CompactArray(_TEXT)), ("tags", TaggedFields))


class TypedGroupsRequest(Request[ListGroupsRequestV5]):  # type: ignore[misc]
    """All groups that a broker coordinates and the client may describe, with their types."""

    API_KEY = 16

    def build(self, request_struct_class: type[ListGroupsRequestV5]) -> Any:
        """Returns the request for a broker."""
        return request_struct_class([], [], {})


class ConsumerGroupDescribeResponseV1(Response):  # type: ignore[misc]
    API_KEY = 69
    API_VERSION = 1
    SCHEMA = Schema(
        ("throttle_time_ms", Int32),
        (
            "groups",
            CompactArray(
                ("error_code", Int16),
                ("error_message", _TEXT),
                ("group", _TEXT),
                ("state", _TEXT),
                ("group_epoch", Int32),
                ("assignment_epoch", Int32),
                ("assignor", _TEXT),
                (
                    "members",
                    CompactArray(
                        ("member_id", _TEXT),
                        ("instance_id", _TEXT),
                        ("rack_id", _TEXT),
                        ("member_epoch", Int32),
                        ("client_id", _TEXT),
                        ("client_host", _TEXT),
                        ("topics", CompactArray(_TEXT)),
                        ("topic_regex", _TEXT),
                        ("assignment", _ASSIGNMENT),
                        ("target_assignment", _ASSIGNMENT),
                        ("member_type", Int8),
                        ("tags", TaggedFields),
                    ),
                ),
                ("authorized_operations", Int32),
                ("tags", TaggedFields),
            ),
        ),
        ("tags", TaggedFields),
    )


class ConsumerGroupDescribeRequestV1(RequestStruct):  # type: ignore[misc]
    API_KEY = 69
    API_VERSION = 1
    FLEXIBLE_VERSION = True
    RESPONSE_TYPE = ConsumerGroupDescribeResponseV1
    SCHEMA = Schema(("groups", CompactArray(_TEXT)), ("include_authorized_operations", Boolean), ("tags", TaggedFields))


class ConsumerGroupRequest(Request[ConsumerGroupDescribeRequestV1]):  # type: ignore[misc]
    """Groups of type consumer with their members. Version 1 names the protocol of each member (Kafka 4.0)."""

    API_KEY = 69

    def __init__(self, groups: list[str]) -> None:
        self._groups = groups

    def build(self, request_struct_class: type[ConsumerGroupDescribeRequestV1]) -> Any:
        """Returns the request for a broker."""
        return request_struct_class(self._groups, False, {})


async def type_of(client: Any, node: int, group: str) -> str:
    """Returns the type of a group in lower case; "" if there is no such group, or the broker knows no types.

    `node`: the group's coordinator.

    Raises what aiokafka raises if the broker doesn't answer.
    """
    try:
        answer = await client.send(node, TypedGroupsRequest(), group=ConnectionGroup.COORDINATION)
    except UNSUPPORTED_REQUEST:
        return ""  # older than Kafka 3.8, or the demo's
    return next((kind.lower() for name, _, _, kind, _ in answer.groups if name == group), "")


async def members_by_consumer_protocol(client: Any, node: int, group: str) -> list[tuple[str, str, str]]:
    """Returns member id, client id and host of the members of a consumer group that joined with the newer protocol.

    Raises what aiokafka raises if the broker doesn't answer.
    """
    try:
        answer = await client.send(node, ConsumerGroupRequest([group]), group=ConnectionGroup.COORDINATION)
    except UNSUPPORTED_REQUEST:
        return []
    return [
        (member[0], member[4], member[5])
        for found in answer.groups
        for member in found[7]
        if member[10] == _CONSUMER_MEMBER
    ]
