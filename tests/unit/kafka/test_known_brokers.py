"""Brokers that can't be reached at the addresses that the cluster gives, over real sockets."""

import asyncio
from collections.abc import Iterable

import pytest
from aiokafka import TopicPartition

from dispatcher.config.kafka_settings import KafkaSettings
from dispatcher.contract.kafka_problems import KafkaReason
from dispatcher.errors import BrokerUnavailable
from dispatcher.kafka import aiokafka_patches, reconnecting
from dispatcher.kafka.membership import Assignments, join
from dispatcher.kafka.probe import AclOperation, GroupNeed, KafkaProbe, TopicNeed
from dispatcher.kafka.problems import KafkaProblems
from dispatcher.kafka.topic_reader import open_topics, partitions_of
from tests.unit.kafka.advertised_brokers import AdvertisedBroker

TOPIC = TopicNeed("events", (AclOperation.READ,), "create it")
GROUPS = [GroupNeed("g"), GroupNeed("g.retry"), GroupNeed("g.held")]
REFUSED = ("127.0.0.1", 1)
UNKNOWN = ("kafka-0.kafka.svc.wrong.invalid", 9092)


def settings(broker: AdvertisedBroker) -> KafkaSettings:
    return KafkaSettings.model_validate(
        {"bootstrap_servers": f"127.0.0.1:{broker.port}", "topic": "events", "group_id": "g"}
    )


class Nobody:
    """A member that is never assigned anything."""

    async def assigned(self, tps: Iterable[TopicPartition], /) -> None: ...
    async def revoked(self, tps: Iterable[TopicPartition], /) -> None: ...
    def heard(self, at: float, /) -> None: ...


@pytest.fixture(autouse=True)
def _patched() -> None:
    assert aiokafka_patches  # applied on import


@pytest.mark.parametrize("silent", [[3], [2, 3]])
async def test_brokers_that_are_away_are_named_and_the_others_answer(silent: list[int]) -> None:
    broker = AdvertisedBroker("events")
    async with broker.serve():
        here = ("127.0.0.1", broker.port)
        broker.brokers = {number: REFUSED if number in silent else here for number in (1, 2, 3)}
        for _ in range(10):  # each look draws again
            async with KafkaProbe(settings(broker), [TOPIC], GROUPS, KafkaProblems()) as probe:
                found = await probe.look()
            assert set(found.details) == {KafkaReason.BROKER_UNREACHABLE}
            assert found.answers
            assert all(
                f"the cluster says its broker {number} is 127.0.0.1:1: nothing listens there"
                in found.details[KafkaReason.BROKER_UNREACHABLE]
                for number in silent
            )
            assert await partitions_of(settings(broker), ["events"]) == [TopicPartition("events", 0)]


async def test_a_coordinator_that_can_not_be_reached_is_named() -> None:
    broker = AdvertisedBroker("events", coordinator=2)
    async with broker.serve():
        broker.brokers = {1: ("127.0.0.1", broker.port), 2: UNKNOWN}
        async with KafkaProbe(settings(broker), [TOPIC], GROUPS[:1], KafkaProblems()) as probe:
            found = await probe.look()
    assert set(found.details) == {KafkaReason.BROKER_UNREACHABLE, KafkaReason.COORDINATOR_UNAVAILABLE}
    assert (
        f"group g: its coordinator can't be reached: the cluster says its broker 2 is {UNKNOWN[0]}:9092"
        in (found.details[KafkaReason.COORDINATOR_UNAVAILABLE])
    )


@pytest.mark.parametrize(
    ("address", "reason", "cause"),
    [
        (UNKNOWN, KafkaReason.NAME_NOT_FOUND, "the name can't be resolved"),
        (REFUSED, KafkaReason.UNREACHABLE, "nothing listens there"),
    ],
)
async def test_a_wrong_advertised_address_is_named_by_everything_that_connects(
    address: tuple[str, int], reason: KafkaReason, cause: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(reconnecting, "BOOTSTRAP_AGAIN_S", 1.0)
    named = f"the cluster says its broker 1 is {address[0]}:{address[1]}: {cause}"
    broker, problems = AdvertisedBroker("events"), KafkaProblems()
    async with broker.serve():
        broker.brokers = {1: address}
        async with KafkaProbe(settings(broker), [TOPIC], GROUPS, problems) as probe:
            found = await probe.look()
        assert set(found.details) == {reason}
        assert named in found.details[reason]
        with pytest.raises(BrokerUnavailable, match=named):
            async with open_topics(settings(broker), ["events"]):
                pass

        joining = asyncio.create_task(join(settings(broker), ["events"], "g", Assignments(Nobody()), problems=problems))
        async with asyncio.timeout(60):
            while not problems.current:
                await asyncio.sleep(0.05)
        await asyncio.sleep(3)  # it bootstraps again meanwhile, and the addresses are the same
        assert [(one.reason, one.detail.startswith(named)) for one in problems.current] == [(reason, True)]
        assert "check its advertised.listeners" in problems.current[0].detail
        joining.cancel()
        await asyncio.wait([joining])
