"""Access rights on topics. aiokafka knows the requests but has no method for them, so they are sent to a broker directly."""

import asyncio
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from dataclasses import astuple, dataclass
from enum import IntEnum, StrEnum
from typing import Any

from aiokafka.client import AIOKafkaClient
from aiokafka.errors import for_code
from aiokafka.protocol.admin import CreateAclsRequest, DeleteAclsRequest, DescribeAclsRequest


class Operation(IntEnum):
    """What can be done with a topic. The numbers are the protocol's."""

    ALL = 2
    READ = 3
    WRITE = 4
    DESCRIBE = 8


class Resource(StrEnum):
    """What a rule is about."""

    TOPIC = "topic"
    GROUP = "group"


class Permission(IntEnum):
    """A refusal outweighs any number of permissions."""

    DENY = 2
    ALLOW = 3


_RESOURCES = {Resource.TOPIC: 2, Resource.GROUP: 3}
_LITERAL = 3


@dataclass(frozen=True, slots=True)
class Acl:
    """One rule about one topic or group, in the order of the protocol's fields."""

    resource_type: int
    name: str
    pattern_type: int
    principal: str
    host: str
    operation: Operation
    permission: Permission


def rule(permission: Permission, user: str, operation: Operation, name: str, resource: str = Resource.TOPIC) -> Acl:
    """Returns a rule for `user` (`*` is every user), from every host, on exactly that topic or group."""
    return Acl(_RESOURCES[Resource(resource)], name, _LITERAL, f"User:{user}", "*", operation, permission)


async def add(bootstrap_servers: str, *rules: Acl) -> None:
    """Adds the rules and waits until they are in force. A rule that exists stays."""
    async with _asking(bootstrap_servers) as broker:
        for acl in rules:
            _check((await broker.ask(CreateAclsRequest(*astuple(acl))))["creation_responses"])
            await broker.wait(acl, until_there=True)


async def remove(bootstrap_servers: str, acl: Acl) -> None:
    """Removes the rule and waits until it is no longer in force."""
    async with _asking(bootstrap_servers) as broker:
        _check((await broker.ask(DeleteAclsRequest(*astuple(acl))))["filter_responses"])
        await broker.wait(acl, until_there=False)


class _Broker:
    def __init__(self, client: AIOKafkaClient) -> None:
        self._client = client

    async def ask(self, request: CreateAclsRequest | DeleteAclsRequest | DescribeAclsRequest) -> dict[str, Any]:
        answer: dict[str, Any] = (await self._client.send(self._client.get_random_node(), request)).to_object()
        return answer

    async def wait(self, acl: Acl, *, until_there: bool) -> None:
        """Waits until the broker has learnt what the controller answered, some milliseconds later."""
        async with asyncio.timeout(60):
            while await self._knows(acl) is not until_there:  # the broker sends no notification
                await asyncio.sleep(0.005)

    async def _knows(self, acl: Acl) -> bool:
        return bool((await self.ask(DescribeAclsRequest(*astuple(acl))))["resources"])


@asynccontextmanager
async def _asking(bootstrap_servers: str) -> AsyncIterator[_Broker]:
    client = AIOKafkaClient(bootstrap_servers=bootstrap_servers)
    try:
        await client.bootstrap()
        yield _Broker(client)
    finally:
        await client.close()


def _check(results: list[dict[str, Any]]) -> None:
    for result in results:
        if result["error_code"]:
            raise for_code(result["error_code"])(result["error_message"])
