"""The real broker with every way in, for tests that stop it, close topics, or log in."""

import os
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager

import pytest

from tests.integration.harness import LARGEST_RECORD
from tests.kafka import maven
from tests.kafka.apache_kafka import ApacheKafka
from tests.kafka.server_properties import KafkaOptions, Listener

USER, PASSWORD = "alice", "wonderland"

needs_kafka = pytest.mark.skipif(
    bool(maven.missing_tools()) and os.environ.get("CI") != "true", reason="needs java and mvn"
)


@asynccontextmanager
async def mistreatable_broker() -> AsyncIterator[ApacheKafka]:
    """Yields a broker that tests may stop, deny and slow down."""
    options = KafkaOptions(
        listeners=frozenset({Listener.SASL_SSL, Listener.SASL_PLAINTEXT, Listener.SSL, Listener.MTLS}),
        users={USER: PASSWORD},
        authorizer=True,
        auto_create_topics=False,
        message_max_bytes=LARGEST_RECORD,
        extra={"log.segment.delete.delay.ms": "1000"},  # a start reads deleted logs that are still there
    )
    async with ApacheKafka(options) as running:
        yield running
