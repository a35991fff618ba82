"""Writes the Grafana dashboards: `python -m deploy.dashboards.generate`. A test keeps the JSON current.

Plain dicts, no SDK. Every panel has a title, a description that says what to look for, a unit and queries by the
variables; nothing names a data source.
"""

import json
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

OUT = Path(__file__).parents[1] / "helm" / "feedback-dispatcher" / "files" / "dashboards"

Panel = dict[str, Any]

SOURCE = {"type": "prometheus", "uid": "${datasource}"}
HERE = 'namespace=~"$namespace", job=~"$job"'
PODS = f'{HERE}, pod=~"$pod"'
TENANT = f'{HERE}, org=~"$org", sandbox=~"$sandbox"'
CONTAINER = 'namespace=~"$namespace", pod=~"$pod", container="dispatcher"'

GOOD, FAIR, BAD, CALM = "green", "orange", "red", "blue"
COLOURS = {
    "delivered": GOOD, "skipped": CALM, "parked": FAIR, "dead_lettered": BAD, "dead": BAD,
    "success": GOOD, "retryable": FAIR, "permanent": BAD,
}  # fmt: skip


def _target(expr: str, legend: str, *, kind: str = "", exemplars: bool = False) -> dict[str, Any]:
    made: dict[str, Any] = {
        "datasource": SOURCE,
        "expr": expr,
        "legendFormat": legend,
        "refId": "A",
        "editorMode": "code",
    }
    if kind == "instant":
        made |= {"instant": True, "range": False}
    else:
        made |= {"range": True, "exemplar": exemplars}
    if kind == "table":
        made |= {"instant": True, "range": False, "format": "table"}
    if kind == "heatmap":
        made |= {"format": "heatmap"}
    return made


def _panel(
    kind: str,
    title: str,
    description: str,
    unit: str,
    *queries: tuple[str, str],
    size: tuple[int, int] = (8, 8),
    options: dict[str, Any] | None = None,
    custom: dict[str, Any] | None = None,
    defaults: dict[str, Any] | None = None,
    target_kind: str = "",
    exemplars: bool = False,
    transformations: list[dict[str, Any]] | None = None,
) -> Panel:
    targets = [_target(expr, legend, kind=target_kind, exemplars=exemplars) for expr, legend in queries]
    for index, target in enumerate(targets):
        target["refId"] = chr(ord("A") + index)
    legends = {legend for _, legend in queries}
    overrides = [
        {
            "matcher": {"id": "byName", "options": name},
            "properties": [{"id": "color", "value": {"mode": "fixed", "fixedColor": colour}}],
        }
        for name, colour in COLOURS.items()
        if legends & {"{{result}}", "{{outcome}}"}
    ]
    panel: Panel = {
        "type": kind,
        "title": title,
        "description": description,
        "datasource": SOURCE,
        "gridPos": {"w": size[0], "h": size[1]},
        "targets": targets,
        "fieldConfig": {"defaults": {"unit": unit, "custom": custom or {}} | (defaults or {}), "overrides": overrides},
        "options": options or {},
    }
    if transformations:
        panel["transformations"] = transformations
    return panel


def graph(
    title: str, description: str, unit: str, *queries: tuple[str, str], width: int = 8, stacked: bool = False,
    threshold: float | None = None, exemplars: bool = False, top: float | None = None,
) -> Panel:  # fmt: skip
    """Lines over time; stacked areas where the parts make a whole."""
    custom: dict[str, Any] = {"drawStyle": "line", "lineWidth": 1, "showPoints": "never", "fillOpacity": 8}
    defaults: dict[str, Any] = {"min": 0}
    if stacked:
        custom |= {"fillOpacity": 40, "stacking": {"mode": "normal", "group": "A"}}
    if threshold is not None:
        custom |= {"thresholdsStyle": {"mode": "dashed"}}
        defaults["thresholds"] = {
            "mode": "absolute",
            "steps": [{"color": "transparent", "value": None}, {"color": BAD, "value": threshold}],
        }
    if top is not None:
        defaults["max"] = top
    options = {
        "legend": {"displayMode": "table", "placement": "bottom", "calcs": ["mean", "max"]},
        "tooltip": {"mode": "multi", "sort": "desc"},
    }
    return _panel(
        "timeseries", title, description, unit, *queries,
        size=(width, 8), options=options, custom=custom, defaults=defaults, exemplars=exemplars,
    )  # fmt: skip


def stat(
    title: str, description: str, unit: str, query: str, *, steps: tuple[tuple[str, float | None], ...],
    width: int = 4, legend: str = "", decimals: int | None = None,
) -> Panel:  # fmt: skip
    """One number with a colour that says whether it is good; its words say it too."""
    defaults: dict[str, Any] = {
        "thresholds": {"mode": "absolute", "steps": [{"color": colour, "value": value} for colour, value in steps]},
        "color": {"mode": "thresholds"},
        "noValue": "no data",
    }
    if decimals is not None:
        defaults["decimals"] = decimals
    options = {"reduceOptions": {"calcs": ["lastNotNull"]}, "graphMode": "area", "colorMode": "value"}
    return _panel(
        "stat", title, description, unit, (query, legend), size=(width, 5), options=options, defaults=defaults
    )


def heatmap(title: str, description: str, unit: str, query: str, *, width: int = 16) -> Panel:
    """Buckets over time."""
    options = {
        "calculate": False,
        "yAxis": {"unit": unit},
        "color": {"scheme": "Oranges", "mode": "scheme"},
        "exemplars": {"color": "rgba(255,0,255,0.7)"},
        "cellGap": 1,
        "tooltip": {"mode": "single", "yHistogram": True},
    }
    return _panel(
        "heatmap", title, description, unit, (query, "{{le}}"),
        size=(width, 8), options=options, target_kind="heatmap", exemplars=True,
    )  # fmt: skip


def table(title: str, description: str, unit: str, query: str, *, hide: tuple[str, ...] = (), width: int = 8) -> Panel:
    """Rows of labels, with a value."""
    hidden = dict.fromkeys(("Time", "__name__", "instance", "job", "namespace", "container", "endpoint", *hide), True)
    return _panel(
        "table", title, description, unit, (query, ""),
        size=(width, 8), target_kind="table",
        transformations=[{"id": "organize", "options": {"excludeByName": hidden}}],
        options={"showHeader": True, "sortBy": [{"displayName": "Value", "desc": True}]},
    )  # fmt: skip


@dataclass(frozen=True)
class Row:
    """Panels side by side under a heading."""

    title: str
    panels: list[Panel]
    collapsed: bool = False


@dataclass(frozen=True)
class Variable:
    """A choice at the top of a dashboard."""

    name: str
    label: str
    query: str
    everything: bool = True

    def as_json(self) -> dict[str, Any]:
        """The variable as Grafana stores it."""
        made: dict[str, Any] = {
            "name": self.name,
            "label": self.label,
            "type": "query",
            "datasource": SOURCE,
            "query": {"query": self.query, "refId": self.name},
            "definition": self.query,
            "refresh": 2,
            "sort": 1,
            "includeAll": self.everything,
            "multi": self.everything,
        }
        if self.everything:
            made |= {"allValue": ".*", "current": {"text": "All", "value": "$__all"}}
        return made


@dataclass(frozen=True)
class Dashboard:
    """A page of rows."""

    uid: str
    title: str
    description: str
    variables: list[Variable]
    rows: list[Row]
    annotations: list[tuple[str, str, str]] = field(default_factory=list)
    """Name, query, colour."""

    def as_json(self) -> dict[str, Any]:
        """The dashboard as Grafana imports it."""
        return {
            "uid": self.uid,
            "title": self.title,
            "description": self.description,
            "tags": ["feedback-dispatcher"],
            "schemaVersion": 39,
            "version": 1,
            "editable": False,
            "graphTooltip": 1,
            "refresh": "30s",
            "timezone": "",
            "time": {"from": "now-6h", "to": "now"},
            "links": [
                {
                    "type": "dashboards",
                    "title": "Feedback dispatcher",
                    "tags": ["feedback-dispatcher"],
                    "asDropdown": False,
                    "includeVars": True,
                    "keepTime": True,
                }
            ],
            "templating": {
                "list": [
                    {
                        "name": "datasource",
                        "label": "Data source",
                        "type": "datasource",
                        "query": "prometheus",
                        "refresh": 1,
                    },
                    *(variable.as_json() for variable in self.variables),
                ]
            },
            "annotations": {
                "list": [
                    {
                        "name": name,
                        "datasource": SOURCE,
                        "enable": True,
                        "iconColor": colour,
                        "expr": query,
                        "step": "60s",
                        "titleFormat": name,
                    }
                    for name, query, colour in self.annotations
                ]
            },
            "panels": self._placed(),
        }

    def _placed(self) -> list[Panel]:
        made: list[Panel] = []
        y = number = 0
        for row in self.rows:
            number += 1
            head: Panel = {
                "id": number,
                "type": "row",
                "title": row.title,
                "collapsed": row.collapsed,
                "gridPos": {"x": 0, "y": y, "w": 24, "h": 1},
                "panels": [],
            }
            made.append(head)
            y, x, height = y + 1, 0, 0
            for panel in row.panels:
                number += 1
                width, tall = panel["gridPos"]["w"], panel["gridPos"]["h"]
                if x + width > 24:
                    x, y, height = 0, y + height, 0
                placed = {"id": number} | panel | {"gridPos": {"x": x, "y": y, "w": width, "h": tall}}
                x, height = x + width, max(height, tall)
                (head["panels"] if row.collapsed else made).append(placed)
            y += height
        return made


def _quantile(q: float, histogram: str, matchers: str, by: str = "le") -> str:
    return f"histogram_quantile({q}, sum by ({by}) (rate({histogram}_bucket{{{matchers}}}[$__rate_interval])))"


def _rate(metric: str, matchers: str, by: str = "") -> str:
    grouped = f"sum by ({by}) " if by else "sum"
    inner = f"rate({metric}{{{matchers}}}[$__rate_interval])"
    return f"{grouped}({inner})"


PLACE = [
    Variable("namespace", "Namespace", "label_values(dispatcher_build_info, namespace)"),
    Variable("job", "Job", 'label_values(dispatcher_build_info{namespace=~"$namespace"}, job)'),
]
POD = Variable("pod", "Pod", f"label_values(dispatcher_build_info{{{HERE}}}, pod)")
E2E = "dispatcher_event_end_to_end_duration_seconds"
ATTEMPT = "dispatcher_delivery_attempt_duration_seconds"
LOOP = "dispatcher_event_loop_lag_seconds"
RELOADED = "dispatcher_config_last_reload_success_timestamp_seconds"
DELIVERED = f'{PODS}, result="delivered"'
DEAD = 'outcome="dead_lettered"'

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
            f"count by (version) (dispatcher_build_info{{{HERE}}})",
            steps=((CALM, None),),
            legend="{{version}}",
        ),
        graph(
            "How fast the budgets burn",
            "1: the budget lasts exactly as long as it should. Above 14.4 over an hour somebody is called.",
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
                    (_rate("dispatcher_events_consumed_total", f'{PODS}, topic=~"$topic"', "topic"), "{{topic}}"),
                    stacked=True,
                ),
                graph(
                    "Events finished",
                    "How events ended for good, one count an event. Red is lost to the customer until it is redriven.",
                    "eps",
                    (_rate("dispatcher_events_finished_total", PODS, "result"), "{{result}}"),
                    stacked=True,
                ),
                graph(
                    "Attempts",
                    "POSTs, by what came of them.",
                    "reqps",
                    (_rate("dispatcher_delivery_attempts_total", PODS, "outcome"), "{{outcome}}"),
                    stacked=True,
                ),
                graph(
                    "Events parked",
                    "Times an event was put off into a retry tier, and why. It comes back when its delay is over.",
                    "eps",
                    (_rate("dispatcher_events_parked_total", PODS, "reason"), "{{reason}}"),
                    stacked=True,
                ),
                graph(
                    "Events skipped",
                    "Events for no webhook. A sudden no_webhook means that somebody's configuration is gone.",
                    "eps",
                    (_rate("dispatcher_events_skipped_total", PODS, "reason"), "{{reason}}"),
                    stacked=True,
                ),
                graph(
                    "Attempts for one delivered event",
                    "1 is ideal. More: endpoints fail and are tried again, which costs them and us.",
                    "short",
                    (
                        f"{_rate('dispatcher_delivery_attempts_total', PODS)} / "
                        f"({_rate('dispatcher_events_finished_total', DELIVERED)} > 0)",
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
                    *((_quantile(q, E2E, PODS), f"p{int(q * 100)}") for q in (0.5, 0.95, 0.99)),
                    threshold=60,
                    exemplars=True,
                ),
                graph(
                    "At once, and after parking",
                    "Age at delivery (p95) of events that went through the first time, and of those that were parked.",
                    "s",
                    (_quantile(0.95, E2E, f'{PODS}, retried="no"'), "the first time"),
                    (_quantile(0.95, E2E, f'{PODS}, retried="yes"'), "after parking"),
                ),
                graph(
                    "One attempt",
                    "Length of a POST (p95), DNS to the answer's end. retryable near the timeout: endpoints hang. "
                    "With traces on, a dot is an attempt: it leads to its trace.",
                    "s",
                    (_quantile(0.95, ATTEMPT, PODS, "le, outcome"), "{{outcome}}"),
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
                    "Events that wait for a slot of their tenant's lane; a lane that is full parks its events instead.",
                    "short",
                    (f"sum by (pod) (dispatcher_lanes_waiting_events{{{PODS}}})", "{{pod}}"),
                ),
            ],
        ),
        Row(
            "Kafka",
            [
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
                    (_rate("dispatcher_kafka_commits_total", PODS), "acknowledged"),
                    (_rate("dispatcher_kafka_commit_failures_total", PODS), "failed"),
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
                    "To retry and dead-letter topics: repeated, while partitions wait. The attempt log drops instead.",
                    "ops",
                    (_rate("dispatcher_produce_failures_total", PODS, "kind"), "{{kind}}"),
                    (_rate("dispatcher_attempt_log_dropped_total", PODS), "left out of the attempt log"),
                ),
                graph(
                    "Repeated and passed over",
                    "Repeated: begun again, as the store or a topic was away. Passed over: finished before a restart.",
                    "eps",
                    (_rate("dispatcher_events_repeated_total", PODS), "repeated"),
                    (_rate("dispatcher_events_resumed_total", PODS), "passed over"),
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
                        _rate("dispatcher_delivery_attempts_total", f'{PODS}, outcome!="success"', "reason"),
                        "{{reason}}",
                    ),
                    stacked=True,
                ),
                graph(
                    "Dead letters by reason",
                    "unreadable, internal and too_large are ours or the producer's; the others the endpoint's.",
                    "eps",
                    (_rate("dispatcher_dlq_published_total", PODS, "reason"), "{{reason}}"),
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
                    "unstable is slowed, disabled and suspended get nothing until somebody acts.",
                    "short",
                    (f"max by (state) (dispatcher_tenants_in_state{{{PODS}}})", "{{state}}"),
                ),
                graph(
                    "Tokens and store",
                    "Tokens that could not be had, look-ups that the store did not answer, and stale answers instead.",
                    "ops",
                    (_rate("dispatcher_token_failures_total", PODS), "token failures"),
                    (_rate("dispatcher_webhook_store_failures_total", PODS), "store failures"),
                    (_rate("dispatcher_webhook_cache_stale_answers_total", PODS), "stale answers"),
                ),
                graph(
                    "First certificate to expire",
                    "Time until the first certificate of any endpoint expires. Below zero its events are parked.",
                    "s",
                    (f"min(dispatcher_certificate_expiry_timestamp_seconds{{{PODS}}} > 0) - time()", "first"),
                ),
                graph(
                    "Brake and bugs",
                    "Partitions stopped by the dead-letter brake, and unexpected errors: both should be zero.",
                    "short",
                    (f"sum(dispatcher_dead_letter_brake_engaged{{{PODS}}})", "partitions braked"),
                    (
                        f"sum by (where) (increase(dispatcher_internal_errors_total{{{PODS}}}[5m]))",
                        "errors in {{where}}",
                    ),
                ),
            ],
        ),
        Row(
            "Saturation",
            [
                graph(
                    "Slots in use",
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
                    "The same in bytes of their values; kafka.max_unfinished_bytes bounds it.",
                    "bytes",
                    (f"sum by (pod) (dispatcher_unfinished_bytes{{{PODS}}})", "{{pod}}"),
                ),
                graph(
                    "Event loop lag",
                    "How late timers fire (p99). Above 0.25 s the process is short of CPU, or something blocks it.",
                    "s",
                    (_quantile(0.99, LOOP, PODS, "le, pod"), "{{pod}}"),
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
                    "Open files",
                    "Sockets for the most part, and the limit.",
                    "short",
                    (f"max by (pod) (process_open_fds{{{PODS}}})", "{{pod}}"),
                    (f"min(process_max_fds{{{PODS}}})", "limit"),
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
                        f"{_rate('container_cpu_cfs_throttled_periods_total', CONTAINER, 'pod')} / "
                        f"{_rate('container_cpu_cfs_periods_total', CONTAINER, 'pod')}",
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
                    "One hash: the pods agree. Two for longer than a minute or two: somebody did not take up a change.",
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
                    "Last reload",
                    "1 where every file in use is the newest; 0: a file is wrong, and its last good version is in use.",
                    "short",
                    (f"min by (pod) (dispatcher_config_last_reload_successful{{{PODS}}})", "{{pod}}"),
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
                    (_rate("dispatcher_tracing_spans_dropped_total", PODS, "reason"), "{{reason}}"),
                ),
                graph(
                    "Since the configuration was last good",
                    "Time since every file was in use. Grows while one is wrong.",
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

EVENTS = "dispatcher_tenant_events_total"

TENANT_STORY = Dashboard(
    "dispatcher-tenant",
    "Feedback dispatcher / Tenant",
    "One tenant's story, and who is hurting. Tenants past metrics.max_tenant_series are counted as _other: the ops "
    "endpoint's /lanes and the console know each of them.",
    [
        *PLACE,
        Variable("org", "Organisation", f"label_values({EVENTS}{{{HERE}}}, org)"),
        Variable("sandbox", "Sandbox", f'label_values({EVENTS}{{{HERE}, org=~"$org"}}, sandbox)'),
    ],
    [
        Row(
            "This tenant",
            [
                stat(
                    "Delivered",
                    "Share of the eligible events within the time shown that were delivered.",
                    "percentunit",
                    f'sum(increase({EVENTS}{{{TENANT}, outcome="delivered"}}[$__range])) / '
                    f'sum(increase({EVENTS}{{{TENANT}, outcome=~"delivered|dead_lettered"}}[$__range]))',
                    steps=((BAD, None), (FAIR, 0.98), (GOOD, 0.999)),
                    width=6,
                    decimals=2,
                ),
                stat(
                    "Events delivered",
                    "Within the time shown.",
                    "short",
                    f'sum(increase({EVENTS}{{{TENANT}, outcome="delivered"}}[$__range]))',
                    steps=((CALM, None),),
                    width=6,
                ),
                stat(
                    "Times parked",
                    "Within the time shown: events that were put off, once for each time.",
                    "short",
                    f'sum(increase({EVENTS}{{{TENANT}, outcome="parked"}}[$__range]))',
                    steps=((GOOD, None), (FAIR, 1)),
                    width=6,
                ),
                stat(
                    "Dead events",
                    "Within the time shown; they wait in the dead-letter topic for a redrive.",
                    "short",
                    f'sum(increase({EVENTS}{{{TENANT}, outcome="dead_lettered"}}[$__range])) or vector(0)',
                    steps=((GOOD, None), (BAD, 1)),
                    width=6,
                ),
                graph(
                    "Events by outcome",
                    "Parked events come again: one event can count there several times, and once as delivered or dead.",
                    "eps",
                    (_rate(EVENTS, TENANT, "outcome"), "{{outcome}}"),
                    width=16,
                    stacked=True,
                ),
                graph(
                    "Share of all traffic",
                    "This tenant's part of everything that came to an outcome.",
                    "percentunit",
                    (f"{_rate(EVENTS, TENANT)} / {_rate(EVENTS, HERE)}", "share"),
                ),
                graph(
                    "Parked for each delivered event",
                    "Zero is ideal. It grows before events die: the endpoint fails, throttles, or its breaker is open.",
                    "short",
                    (
                        f'sum(rate({EVENTS}{{{TENANT}, outcome="parked"}}[$__rate_interval])) / '
                        f'(sum(rate({EVENTS}{{{TENANT}, outcome="delivered"}}[$__rate_interval])) > 0)',
                        "this tenant",
                    ),
                    (
                        f'sum(rate({EVENTS}{{{HERE}, outcome="parked"}}[$__rate_interval])) / '
                        f'(sum(rate({EVENTS}{{{HERE}, outcome="delivered"}}[$__rate_interval])) > 0)',
                        "all tenants",
                    ),
                    width=12,
                ),
                graph(
                    "Failed attempts, all tenants",
                    "Whether others see the same at the same time: then it is not this tenant's endpoint.",
                    "reqps",
                    (
                        _rate("dispatcher_delivery_attempts_total", f'{HERE}, outcome!="success"', "reason"),
                        "{{reason}}",
                    ),
                    width=12,
                    stacked=True,
                ),
            ],
        ),
        Row(
            "Who is hurting",
            [
                table(
                    "Most events parked",
                    "The twenty tenants with most, events a second.",
                    "eps",
                    f'topk(20, sum by (org, sandbox) (rate({EVENTS}{{{HERE}, outcome="parked"}}[5m])))',
                    width=12,
                ),
                table(
                    "Most events dead",
                    "The twenty tenants with most, within the time shown.",
                    "short",
                    f"topk(20, sum by (org, sandbox) (increase({EVENTS}{{{HERE}, {DEAD}}}[$__range])))",
                    width=12,
                ),
                table(
                    "Longest waits",
                    "Age of the oldest event that is parked, for the tenants that are worst off "
                    "(metrics.worst_tenants); _other is the oldest of the rest.",
                    "s",
                    "topk(21, time() - min by (org, sandbox) "
                    f"(dispatcher_tenant_oldest_pending_event_timestamp_seconds{{{HERE}}}))",
                    width=12,
                ),
                table(
                    "Certificates that expire first",
                    "Time until the certificate of a tenant's endpoint or token server expires.",
                    "s",
                    "bottomk(21, min by (org, sandbox) "
                    f"(dispatcher_tenant_certificate_expiry_timestamp_seconds{{{HERE}}}) - time())",
                    width=12,
                ),
                table(
                    "Most traffic",
                    "The twenty largest tenants, events a second.",
                    "eps",
                    f"topk(20, sum by (org, sandbox) (rate({EVENTS}{{{HERE}}}[5m])))",
                    width=12,
                ),
                graph(
                    "Tenants in trouble",
                    "unstable is slowed, disabled and suspended get nothing until somebody acts.",
                    "short",
                    (f"max by (state) (dispatcher_tenants_in_state{{{HERE}}})", "{{state}}"),
                    (f"sum(dispatcher_circuit_breaker_open_endpoints{{{HERE}}})", "breaker open"),
                    width=12,
                ),
                stat(
                    "Tenants without series",
                    "Configured tenants counted under _other (metrics.max_tenant_series).",
                    "short",
                    f"max(dispatcher_metrics_tenants_collapsed{{{HERE}}})",
                    steps=((GOOD, None), (FAIR, 1)),
                    width=6,
                ),
                stat(
                    "Tenants with traffic",
                    "Lanes in memory, all pods together.",
                    "short",
                    f"sum(dispatcher_lanes{{{HERE}}})",
                    steps=((CALM, None),),
                    width=6,
                ),
            ],
        ),
    ],
    [("Webhooks changed", f'sum(increase(dispatcher_config_reloads_total{{{HERE}, result="ok"}}[1m])) > 0', "green")],
)

DASHBOARDS = {"overview.json": OVERVIEW, "tenant.json": TENANT_STORY}


def generated() -> dict[Path, str]:
    """Every file and what must stand in it."""
    return {
        OUT / name: json.dumps(dashboard.as_json(), indent=1, ensure_ascii=False) + "\n"
        for name, dashboard in DASHBOARDS.items()
    }


if __name__ == "__main__":
    OUT.mkdir(parents=True, exist_ok=True)
    for path, text in generated().items():
        path.write_text(text)
