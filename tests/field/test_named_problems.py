"""Every trouble with Kafka is named: in the log, in /readyz, in the metrics, and in what commands exit with."""

from collections.abc import AsyncIterator, Callable
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import pytest
import trustme

from dispatcher.kafka.topics import held_topic
from tests.commands.running import called
from tests.commands.running import dispatcher as command
from tests.field.readiness import kafka_reasons, log_lines, metric, readiness, reports, reports_nothing
from tests.integration.brokers import PASSWORD, USER, needs_kafka
from tests.integration.harness import Dispatcher, Stage, at_first, stage, status, tenants
from tests.integration.impatient import impatient
from tests.kafka import topics
from tests.kafka.acls import Operation
from tests.kafka.apache_kafka import ApacheKafka
from tests.kafka.server_properties import Listener

pytestmark = [needs_kafka, pytest.mark.timeout(300)]

TENANTS = tenants(1)


@pytest.fixture
def broker(mortal: ApacheKafka) -> ApacheKafka:
    return mortal


@pytest.fixture
async def scene(broker: ApacheKafka, tmp_path: Path) -> AsyncIterator[Stage]:
    async with stage(broker.bootstrap_servers, tmp_path) as made:
        made.mount([made.webhook(TENANTS[0])])
        (tmp_path / "password").write_text(PASSWORD)
        (tmp_path / "wrong").write_text("not the password")
        (tmp_path / "kafka-ca.pem").write_bytes(broker.certificates.ca.read_bytes())
        trustme.CA().cert_pem.write_to_path(str(tmp_path / "other-ca.pem"))
        yield made


@dataclass(frozen=True)
class Trouble:
    """Settings that don't fit the broker, and the report that each must cause."""

    name: str
    listener: Listener | None
    security: dict[str, Any]
    reason: str
    says: str
    address: str = ""
    sasl: dict[str, Any] = field(default_factory=dict)


def _sasl(password: str = "password", mechanism: str = "SCRAM-SHA-512") -> dict[str, Any]:
    return {"mechanism": mechanism, "username": USER, "password": {"file": password}}


TROUBLES = [
    Trouble(
        "a wrong password",
        Listener.SASL_PLAINTEXT,
        {"protocol": "SASL_PLAINTEXT", **_sasl("wrong")},
        "authentication_refused",
        f"the password of user {USER} was not accepted (SCRAM-SHA-512)",
    ),
    Trouble(
        "a wrong password for PLAIN over TLS",
        Listener.SASL_SSL,
        {"protocol": "SASL_SSL", "ca": "kafka-ca.pem", **_sasl("wrong", "PLAIN")},
        "authentication_refused",
        f"the password of user {USER} was not accepted (PLAIN)",
    ),
    Trouble("plaintext to a TLS port", Listener.SSL, {"protocol": "PLAINTEXT"}, "protocol_mismatch", "expects TLS"),
    Trouble(
        "TLS to a plaintext port",
        Listener.PLAINTEXT,
        {"protocol": "SSL", "ca": "kafka-ca.pem"},
        "protocol_mismatch",
        "does not speak TLS",
    ),
    Trouble(
        "no authentication on a SASL port",
        Listener.SASL_PLAINTEXT,
        {"protocol": "PLAINTEXT"},
        "protocol_mismatch",
        "the port wants SASL",
    ),
    Trouble(
        "authentication on a port without SASL",
        Listener.SSL,
        {"protocol": "SASL_SSL", "ca": "kafka-ca.pem", **_sasl()},
        "protocol_mismatch",
        "does not use SASL",
    ),
    Trouble(
        "an untrusted certificate",
        Listener.SSL,
        {"protocol": "SSL", "ca": "other-ca.pem"},
        "tls_untrusted",
        "check kafka.security.ca",
    ),
    Trouble(
        "no client certificate",
        Listener.MTLS,
        {"protocol": "SSL", "ca": "kafka-ca.pem"},
        "client_certificate_refused",
        "it demands a client certificate",
    ),
    Trouble("a name that is none", None, {}, "name_not_found", "can't be resolved", "no-such-host.invalid:9092"),
    Trouble("a port without a listener", None, {}, "unreachable", "nothing listens there", "127.0.0.1:9"),
]


QUICK = ("an untrusted certificate",)
CASES = [
    pytest.param(one, id=one.name, marks=[] if one.name in QUICK else [pytest.mark.all_faults]) for one in TROUBLES
]


@pytest.mark.parametrize("trouble", CASES)
async def test_trouble_with_a_connection_is_named(scene: Stage, broker: ApacheKafka, trouble: Trouble) -> None:
    address = trouble.address or broker.address(trouble.listener or Listener.PLAINTEXT)
    async with scene.dispatcher(kafka={"bootstrap_servers": address, "security": trouble.security}) as dispatcher:
        dispatcher.start()
        await reports(dispatcher, trouble.reason, trouble.says)
        assert f"kafka at {address}: " in (await kafka_reasons(dispatcher))[trouble.reason]
        assert await dispatcher.answers("/livez")
        for arguments in (("check", "--kafka"), ("topics", "--create"), ("redrive", "--dry-run")):
            ran = await command(*arguments, "-c", dispatcher.path)
            assert ran.status == 1, (arguments, ran)
            assert f"kafka at {address}: " in ran.err, (arguments, ran)
            assert trouble.says in ran.err, (arguments, ran)
            assert "Traceback" not in ran.err, (arguments, ran)
        lines = [line for line in log_lines(dispatcher) if line.get("level") in ("warning", "error")]
        assert len(lines) <= 12, lines  # quiet: the client library alone would have written hundreds
        dispatcher.kill9()


def _as_user(scene: Stage, broker: ApacheKafka, history: dict[str, Any] | None = None, **kafka: Any) -> Dispatcher:
    address = broker.address(Listener.SASL_PLAINTEXT)
    dispatcher = scene.dispatcher(
        kafka={"bootstrap_servers": address, "security": {"protocol": "SASL_PLAINTEXT", **_sasl()}, **kafka},
        history=history or {},
    )
    dispatcher.program = impatient({"dispatcher.kafka.probe:EVERY_S": 2.0})
    return dispatcher


async def _delivers(scene: Stage, dispatcher: Dispatcher, prefix: str) -> None:
    await scene.produce(TENANTS, 5, prefix)
    await scene.all_accepted(dispatcher)
    await reports_nothing(dispatcher, 60)


async def _check_says(dispatcher: Dispatcher, says: str) -> None:
    checked = await called("check", "--kafka", "-c", dispatcher.path)
    assert (checked.status, says in checked.err) == (1, True), checked


@dataclass(frozen=True)
class Permission:
    """An operation that the user loses, on one of the dispatcher's resources."""

    operation: Operation
    resource: str
    name: Callable[[Stage], str]
    says: str = ""

    def __str__(self) -> str:
        return f"{self.operation.name} on {self.resource}"


PERMISSIONS = [
    Permission(Operation.READ, "topic", lambda scene: scene.topic),
    Permission(Operation.DESCRIBE, "topic", lambda scene: scene.topic),
    Permission(Operation.WRITE, "topic", lambda scene: scene.dead_topic),
    Permission(Operation.READ, "topic", lambda scene: scene.tier_topics[0]),
    Permission(Operation.WRITE, "topic", lambda scene: scene.tier_topics[1]),
    Permission(Operation.READ, "group", lambda scene: scene.group_id),
    Permission(Operation.READ, "group", lambda scene: f"{scene.group_id}.retry"),
    Permission(Operation.READ, "group", lambda scene: f"{scene.group_id}.held"),
    Permission(Operation.READ, "topic", lambda scene: held_topic(scene.prefix)),
    Permission(Operation.WRITE, "topic", lambda scene: held_topic(scene.prefix)),
]
QUICK_PERMISSION = (PERMISSIONS[0], "while running")
ALL_FAULTS = pytest.mark.all_faults


@pytest.mark.parametrize(
    ("lost", "when"),
    [
        pytest.param(lost, when, id=f"{lost} {when}", marks=[] if (lost, when) == QUICK_PERMISSION else ALL_FAULTS)
        for lost in PERMISSIONS
        for when in ("at the start", "while running")
    ],
)
async def test_a_missing_permission_is_named_and_its_return_is_noticed(
    scene: Stage, broker: ApacheKafka, lost: Permission, when: str
) -> None:
    name = lost.name(scene)
    async with _as_user(scene, broker) as dispatcher:
        if when == "while running":
            dispatcher.start()
            await _delivers(scene, dispatcher, "before")
        await broker.deny(USER, lost.operation, name, lost.resource)
        try:
            if when == "at the start":
                dispatcher.start()
            await reports(dispatcher, "permission_missing", f"user {USER} lacks")
            detail = (await kafka_reasons(dispatcher))["permission_missing"]
            assert lost.operation.name in detail, detail
            assert f"{lost.resource} {name}" in detail, detail
            await _check_says(dispatcher, f"{lost.resource} {name}")
        finally:
            await broker.permit(USER, lost.operation, name, lost.resource)
        await _delivers(scene, dispatcher, "after")
    assert await scene.lost() == 0


HISTORY_PERMISSIONS = [
    (Operation.READ, "group"),
    pytest.param(Operation.READ, "topic", marks=ALL_FAULTS),
    pytest.param(Operation.WRITE, "topic", marks=ALL_FAULTS),
]


@pytest.mark.parametrize(("operation", "resource"), HISTORY_PERMISSIONS)
async def test_a_permission_that_only_the_history_lacks_is_named_and_stops_no_delivery(
    scene: Stage, broker: ApacheKafka, operation: Operation, resource: str
) -> None:
    name = f"{scene.group_id}.history"
    await topics.create_topic(broker.bootstrap_servers, name, partitions=4)
    url = scene.directory / "history-url"
    url.write_text(f"sqlite+aiosqlite:///{scene.directory / 'history.db'}")
    async with _as_user(scene, broker, history={"url": {"file": str(url)}}) as dispatcher:
        await broker.deny(USER, operation, name, resource)
        try:
            dispatcher.start()
            await reports(dispatcher, "topic_configuration", f"user {USER} lacks", ready=True)
            detail = (await kafka_reasons(dispatcher))["topic_configuration"]
            assert operation.name in detail, detail
            assert f"{resource} {name}" in detail, detail
            await _check_says(dispatcher, f"{resource} {name}")
            await scene.produce(TENANTS, 5, "meanwhile")
            await scene.all_accepted(dispatcher)
            assert await dispatcher.answers("/readyz")
        finally:
            await broker.permit(USER, operation, name, resource)
        await _delivers(scene, dispatcher, "after")
    assert await scene.lost() == 0


@pytest.mark.all_faults
@pytest.mark.parametrize("when", ["at the start", "while running"])
async def test_a_user_that_may_write_no_topic_is_named_and_goes_on_once_it_may(
    scene: Stage, broker: ApacheKafka, when: str
) -> None:
    """Kafka then gives the user no producer id either, and answers that the cluster is forbidden."""
    scene.receiver.behave(f"/{TENANTS[0].org}", at_first(status(503)))
    async with _as_user(scene, broker) as dispatcher:
        if when == "while running":
            dispatcher.start()
            await _delivers(scene, dispatcher, "before")
        await broker.deny(USER, Operation.WRITE, "*")
        try:
            if when == "at the start":
                dispatcher.start()
            await scene.produce(TENANTS, 8, "denied")  # too few for the breaker
            await reports(dispatcher, "permission_missing", f"user {USER} ")
            assert await scene.dead() == {}
        finally:
            await broker.permit(USER, Operation.WRITE, "*")
        await scene.all_accepted(dispatcher)
        await reports_nothing(dispatcher, 90)
    assert await scene.lost() == 0


@pytest.mark.parametrize(
    "which",
    ["events", *(pytest.param(name, marks=pytest.mark.all_faults) for name in ("retry tier", "dead letters"))],
)
async def test_a_missing_topic_is_named_and_its_creation_is_noticed(
    scene: Stage, broker: ApacheKafka, which: str
) -> None:
    name = {"events": scene.topic, "retry tier": scene.tier_topics[0], "dead letters": scene.dead_topic}[which]
    await topics.delete_topic(broker.bootstrap_servers, name)
    async with _as_user(scene, broker) as dispatcher:
        dispatcher.start()
        await reports(dispatcher, "topic_missing", f"topic {name} does not exist")
        await _check_says(dispatcher, f"topic {name} does not exist")
        await topics.create_topic(broker.bootstrap_servers, name, partitions=4)
        await _delivers(scene, dispatcher, "after")


@pytest.mark.all_faults
async def test_a_group_that_another_program_uses_is_named(scene: Stage, broker: ApacheKafka) -> None:
    other = topics.member_with_another_protocol(broker.bootstrap_servers, scene.topic, scene.group_id)
    async with _as_user(scene, broker, group_instance_id=None) as dispatcher:
        async with other:
            dispatcher.start()
            await reports(dispatcher, "group_protocol", f"group {scene.group_id}")
        await _delivers(scene, dispatcher, "after")


@pytest.mark.all_faults
async def test_a_session_timeout_that_the_broker_refuses_is_named(scene: Stage, broker: ApacheKafka) -> None:
    async with _as_user(scene, broker, session_timeout="30m") as dispatcher:
        dispatcher.start()
        await reports(dispatcher, "group_protocol", "kafka.session_timeout")
        dispatcher.kill9()


@pytest.mark.all_faults
async def test_a_hanging_broker_is_named_within_half_a_minute_and_noticed_when_it_goes_on(
    scene: Stage, broker: ApacheKafka
) -> None:
    async with _as_user(scene, broker) as dispatcher:
        dispatcher.start()
        await _delivers(scene, dispatcher, "before")
        broker.pause()
        try:
            await reports(dispatcher, "unreachable", "no answer in time", timeout_s=60)
            status, checks = await readiness(dispatcher)
            assert status == 503, checks
            assert await metric(dispatcher, "dispatcher_kafka_available") == 0
            assert await dispatcher.answers("/livez")
        finally:
            broker.resume()
        await _delivers(scene, dispatcher, "after")
        assert await metric(dispatcher, "dispatcher_kafka_available") == 1
    assert await scene.lost() == 0


@pytest.mark.all_faults
async def test_a_ca_file_that_is_not_pem_is_a_mistake_in_the_settings(
    scene: Stage, broker: ApacheKafka, tmp_path: Path
) -> None:
    (tmp_path / "junk.pem").write_text("not a certificate\n")
    security = {"protocol": "SSL", "ca": "junk.pem"}
    async with scene.dispatcher(
        kafka={"bootstrap_servers": broker.address(Listener.SSL), "security": security}
    ) as dispatcher:
        for arguments in (("check",), ("check", "--kafka"), ("run",)):
            ran = await command(*arguments, "-c", dispatcher.path)
            assert ran.status == 78, (arguments, ran)
            assert "kafka.security.ca" in ran.err, (arguments, ran)
            assert "is not a bundle of certificates in PEM" in ran.err, (arguments, ran)
