"""Defines the metrics with tenant labels: events by outcome, and the tenants that are worst off.

Only configured tenants have series of their own, up to a limit, and all of them can be turned off.
"""

import heapq
import time
from collections import defaultdict
from collections.abc import Iterable, Mapping
from typing import ClassVar, Final

from prometheus_client import Gauge

from dispatcher.config.settings import MetricsSettings
from dispatcher.contract.tenant import TenantKey
from dispatcher.telemetry import fast_metrics
from dispatcher.telemetry.metrics import CERTIFICATE_EXPIRY

_OTHER: Final = ("_other", "_other")
_BELIEVED_S: Final = 120.0
"""Seconds past its due time after which a parked event counts as taken over by another process."""


class TenantMetrics:
    """Series with tenant labels, for configured tenants only and up to `metrics.max_tenant_series`.

    Further tenants share the labels `_other`, so that sums by outcome stay right.
    """

    EVENTS: ClassVar[fast_metrics.Counter] = fast_metrics.Counter(
        "dispatcher_tenant_events", "Events by tenant and outcome.", ["org", "sandbox", "outcome"]
    )
    COLLAPSED: ClassVar[Gauge] = Gauge(
        "dispatcher_metrics_tenants_collapsed", "Configured tenants that are counted under _other."
    )

    def __init__(self, settings: MetricsSettings) -> None:
        self._settings = settings
        self._labels: dict[TenantKey, tuple[str, str]] = {}
        self._counts: defaultdict[str, dict[TenantKey, fast_metrics.Count]] = defaultdict(dict)
        """The series of configured tenants, by outcome."""
        self._is_on = settings.tenant_labels != "off"
        self.worst = WorstTenants(settings)

    def configure(self, tenants: Iterable[TenantKey]) -> None:
        """Sets the configured tenants, and removes the series of all others."""
        mode, cap = self._settings.tenant_labels, self._settings.max_tenant_series
        if mode == "off":
            return
        configured = sorted(tenants)
        wanted: dict[TenantKey, tuple[str, str]] = {}
        taken = {self._labels[tenant] for tenant in configured if tenant in self._labels}
        collapsed = 0
        for tenant in configured:
            own = (tenant.org, tenant.sandbox if mode == "org_sandbox" else "")
            if own in taken or len(taken) < cap:
                taken.add(own)
                wanted[tenant] = own
            else:
                collapsed += 1
        for org, sandbox in set(self._labels.values()) - set(wanted.values()):
            self.EVENTS.remove(org, sandbox)
        self._labels = wanted
        self._counts.clear()
        self.COLLAPSED.set(collapsed)

    def count(self, tenant: TenantKey, outcome: str) -> None:
        """Counts one event of a configured tenant by its outcome."""
        if self._is_on:
            count = self._counts[outcome].get(tenant)
            if count is None:
                labels = self._labels.get(tenant)
                count = self.EVENTS.labels(*(labels or _OTHER), outcome)
                if labels is not None:
                    self._counts[outcome][tenant] = count
            count.inc()


class WorstTenants:
    """Series of the `metrics.worst_tenants` tenants with the oldest events or certificates; the rest are `_other`.

    Only parked and dead events are reported to it. The gauges are set at each scrape.
    """

    OLDEST_PENDING: ClassVar[Gauge] = Gauge(
        "dispatcher_tenant_oldest_pending_event_timestamp_seconds",
        "First attempt of the oldest event that this process parked and that is not delivered; the longest waits only.",
        ["org", "sandbox"],
    )
    CERTIFICATE: ClassVar[Gauge] = Gauge(
        "dispatcher_tenant_certificate_expiry_timestamp_seconds",
        "Expiry of the endpoint's certificate; those that expire first only.",
        ["org", "sandbox"],
    )

    def __init__(self, settings: MetricsSettings) -> None:
        self._by_sandbox = settings.tenant_labels == "org_sandbox"
        self._most = 0 if settings.tenant_labels == "off" else settings.worst_tenants
        self._waiting: dict[TenantKey, tuple[float, float]] = {}
        """First attempt or parking of the oldest event, and the time when the entry expires."""
        self._of_place: dict[tuple[str, int], list[TenantKey]] = {}
        self._shown: defaultdict[Gauge, set[tuple[str, str]]] = defaultdict(set)

    def configure(self, places: Iterable[tuple[tuple[str, int], TenantKey]]) -> None:
        """Sets which tenants use which servers, by host and port."""
        found: defaultdict[tuple[str, int], list[TenantKey]] = defaultdict(list)
        for place, tenant in places:
            found[place].append(tenant)
        self._of_place = dict(found)

    def parked(self, tenant: TenantKey, first_seen: float, due_at: float) -> None:
        """Records that an event of the tenant is parked until `due_at`, in unix seconds."""
        oldest, until = self._waiting.get(tenant, (first_seen, 0.0))
        if first_seen <= oldest or until < time.time():
            self._waiting[tenant] = (first_seen, due_at + _BELIEVED_S)

    def ended(self, tenant: TenantKey, first_seen: float) -> None:
        """Records that an event that was parked before has a final outcome."""
        if self._waiting.get(tenant, (0.0, 0.0))[0] == first_seen:
            del self._waiting[tenant]  # the next parked event replaces it

    def observe(self, expiries: Mapping[tuple[str, int], float]) -> None:
        """Sets the gauges of tenants and certificates. `expiries`: ends of certificates by host and port."""
        now = time.time()
        self._waiting = {tenant: one for tenant, one in self._waiting.items() if one[1] >= now}
        self._show(self.OLDEST_PENDING, {tenant: first_seen for tenant, (first_seen, _) in self._waiting.items()})
        known = {place: when for place, when in expiries.items() if place in self._of_place}
        CERTIFICATE_EXPIRY.set(min(known.values(), default=0))
        first = heapq.nsmallest(self._most, known.items(), key=lambda pair: pair[1])
        self._show(self.CERTIFICATE, {tenant: when for place, when in first for tenant in self._of_place[place]})

    def _show(self, gauge: Gauge, found: Mapping[TenantKey, float]) -> None:
        if not self._most:
            return
        least: dict[tuple[str, str], float] = {}
        for tenant, when in found.items():
            labels = (tenant.org, tenant.sandbox if self._by_sandbox else "")
            least[labels] = min(when, least.get(labels, when))
        worst = dict(heapq.nsmallest(self._most, least.items(), key=lambda pair: pair[1]))
        rest = [when for labels, when in least.items() if labels not in worst]
        if rest:
            worst[_OTHER] = min(rest)
        for labels, when in worst.items():
            gauge.labels(*labels).set(when)
        for labels in self._shown[gauge] - worst.keys():
            gauge.remove(*labels)
        self._shown[gauge] = set(worst)
