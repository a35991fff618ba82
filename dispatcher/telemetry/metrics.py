"""Defines the metrics of the dispatcher. Every label value of a closed set exists from the start, at zero.

Organisation, sandbox, URL and event id are never labels here: `tenant_metrics` has the metrics with tenant labels.
Base units: seconds, bytes, unix timestamps.
"""

import platform
from collections.abc import Iterable
from itertools import product

from prometheus_client import Counter, Gauge, Histogram, disable_created_metrics
from prometheus_client.metrics import MetricWrapperBase

from dispatcher import __version__
from dispatcher.contract.fleet_state import FleetState
from dispatcher.contract.kafka_problems import KafkaReason
from dispatcher.contract.outcomes import DeadReason, FailureReason, FinishedResult, ParkReason, SkipReason
from dispatcher.telemetry import fast_metrics
from dispatcher.telemetry.build_form import FORM

disable_created_metrics()  # type: ignore[no-untyped-call]  # a `_created` series for each counter would double their number for no use

SLO_SECONDS = 60
"""The service-level objective counts events delivered within this time, so that it is a bucket's bound."""

ATTEMPT_OUTCOMES = ("success", "retryable", "permanent")
STATUS_REASONS = ("http_2xx", "http_3xx", "http_4xx", "http_429", "http_5xx")
FAILED_ATTEMPT_REASONS = (*map(str, FailureReason), *STATUS_REASONS[1:])
"""Possible reasons of a failed attempt."""
BREAKER_STATES = ("closed", "open", "half_open")

BUILD_INFO = Gauge(
    "dispatcher_build_info", "Always 1; the labels say what runs.", ["version", "python_version", "form"]
)

EVENTS_CONSUMED = fast_metrics.Counter(
    "dispatcher_events_consumed", "Records read whose processing has started, by topic.", ["topic"]
)
EVENTS_SKIPPED = fast_metrics.Counter(
    "dispatcher_events_skipped", "Events that were not sent because no webhook wants them, by reason.", ["reason"]
)
EVENTS_FINISHED = fast_metrics.Counter(
    "dispatcher_events_finished", "Events with a final outcome, counted once each.", ["result"]
)
EVENTS_PARKED = Counter(
    "dispatcher_events_parked",
    "Times an event was written to a retry tier or to the topic of held events, by reason.",
    ["reason"],
)
EVENTS_REPEATED = Counter(
    "dispatcher_events_repeated", "Records processed again after an error, such as an unavailable store or topic."
)
EVENTS_RESUMED = Counter(
    "dispatcher_events_resumed", "Records skipped because the commit's metadata lists them as finished."
)
DEAD_LETTERS = Counter("dispatcher_dlq_published", "Records written to the dead-letter topic, by reason.", ["reason"])
PRODUCE_FAILURES = Counter(
    "dispatcher_produce_failures", "Writes to a retry or dead-letter topic that failed and are repeated.", ["kind"]
)
HISTORY_WRITTEN = Counter("dispatcher_history_written", "Entries written to the history topic.")
HISTORY_LOST = Counter("dispatcher_history_lost", "Entries that the history topic lacks, by reason.", ["reason"])
HISTORY_STORED = Counter(
    "dispatcher_history_stored",
    "Entries read from the history topic, by result: stored, repeated (there already), left_out (too old, erased or "
    "from the future), refused (values no database holds), unreadable (of a record that can't be read at all: 1).",
    ["result"],
)
HISTORY_STORE_FAILURES = Counter("dispatcher_history_store_failures", "Writes that the history store did not take.")
HISTORY_LAG = Gauge("dispatcher_history_lag_records", "Records of the history topic that are not stored yet.")
HISTORY_NEWEST = Gauge(
    "dispatcher_history_newest_entry_timestamp_seconds",
    "Time of the newest entry of the batch that was stored last; entries from the future do not count.",
)
HISTORY_READING = Gauge(
    "dispatcher_history_worker_reading",
    "0 if this process has a history worker that can't read the history topic or write to its store.",
)
HISTORY_READING.set(1)
WEBHOOK_STATE_CHANGES = Counter(
    "dispatcher_webhook_state_changes",
    "Webhooks that changed their state by the evidence of all dispatchers, by new state.",
    ["state"],
)
NOTIFICATIONS = Counter(
    "dispatcher_notifications",
    "Tries to send a notification, by channel and result: sent, retried (tried again later), failed (given up).",
    ["channel", "result"],
)
NOTIFICATION_TRIED = Gauge(
    "dispatcher_notifications_last_try_timestamp_seconds",
    "Time of the latest try to send a notification, by channel and result.",
    ["channel", "result"],
)
BRAKE_ENGAGED = Gauge(
    "dispatcher_dead_letter_brake_engaged", "Partitions stopped because most of their records would die."
)

ATTEMPTS = fast_metrics.Counter("dispatcher_delivery_attempts", "POSTs, by outcome and reason.", ["outcome", "reason"])
ATTEMPT_SECONDS = fast_metrics.Histogram(
    "dispatcher_delivery_attempt_duration_seconds",
    "Duration of one POST, from DNS to the end of the response.",
    ["outcome"],
    buckets=(0.005, 0.01, 0.025, 0.05, 0.1, 0.25, 0.5, 1, 2.5, 5, 10, 15, 30),
)
END_TO_END_SECONDS = fast_metrics.Histogram(
    "dispatcher_event_end_to_end_duration_seconds",
    "Age of an event at delivery: since the record's timestamp or, if it was parked, since its first attempt. "
    "A timestamp that is missing, in the future or over a year old counts as the time of reading.",
    ["retried"],
    buckets=(0.025, 0.1, 0.5, 1, 2.5, 5, 15, 30, SLO_SECONDS, 120, 300, 900, 3600, 21600, 86400),
)
IN_FLIGHT = Gauge("dispatcher_deliveries_in_flight", "POSTs under way.")
CONCURRENCY_LIMIT = Gauge(
    "dispatcher_delivery_concurrency_limit", "Maximum number of POSTs in flight (delivery.max_in_flight)."
)
LANES = Gauge("dispatcher_lanes", "Tenants with a lane in memory.")
WAITING = Gauge("dispatcher_lanes_waiting_events", "Events that wait in lanes for a permit.")
UNFINISHED = Gauge("dispatcher_unfinished_records", "Records read that have no outcome yet.")
UNFINISHED_BYTES = Gauge("dispatcher_unfinished_bytes", "Bytes of the values, keys and headers of unfinished records.")
OLDEST_PENDING = Gauge(
    "dispatcher_oldest_pending_event_timestamp_seconds",
    "Timestamp of the oldest unfinished record; 0 if there is none. "
    "A timestamp that is missing, in the future or over a year old counts as the time of reading.",
)
BREAKERS_OPEN = Gauge("dispatcher_circuit_breaker_open_endpoints", "Tenants whose breaker is open or half open.")
BREAKER_TRANSITIONS = Counter(
    "dispatcher_circuit_breaker_transitions", "State changes of breakers, by new state.", ["to"]
)
TENANTS_FAILING = Gauge(
    "dispatcher_tenants_failing",
    "Tenants whose latest attempts, four or more in a row, all failed, by the reason of the last failure.",
    ["reason"],
)
TENANT_STATES = Gauge("dispatcher_tenants_in_state", "Tenants that are unstable, disabled or suspended.", ["state"])

LAG = Gauge(
    "dispatcher_kafka_consumer_lag_records",
    "Records between the finished offset and the end of the partition, those of open transactions included.",
    ["topic", "partition"],
)
FINISHED_OFFSET = Gauge(
    "dispatcher_kafka_finished_offset", "Offset below which every record is finished.", ["topic", "partition"]
)
ASSIGNED = Gauge("dispatcher_kafka_assigned_partitions", "Partitions that this process owns.", ["topic"])
PAUSED = Gauge(
    "dispatcher_kafka_paused_partitions",
    "Partitions that are not fetched because records fetched earlier still wait in their buffer.",
    ["topic"],
)
REBALANCES = Counter("dispatcher_kafka_rebalances", "Assignments received.")
COMMITS = Counter("dispatcher_kafka_commits", "Commits acknowledged.")
COMMIT_FAILURES = Counter("dispatcher_kafka_commit_failures", "Commits that failed; the next one covers them.")
KAFKA_AVAILABLE = Gauge(
    "dispatcher_kafka_available", "1 if events can be read and outcomes written, as /readyz says; 0 otherwise."
)
KAFKA_PROBLEM = Gauge(
    "dispatcher_kafka_problem", "1 while something is wrong with Kafka, by reason (docs/kafka-problems.md).", ["reason"]
)
RECORDS_REMOVED_UNREAD = Counter(
    "dispatcher_kafka_records_removed_unread",
    "Records that Kafka removed before they were read, at most: gaps in the offsets count as records.",
    ["topic"],
)
RECORDS_PASSED_OVER = Counter(
    "dispatcher_kafka_records_passed_over",
    "Records of a history or dead-letter topic that were not read because their batch can't be decoded, at most.",
)
LOG_RESETS = Counter(
    "dispatcher_kafka_log_resets",
    "Partitions read again from the start of their log, because the log was replaced.",
    ["topic", "reason"],
)
LAST_POLL = Gauge("dispatcher_kafka_last_poll_timestamp_seconds", "Time of the consumer's last request for records.")

RELOAD_OK = Gauge(
    "dispatcher_config_last_reload_successful",
    "1 if the newest version of every webhook file is in use; 0 if an older one is, because the newest has a mistake.",
)
RELOAD_TIME = Gauge(
    "dispatcher_config_last_reload_success_timestamp_seconds",
    "Last time at which the newest version of every webhook file was in use.",
)
RELOADS = Counter("dispatcher_config_reloads", "Changes of the webhooks' configuration, by result.", ["result"])
CONFIG_TENANTS = Gauge("dispatcher_config_tenants", "Configured webhooks.")
CONFIG_UNUSABLE = Gauge(
    "dispatcher_config_unusable_webhooks", "Webhooks with a mistake and no last good version: their events are held."
)
HELD_EVENTS = Gauge(
    "dispatcher_held_events", "Events that wait for a change of configuration, in the partitions of this process."
)
CONFIG_INCOMPLETE = Gauge(
    "dispatcher_config_incomplete",
    "1 while a webhook file with unknown tenants can't be read: events of tenants without a webhook are held.",
)
CONFIG_HASH = Gauge("dispatcher_config_info", "Always 1; pods that disagree show different hashes.", ["hash"])
STORE_FAILURES = Counter("dispatcher_webhook_store_failures", "Look-ups that failed because the store did not answer.")
STALE_ANSWERS = Counter("dispatcher_webhook_cache_stale_answers", "Look-ups answered from a stale cache entry.")
CERTIFICATE_EXPIRY = Gauge(
    "dispatcher_certificate_expiry_timestamp_seconds",
    "Expiry of the endpoint certificate that expires first; 0 if there is none.",
)
TOKEN_FAILURES = Counter("dispatcher_token_failures", "Access tokens that could not be fetched or signed.")

CONNECTIONS = Gauge("dispatcher_http_connections", "Connections that are open to a port of this process.", ["port"])
CONNECTIONS_CLOSED = Counter(
    "dispatcher_http_connections_closed",
    "Connections that were closed or refused because the client was too slow or opened too many, by reason.",
    ["port", "reason"],
)

OPS_CERTIFICATE_OK = Gauge(
    "dispatcher_ops_certificate_last_reload_successful",
    "1 if the ops port uses the certificate that is in its files, or uses none; 0 if it keeps an older one.",
)

SPANS_DROPPED = Counter(
    "dispatcher_tracing_spans_dropped", "Spans that were not sent to the collector, by reason.", ["reason"]
)

TASKS = Gauge(
    "dispatcher_asyncio_tasks", "Tasks of the event loop: some dozens, and one for each event on the slow path."
)
LOOP_LAG = Histogram(
    "dispatcher_event_loop_lag_seconds",
    "Delay of a timer of the event loop.",
    buckets=(0.001, 0.005, 0.01, 0.025, 0.05, 0.1, 0.25, 0.5, 1, 5),
)
ERRORS = Counter("dispatcher_internal_errors", "Unexpected exceptions; each has a log line.", ["where"])
LOG_LINES_LEFT_OUT = Counter(
    "dispatcher_log_lines_left_out", "Log lines that were left out, because standard error was not read."
)

_CLOSED_LABELS: tuple[
    tuple[MetricWrapperBase | fast_metrics.Counter | fast_metrics.Histogram, tuple[Iterable[str], ...]], ...
] = (
    (EVENTS_SKIPPED, (SkipReason,)),
    (EVENTS_FINISHED, (FinishedResult,)),
    (EVENTS_PARKED, (ParkReason,)),
    (END_TO_END_SECONDS, (("no", "yes"),)),
    (DEAD_LETTERS, (DeadReason,)),
    (PRODUCE_FAILURES, (("retry", "dead"),)),
    (ATTEMPT_SECONDS, (ATTEMPT_OUTCOMES,)),
    (BREAKER_TRANSITIONS, (BREAKER_STATES,)),
    (KAFKA_PROBLEM, (KafkaReason,)),
    (TENANTS_FAILING, (FAILED_ATTEMPT_REASONS,)),
    (TENANT_STATES, (("unstable", "disabled", "suspended"),)),
    (RELOADS, (("ok", "failed"),)),
    (SPANS_DROPPED, (("queue_full", "not_taken"),)),
    (ERRORS, (("pipeline", "consumer", "lanes", "task", "history", "notifications", "transport"),)),
    (WEBHOOK_STATE_CHANGES, (FleetState,)),
    (NOTIFICATIONS, (("email", "webhook"), ("sent", "retried", "failed"))),
    (NOTIFICATION_TRIED, (("email", "webhook"), ("sent", "retried", "failed"))),
    (HISTORY_LOST, (("buffer_full", "not_written"),)),
    (HISTORY_STORED, (("stored", "repeated", "left_out", "refused", "unreadable"),)),
)


def initialise() -> None:
    """Creates every series of a closed label set at zero, so that a rate over it is never absent."""
    for metric, values in _CLOSED_LABELS:
        for labels in product(*values):
            metric.labels(*map(str, labels))
    ATTEMPTS.labels("success", "http_2xx")
    for reason in (*FailureReason, "http_429", "http_5xx", "http_4xx"):
        ATTEMPTS.labels("retryable", str(reason))
    for reason in ("http_3xx", "http_4xx", "http_5xx", str(FailureReason.URL_DENIED), "aborted"):
        ATTEMPTS.labels("permanent", reason)
    BUILD_INFO.labels(__version__, platform.python_version(), FORM).set(1)
    OPS_CERTIFICATE_OK.set(1)
    RELOAD_OK.set(1)  # until a file turns out to have a mistake; having no file isn't one
