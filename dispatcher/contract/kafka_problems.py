"""The closed set of reasons why Kafka doesn't do what the dispatcher needs: label values, readiness and log fields."""

from enum import StrEnum
from typing import Final


class KafkaReason(StrEnum):
    """Why something that needs Kafka doesn't work. `docs/kafka-problems.md` has a row for each."""

    UNREACHABLE = "unreachable"
    """No broker answers: refused, timed out, or hanging."""
    BROKER_UNREACHABLE = "broker_unreachable"
    """One of several brokers can't be reached, or not at the address that the cluster gives; the others answer."""
    NAME_NOT_FOUND = "name_not_found"
    """A broker's name doesn't resolve."""
    BROKERS_MOVED = "brokers_moved"
    """No known broker answered for 30 s; the client looks the new ones up at the bootstrap servers (KIP-899)."""
    PROTOCOL_MISMATCH = "protocol_mismatch"
    """The port speaks something other than `kafka.security.protocol`: plaintext to a TLS port, SASL missing, HTTP."""
    TLS_UNTRUSTED = "tls_untrusted"
    """The broker's certificate can't be verified: unknown authority, expired, wrong name."""
    TLS_FAILED = "tls_failed"
    """The TLS handshake failed for another reason: no common version or cipher."""
    CLIENT_CERTIFICATE_REFUSED = "client_certificate_refused"
    """The broker doesn't accept the client certificate, or demands one and got none."""
    AUTHENTICATION_REFUSED = "authentication_refused"
    """The broker doesn't accept the password or the token."""
    MECHANISM_UNSUPPORTED = "mechanism_unsupported"
    """The broker doesn't offer the SASL mechanism."""
    CREDENTIALS_UNREADABLE = "credentials_unreadable"
    """A file with a password, certificate, key or CA can't be used; the last good one stays in use."""
    TOKEN_UNAVAILABLE = "token_unavailable"
    """The token endpoint gives no token for OAUTHBEARER."""
    PERMISSION_MISSING = "permission_missing"
    """An ACL is missing; the detail names operation and resource."""
    TOPIC_MISSING = "topic_missing"
    """A topic that the dispatcher reads or writes doesn't exist."""
    TOPIC_REPLACED = "topic_replaced"
    """A partition's log is another one than before: recreated, truncated, or lost and grown again."""
    RECORDS_EXPIRED = "records_expired"
    """Retention removed records that were not read yet."""
    RECORDS_UNREADABLE = "records_unreadable"
    """A partition's next records can't be decoded, or the broker can't read them from its disk; the partition waits."""
    PARTITION_OFFLINE = "partition_offline"
    """No broker leads a partition, or its leader doesn't answer for it; the partition waits."""
    OPEN_TRANSACTION = "open_transaction"
    """A producer's transaction has been open for over a minute; the records behind its first one wait."""
    TOPIC_CONFIGURATION = "topic_configuration"
    """A retry or dead-letter topic's partitions, retention or message size don't fit the settings, or something that
    only the history needs is missing."""
    COORDINATOR_UNAVAILABLE = "coordinator_unavailable"
    """The brokers answer, but none coordinates the consumer group."""
    GROUP_PROTOCOL = "group_protocol"
    """The group's other members use another protocol, or it is a share or streams group, or the broker refuses the
    group's settings."""
    GROUP_SHARED = "group_shared"
    """A client that isn't a dispatcher is a member of the group: events that it reads are not delivered."""
    MEMBER_FENCED = "member_fenced"
    """Another process joined with the same `kafka.group_instance_id`."""
    SESSION_LOST = "session_lost"
    """The process stood still past its session timeout; it sends nothing until it has joined again."""
    COMMIT_REFUSED = "commit_refused"
    """The broker refuses commits, or commits with metadata of the size that is needed."""
    WRITE_REFUSED = "write_refused"
    """A record was refused for good by a retry, dead-letter or history topic."""
    CLOCK = "clock"
    """This machine's clock was set back or forward, or is behind the brokers'."""
    UNEXPECTED = "unexpected"
    """A Kafka error that has no reason of its own; the detail has its name."""


CONNECTING: Final = frozenset(
    {
        KafkaReason.PROTOCOL_MISMATCH,
        KafkaReason.TLS_UNTRUSTED,
        KafkaReason.TLS_FAILED,
        KafkaReason.CLIENT_CERTIFICATE_REFUSED,
        KafkaReason.AUTHENTICATION_REFUSED,
        KafkaReason.MECHANISM_UNSUPPORTED,
        KafkaReason.TOKEN_UNAVAILABLE,
    }
)
"""Reasons that concern one broker's port and what it accepts, not topics or groups."""

STOPS_READING: Final = CONNECTING | frozenset(
    {
        KafkaReason.UNREACHABLE,
        KafkaReason.NAME_NOT_FOUND,
        KafkaReason.BROKERS_MOVED,
        KafkaReason.PERMISSION_MISSING,
        KafkaReason.TOPIC_MISSING,
        KafkaReason.COORDINATOR_UNAVAILABLE,
        KafkaReason.GROUP_PROTOCOL,
        KafkaReason.MEMBER_FENCED,
        KafkaReason.SESSION_LOST,
        KafkaReason.UNEXPECTED,
    }
)
"""While one of these is reported, the process is not ready. The others are shown in `/readyz`, and it stays ready."""
