"""The dashboard of one tenant, with a list of the tenants that have failures."""

from deploy.dashboards.grafana import (
    BAD,
    CALM,
    FAIR,
    GOOD,
    HERE,
    PLACE,
    TENANT,
    Dashboard,
    Row,
    Variable,
    graph,
    rate,
    stat,
    table,
)

DEAD = 'outcome="dead_lettered"'
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
                    (rate(EVENTS, TENANT, "outcome"), "{{outcome}}"),
                    width=16,
                    stacked=True,
                ),
                graph(
                    "Share of all traffic",
                    "This tenant's part of everything that came to an outcome.",
                    "percentunit",
                    (f"{rate(EVENTS, TENANT)} / {rate(EVENTS, HERE)}", "share"),
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
                        rate("dispatcher_delivery_attempts_total", f'{HERE}, outcome!="success"', "reason"),
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
                    "unstable is slowed, disabled and suspended get nothing until an operator acts.",
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
