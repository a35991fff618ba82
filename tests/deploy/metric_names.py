"""Which metrics there are, and which ones an expression uses."""

import re
from collections.abc import Iterator
from functools import cache

import yaml
from prometheus_client import REGISTRY

from dispatcher.console import measures
from dispatcher.telemetry import metrics
from tests.deploy.tools import RULES

FOREIGN = frozenset(
    {
        "up",
        "ALERTS",
        "container_memory_working_set_bytes",  # the kubelet's cAdvisor
        "container_cpu_cfs_throttled_periods_total",
        "container_cpu_cfs_periods_total",
        "kube_pod_container_resource_limits",  # kube-state-metrics
        "kube_pod_container_resource_requests",
        "kube_pod_container_status_restarts_total",
    }
)
"""Metrics of others, which a cluster has and a test has not."""

RECORDED = frozenset(
    rule["record"]
    for path in RULES.glob("*.yaml")
    for group in yaml.safe_load(path.read_text())["groups"]
    for rule in group["rules"]
    if "record" in rule
)

_STRING = re.compile(r'"(?:[^"\\]|\\.)*"')
_LABELS = re.compile(r"\{[^}]*\}")
_GROUPING = re.compile(r"\b(by|without|on|ignoring|group_left|group_right)\s*\([^)]*\)")
_RANGE = re.compile(r"\[[^\]]*\]")
_WORDS = frozenset(
    ["and", "or", "unless", "by", "without", "on", "ignoring", "group_left", "group_right", "bool", "offset"]
)


def names_in(expression: str) -> set[str]:
    """The metrics that an expression selects."""
    bare = _RANGE.sub("", _GROUPING.sub("", _LABELS.sub("", _STRING.sub('""', expression))))
    return {
        match[0]
        for match in re.finditer(r"(?<![\w:.$])[a-zA-Z_:][a-zA-Z0-9_:]*(?![\w:])(?!\s*\()", bare)
        if match[0].lower() not in _WORDS
    }


@cache
def known_metrics() -> frozenset[str]:
    """Names of samples in /metrics of the daemon and of the console, and those of others."""
    metrics.initialise()
    measures.initialise()
    return frozenset(_ours()) | FOREIGN


def _ours() -> Iterator[str]:
    suffixes = {"counter": ("_total",), "gauge": ("",), "histogram": ("_bucket", "_count", "_sum"), "info": ("_info",)}
    for family in REGISTRY.collect():
        yield from (family.name + suffix for suffix in suffixes.get(family.type, ("",)))


def selectors_in(expression: str) -> set[str]:
    """The metrics that an expression selects, with their matchers."""
    names = names_in(expression)
    found = re.findall(r"[a-zA-Z_:][a-zA-Z0-9_:]*(?:\{[^}]*\})?", _GROUPING.sub("", expression))
    return {one for one in found if one.partition("{")[0] in names}
