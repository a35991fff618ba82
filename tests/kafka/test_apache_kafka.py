"""The broker under our tests is a real one, and every switch of it works: a green test elsewhere means something."""

import asyncio
import os
import ssl
from collections.abc import AsyncIterator
from uuid import uuid4

import pytest
from aiokafka import AIOKafkaConsumer, AIOKafkaProducer, TopicPartition
from aiokafka.errors import (
    KafkaConnectionError,
    MessageSizeTooLargeError,
    OffsetMetadataTooLargeError,
    TopicAlreadyExistsError,
    TopicAuthorizationFailedError,
    UnknownTopicOrPartitionError,
)
from aiokafka.structs import OffsetAndMetadata

from tests.kafka import maven, topics
from tests.kafka.acls import Operation
from tests.kafka.apache_kafka import ApacheKafka
from tests.kafka.server_properties import KafkaOptions, Listener, Mechanism

pytestmark = [
    pytest.mark.asyncio(loop_scope="module"),
    pytest.mark.timeout(60),
    pytest.mark.skipif(bool(maven.missing_tools()) and os.environ.get("CI") != "true", reason="needs java and mvn"),
]

PASSWORDS = {"alice": "wonderland", "bob": "builder"}
EVERY_WAY_IN = [
    *((listener, Mechanism.PLAIN) for listener in Listener if not listener.sasl),
    *((listener, mechanism) for listener in Listener if listener.sasl for mechanism in Mechanism),
]


@pytest.fixture(scope="module")
async def broker() -> AsyncIterator[ApacheKafka]:
    """Yields a broker with every listener and ACLs that creates no topic by itself. No test kills it."""
    options = KafkaOptions(
        listeners=frozenset(Listener),
        users=PASSWORDS,
        authorizer=True,
        auto_create_topics=False,
        message_max_bytes=50_000,
    )
    async with ApacheKafka(options) as running:
        yield running


@pytest.fixture(scope="module")
async def mortal() -> AsyncIterator[ApacheKafka]:
    """Yields a broker with the default options, for the tests that mistreat it. Each leaves it running."""
    async with ApacheKafka() as running:
        yield running


@pytest.fixture
async def topic(broker: ApacheKafka) -> str:
    """Returns a new topic of two partitions on `broker`."""
    name = f"topic-{uuid4().hex[:8]}"
    await topics.create_topic(broker.bootstrap_servers, name, partitions=2)
    return name


@pytest.mark.parametrize(("listener", "mechanism"), EVERY_WAY_IN)
async def test_a_record_goes_in_and_comes_out_through_every_listener(
    broker: ApacheKafka, topic: str, listener: Listener, mechanism: Mechanism
) -> None:
    """Key, value and headers come back as they were sent, over each protocol and each SASL mechanism."""
    options = broker.client_options(listener, user="alice", mechanism=mechanism)
    async with AIOKafkaProducer(**options) as producer:
        await producer.send_and_wait(topic, b"value", key=b"key", headers=[("header", b"\x00")])
    async with AIOKafkaConsumer(topic, **options, group_id=topic, auto_offset_reset="earliest") as consumer:
        record = await consumer.getone()

    assert (record.key, record.value, record.headers) == (b"key", b"value", (("header", b"\x00"),))


@pytest.mark.parametrize("mechanism", Mechanism)
async def test_a_wrong_password_does_not_get_in(broker: ApacheKafka, mechanism: Mechanism) -> None:
    """aiokafka hides the reason: all that `start` says is that it could not connect."""
    options = broker.client_options(Listener.SASL_SSL, user="alice", mechanism=mechanism)
    with pytest.raises(KafkaConnectionError):
        await _start_and_stop(AIOKafkaProducer(**options | {"sasl_plain_password": "guess"}))


async def test_without_a_client_certificate_the_mtls_listener_stays_shut(broker: ApacheKafka) -> None:
    """The certificate is demanded, not merely asked for."""
    context = broker.certificates.client_context(with_certificate=False)
    with pytest.raises(KafkaConnectionError):
        await _start_and_stop(AIOKafkaProducer(**broker.client_options(Listener.MTLS) | {"ssl_context": context}))


async def test_the_brokers_certificate_is_checked(broker: ApacheKafka) -> None:
    """A client that does not know the authority refuses the broker."""
    options = broker.client_options(Listener.SSL) | {"ssl_context": ssl.create_default_context()}
    with pytest.raises(KafkaConnectionError):
        await _start_and_stop(AIOKafkaProducer(**options))


async def test_an_idempotent_producer_is_served(broker: ApacheKafka, topic: str) -> None:
    """Which the embedded broker can't: the reason why this one is the broker that counts."""
    async with AIOKafkaProducer(bootstrap_servers=broker.bootstrap_servers, enable_idempotence=True) as producer:
        sent = [await producer.send_and_wait(topic, b"%d" % number, partition=0) for number in range(5)]

    assert [metadata.offset for metadata in sent] == [0, 1, 2, 3, 4]


async def test_commit_metadata_comes_back_as_it_was_committed(broker: ApacheKafka, topic: str) -> None:
    """Up to 4,096 bytes; one more, and nothing of the commit is kept."""
    partition = TopicPartition(topic, 1)
    longest = "m" * 4096
    async with AIOKafkaConsumer(
        bootstrap_servers=broker.bootstrap_servers, group_id=topic, enable_auto_commit=False
    ) as consumer:
        consumer.assign([partition])
        await consumer.commit({partition: (7, longest)})
        with pytest.raises(OffsetMetadataTooLargeError):
            await consumer.commit({partition: (8, longest + "m")})

    assert {partition: OffsetAndMetadata(7, longest)} == await topics.committed(broker.bootstrap_servers, topic)


async def test_a_topic_can_be_closed_to_one_user_and_opened_again(broker: ApacheKafka, topic: str) -> None:
    """Only that operation, only that user, only that topic."""
    alice = broker.client_options(Listener.SASL_PLAINTEXT, user="alice")
    bob = broker.client_options(Listener.SASL_PLAINTEXT, user="bob")
    async with AIOKafkaProducer(**alice) as denied, AIOKafkaProducer(**bob) as allowed:
        await broker.deny("alice", Operation.WRITE, topic)
        with pytest.raises(TopicAuthorizationFailedError):
            await denied.send_and_wait(topic, b"no")
        await allowed.send_and_wait(topic, b"bob")
        await broker.permit("alice", Operation.WRITE, topic)
        await denied.send_and_wait(topic, b"alice")

    assert {b"bob", b"alice"} == {record.value for record in await topics.read_all(broker.bootstrap_servers, topic)}


async def test_a_record_over_the_limit_is_refused_by_the_broker(broker: ApacheKafka, topic: str) -> None:
    """`message_max_bytes` is the broker's word, below what the client would send."""
    async with AIOKafkaProducer(bootstrap_servers=broker.bootstrap_servers) as producer:
        with pytest.raises(MessageSizeTooLargeError):
            await producer.send_and_wait(topic, b"x" * 60_000)


async def test_no_topic_appears_where_auto_create_is_off(broker: ApacheKafka) -> None:
    """Neither by writing nor by asking for its end; and one that exists can't be made again."""
    async with AIOKafkaProducer(bootstrap_servers=broker.bootstrap_servers, request_timeout_ms=500) as producer:
        with pytest.raises(UnknownTopicOrPartitionError):
            await producer.send_and_wait("never-made", b"x")
    assert await topics.end_offsets(broker.bootstrap_servers, "never-made") == {}


async def test_a_topic_has_the_partitions_that_were_asked_for(broker: ApacheKafka, topic: str) -> None:
    """And can't be made twice."""
    assert await topics.end_offsets(broker.bootstrap_servers, topic) == {0: 0, 1: 0}
    with pytest.raises(TopicAlreadyExistsError):
        await topics.create_topic(broker.bootstrap_servers, topic)


async def test_acknowledged_records_survive_a_kill(mortal: ApacheKafka) -> None:
    """Same data, same ports; a client that stayed goes on. The topic is made by writing, with four partitions."""
    address = mortal.bootstrap_servers
    async with AIOKafkaProducer(bootstrap_servers=address, enable_idempotence=True) as producer:
        await producer.send_and_wait("survivors", b"before", partition=3)
        mortal.kill()
        with pytest.raises(KafkaConnectionError):
            await _start_and_stop(AIOKafkaProducer(bootstrap_servers=address))
        await mortal.start()
        await producer.send_and_wait("survivors", b"after", partition=3)

    assert address == mortal.bootstrap_servers
    assert [record.value for record in await topics.read_all(address, "survivors")] == [b"before", b"after"]
    assert await topics.end_offsets(address, "survivors") == {0: 0, 1: 0, 2: 0, 3: 2}


async def test_an_orderly_restart_keeps_the_data(mortal: ApacheKafka) -> None:
    """`restart` is stop and start."""
    async with AIOKafkaProducer(bootstrap_servers=mortal.bootstrap_servers) as producer:
        await producer.send_and_wait("orderly", b"kept")
    await mortal.restart()

    assert [record.value for record in await topics.read_all(mortal.bootstrap_servers, "orderly")] == [b"kept"]


async def test_a_paused_broker_is_silent_until_it_is_resumed(mortal: ApacheKafka) -> None:
    """The connection stays and the answer is late, as in a network that drops packets."""
    async with AIOKafkaProducer(bootstrap_servers=mortal.bootstrap_servers) as producer:
        await producer.send_and_wait("hanging", b"before")
        mortal.pause()
        try:
            sending = asyncio.create_task(producer.send_and_wait("hanging", b"after"))
            answered, _ = await asyncio.wait({sending}, timeout=0.5)
        finally:
            mortal.resume()
        await sending

    assert not answered


async def test_a_closed_broker_leaves_nothing_behind() -> None:
    """Neither process nor data; and the log of a broker that can't start is in the error."""
    broker = ApacheKafka(KafkaOptions(extra={"log.dirs": "/dev/null/nowhere"}))
    with pytest.raises(maven.KafkaUnavailableError, match="StorageTool failed"):
        async with broker:
            pass
    with pytest.raises(RuntimeError, match="not been started"):
        _ = broker.directory


async def _start_and_stop(producer: AIOKafkaProducer) -> None:
    try:
        await producer.start()
    finally:
        await producer.stop()
