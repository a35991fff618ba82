"""What an error of a Kafka client means. The same errors from a real broker are in tests/field."""

import asyncio
import socket
import ssl

import pytest
from aiokafka import TopicPartition, errors

import dispatcher.kafka.connection  # noqa: F401  (registers the errors that aiokafka doesn't know)
from dispatcher.contract.kafka_problems import KafkaReason
from dispatcher.errors import TokenUnavailable
from dispatcher.kafka.connection_errors import ExplainedError, Peer, explain_error

SASL = Peer("kafka:9093", "SASL_SSL", "SCRAM-SHA-512", "dispatcher", "group")
PLAIN = Peer("kafka:9092", "PLAINTEXT", group_id="group")
MTLS = Peer("kafka:9094", "SSL", has_certificate=True)


def _closed_because_of(cause: BaseException) -> errors.KafkaConnectionError:
    error = errors.KafkaConnectionError("Connection at kafka:9092 closed")
    error.__cause__ = cause
    return error


def _alert(name: str) -> ssl.SSLError:
    error = ssl.SSLError(1, f"[SSL: {name}] (_ssl.c:1)")
    error.reason = name
    return error


CASES = [
    (errors.SaslAuthenticationFailed("x"), SASL, "authentication_refused", "the password of user dispatcher was not accepted (SCRAM-SHA-512)"),
    (errors.SaslAuthenticationFailed("x"), Peer("k", "SASL_SSL", "OAUTHBEARER"), "authentication_refused", "the token was not accepted (OAUTHBEARER)"),
    (errors.UnsupportedSaslMechanismError("x"), SASL, "mechanism_unsupported", "SCRAM-SHA-512"),
    (errors.IllegalSaslStateError("x"), SASL, "protocol_mismatch", "does not use SASL"),
    (_closed_because_of(asyncio.IncompleteReadError(b"\x02\x02\x50", 0x15030300)), PLAIN, "protocol_mismatch", "expects TLS"),
    (_closed_because_of(asyncio.IncompleteReadError(b"/1.1", 0x48545450)), PLAIN, "protocol_mismatch", "HTTP"),
    (_closed_because_of(asyncio.IncompleteReadError(b"2.0", 0x5353482D)), PLAIN, "protocol_mismatch", "other than Kafka"),
    (_closed_because_of(asyncio.IncompleteReadError(b"", 4)), PLAIN, "unreachable", "closed the connection"),
    (_closed_because_of(_alert("SSLV3_ALERT_BAD_CERTIFICATE")), MTLS, "client_certificate_refused", "was not accepted (bad certificate)"),
    (_closed_because_of(_alert("TLSV13_ALERT_CERTIFICATE_REQUIRED")), Peer("k", "SSL"), "client_certificate_refused", "it demands a client certificate"),
    (_alert("TLSV1_ALERT_PROTOCOL_VERSION"), MTLS, "tls_failed", "protocol version"),
    (_alert("WRONG_VERSION_NUMBER"), MTLS, "protocol_mismatch", "does not speak TLS"),
    (ConnectionRefusedError(111, "Connection refused"), PLAIN, "unreachable", "nothing listens"),
    (socket.gaierror(-2, "Name or service not known"), PLAIN, "name_not_found", "can't be resolved"),
    (TimeoutError(), PLAIN, "unreachable", "no answer in time"),
    (errors.RequestTimedOutError(), PLAIN, "unreachable", "no answer in time"),
    (errors.TopicAuthorizationFailedError("events"), SASL, "permission_missing", "user dispatcher has no permission for topic events"),
    (errors.TopicAuthorizationFailedError({"b", "a"}), SASL, "permission_missing", "topic a, b"),
    (errors.TopicAuthorizationFailedError(TopicPartition("events", 3)), SASL, "permission_missing", "permission for topic events:"),
    (errors.TopicAuthorizationFailedError([TopicPartition("b", 0), TopicPartition("b", 1), TopicPartition("a", 0)]), SASL, "permission_missing", "topic a, b:"),
    (errors.GroupAuthorizationFailedError("group"), SASL, "permission_missing", "READ on group group"),
    (errors.ClusterAuthorizationFailedError(), SASL, "permission_missing", "allow WRITE on the group's topics"),
    (errors.UnknownTopicOrPartitionError(), PLAIN, "topic_missing", "does not exist"),
    (errors.InconsistentGroupProtocolError(), PLAIN, "group_protocol", "another program"),
    (errors.InvalidSessionTimeoutError(), PLAIN, "group_protocol", "kafka.session_timeout"),
    (errors.GroupCoordinatorNotAvailableError(), PLAIN, "coordinator_unavailable", "group group"),
    (errors.GroupLoadInProgressError(), PLAIN, "coordinator_unavailable", "group group"),
    (errors.for_code(81)(), PLAIN, "group_protocol", "group.max.size"),
    (errors.KafkaError(repr(errors.for_code(81)())), PLAIN, "group_protocol", "group.max.size"),
    (errors.KafkaError(repr(errors.InvalidGroupIdError("x"))), PLAIN, "group_protocol", "refuses the group id"),
    (errors.KafkaError(repr(errors.for_code(89)())), PLAIN, "unexpected", "ThrottlingQuotaExceeded"),
    (errors.KafkaError("Strange()"), PLAIN, "unexpected", "Strange()"),
    (errors.OffsetMetadataTooLargeError(), PLAIN, "commit_refused", "offset.metadata.max.bytes"),
    (errors.KafkaConnectionError("Unable to bootstrap from []"), PLAIN, "unreachable", "no broker answers"),
    (OSError(113, "No route to host"), PLAIN, "unreachable", "no route"),
    (errors.InvalidTopicError("what"), PLAIN, "unexpected", "InvalidTopicError"),
    (_closed_because_of(TokenUnavailable("token endpoint sso answered 401")), SASL, "token_unavailable", "sso answered 401"),
    (_closed_because_of(ExplainedError(KafkaReason.PROTOCOL_MISMATCH, "as found out")), PLAIN, "protocol_mismatch", "as found out"),
]  # fmt: skip


@pytest.mark.parametrize(("error", "peer", "reason", "says"), CASES, ids=lambda value: str(value)[:40])
def test_an_error_is_named(error: Exception, peer: Peer, reason: str, says: str) -> None:
    found, detail = explain_error(error, peer)
    assert (found, says in detail) == (reason, True), detail
    assert detail.isprintable()


def test_a_certificate_that_is_not_trusted_says_why() -> None:
    error = ssl.SSLCertVerificationError(1, "[SSL: CERTIFICATE_VERIFY_FAILED] certificate verify failed")
    error.verify_message = "certificate has expired"
    assert explain_error(_closed_because_of(error), MTLS) == (
        KafkaReason.TLS_UNTRUSTED,
        "its certificate is not trusted (certificate has expired): check kafka.security.ca and the name in "
        "bootstrap_servers",
    )


def test_a_chain_that_bites_its_tail_ends() -> None:
    one, other = OSError("one"), OSError("other")
    one.__cause__, other.__cause__ = other, one
    assert explain_error(one, PLAIN)[0] == KafkaReason.UNREACHABLE
