"""The overview dashboard: whether the objectives are met, whether the dispatcher is the cause, and what is slow."""

from deploy.dashboards.grafana import (
    BAD,
    CALM,
    CONTAINER,
    E2E,
    FAIR,
    GOOD,
    HERE,
    PLACE,
    POD,
    PODS,
    Dashboard,
    Row,
    Variable,
    graph,
    heatmap,
    quantile,
    rate,
    stat,
    table,
)

ATTEMPT = "dispatcher_delivery_attempt_duration_seconds"
LOOP = "dispatcher_event_loop_lag_seconds"
RELOADED = "dispatcher_config_last_reload_success_timestamp_seconds"
DELIVERED = f'{PODS}, result="delivered"'

SLO_ROW = Row(
    "What was promised",
    [
        stat(
            "Delivered within 60 s",
            "Share of eligible events (delivered or given up, not skipped) that arrived within 60 s, last day. "
            "Broken endpoints count: it is what the customers have.",
            "percentunit",
            f"1 - max(namespace_job:dispatcher_events_late_or_dead:ratio_rate1d{{{HERE}}})",
            steps=((BAD, None), (FAIR, 0.98), (GOOD, 0.99)),
            decimals=3,
        ),
        stat(
            "Fresh",
            "Share of the last day in which no event that could be sent was older than 60 s. Only ours: a broken "
            "endpoint's events are parked and don't count.",
            "percentunit",
            f"1 - max(namespace_job:dispatcher_stale:avg1d{{{HERE}}})",
            steps=((BAD, None), (FAIR, 0.998), (GOOD, 0.999)),
            decimals=3,
        ),
        stat(
            "Freshness budget left",
            "What is left of three days' error budget for freshness. Below zero: the objective is missed.",
            "percentunit",
            f"1 - max(namespace_job:dispatcher_stale:avg3d{{{HERE}}})"
            " / scalar(1 - slo:dispatcher_freshness_objective:ratio)",
            steps=((BAD, None), (FAIR, 0), (GOOD, 0.25)),
        ),
        stat(
            "Oldest event waiting",
            "Age of the oldest event that could be sent and is not finished. Over 60 s the freshness budget burns.",
            "s",
            f"max(namespace_job:dispatcher_oldest_pending_event_age:seconds{{{HERE}}})",
            steps=((GOOD, None), (FAIR, 30), (BAD, 60)),
        ),
        stat(
            "Alerts firing",
            "Alerts of ours that fire now, of any severity.",
            "short",
            'count(ALERTS{alertname=~"Dispatcher.+", alertstate="firing"}) or vector(0)',
            steps=((GOOD, None), (FAIR, 1), (BAD, 5)),
        ),
        stat(
            "Pods",
            "Dispatchers that Prometheus reaches, with their versions. Two versions: a roll-out is under way.",
            "short",
            f"count by (version) (dispatcher_build_info{{{HERE}}}"
            f" and on (namespace, job, instance) dispatcher_delivery_concurrency_limit{{{HERE}}})",
            steps=((CALM, None),),
            legend="{{version}}",
        ),
        graph(
            "How fast the budgets burn",
            "1: the budget lasts exactly as long as it should. Above 14.4 over an hour an alert pages.",
            "short",
            (
                f"namespace_job:dispatcher_stale:avg1h{{{HERE}}} / on () group_left () "
                "(1 - slo:dispatcher_freshness_objective:ratio)",
                "freshness, 1 h",
            ),
            (
                f"namespace_job:dispatcher_events_late_or_dead:ratio_rate1h{{{HERE}}} / on () group_left () "
                "(1 - slo:dispatcher_delivery_objective:ratio)",
                "delivery, 1 h",
            ),
            (
                f"namespace_job:dispatcher_stale:avg6h{{{HERE}}} / on () group_left () "
                "(1 - slo:dispatcher_freshness_objective:ratio)",
                "freshness, 6 h",
            ),
            width=12,
            threshold=14.4,
        ),
        graph(
            "Late or dead events",
            "Share of the eligible events. Short windows move first.",
            "percentunit",
            (f"namespace_job:dispatcher_events_late_or_dead:ratio_rate5m{{{HERE}}}", "5 min"),
            (f"namespace_job:dispatcher_events_late_or_dead:ratio_rate1h{{{HERE}}}", "1 h"),
            (f"namespace_job:dispatcher_events_late_or_dead:ratio_rate6h{{{HERE}}}", "6 h"),
            width=12,
        ),
    ],
)

OVERVIEW = Dashboard(
    "dispatcher-overview",
    "Feedback dispatcher / Overview",
    "Do the webhooks go out, how fast, and what holds them up.",
    [*PLACE, POD, Variable("topic", "Topic", f"label_values(dispatcher_kafka_assigned_partitions{{{HERE}}}, topic)")],
    [
        SLO_ROW,
        Row(
            "Throughput",
            [
                graph(
                    "Events read",
                    "Records begun, by topic: new ones, and parked ones that came due.",
                    "eps",
                    (rate("dispatcher_events_consumed_total", f'{PODS}, topic=~"$topic"', "topic"), "{{topic}}"),
                    stacked=True,
                ),
                graph(
                    "Events finished",
                    "How events ended for good, one count an event. Red is lost to the customer until it is redriven.",
                    "eps",
                    (rate("dispatcher_events_finished_total", PODS, "result"), "{{result}}"),
                    stacked=True,
                ),
                graph(
                    "Attempts",
                    "POSTs, by what came of them.",
                    "reqps",
                    (rate("dispatcher_delivery_attempts_total", PODS, "outcome"), "{{outcome}}"),
                    stacked=True,
                ),
                graph(
                    "Events parked",
                    "Times an event was put off into a retry tier, and why. It comes back when its delay is over.",
                    "eps",
                    (rate("dispatcher_events_parked_total", PODS, "reason"), "{{reason}}"),
                    stacked=True,
                ),
                graph(
                    "Events skipped",
                    "Events for no webhook. A sudden no_webhook means that a tenant's configuration is gone.",
                    "eps",
                    (rate("dispatcher_events_skipped_total", PODS, "reason"), "{{reason}}"),
                    stacked=True,
                ),
                graph(
                    "Attempts for one delivered event",
                    "1 is ideal. More: endpoints fail and are tried again, which costs them and us.",
                    "short",
                    (
                        f"{rate('dispatcher_delivery_attempts_total', PODS)} / "
                        f"({rate('dispatcher_events_finished_total', DELIVERED)} > 0)",
                        "attempts per event",
                    ),
                ),
            ],
        ),
        Row(
            "Latency",
            [
                heatmap(
                    "From Kafka to the endpoint's answer",
                    "Delivered events by age at delivery. A second band at a tier's delay is events that were parked.",
                    "s",
                    f"sum by (le) (increase({E2E}_bucket{{{PODS}}}[$__rate_interval]))",
                ),
                graph(
                    "End to end",
                    "Age of events at delivery.",
                    "s",
                    *((quantile(q, E2E, PODS), f"p{int(q * 100)}") for q in (0.5, 0.95, 0.99)),
                    threshold=60,
                    exemplars=True,
                ),
                graph(
                    "At once, and after parking",
                    "Age at delivery (p95) of events that went through the first time, and of those that were parked.",
                    "s",
                    (quantile(0.95, E2E, f'{PODS}, retried="no"'), "the first time"),
                    (quantile(0.95, E2E, f'{PODS}, retried="yes"'), "after parking"),
                ),
                graph(
                    "One attempt",
                    "Length of a POST (p95), DNS to the answer's end. retryable near the timeout: endpoints hang. "
                    "With traces on, a dot is an attempt: it leads to its trace.",
                    "s",
                    (quantile(0.95, ATTEMPT, PODS, "le, outcome"), "{{outcome}}"),
                    exemplars=True,
                ),
                graph(
                    "Age of the oldest event",
                    "Age of the oldest event that could be sent.",
                    "s",
                    (f"namespace_job:dispatcher_oldest_pending_event_age:seconds{{{HERE}}}", "{{namespace}}"),
                    threshold=60,
                ),
                graph(
                    "Waiting in lanes",
                    "Events that wait for a permit of their tenant's lane; a full lane parks its events instead.",
                    "short",
                    (f"sum by (pod) (dispatcher_lanes_waiting_events{{{PODS}}})", "{{pod}}"),
                ),
            ],
        ),
        Row(
            "Kafka",
            [
                graph(
                    "Kafka is available",
                    "By pod: 1 if events can be read and outcomes written, as /readyz says. At 0 its events wait.",
                    "short",
                    (f"min by (pod) (dispatcher_kafka_available{{{PODS}}})", "{{pod}}"),
                    width=12,
                    top=1,
                ),
                graph(
                    "Problems with Kafka",
                    "Pods that report each reason; docs/kafka-problems.md explains them, the log has the detail.",
                    "short",
                    (f"sum by (reason) (dispatcher_kafka_problem{{{PODS}}}) > 0", "{{reason}}"),
                    width=12,
                    stacked=True,
                ),
                graph(
                    "Lag",
                    "Records to the end of the topic. Retry topics hold what is not due yet: no sign of trouble there.",
                    "short",
                    (f'sum by (topic) (dispatcher_kafka_consumer_lag_records{{{PODS}, topic=~"$topic"}})', "{{topic}}"),
                ),
                graph(
                    "Longest partition",
                    "The largest lag of one partition: far above the mean, a key is hot or the partition stuck.",
                    "short",
                    (f'max by (topic) (dispatcher_kafka_consumer_lag_records{{{PODS}, topic=~"$topic"}})', "{{topic}}"),
                ),
                graph(
                    "Slowest partition",
                    "Records a second finished in order by the slowest partition. At zero, with lag left, it is stuck.",
                    "eps",
                    (
                        "min by (topic) "
                        f'(deriv(dispatcher_kafka_finished_offset{{{PODS}, topic=~"$topic"}}[$__rate_interval]))',
                        "{{topic}}",
                    ),
                ),
                graph(
                    "Partitions by pod",
                    "How the group has shared the partitions. A pod without any is idle.",
                    "short",
                    (f"sum by (pod) (dispatcher_kafka_assigned_partitions{{{PODS}}})", "{{pod}}"),
                    stacked=True,
                ),
                graph(
                    "Rebalances",
                    "Assignments received within five minutes: each stops the whole group.",
                    "short",
                    (f"sum by (pod) (increase(dispatcher_kafka_rebalances_total{{{PODS}}}[5m]))", "{{pod}}"),
                ),
                graph(
                    "Commits",
                    "A failed commit repeats nothing by itself: the next one covers it.",
                    "ops",
                    (rate("dispatcher_kafka_commits_total", PODS), "acknowledged"),
                    (rate("dispatcher_kafka_commit_failures_total", PODS), "failed"),
                ),
                graph(
                    "Since the last poll",
                    "Seconds since each consumer last asked for records. At 120 s the pod counts as dead.",
                    "s",
                    (f"time() - max by (pod) (dispatcher_kafka_last_poll_timestamp_seconds{{{PODS}}} > 0)", "{{pod}}"),
                    threshold=120,
                ),
                graph(
                    "Paused partitions",
                    "Not read for a while: the window is full, or, in a retry topic, nothing is due.",
                    "short",
                    (f'sum by (topic) (dispatcher_kafka_paused_partitions{{{PODS}, topic=~"$topic"}})', "{{topic}}"),
                ),
                graph(
                    "Writes that failed",
                    "To retry and dead-letter topics: repeated, while partitions wait. History has gaps instead.",
                    "ops",
                    (rate("dispatcher_produce_failures_total", PODS, "kind"), "{{kind}}"),
                    (rate("dispatcher_history_lost_total", PODS), "missing from the history"),
                ),
                graph(
                    "History",
                    "Entries written to the topic, missing from it, and read from it into the store, by result.",
                    "eps",
                    (rate("dispatcher_history_written_total", PODS), "written"),
                    (rate("dispatcher_history_stored_total", PODS, "result"), "{{result}}"),
                    (rate("dispatcher_history_store_failures_total", PODS), "failed writes to the store"),
                    (rate("dispatcher_kafka_records_passed_over_total", PODS), "unreadable, passed over"),
                ),
                graph(
                    "History behind",
                    "How old the newest entry in the store is. While nothing happens it ages, too.",
                    "s",
                    (f"time() - max(dispatcher_history_newest_entry_timestamp_seconds{{{PODS}}} > 0)", "age"),
                ),
                graph(
                    "Webhooks that changed their state",
                    "What the history worker saw within five minutes, by the new state.",
                    "short",
                    (
                        f"sum by (state) (increase(dispatcher_webhook_state_changes_total{{{PODS}}}[5m])) > 0",
                        "became {{state}}",
                    ),
                ),
                graph(
                    "Repeated and passed over",
                    "Repeated: begun again, as the store or a topic was away. Passed over: finished before a restart.",
                    "eps",
                    (rate("dispatcher_events_repeated_total", PODS), "repeated"),
                    (rate("dispatcher_events_resumed_total", PODS), "passed over"),
                ),
            ],
        ),
        Row(
            "Failures",
            [
                graph(
                    "Failed attempts by reason",
                    "What endpoints answered, or why they did not.",
                    "reqps",
                    (
                        rate("dispatcher_delivery_attempts_total", f'{PODS}, outcome!="success"', "reason"),
                        "{{reason}}",
                    ),
                    stacked=True,
                ),
                graph(
                    "Dead letters by reason",
                    "unreadable, internal and too_large are ours or the producer's; the others the endpoint's.",
                    "eps",
                    (rate("dispatcher_dlq_published_total", PODS, "reason"), "{{reason}}"),
                    stacked=True,
                ),
                graph(
                    "Breakers",
                    "Tenants whose breaker is open, and the changes. Many at once: our way out is broken, not they.",
                    "short",
                    (f"sum(dispatcher_circuit_breaker_open_endpoints{{{PODS}}})", "open now"),
                    (
                        f"sum by (to) (increase(dispatcher_circuit_breaker_transitions_total{{{PODS}}}[5m]))",
                        "became {{to}} within 5 min",
                    ),
                ),
                graph(
                    "Tenants in trouble",
                    "unstable is slowed, disabled and suspended get nothing until an operator acts. Failing: nothing "
                    "arrives, by the last failure's reason.",
                    "short",
                    (f"max by (state) (dispatcher_tenants_in_state{{{PODS}}})", "{{state}}"),
                    (f"max by (reason) (dispatcher_tenants_failing{{{PODS}}}) > 0", "failing: {{reason}}"),
                ),
                graph(
                    "Tokens and store",
                    "Tokens that could not be fetched, look-ups that the store did not answer, and stale answers.",
                    "ops",
                    (rate("dispatcher_token_failures_total", PODS), "token failures"),
                    (rate("dispatcher_webhook_store_failures_total", PODS), "store failures"),
                    (rate("dispatcher_webhook_cache_stale_answers_total", PODS), "stale answers"),
                ),
                graph(
                    "First certificate to expire",
                    "Time until the first certificate of any endpoint expires. Below zero its events are parked.",
                    "s",
                    (f"min(dispatcher_certificate_expiry_timestamp_seconds{{{PODS}}} > 0) - time()", "first"),
                ),
                graph(
                    "Brake and bugs",
                    "Partitions that the brake stopped, unexpected errors, and log lines left out: all should be zero.",
                    "short",
                    (f"sum(dispatcher_dead_letter_brake_engaged{{{PODS}}})", "partitions braked"),
                    (
                        f"sum by (where) (increase(dispatcher_internal_errors_total{{{PODS}}}[5m]))",
                        "errors in {{where}}",
                    ),
                    (
                        f"sum(increase(dispatcher_log_lines_left_out_total{{{PODS}}}[5m]))",
                        "log lines left out",
                    ),
                ),
            ],
        ),
        Row(
            "Saturation",
            [
                graph(
                    "Permits in use",
                    "POSTs under way, and the most there may be (delivery.max_in_flight).",
                    "short",
                    (f"sum(dispatcher_deliveries_in_flight{{{PODS}}})", "in flight"),
                    (f"sum(dispatcher_delivery_concurrency_limit{{{PODS}}})", "limit"),
                ),
                graph(
                    "Unfinished records",
                    "Read, outcome not known yet. At kafka.max_unfinished reading pauses.",
                    "short",
                    (f"sum by (pod) (dispatcher_unfinished_records{{{PODS}}})", "{{pod}}"),
                ),
                graph(
                    "Their bytes",
                    "The same in bytes; kafka.max_unfinished_bytes bounds it.",
                    "bytes",
                    (f"sum by (pod) (dispatcher_unfinished_bytes{{{PODS}}})", "{{pod}}"),
                ),
                graph(
                    "Event loop lag",
                    "How late timers fire (p99). Above 0.25 s the process is short of CPU, or something blocks it.",
                    "s",
                    (quantile(0.99, LOOP, PODS, "le, pod"), "{{pod}}"),
                    threshold=0.25,
                ),
                graph(
                    "CPU",
                    "Cores in use. One process uses one at most: near 1 it is time for another pod.",
                    "short",
                    (f"sum by (pod) (rate(process_cpu_seconds_total{{{PODS}}}[$__rate_interval]))", "{{pod}}"),
                    threshold=0.9,
                ),
                graph(
                    "Memory",
                    "Resident, and the container's limit.",
                    "bytes",
                    (f"max by (pod) (process_resident_memory_bytes{{{PODS}}})", "{{pod}}"),
                    (f'max(kube_pod_container_resource_limits{{{CONTAINER}, resource="memory"}})', "limit"),
                ),
                graph(
                    "Open files and tasks",
                    "Files are sockets for the most part. Both come back to what they were when nothing is under way.",
                    "short",
                    (f"max by (pod) (process_open_fds{{{PODS}}})", "{{pod}} files"),
                    (f"min(process_max_fds{{{PODS}}})", "limit of files"),
                    (f"max by (pod) (dispatcher_asyncio_tasks{{{PODS}}})", "{{pod}} tasks"),
                ),
                graph(
                    "Open connections",
                    "Connections to the ports of the dispatcher itself, such as the one for metrics and probes.",
                    "short",
                    (f"sum by (pod, port) (dispatcher_http_connections{{{PODS}}})", "{{pod}} {{port}}"),
                ),
                graph(
                    "Connections closed by a limit",
                    "Connections that were closed or refused within five minutes, because the client was too slow or "
                    "opened too many.",
                    "short",
                    (
                        f"sum by (port, reason) (increase(dispatcher_http_connections_closed_total{{{PODS}}}[5m]))",
                        "{{port}} {{reason}}",
                    ),
                ),
                graph(
                    "Restarts",
                    "Of containers, within an hour: each one is a rebalance.",
                    "short",
                    (f"increase(kube_pod_container_status_restarts_total{{{CONTAINER}}}[1h])", "{{pod}}"),
                ),
                graph(
                    "Throttling",
                    "Share of CPU periods in which the container had to stop. Should be nothing: set no CPU limit.",
                    "percentunit",
                    (
                        f"{rate('container_cpu_cfs_throttled_periods_total', CONTAINER, 'pod')} / "
                        f"{rate('container_cpu_cfs_periods_total', CONTAINER, 'pod')}",
                        "{{pod}}",
                    ),
                ),
            ],
        ),
        Row(
            "Configuration",
            [
                table(
                    "Versions of the webhooks in use",
                    "One hash: the pods agree. Two for longer than a minute or two: a pod did not load a change.",
                    "short",
                    f"count by (hash) (dispatcher_config_info{{{PODS}}})",
                ),
                graph(
                    "Webhooks",
                    "Configured webhooks, as each pod sees them.",
                    "short",
                    (f"max by (pod) (dispatcher_config_tenants{{{PODS}}})", "{{pod}}"),
                ),
                graph(
                    "Events held",
                    "Events that wait until their webhook is repaired, enabled or resumed.",
                    "short",
                    (f"sum by (pod) (dispatcher_held_events{{{PODS}}})", "{{pod}}"),
                ),
                graph(
                    "Last reload",
                    "1 if every file in use is the newest; 0: a file is wrong, and its last good version is in use.",
                    "short",
                    (f"min by (pod) (dispatcher_config_last_reload_successful{{{PODS}}})", "{{pod}}"),
                    (
                        f"min by (pod) (dispatcher_ops_certificate_last_reload_successful{{{PODS}}})",
                        "{{pod}}: certificate of the ops port",
                    ),
                    top=1,
                ),
                graph(
                    "Reloads",
                    "Changes taken up, or refused, within five minutes.",
                    "short",
                    (f"sum by (result) (increase(dispatcher_config_reloads_total{{{PODS}}}[5m]))", "{{result}}"),
                ),
                graph(
                    "Spans dropped",
                    "Trace spans that no collector will see: the queue was full, or it did not take them.",
                    "ops",
                    (rate("dispatcher_tracing_spans_dropped_total", PODS, "reason"), "{{reason}}"),
                ),
                graph(
                    "Since the last change taken up whole",
                    "Since a start or change after which every file was in use. *Last reload* shows if one is wrong.",
                    "s",
                    (
                        f"time() - max by (pod) ({RELOADED}{{{PODS}}} > 0)",
                        "{{pod}}",
                    ),
                ),
            ],
        ),
    ],
    [
        ("Two versions", f"count(count by (version) (dispatcher_build_info{{{HERE}}})) > 1", "blue"),
        ("Rebalance", f"sum(increase(dispatcher_kafka_rebalances_total{{{HERE}}}[1m])) > 0", "orange"),
        ("Webhooks changed", f'sum(increase(dispatcher_config_reloads_total{{{HERE}, result="ok"}}[1m])) > 0', "green"),
    ],
)
