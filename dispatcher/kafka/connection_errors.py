"""Explains an error of a Kafka client: a reason, and a sentence that names the resource and the cure. Pure.

aiokafka raises the same `KafkaConnectionError` for many causes and hides the cause in the exception chain. The
sizes that are recognised here are the first four bytes of an answer that isn't Kafka's, read as a length.
"""

import asyncio
import errno
import socket
import ssl
from collections.abc import Iterable, Iterator
from dataclasses import dataclass
from typing import Final

from aiokafka import TopicPartition
from aiokafka import errors as kafka_errors

from dispatcher.contract.kafka_problems import KafkaReason
from dispatcher.errors import TokenUnavailable
from dispatcher.kafka.error_codes import GROUP_MAX_SIZE_REACHED, unwrapped

UNSUPPORTED_REQUEST: Final = (NotImplementedError, kafka_errors.IncompatibleBrokerVersion)
"""What aiokafka raises for a request that a broker doesn't support: an old one, or the demo's."""
_MAX_CHAIN: Final = 10
_TLS_ALERT: Final = 0x15
_MAX_ANSWER: Final = 200 * 1024 * 1024
"""Bytes of the largest answer: a larger number isn't a size but text of another protocol."""
_HTTP: Final = int.from_bytes(b"HTTP", "big")
_UNTIMELY: Final = (
    "refused the time of a record: this machine's clock or the brokers' is wrong, or the topic's limits are too narrow "
    "(message.timestamp.after.max.ms and message.timestamp.before.max.ms)"
)

Explanation = tuple[KafkaReason, str]


@dataclass(frozen=True, slots=True)
class Peer:
    """The broker of a connection and how it is reached, for messages about it."""

    address: str
    """`host:port` of one broker, or the bootstrap servers."""
    protocol: str
    """`kafka.security.protocol`."""
    mechanism: str | None = None
    username: str | None = None
    group_id: str = ""
    has_certificate: bool = False

    @property
    def uses_tls(self) -> bool:
        """True if the connection is to be encrypted."""
        return self.protocol.endswith("SSL")


class ExplainedError(kafka_errors.KafkaConnectionError):  # type: ignore[misc]  # aiokafka has no types
    """A failure whose reason is already known."""

    def __init__(self, reason: KafkaReason, detail: str) -> None:
        super().__init__(detail)
        self.reason = reason
        self.detail = detail


def explain_error(error: BaseException, peer: Peer) -> Explanation:
    """Returns the reason for an error that a Kafka client raised, and a sentence without the broker's address."""
    chain = [unwrapped(one) for one in _chain(error)]
    error = chain[-1]  # its causes come before it
    for one in chain:
        if isinstance(one, ExplainedError):
            return one.reason, one.detail
        if isinstance(one, TokenUnavailable):
            return KafkaReason.TOKEN_UNAVAILABLE, f"no token for it: {one}"
    for one in chain:
        for explainer in (_tls, _sasl, _group, _kafka, _network):
            explained = explainer(one, peer)
            if explained is not None:
                return explained
    if any(isinstance(one, asyncio.IncompleteReadError | ConnectionResetError | BrokenPipeError) for one in chain):
        return KafkaReason.UNREACHABLE, "the broker closed the connection"
    if any(isinstance(one, kafka_errors.KafkaConnectionError | kafka_errors.NodeNotReadyError) for one in chain):
        return KafkaReason.UNREACHABLE, "no broker answers"
    if isinstance(error, OSError):
        return KafkaReason.UNREACHABLE, f"no connection ({_os_text(error)})"
    return KafkaReason.UNEXPECTED, f"{type(error).__name__}: {error}"


def missing_permission(peer: Peer, operations: Iterable[str], resource: str) -> str:
    """Returns the sentence about permissions that are missing on `topic NAME` or `group NAME`."""
    names = " and ".join(dict.fromkeys(operations))
    return f"{_user_of(peer)} lacks {names} on {resource}: add the ACL (`dispatcher topics --acls` prints all)"


def _chain(error: BaseException) -> Iterator[BaseException]:
    """Returns the error and its causes, the innermost first: the cause says more."""
    found: list[BaseException] = []
    one: BaseException | None = error
    while one is not None and len(found) < _MAX_CHAIN and one not in found:
        found.append(one)
        one = one.__cause__ or one.__context__
    return reversed(found)


def _tls(error: BaseException, peer: Peer) -> Explanation | None:
    if isinstance(error, ssl.SSLCertVerificationError):
        why = error.verify_message or "certificate verify failed"
        return (
            KafkaReason.TLS_UNTRUSTED,
            f"its certificate is not trusted ({why}): check kafka.security.ca and the name in bootstrap_servers",
        )
    if not isinstance(error, ssl.SSLError):
        return None
    text = (error.reason or str(error)).upper()
    if "WRONG_VERSION_NUMBER" in text or "RECORD_LAYER_FAILURE" in text or "UNEXPECTED_MESSAGE" in text:
        return KafkaReason.PROTOCOL_MISMATCH, _explain_no_tls(peer)
    if "ALERT" in text:
        alert = text.rpartition("ALERT_")[2].replace("_", " ").lower()
        if any(word in text for word in ("CERTIFICATE", "UNKNOWN_CA", "ACCESS_DENIED", "DECRYPT_ERROR")):
            return KafkaReason.CLIENT_CERTIFICATE_REFUSED, _client_certificate(alert, peer)
        if "PROTOCOL_VERSION" in text or "HANDSHAKE_FAILURE" in text:
            return KafkaReason.TLS_FAILED, f"the broker ended the TLS handshake ({alert}): no common version or cipher"
        return KafkaReason.TLS_FAILED, f"the broker ended the TLS connection ({alert})"
    if "EOF" in text:
        return KafkaReason.UNREACHABLE, "the broker closed the connection"
    return KafkaReason.TLS_FAILED, f"the TLS handshake failed ({text.replace('_', ' ').lower()})"


def _client_certificate(alert: str, peer: Peer) -> str:
    if peer.has_certificate:
        return f"the client certificate was not accepted ({alert}): check kafka.security.certificate and key"
    return f"it demands a client certificate ({alert}): set kafka.security.certificate and key"


def _explain_no_tls(peer: Peer) -> str:
    plain = "SASL_PLAINTEXT" if peer.protocol == "SASL_SSL" else "PLAINTEXT"
    return (
        f"the port does not speak TLS: kafka.security.protocol is {peer.protocol}; "
        f"use the broker's TLS port, or protocol {plain}"
    )


def _sasl(error: BaseException, peer: Peer) -> Explanation | None:
    if isinstance(error, kafka_errors.UnsupportedSaslMechanismError):
        return (
            KafkaReason.MECHANISM_UNSUPPORTED,
            f"it does not offer SASL mechanism {peer.mechanism}: set kafka.security.mechanism to one of the listener's",
        )
    if isinstance(error, kafka_errors.IllegalSaslStateError):
        without = "SSL" if peer.uses_tls else "PLAINTEXT"
        return (
            KafkaReason.PROTOCOL_MISMATCH,
            f"the port does not use SASL: kafka.security.protocol is {peer.protocol}; use its SASL port, or {without}",
        )
    if isinstance(error, kafka_errors.SaslAuthenticationFailed | kafka_errors.AuthenticationFailedError):
        what = "token" if peer.mechanism == "OAUTHBEARER" else "password"
        of = f" of user {peer.username}" if peer.username else ""
        return KafkaReason.AUTHENTICATION_REFUSED, f"the {what}{of} was not accepted ({peer.mechanism})"
    return None


def _kafka(error: BaseException, peer: Peer) -> Explanation | None:
    match error:
        case kafka_errors.TopicAuthorizationFailedError():
            topics = _topic_names(error) or "a topic"
            return KafkaReason.PERMISSION_MISSING, f"{_user_of(peer)} has no permission for topic {topics}: add its ACL"
        case kafka_errors.ClusterAuthorizationFailedError():
            return (
                KafkaReason.PERMISSION_MISSING,
                f"{_user_of(peer)} has no permission on the cluster for this: to write, allow WRITE on the group's "
                "topics, and IDEMPOTENT_WRITE on the cluster before Kafka 2.8; to create topics, CREATE",
            )
        case kafka_errors.LeaderNotAvailableError():
            return KafkaReason.PARTITION_OFFLINE, "no broker leads the partitions: those with their replicas are away"
        case kafka_errors.UnknownTopicOrPartitionError():
            topics = _topic_names(error)
            return KafkaReason.TOPIC_MISSING, f"topic {topics} does not exist" if topics else "a topic does not exist"
        case kafka_errors.InvalidTimestampError():
            return KafkaReason.CLOCK, f"the broker {_UNTIMELY}"
        case kafka_errors.NotEnoughReplicasError() | kafka_errors.NotEnoughReplicasAfterAppendError():
            return KafkaReason.WRITE_REFUSED, "fewer replicas are in sync than the topic's min.insync.replicas"
        case kafka_errors.OffsetMetadataTooLargeError():
            return KafkaReason.COMMIT_REFUSED, "the broker's offset.metadata.max.bytes is too small for commits"
        case kafka_errors.RequestTimedOutError() | kafka_errors.KafkaTimeoutError():
            return KafkaReason.UNREACHABLE, "no answer in time"
        case _:
            return None


def _group(error: BaseException, peer: Peer) -> Explanation | None:
    group = peer.group_id or "the consumer group"
    match error:
        case kafka_errors.GroupAuthorizationFailedError():
            return KafkaReason.PERMISSION_MISSING, missing_permission(peer, ("READ",), f"group {group}")
        case kafka_errors.InconsistentGroupProtocolError():
            return (
                KafkaReason.GROUP_PROTOCOL,
                f"group {group} has members that use another protocol, or is of another type (share, streams), which "
                "it keeps without members: another program uses this kafka.group_id; choose another, or delete it",
            )
        case kafka_errors.InvalidSessionTimeoutError():
            return (
                KafkaReason.GROUP_PROTOCOL,
                "the broker refuses kafka.session_timeout: keep it within its group.(min|max).session.timeout.ms",
            )
        case kafka_errors.InvalidGroupIdError():
            return KafkaReason.GROUP_PROTOCOL, f"the broker refuses the group id {group}: change kafka.group_id"
        case kafka_errors.BrokerResponseError(errno=code) if code == GROUP_MAX_SIZE_REACHED:
            return (
                KafkaReason.GROUP_PROTOCOL,
                f"group {group} has as many members as the brokers' group.max.size allows: raise it, or run fewer",
            )
        case kafka_errors.GroupCoordinatorNotAvailableError() | kafka_errors.NotCoordinatorForGroupError():
            return KafkaReason.COORDINATOR_UNAVAILABLE, f"no broker coordinates group {group} at the moment"
        case kafka_errors.GroupLoadInProgressError():
            return KafkaReason.COORDINATOR_UNAVAILABLE, f"the coordinator of group {group} still loads it"
        case _:
            return None


def _network(error: BaseException, peer: Peer) -> Explanation | None:
    match error:
        case socket.gaierror():
            return KafkaReason.NAME_NOT_FOUND, f"the name can't be resolved ({error.strerror or error})"
        case asyncio.IncompleteReadError(expected=int(size)) if size > 4:
            if size >> 24 == _TLS_ALERT:
                secure = "SASL_SSL" if peer.protocol.startswith("SASL") else "SSL"
                return (
                    KafkaReason.PROTOCOL_MISMATCH,
                    f"the port expects TLS: kafka.security.protocol is {peer.protocol}; set it to {secure}",
                )
            if size > _MAX_ANSWER:
                what = "HTTP" if size == _HTTP else "something other than Kafka"
                return KafkaReason.PROTOCOL_MISMATCH, f"the port speaks {what}: check kafka.bootstrap_servers"
            return None
        case ConnectionRefusedError():
            return KafkaReason.UNREACHABLE, "nothing listens there (connection refused)"
        case TimeoutError():
            return KafkaReason.UNREACHABLE, "no answer in time"
        case OSError() if error.errno in (errno.EHOSTUNREACH, errno.ENETUNREACH):
            return KafkaReason.UNREACHABLE, f"no route to it ({_os_text(error)})"
        case _:
            return None


def _topic_names(error: BaseException) -> str:
    """Returns the topics that aiokafka put into the exception: a name, a partition, or a collection of either."""
    first = error.args[0] if error.args else None
    if isinstance(first, str):
        return first
    if isinstance(first, TopicPartition):  # a tuple itself
        return str(first.topic)
    if not isinstance(first, set | frozenset | list | tuple):
        return ""
    return ", ".join(sorted({one.topic if isinstance(one, TopicPartition) else str(one) for one in first}))


def _user_of(peer: Peer) -> str:
    return f"user {peer.username}" if peer.username else "the client"


def _os_text(error: OSError) -> str:
    return (error.strerror or str(error) or type(error).__name__)[:200]
