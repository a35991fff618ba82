"""The error codes of Kafka's protocol that aiokafka doesn't know: it would call each of them UnknownError."""

from typing import Final

from aiokafka.errors import BrokerResponseError, kafka_errors

GROUP_MAX_SIZE_REACHED: Final = 81

_RETRIABLE: Final = frozenset({74, 75, 77, 78, 80, 83, 88, 89, 100, 103, 106, 107, 108, 109, 113, 116, 120})
"""As in Java's client. aiokafka's producer repeats such a write by itself."""
_STALE_METADATA: Final = frozenset({74, 75, 80, 83, 100, 103, 107, 108})
_NAMES: Final = {
    73: "TOPIC_DELETION_DISABLED", 74: "FENCED_LEADER_EPOCH", 75: "UNKNOWN_LEADER_EPOCH",
    76: "UNSUPPORTED_COMPRESSION_TYPE", 77: "STALE_BROKER_EPOCH", 78: "OFFSET_NOT_AVAILABLE",
    80: "PREFERRED_LEADER_NOT_AVAILABLE", GROUP_MAX_SIZE_REACHED: "GROUP_MAX_SIZE_REACHED", 82: "FENCED_INSTANCE_ID",
    83: "ELIGIBLE_LEADERS_NOT_AVAILABLE", 84: "ELECTION_NOT_NEEDED", 85: "NO_REASSIGNMENT_IN_PROGRESS",
    86: "GROUP_SUBSCRIBED_TO_TOPIC", 87: "INVALID_RECORD", 88: "UNSTABLE_OFFSET_COMMIT",
    89: "THROTTLING_QUOTA_EXCEEDED", 90: "PRODUCER_FENCED", 91: "RESOURCE_NOT_FOUND", 92: "DUPLICATE_RESOURCE",
    93: "UNACCEPTABLE_CREDENTIAL", 94: "INCONSISTENT_VOTER_SET", 95: "INVALID_UPDATE_VERSION",
    96: "FEATURE_UPDATE_FAILED", 97: "PRINCIPAL_DESERIALIZATION_FAILURE", 98: "SNAPSHOT_NOT_FOUND",
    99: "POSITION_OUT_OF_RANGE", 100: "UNKNOWN_TOPIC_ID", 101: "DUPLICATE_BROKER_REGISTRATION",
    102: "BROKER_ID_NOT_REGISTERED", 103: "INCONSISTENT_TOPIC_ID", 104: "INCONSISTENT_CLUSTER_ID",
    105: "TRANSACTIONAL_ID_NOT_FOUND", 106: "FETCH_SESSION_TOPIC_ID_ERROR", 107: "INELIGIBLE_REPLICA",
    108: "NEW_LEADER_ELECTED", 109: "OFFSET_MOVED_TO_TIERED_STORAGE", 110: "FENCED_MEMBER_EPOCH",
    111: "UNRELEASED_INSTANCE_ID", 112: "UNSUPPORTED_ASSIGNOR", 113: "STALE_MEMBER_EPOCH",
    114: "MISMATCHED_ENDPOINT_TYPE", 115: "UNSUPPORTED_ENDPOINT_TYPE", 116: "UNKNOWN_CONTROLLER_ID",
    117: "UNKNOWN_SUBSCRIPTION_ID", 118: "TELEMETRY_TOO_LARGE", 119: "INVALID_REGISTRATION",
    120: "TRANSACTION_ABORTABLE",
}  # fmt: skip
_DESCRIPTIONS: Final = {87: "The broker refused the record: a compacted topic takes none without a key."}


def register() -> None:
    """Adds a class for each code: `GroupMaxSizeReachedError` for GROUP_MAX_SIZE_REACHED."""
    for code, name in _NAMES.items():
        if code not in kafka_errors:
            title = name.title().replace("_", "").removesuffix("Error") + "Error"
            attributes = {
                "errno": code,
                "message": name,
                "description": _DESCRIPTIONS.get(code, ""),
                "retriable": code in _RETRIABLE,
                "invalid_metadata": code in _STALE_METADATA,
            }
            kafka_errors[code] = type(title, (BrokerResponseError,), attributes)


def unwrapped(error: BaseException) -> BaseException:
    """Returns the broker's error in a `KafkaError(repr(error))`, as aiokafka raises it from a join; else `error`."""
    if not error.args or not isinstance(text := error.args[0], str):
        return error
    name = text.partition("(")[0]
    found = [kind for kind in kafka_errors.values() if kind.__name__ == name and text.endswith(")")]
    return found[0]() if found else error
