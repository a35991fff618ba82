"""One case for each alert: series that make it fire, when; the same series below the threshold; and its end.

Values are written much as promtool writes them, one a minute: `0+3x10` is 0, 3, 6 … 27, `7x5` five times 7, `_x5` five
times no sample, and steps follow one another. Every series gets namespace, job, instance and pod.
"""

from dataclasses import dataclass, field
from typing import Final

Series = dict[str, str]


@dataclass(frozen=True, slots=True)
class Variant:
    """The same alert for another cause, at the same times."""

    what: str
    fires: Series
    quiet: Series


@dataclass(frozen=True, slots=True)
class Case:
    """When one alert fires and when it does not."""

    fires: Series
    at: int
    """Tick at which it fires."""
    over: int
    """Tick at which it has resolved."""
    quiet: Series
    """A similar world in which it never fires."""
    labels: dict[str, str] = field(default_factory=dict)
    """Labels that the alert must carry, beside severity, namespace and job."""
    place: tuple[str, ...] = ("namespace", "job")
    """Which of the labels that say where it carries."""
    tick: str = "1m"
    """Time between two values, and two evaluations."""
    others: tuple[Variant, ...] = ()


OLDEST = "dispatcher_oldest_pending_event_timestamp_seconds"
FINISHED = 'dispatcher_events_finished_total{result="delivered"}'
DEAD = 'dispatcher_events_finished_total{result="dead_lettered"}'
IN_TIME = 'dispatcher_event_end_to_end_duration_seconds_bucket{le="60.0"}'
LAG = 'dispatcher_kafka_consumer_lag_records{topic="delivery-events",partition="3"}'
OFFSET = 'dispatcher_kafka_finished_offset{topic="delivery-events",partition="3"}'
LAG_OF_A_TIER = 'dispatcher_kafka_consumer_lag_records{topic="delivery-events.retry.30s",partition="3"}'
CONSUMED = 'dispatcher_events_consumed_total{topic="delivery-events"}'
KAFKA_UNAVAILABLE = 'ALERTS{alertname="DispatcherKafkaUnavailable",alertstate="firing"}'
BUILD = 'dispatcher_build_info{version="1.0.0"}'
HISTORY_WORKER = 'dispatcher_build_info{version="1.0.0",pod="history-0"}'
CONSOLE = 'dispatcher_build_info{version="1.0.0",pod="console-0"}'
"""The history worker and a console that embeds it have the dispatchers' job label."""
LIMIT = "dispatcher_delivery_concurrency_limit"
"""Only dispatchers have it."""
RETRIED_AT = 'dispatcher_notifications_last_try_timestamp_seconds{channel="email",result="retried"}'
SENT_AT = 'dispatcher_notifications_last_try_timestamp_seconds{channel="email",result="sent"}'
FAILED = 'dispatcher_notifications_total{channel="email",result="failed"}'
STORED = 'dispatcher_history_stored_total{result="stored"}'
"""Every process has the series."""
UNREADABLE = 'dispatcher_history_stored_total{result="unreadable"}'
STORED_BY_WORKER = 'dispatcher_history_stored_total{result="stored",pod="history-0"}'
PROCESS_START = "process_start_time_seconds"

REMOVED = 'dispatcher_kafka_records_removed_unread_total{topic="delivery-events"}'
RESETS = 'dispatcher_kafka_log_resets_total{topic="delivery-events",reason="replaced"}'


def _after_restarts(counter: str) -> tuple[Variant, ...]:
    other = counter.replace("}", ',pod="dispatcher-1"}')
    return (
        Variant(
            "by a container that restarts in its pod, and had counted more before",
            fires={counter: "30x80 20x80"},
            quiet={counter: "30x80 0x80"},
        ),
        Variant(
            "by one pod while another one restarts, which had counted more before",
            fires={counter: "30x80 0x80", other: "0x80 5x80"},
            quiet={counter: "30x80 0x80", other: "5x160"},
        ),
        Variant(
            "before and after a restart within the hour",
            fires={counter: "0x50 30x30 2x80"},
            quiet={counter: "0x160"},
        ),
    )


# promtool's clock starts at unix time 0: an event of second 1 is a minute older with each minute, one of 3601+60x20,
# from the 60th minute on, always just arrived.

CASES: Final[dict[str, Case]] = {
    "DispatcherFreshnessBudgetBurnFast": Case(
        fires={OLDEST: "0x60 1x20 0x200"},
        at=70,
        over=120,
        quiet={OLDEST: "0x60 3601+60x20 0x200"},
        others=(
            Variant(
                "Kafka was away: that has paged, and what follows is not paged for half an hour",
                fires={OLDEST: "0x60 1x20 0x200", KAFKA_UNAVAILABLE: "_x13 1x17 _x250"},
                quiet={
                    OLDEST: "0x281",
                    "dispatcher_kafka_available": "1x40 0x20 1x220",
                    KAFKA_UNAVAILABLE: "_x43 1x17 _x220",
                },
            ),
        ),
    ),
    "DispatcherFreshnessBudgetBurnSlow": Case(
        # forty minutes after two quiet days; it takes three more to forget
        fires={OLDEST: "0x288 1x4 0x55"},
        at=296,
        over=340,
        quiet={OLDEST: "0x345"},
        tick="10m",
    ),
    "DispatcherDeliveryBudgetBurnFast": Case(
        fires={FINISHED: "0+600x200", IN_TIME: "0+600x60 36000+400x40 52600+600x100"},
        at=98,
        over=190,
        quiet={FINISHED: "0+600x200", IN_TIME: "0+600x60 36000+595x140"},
    ),
    "DispatcherDeliveryBudgetBurnSlow": Case(
        # 5 % late for two days, then none
        fires={FINISHED: "0+600x345", IN_TIME: "0+570x288 164160+600x57"},
        at=288,
        over=340,
        quiet={FINISHED: "0+600x345", IN_TIME: "0+597x345"},
        tick="10m",
    ),
    "DispatcherAbsent": Case(
        fires={LIMIT: "500x10 _x15 500x20", HISTORY_WORKER: "1x45", CONSOLE: "1x45"},
        at=23,
        over=30,
        quiet={LIMIT: "500x45", HISTORY_WORKER: "1x10 _x35"},
        place=(),
    ),
    "DispatcherTargetDown": Case(
        fires={"up": "1x10 0x10 1x20", BUILD: "1x10 _x10 1x20"},
        at=18,
        over=25,
        quiet={"up": "0x40"},  # some other job's target
        labels={"instance": "10.0.0.7:9090"},
    ),
    "DispatcherNoActiveConsumers": Case(
        # two topics lose their readers: one alert
        fires={
            'dispatcher_kafka_assigned_partitions{topic="delivery-events"}': "4x10 0x10 4x10",
            'dispatcher_kafka_assigned_partitions{topic="feedback-dispatcher.retry.30s"}': "4x10 0x10 4x10",
        },
        at=18,
        over=25,
        quiet={'dispatcher_kafka_assigned_partitions{topic="delivery-events"}': "4x10 0x3 4x20"},
        others=(
            Variant(
                "a group that was never joined",
                fires={LIMIT: "_x8 500x10 _x24", HISTORY_WORKER: "1x42"},
                quiet={HISTORY_WORKER: "1x42", CONSOLE: "1x42"},  # the dispatchers are absent: another alert
            ),
        ),
    ),
    "DispatcherKafkaUnavailable": Case(
        fires={"dispatcher_kafka_available": "1x10 0x10 1x20"},
        at=13,  # Kafka hangs after the 10th minute: paged within three minutes
        over=22,
        quiet={"dispatcher_kafka_available": "1x10 0x1 1x30"},
    ),
    "DispatcherKafkaProblem": Case(
        fires={
            'dispatcher_kafka_problem{reason="records_expired"}': "0x10 1x10 0x20",
            "dispatcher_kafka_available": "1x40",
        },
        at=13,
        over=30,
        # what stops reading has an alert of its own
        quiet={
            'dispatcher_kafka_problem{reason="topic_missing"}': "0x10 1x10 0x20",
            "dispatcher_kafka_available": "1x10 0x10 1x20",
        },
        labels={"reason": "records_expired"},
    ),
    "DispatcherConsumerStalled": Case(
        fires={LAG: "0+10x30 300-10x30", CONSUMED: "0+60x10 600x20 600+60x30"},
        at=28,
        over=45,
        quiet={LAG: "0x60", CONSUMED: "600x60", LAG_OF_A_TIER: "500x60"},
        labels={"topic": "delivery-events"},
    ),
    "DispatcherPartitionStuck": Case(
        fires={LAG: "5x40 4x5 0x30", OFFSET: "100x40 101x5 105x30"},
        at=30,
        over=50,
        quiet={LAG: "5x60", OFFSET: "100x10 100+1x50"},  # as much comes in as is finished
        labels={"topic": "delivery-events", "partition": "3", "pod": "dispatcher-0"},
    ),
    "DispatcherLagGrowing": Case(
        fires={LAG: "0+60x90 5400-120x40", CONSUMED: "0+60x130"},
        at=80,
        over=125,
        quiet={LAG: "100+0.01x130", CONSUMED: "0+60x130"},
        labels={"topic": "delivery-events"},
    ),
    "DispatcherRebalancing": Case(
        # two pods of the history worker don't rebalance with the dispatcher
        fires={
            "dispatcher_kafka_rebalances_total": "1x30 1+0.6x30 19x60",
            LIMIT: "500x120",
            HISTORY_WORKER: "1x120",
            CONSOLE: "1x120",
        },
        at=58,
        over=100,
        quiet={"dispatcher_kafka_rebalances_total": "1x30 1+1x3 4x60", LIMIT: "500x120"},
    ),
    "DispatcherCommitFailing": Case(
        fires={
            "dispatcher_kafka_commit_failures_total": "0x10 0+5x15 75x30",
            "dispatcher_kafka_commits_total": "0+60x10 600x15 600+60x30",
        },
        at=24,
        over=35,
        quiet={"dispatcher_kafka_commit_failures_total": "0+5x50", "dispatcher_kafka_commits_total": "0+60x50"},
        labels={"pod": "dispatcher-0"},
    ),
    "DispatcherRecordsRemovedUnread": Case(
        # counted before the first scrape: by a process that finds the gap as it starts
        fires={REMOVED: "_x80 30x80"},
        at=82,
        over=142,
        quiet={REMOVED: "_x80 0x80"},
        labels={"topic": "delivery-events"},
        others=_after_restarts(REMOVED),
    ),
    "DispatcherLogReset": Case(
        fires={RESETS: "0x80 2x80"},
        at=82,
        over=142,
        quiet={RESETS: "0x160"},
        labels={"topic": "delivery-events"},
        others=_after_restarts(RESETS),
    ),
    "DispatcherProduceFailing": Case(
        # a write that times out takes 25 s, and few events may want to be written
        fires={'dispatcher_produce_failures_total{kind="retry"}': "0x10 0+1x15 15x20"},
        at=16,
        over=40,
        quiet={'dispatcher_produce_failures_total{kind="retry"}': "0x10 1x40"},  # once, then repaired
        labels={"kind": "retry"},
    ),
    "DispatcherDeadLetterBrakeEngaged": Case(
        fires={"dispatcher_dead_letter_brake_engaged": "0x5 1x5 0x10"},
        at=8,
        over=15,
        quiet={"dispatcher_dead_letter_brake_engaged": "0x20"},
        labels={"pod": "dispatcher-0"},
    ),
    "DispatcherDeadLetters": Case(
        fires={
            'dispatcher_dlq_published_total{reason="rejected"}': "0x10 0+20x30 600x60",
            FINISHED: "0+600x100",
            DEAD: "0x10 0+20x30 600x60",
        },
        at=38,
        over=80,
        quiet={'dispatcher_dlq_published_total{reason="rejected"}': "0+3x100", FINISHED: "0+600x100", DEAD: "0+3x100"},
    ),
    "DispatcherDeadLettersOurs": Case(
        fires={'dispatcher_dlq_published_total{reason="unreadable"}': "0x10 1x60"},
        at=12,
        over=50,
        quiet={
            'dispatcher_dlq_published_total{reason="unreadable"}': "7x60",
            'dispatcher_dlq_published_total{reason="rejected"}': "0+5x60",
        },
        labels={"reason": "unreadable"},
        others=(
            Variant(
                "before the first scrape of a new pod",
                fires={'dispatcher_dlq_published_total{reason="unreadable"}': "_x8 12x60", PROCESS_START: "_x8 450x60"},
                quiet={
                    'dispatcher_dlq_published_total{reason="unreadable"}': "_x8 12x60",
                    PROCESS_START: "_x8 -9000x60",
                },
            ),
        ),
    ),
    "DispatcherSaturated": Case(
        fires={
            "dispatcher_deliveries_in_flight": "480x30 100x20",
            "dispatcher_delivery_concurrency_limit": "500x50",
        },
        at=25,
        over=35,
        quiet={"dispatcher_deliveries_in_flight": "440x50", "dispatcher_delivery_concurrency_limit": "500x50"},
    ),
    "DispatcherEgressBroken": Case(
        fires={
            'dispatcher_tenants_failing{reason="connect_timeout"}': "1x10 40x15 1x30",
            "dispatcher_lanes": "100x60",
            'dispatcher_tenants_in_state{state="suspended"}': "0x60",
        },
        at=20,
        over=40,
        quiet={
            'dispatcher_tenants_failing{reason="connect_refused"}': "1x60",
            'dispatcher_tenants_failing{reason="http_5xx"}': "60x60",  # their servers answer
            "dispatcher_lanes": "100x60",
            'dispatcher_tenants_in_state{state="suspended"}': "0x60",
        },
        others=(
            Variant(
                "the proxy is down for two tenants, a third one is suspended",
                fires={
                    'dispatcher_tenants_failing{reason="proxy"}': "0x10 2x15 0x30",
                    "dispatcher_lanes": "3x60",
                    'dispatcher_tenants_in_state{state="suspended"}': "1x60",
                },
                quiet={
                    'dispatcher_tenants_failing{reason="connect_refused"}': "2x60",  # the third one is reached
                    "dispatcher_lanes": "3x60",
                    'dispatcher_tenants_in_state{state="suspended"}': "0x60",
                },
            ),
            Variant(
                "the only tenant's name doesn't resolve",
                fires={
                    'dispatcher_tenants_failing{reason="dns"}': "0x10 1x15 0x30",
                    "dispatcher_lanes": "1x60",
                    'dispatcher_tenants_in_state{state="suspended"}': "0x60",
                },
                quiet={
                    'dispatcher_tenants_failing{reason="connect_refused"}': "1x60",  # it may as well be its own fault
                    "dispatcher_lanes": "1x60",
                    'dispatcher_tenants_in_state{state="suspended"}': "0x60",
                },
            ),
        ),
    ),
    "DispatcherBreakerOpenLong": Case(
        fires={"dispatcher_circuit_breaker_open_endpoints": "1x80 0x40"},
        at=65,
        over=90,
        quiet={"dispatcher_circuit_breaker_open_endpoints": "1x20 0x1 1x20 0x1 1x20 0x40"},
        labels={"pod": "dispatcher-0"},
    ),
    "DispatcherTenantFailing": Case(
        # one tenant that answers 500, then 403, and a scrape is missed: the ticket stays
        fires={
            'dispatcher_tenants_failing{reason="http_5xx"}': "0x5 1x20 0x70",
            'dispatcher_tenants_failing{reason="http_4xx"}': "0x25 1x10 _x2 1x23 0x35",
        },
        at=55,
        over=80,
        # a quiet tenant's only event was refused; certificates have an alert of their own
        quiet={
            'dispatcher_tenants_failing{reason="http_4xx"}': "0x5 1x35 0x55",
            'dispatcher_tenants_failing{reason="tls"}': "1x95",
        },
    ),
    "DispatcherTenantSuspended": Case(
        fires={'dispatcher_tenants_in_state{state="suspended"}': "0x5 1x15 0x10"},
        at=15,
        over=25,
        quiet={
            'dispatcher_tenants_in_state{state="suspended"}': "0x30",
            'dispatcher_tenants_in_state{state="unstable"}': "3x30",
        },
        labels={"state": "suspended"},
    ),
    "DispatcherTokenFailing": Case(
        fires={"dispatcher_token_failures_total": "0+6x40 240x40"},
        at=30,
        over=60,
        quiet={"dispatcher_token_failures_total": "0x10 5x60"},  # once, then repaired
    ),
    "DispatcherTlsFailing": Case(
        # one tenant of many, to which the breaker lets hardly an attempt through
        fires={
            'dispatcher_tenants_failing{reason="tls"}': "0x10 1x30 0x60",
            'dispatcher_delivery_attempts_total{outcome="success",reason="http_2xx"}': "0+600x100",
        },
        at=26,
        over=60,
        quiet={
            'dispatcher_tenants_failing{reason="tls"}': "0x10 1x10 0x80",
            'dispatcher_tenants_failing{reason="http_5xx"}': "3x100",
        },
    ),
    "DispatcherCertificateExpiring": Case(
        # the clock begins at 0: a day and a half left, then renewed
        fires={"dispatcher_certificate_expiry_timestamp_seconds": "129600x90 7776000x30"},
        at=20,
        over=100,
        quiet={"dispatcher_certificate_expiry_timestamp_seconds": "0x40 604800x80"},
        others=(
            Variant(
                "it has expired, which only the handshake shows",
                fires={"dispatcher_certificate_expiry_timestamp_seconds": "60x90 7776000x30"},
                quiet={"dispatcher_certificate_expiry_timestamp_seconds": "0x120"},
            ),
        ),
    ),
    "DispatcherConfigReloadFailed": Case(
        fires={"dispatcher_config_last_reload_successful": "1x10 0x20 1x10"},
        at=27,
        over=35,
        quiet={"dispatcher_config_last_reload_successful": "1x10 0x8 1x20"},
        labels={"pod": "dispatcher-0"},
    ),
    "DispatcherConfigIncomplete": Case(
        fires={"dispatcher_config_incomplete": "0x10 1x10 0x10"},
        at=12,
        over=22,
        quiet={"dispatcher_config_incomplete": "0x30"},
        labels={"pod": "dispatcher-0"},
    ),
    "DispatcherWebhookUnusable": Case(
        fires={"dispatcher_config_unusable_webhooks": "0x10 2x10 0x10"},
        at=12,
        over=22,
        quiet={"dispatcher_config_unusable_webhooks": "0x30"},
    ),
    "DispatcherConfigDrift": Case(
        fires={
            'dispatcher_config_info{hash="aaaa"}': "1x40",
            'dispatcher_config_info{hash="bbbb"}': "1x30 _x10",
        },
        at=20,
        over=38,
        quiet={'dispatcher_config_info{hash="aaaa"}': "1x40"},
    ),
    "DispatcherWebhooksVanished": Case(
        fires={"dispatcher_config_tenants": "100x30 40x15 100x30"},
        at=38,
        over=50,
        quiet={"dispatcher_config_tenants": "100x30 60x40"},
    ),
    "DispatcherNoWebhooks": Case(
        fires={"dispatcher_config_tenants": "0x20 1x20", CONSUMED: "0+10x40"},
        at=18,
        over=25,
        quiet={"dispatcher_config_tenants": "0x40", CONSUMED: "5x40"},  # installed, not used yet
    ),
    "DispatcherStoreFailing": Case(
        fires={"dispatcher_webhook_store_failures_total": "0+3x30 90x30"},
        at=20,
        over=45,
        quiet={"dispatcher_webhook_store_failures_total": "0x10 2x50"},
    ),
    "DispatcherTenantSeriesCollapsed": Case(
        fires={"dispatcher_metrics_tenants_collapsed": "9x80 0x10"},
        at=70,
        over=85,
        quiet={"dispatcher_metrics_tenants_collapsed": "0x90"},
    ),
    "DispatcherInternalErrors": Case(
        fires={'dispatcher_internal_errors_total{where="pipeline"}': "0x10 1x60"},
        at=12,
        over=50,
        quiet={'dispatcher_internal_errors_total{where="pipeline"}': "3x60"},
        labels={"where": "pipeline"},
        others=(
            Variant(
                "before the first scrape of a new pod",
                fires={'dispatcher_internal_errors_total{where="pipeline"}': "_x8 3x60", PROCESS_START: "_x8 450x60"},
                quiet={'dispatcher_internal_errors_total{where="pipeline"}': "_x8 3x60", PROCESS_START: "_x8 -9000x60"},
            ),
        ),
    ),
    "DispatcherEventLoopLag": Case(
        fires={
            'dispatcher_event_loop_lag_seconds_bucket{le="0.25"}': "0+100x40 4000+120x60",
            'dispatcher_event_loop_lag_seconds_bucket{le="0.5"}': "0+120x100",
            'dispatcher_event_loop_lag_seconds_bucket{le="+Inf"}': "0+120x100",
        },
        at=30,
        over=80,
        quiet={
            'dispatcher_event_loop_lag_seconds_bucket{le="0.25"}': "0+120x100",
            'dispatcher_event_loop_lag_seconds_bucket{le="+Inf"}': "0+120x100",
        },
        labels={"pod": "dispatcher-0"},
    ),
    "DispatcherMemoryNearLimit": Case(
        fires={
            'container_memory_working_set_bytes{container="dispatcher"}': "950x30 500x20",
            'kube_pod_container_resource_limits{container="dispatcher",resource="memory"}': "1000x50",
        },
        at=20,
        over=40,
        quiet={
            'container_memory_working_set_bytes{container="dispatcher"}': "850x50",
            'kube_pod_container_resource_limits{container="dispatcher",resource="memory"}': "1000x50",
        },
        place=("namespace",),
        labels={"pod": "dispatcher-0"},
        others=(
            Variant(
                "the console, and a console of another program",
                fires={
                    'container_memory_working_set_bytes{container="console"}': "950x30 500x20",
                    'kube_pod_container_resource_limits{container="console",resource="memory"}': "1000x50",
                    BUILD: "1x50",
                },
                quiet={
                    'container_memory_working_set_bytes{container="console"}': "950x50",
                    'kube_pod_container_resource_limits{container="console",resource="memory"}': "1000x50",
                    BUILD.replace("}", ',namespace="other"}'): "1x50",
                },
            ),
        ),
    ),
    "DispatcherPodRestarting": Case(
        fires={'kube_pod_container_status_restarts_total{container="dispatcher"}': "0x5 0+1x6 6x120"},
        at=15,
        over=120,
        quiet={'kube_pod_container_status_restarts_total{container="dispatcher"}': "0x5 1x20 2x120"},
        labels={"pod": "dispatcher-0"},
        others=(
            Variant(
                "the history worker, and one of another program",
                fires={
                    'kube_pod_container_status_restarts_total{container="history"}': "0x5 0+1x6 6x120",
                    BUILD: "1x130",
                },
                quiet={
                    'kube_pod_container_status_restarts_total{container="history"}': "0x5 0+1x6 6x120",
                    BUILD.replace("}", ',namespace="other"}'): "1x130",
                },
            ),
        ),
    ),
    "DispatcherTracingDropping": Case(
        fires={'dispatcher_tracing_spans_dropped_total{reason="not_taken"}': "0+6x40 240x40"},
        at=30,
        over=60,
        quiet={'dispatcher_tracing_spans_dropped_total{reason="not_taken"}': "0x10 5x60"},
        labels={"reason": "not_taken"},
    ),
    "DispatcherHistoryLosing": Case(
        fires={'dispatcher_history_lost_total{reason="not_written"}': "0+6x40 240x40"},
        at=30,
        over=60,
        quiet={'dispatcher_history_lost_total{reason="not_written"}': "0x10 5x60"},
        labels={"reason": "not_written"},
    ),
    "DispatcherHistoryNotStored": Case(
        fires={"dispatcher_history_store_failures_total": "0+6x40 240x40", "dispatcher_history_lag_records": "0x80"},
        at=30,
        over=60,
        quiet={"dispatcher_history_store_failures_total": "0x70", "dispatcher_history_lag_records": "9000x70"},
        others=(
            Variant(
                "a worker that can't read Kafka",
                {"dispatcher_history_worker_reading": "1x5 0x30 1x50"},
                {"dispatcher_history_worker_reading": "1x5 0x9 1x70"},
            ),
        ),
    ),
    "DispatcherHistoryUnreadable": Case(
        fires={UNREADABLE: "0x10 40x70"},  # once is enough: they are not stored later
        at=14,
        over=60,
        quiet={UNREADABLE: "40x80", UNREADABLE.replace("unreadable", "left_out"): "0x10 40x70"},
        labels={"result": "unreadable"},
    ),
    "DispatcherHistoryWorkerGone": Case(
        fires={
            "dispatcher_history_written_total": "0+60x100 6000x60",
            STORED: "0x160",
            STORED_BY_WORKER: "0+60x10 _x150",  # its pods are gone
        },
        at=60,
        over=145,
        quiet={
            "dispatcher_history_written_total": "0+60x100 6000x60",
            STORED: "0x160",
            STORED_BY_WORKER: "0+60x10 _x15 0+60x75 4500x60",  # back in time
        },
        others=(
            Variant(
                "the worker hangs; and nothing happens that could be stored",
                fires={"dispatcher_history_written_total": "0+60x100 6000x60", STORED_BY_WORKER: "0+60x10 600x150"},
                quiet={"dispatcher_history_written_total": "900x160", STORED_BY_WORKER: "900x160"},
            ),
            Variant(
                "the worker can read nothing; and it can read some",
                fires={
                    "dispatcher_history_written_total": "0+60x100 6000x60",
                    STORED_BY_WORKER: "0+60x10 600x150",
                    UNREADABLE: "0+60x100 6000x60",
                },
                quiet={
                    "dispatcher_history_written_total": "0+60x100 6000x60",
                    STORED_BY_WORKER: "0+1x160",
                    UNREADABLE: "0+59x100 5900x60",
                },
            ),
            Variant(
                "entries are rare",
                fires={"dispatcher_history_written_total": "0x5 0+1x95 95x60", STORED_BY_WORKER: "_x160"},
                quiet={
                    "dispatcher_history_written_total": "0x20 1x40 2x40 3x60",
                    STORED_BY_WORKER: "0x21 1x40 2x40 3x59",  # each is stored a minute later
                },
            ),
        ),
    ),
    "DispatcherNotificationsFailing": Case(
        # tries after 0, 0.5, 2.5, 12.5, 42.5, 102.5 … minutes from the 5th on; another message is sent in the 260th
        fires={RETRIED_AT: "0x5 300x1 330x2 450x10 1050x30 2850x60 6450x60 10050x112", SENT_AT: "60x260 15600x40"},
        at=100,
        over=280,
        quiet={RETRIED_AT: "0x90 5400x1 5430x2 5550x207", SENT_AT: "60x98 5880x202"},  # sent by the fourth try
        labels={"channel": "email"},
        others=(
            Variant(
                "the worker is restarted between two tries",
                fires={
                    RETRIED_AT: "0x5 300x1 330x2 450x10 1050x30 2850x12 _x240",
                    RETRIED_AT.replace("}", ',pod="history-1"}'): "_x65 0x43 6450x60 10050x132",
                    SENT_AT: "60x60 _x240",
                    SENT_AT.replace("}", ',pod="history-1"}'): "_x65 0x195 15600x40",
                },
                quiet={RETRIED_AT: "0x65 _x5 0x230", SENT_AT: "60x65 _x5 0x230"},
            ),
            Variant(
                "one of two workers sends what the other could not",
                fires={RETRIED_AT: "0x5 300x295", SENT_AT: "60x260 15600x40"},
                quiet={RETRIED_AT: "0x5 300x295", SENT_AT.replace("}", ',pod="history-1"}'): "60x15 900x285"},
            ),
            Variant(
                "recipient after recipient is refused for good",
                fires={FAILED: "0x60 0+1x60 60x180", SENT_AT: "60x300"},
                quiet={FAILED: "0x60 2x240", SENT_AT: "60x300"},
            ),
        ),
    ),
}
