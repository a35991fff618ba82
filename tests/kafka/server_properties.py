"""Builds the `server.properties` of `ApacheKafka` from its options. Pure: no I/O."""

from collections.abc import Mapping
from dataclasses import dataclass, field
from enum import StrEnum
from pathlib import Path


class Listener(StrEnum):
    """The ways into the broker. PLAINTEXT is always there and is always the administrator (`User:ANONYMOUS`)."""

    PLAINTEXT = "PLAINTEXT"
    SSL = "SSL"
    MTLS = "MTLS"
    """SSL that demands a client certificate."""
    SASL_PLAINTEXT = "SASL_PLAINTEXT"
    SASL_SSL = "SASL_SSL"

    @property
    def protocol(self) -> str:
        """Value of a client's `security_protocol`."""
        return "SSL" if self is Listener.MTLS else str(self)

    @property
    def tls(self) -> bool:
        """True if the connection is encrypted."""
        return self.protocol.endswith("SSL")

    @property
    def sasl(self) -> bool:
        """True if the client authenticates with a name and a password."""
        return self.protocol.startswith("SASL")


class Mechanism(StrEnum):
    """How a password is proved on the SASL listeners; each works for every user."""

    PLAIN = "PLAIN"
    SCRAM_SHA_256 = "SCRAM-SHA-256"
    SCRAM_SHA_512 = "SCRAM-SHA-512"


SCRAM = (Mechanism.SCRAM_SHA_256, Mechanism.SCRAM_SHA_512)


@dataclass(frozen=True, slots=True, kw_only=True)
class KafkaOptions:
    """How a broker is set up. The defaults give the smallest one: PLAINTEXT, everybody may do everything."""

    listeners: frozenset[Listener] = frozenset()
    """Ways in besides PLAINTEXT."""
    users: Mapping[str, str] = field(default_factory=dict)
    """Passwords by user name, for the SASL listeners. Neither may contain `"`, `,` or `]`."""
    authorizer: bool = False
    """Whether ACLs are obeyed. A topic without any is open to all; `ApacheKafka.deny` closes one."""
    auto_create_topics: bool = True
    """Whether naming an unknown topic, to write or to read, creates it."""
    partitions: int = 4
    """Of a topic that is created without saying how many, at least 1."""
    message_max_bytes: int = 1_048_588
    """The largest batch of records that is accepted, in bytes after compression. Kafka's own default."""
    heap_mb: int = 512
    """Java's -Xmx, in MiB. Kafka does not start below about 200: the log cleaner alone takes 128."""
    node: int = 1
    """The broker's id; different for each node of a cluster."""
    controller: str | None = None
    """`host:port` of the controller of another node, whose cluster this broker joins; None: it is its own controller."""
    cluster_id: str | None = None
    """The same for all nodes of a cluster; None: a random one."""
    extra: Mapping[str, str] = field(default_factory=dict)
    """Lines of server.properties that win over all others."""
    java_flags: tuple[str, ...] = ()
    """Further arguments for Java, such as system properties."""


@dataclass(frozen=True, slots=True)
class PemFiles:
    """The broker's identity, and the authority whose client certificates it accepts."""

    keystore: Path
    truststore: Path


def server_properties(
    options: KafkaOptions,
    *,
    ports: Mapping[Listener, int],
    controller_port: int,
    data: Path,
    pem: PemFiles,
) -> str:
    """Returns the text of server.properties. Files in `pem` are named only if a listener needs them."""
    lines = _node(options, ports, controller_port, data) | _small() | _policy(options)
    if any(listener.tls for listener in ports):
        lines |= _tls(pem)
    for listener in ports:
        if listener.sasl:
            lines |= _sasl(listener, options.users)
    lines |= options.extra
    return "".join(f"{key}={value}\n" for key, value in lines.items())


def _node(options: KafkaOptions, ports: Mapping[Listener, int], controller_port: int, data: Path) -> dict[str, str]:
    addresses = ",".join(f"{listener}://127.0.0.1:{port}" for listener, port in ports.items())
    protocols = ",".join(f"{listener}:{listener.protocol}" for listener in ports)
    own = f"127.0.0.1:{controller_port}"
    return {
        "process.roles": "broker" if options.controller else "broker,controller",
        "node.id": str(options.node),
        "controller.quorum.voters": f"1@{options.controller or own}",
        "controller.listener.names": "CONTROLLER",
        "listeners": addresses if options.controller else f"{addresses},CONTROLLER://{own}",
        "advertised.listeners": addresses,
        "listener.security.protocol.map": f"{protocols},CONTROLLER:PLAINTEXT",
        "inter.broker.listener.name": "PLAINTEXT",
        "log.dirs": str(data),
    }


def _small() -> dict[str, str]:
    """Returns settings for one node: one replica, few internal partitions, no wait for a group's second member."""
    return {
        "default.replication.factor": "1",
        "offsets.topic.replication.factor": "1",
        "offsets.topic.num.partitions": "2",
        "transaction.state.log.replication.factor": "1",
        "transaction.state.log.min.isr": "1",
        "transaction.state.log.num.partitions": "1",
        "share.coordinator.state.topic.replication.factor": "1",
        "share.coordinator.state.topic.min.isr": "1",
        "share.coordinator.state.topic.num.partitions": "1",
        "group.initial.rebalance.delay.ms": "0",
        "group.min.session.timeout.ms": "500",
        "group.max.session.timeout.ms": "1200000",
        "connection.failed.authentication.delay.ms": "10",
        # A killed broker may only come back when the controller has given up the old one: 9 s by default.
        "broker.session.timeout.ms": "2000",
        "broker.heartbeat.interval.ms": "400",
    }


def _policy(options: KafkaOptions) -> dict[str, str]:
    lines = {
        "auto.create.topics.enable": str(options.auto_create_topics).lower(),
        "num.partitions": str(options.partitions),
        "message.max.bytes": str(options.message_max_bytes),
    }
    if options.authorizer:
        lines["authorizer.class.name"] = "org.apache.kafka.metadata.authorizer.StandardAuthorizer"
        lines["super.users"] = "User:ANONYMOUS"
        lines["allow.everyone.if.no.acl.found"] = "true"
    return lines


def _tls(pem: PemFiles) -> dict[str, str]:
    return {
        "ssl.keystore.type": "PEM",
        "ssl.keystore.location": str(pem.keystore),
        "ssl.truststore.type": "PEM",
        "ssl.truststore.location": str(pem.truststore),
        "listener.name.mtls.ssl.client.auth": "required",
    }


def _sasl(listener: Listener, users: Mapping[str, str]) -> dict[str, str]:
    prefix = f"listener.name.{listener.lower()}"
    passwords = " ".join(f'user_{name}="{password}"' for name, password in users.items())
    plain = f"org.apache.kafka.common.security.plain.PlainLoginModule required {passwords};"
    scram = "org.apache.kafka.common.security.scram.ScramLoginModule required;"  # its passwords are in the metadata log
    return {
        f"{prefix}.sasl.enabled.mechanisms": ",".join(Mechanism),
        f"{prefix}.plain.sasl.jaas.config": plain,
        **{f"{prefix}.{mechanism.lower()}.sasl.jaas.config": scram for mechanism in SCRAM},
    }
