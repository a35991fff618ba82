"""Passwords and certificates that are rotated while the dispatcher runs: it goes on without a restart."""

from collections.abc import AsyncIterator
from pathlib import Path
from typing import Any

import pytest

from tests.field.readiness import metric, reports, reports_nothing
from tests.integration.brokers import PASSWORD, USER, needs_kafka
from tests.integration.harness import Dispatcher, Stage, stage, tenants, until
from tests.kafka.apache_kafka import ApacheKafka
from tests.kafka.scram import set_password
from tests.kafka.server_properties import Listener

pytestmark = [needs_kafka, pytest.mark.timeout(300)]

RECOVERS_WITHIN_S = 60.0
TENANTS = tenants(1)


@pytest.fixture
async def broker(mortal: ApacheKafka) -> AsyncIterator[ApacheKafka]:
    """Yields the broker that tests may stop, and sets its password back: every test of it changes credentials."""
    yield mortal
    await set_password(mortal.bootstrap_servers, USER, PASSWORD)


@pytest.fixture
async def scene(broker: ApacheKafka, tmp_path: Path) -> AsyncIterator[Stage]:
    async with stage(broker.bootstrap_servers, tmp_path) as made:
        made.mount([made.webhook(TENANTS[0])])
        yield made


def _dispatcher(scene: Stage, broker: ApacheKafka, listener: Listener, **security: Any) -> Dispatcher:
    kafka = {"bootstrap_servers": broker.address(listener), "security": {"protocol": listener.protocol, **security}}
    return scene.dispatcher(kafka=kafka)


async def _delivers(scene: Stage, dispatcher: Dispatcher, prefix: str) -> None:
    await scene.produce(TENANTS, 5, prefix)
    await scene.all_accepted(dispatcher, RECOVERS_WITHIN_S)


async def _is_well(dispatcher: Dispatcher) -> bool:
    """A try with the old password may end after the first ones with the new one: all are looked at together."""
    refused = await metric(dispatcher, 'dispatcher_kafka_problem{reason="authentication_refused"}')
    return refused == 0 and await metric(dispatcher, "dispatcher_kafka_available") == 1


@pytest.mark.parametrize("order", ["broker first", pytest.param("file first", marks=pytest.mark.all_faults)])
async def test_a_rotated_password_is_read_without_a_restart(
    scene: Stage, broker: ApacheKafka, tmp_path: Path, order: str
) -> None:
    password = tmp_path / "password"
    password.write_text(PASSWORD)
    security = {"mechanism": "SCRAM-SHA-512", "username": USER, "password": {"file": str(password)}}
    async with _dispatcher(scene, broker, Listener.SASL_PLAINTEXT, **security) as dispatcher:
        dispatcher.start()
        await _delivers(scene, dispatcher, "before")
        if order == "file first":
            password.write_text("rotated\n")
        await set_password(broker.bootstrap_servers, USER, "rotated")
        await broker.restart()
        if order == "broker first":
            await reports(dispatcher, "authentication_refused", f"the password of user {USER} was not accepted")
            password.write_text("rotated\n")
        await _delivers(scene, dispatcher, "after")
        await until(lambda: _is_well(dispatcher), "no problem any more", RECOVERS_WITHIN_S, dispatcher)
    assert await scene.lost() == 0


@pytest.mark.all_faults
async def test_a_password_file_that_disappears_leaves_the_last_good_password_in_use(
    scene: Stage, broker: ApacheKafka, tmp_path: Path
) -> None:
    password = tmp_path / "password"
    password.write_text(PASSWORD)
    security = {"mechanism": "PLAIN", "username": USER, "password": {"file": str(password)}}
    async with _dispatcher(scene, broker, Listener.SASL_PLAINTEXT, **security) as dispatcher:
        dispatcher.start()
        await _delivers(scene, dispatcher, "before")
        password.unlink()
        await broker.restart()
        await _delivers(scene, dispatcher, "after")
        await reports(dispatcher, "credentials_unreadable", str(password), ready=True)
        assert await metric(dispatcher, "dispatcher_kafka_available") == 1
        password.write_text(PASSWORD)
        await broker.restart()
        await _delivers(scene, dispatcher, "repaired")
        await reports_nothing(dispatcher, RECOVERS_WITHIN_S)


@pytest.mark.all_faults
async def test_a_new_authority_and_client_certificate_are_read_without_a_restart(
    scene: Stage, broker: ApacheKafka, tmp_path: Path
) -> None:
    mounted = tmp_path / "kafka-tls"
    mounted.mkdir()
    names = {"ca": "ca.pem", "certificate": "client.pem", "key": "client.key"}

    def mount(*keys: str) -> None:
        for key in keys:
            (mounted / names[key]).write_bytes((broker.directory / names[key]).read_bytes())

    mount(*names)
    security = {key: str(mounted / name) for key, name in names.items()}
    async with _dispatcher(scene, broker, Listener.MTLS, **security) as dispatcher:
        dispatcher.start()
        await _delivers(scene, dispatcher, "before")
        await broker.stop()
        broker.certificates.write()  # a new authority: nothing of the old one is trusted any more, on either side
        await broker.start()
        await reports(dispatcher, "tls_untrusted", "kafka.security.ca")
        mount("ca")
        await reports(dispatcher, "client_certificate_refused", "kafka.security.certificate")
        mount("certificate")  # half of a rotation: this key is another one's
        await reports(dispatcher, "credentials_unreadable", "kafka.security.certificate")
        mount("key")
        await _delivers(scene, dispatcher, "after")
        await reports_nothing(dispatcher, RECOVERS_WITHIN_S)
    assert await scene.lost() == 0
