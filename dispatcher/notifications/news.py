"""The state of webhooks, and the news that is reported about them. Times are Unix seconds."""

import math
from dataclasses import dataclass
from enum import StrEnum

from dispatcher.contract.fleet_state import FleetState
from dispatcher.contract.tenant import TenantKey


class NewsKind(StrEnum):
    """Kinds of news about a webhook."""

    DISABLED = "disabled"
    FAILING = "failing"
    UNSTABLE = "unstable"
    RECOVERED = "recovered"
    FIRST_DEAD = "first_dead"
    EXPIRING = "expiring"
    MASS = "mass"
    """Many tenants changed together. For the operator."""
    BROKEN = "broken"
    """Our own way out is broken. For the operator."""
    TEST = "test"


@dataclass(frozen=True, slots=True)
class Expiry:
    """A certificate or secret that expires."""

    name: str
    """`the client certificate (CN=dispatcher)`"""
    key: str
    """Identifies the certificate, so that a new one is reported again."""
    at: float
    is_rotation: bool = False
    """True for a signing secret or key that another one replaces: nothing is to be reported once it has ended."""
    life_s: float = math.inf
    """From its start to its end; infinite if the start is not known."""


@dataclass(frozen=True, slots=True)
class Subject:
    """The present state of one tenant's webhook, from which news is planned."""

    tenant: TenantKey
    state: FleetState
    since: float
    dead_at: float | None = None
    own_failure_at: float | None = None
    expiries: tuple[Expiry, ...] = ()
    revision: str = ""
    """Changes with the webhook's configuration."""
    has_contacts: bool = True
    """False: the operator is notified instead, of all such tenants in one message."""


@dataclass(frozen=True, slots=True)
class News:
    """One thing that is reported."""

    kind: NewsKind
    since: float
    expiry: Expiry | None = None
    count: int = 0
    """Tenants that it concerns, of `total`, if it concerns many."""
    total: int = 0


@dataclass(frozen=True, slots=True)
class Notice:
    """The news in one message to a tenant's contacts."""

    tenant: TenantKey
    news: tuple[News, ...]
