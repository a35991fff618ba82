"""Looks topics up without creating any, on clusters of any size.

aiokafka decodes all topics of a cluster at once. For a hundred thousand partitions that takes a second, in which
nothing else runs, and a hundred megabytes. So only the topics that are needed are requested. If all names are needed, a
decoder of its own passes over the partitions.
"""

import struct
from collections.abc import Mapping, Sequence
from io import BytesIO
from typing import Any, Final

from aiokafka.admin import AIOKafkaAdminClient
from aiokafka.protocol.api import Request, RequestStruct, Response

from dispatcher.kafka.connection_errors import UNSUPPORTED_REQUEST
from dispatcher.kafka.probe_requests import AuthorizedMetadataRequest, MetadataRequestV8, MetadataResponseV8

_THERE: Final = (0, 5)
"""Error codes of topics that exist: none, and LEADER_NOT_AVAILABLE."""
_INT16, _INT32 = struct.Struct(">h"), struct.Struct(">i")


async def described_topics(admin: AIOKafkaAdminClient, names: Sequence[str]) -> dict[str, list[dict[str, Any]]]:
    """Returns the partitions of those of the topics that exist and are visible, in aiokafka's form."""
    try:
        answer = await admin._send_request(AuthorizedMetadataRequest(list(names)))  # noqa: SLF001
    except UNSUPPORTED_REQUEST:  # a broker older than Kafka 2.3, or the demo's; only a list of all topics creates none
        described = await admin.describe_topics()
    else:
        described = [topic for topic in answer.to_object()["topics"] if topic["error_code"] in _THERE]
    return {topic["topic"]: topic["partitions"] for topic in described if topic["topic"] in names}


async def all_topics(admin: AIOKafkaAdminClient) -> Mapping[str, int]:
    """Returns the number of partitions of each topic that is visible."""
    try:
        answer = await admin._send_request(_AllTopicsRequest())  # noqa: SLF001
    except UNSUPPORTED_REQUEST:
        return {topic["topic"]: len(topic["partitions"]) for topic in await admin.describe_topics()}
    partitions: Mapping[str, int] = answer.partitions
    return partitions


class TopicSizesV8(Response):  # type: ignore[misc]  # aiokafka has no types
    """The topics' names and numbers of partitions in a `MetadataResponseV8`."""

    API_KEY = 3
    API_VERSION = 8
    SCHEMA = MetadataResponseV8.SCHEMA

    def __init__(self, throttle_time_ms: int, partitions: Mapping[str, int]) -> None:
        self.throttle_time_ms = throttle_time_ms
        self.partitions = partitions

    @classmethod
    def decode(cls, data: BytesIO | bytes) -> "TopicSizesV8":
        """Reads the answer.

        Raises:
            ValueError: it ends too early, or a name is not UTF-8.
        """
        reader = _Reader(data.read() if isinstance(data, BytesIO) else data)
        try:
            return cls(reader.int32(), reader.topics())
        except struct.error as error:
            raise ValueError(f"the list of topics ends too early: {error}") from error


class _Reader:
    def __init__(self, data: bytes) -> None:
        self._data = data
        self._at = 0

    def int32(self) -> int:
        self._at += 4
        return int(_INT32.unpack_from(self._data, self._at - 4)[0])

    def topics(self) -> dict[str, int]:
        """Returns what follows the throttle time: the number of partitions by topic."""
        for _ in range(self.int32()):  # brokers
            self._at += 4
            self._text()
            self._at += 4
            self._text()
        self._text()
        self._at += 4
        partitions = {}
        for _ in range(self.int32()):
            code, name = self._int16(), self._text()
            self._at += 1
            count = self.int32()
            self._pass_over_partitions(count)
            self._at += 4
            if code in _THERE:
                partitions[name] = count
        return partitions

    def _pass_over_partitions(self, count: int) -> None:
        at, data, unpack = self._at, self._data, _INT32.unpack_from
        for _ in range(count):
            at += 14
            at += 4 + 4 * unpack(data, at)[0]  # replicas
            at += 4 + 4 * unpack(data, at)[0]  # those in sync
            at += 4 + 4 * unpack(data, at)[0]  # those offline
        self._at = at

    def _int16(self) -> int:
        self._at += 2
        return int(_INT16.unpack_from(self._data, self._at - 2)[0])

    def _text(self) -> str:
        size = max(0, self._int16())  # -1: null
        self._at += size
        return self._data[self._at - size : self._at].decode()


class _AllTopicsRequestV8(RequestStruct):  # type: ignore[misc]
    API_KEY = 3
    API_VERSION = 8
    RESPONSE_TYPE = TopicSizesV8
    SCHEMA = MetadataRequestV8.SCHEMA


class _AllTopicsRequest(Request[_AllTopicsRequestV8]):  # type: ignore[misc]
    """Metadata of all topics. Creates none."""

    API_KEY = 3

    def build(self, request_struct_class: type[_AllTopicsRequestV8]) -> Any:
        """Returns the request for a broker."""
        return request_struct_class(None, False, False, False)
