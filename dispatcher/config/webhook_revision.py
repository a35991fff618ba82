"""One revision of a webhook, as a store has it, and what each event is compared with."""

import hashlib
import time
from dataclasses import dataclass, field
from functools import lru_cache
from typing import Self

import orjson

from dispatcher.config.webhooks import WebhookConfig
from dispatcher.contract.tenant import TenantKey
from dispatcher.contract.values import slots_dataclass


@slots_dataclass
class Subscription:
    """Holds what each event of a webhook is compared with: which events it wants, and how fast.

    It repeats keys of the configuration, because reading a field of a pydantic model takes three times as long.
    """

    sandbox_id: str | None
    enabled: bool
    paused: bool
    payload: int
    channels: frozenset[str]
    statuses: frozenset[str]
    campaigns: frozenset[str] | None
    """None if all are wanted."""
    rate_limit: float | None
    """Requests a second."""

    @staticmethod
    def of(config: WebhookConfig) -> "Subscription":
        """Returns the subscription of a configuration."""
        campaigns = None if config.campaigns == "all" else frozenset(config.campaigns)
        return Subscription(
            config.sandbox_id, config.enabled, config.paused, config.payload,
            _shared(frozenset(map(str, config.channels))), _shared(frozenset(config.events)),
            campaigns, config.rate_limit,
        )  # fmt: skip


@lru_cache(maxsize=1024)
def _shared(values: frozenset[str]) -> frozenset[str]:
    """Returns one object for all equal sets: most webhooks want the same, which stays in the processor's caches."""
    return values


@dataclass(frozen=True, slots=True, eq=False)
class Webhook:
    """A webhook in a store. It is compared by identity; a store creates a new one only when something changed.

    If only the source has changed, the new one shares the configuration of the old one.
    """

    config: WebhookConfig
    source: str
    """Origin of the configuration: `file:line`, or the id of a row."""
    revision: str
    """Hash that changes with the configuration or one of its secrets, and reveals neither."""
    changed_at: float = field(default_factory=time.time)
    """When the store changed it last; when it was read, if the store doesn't know. Unix seconds."""
    tenant: TenantKey = field(init=False)
    """Tenant of the configuration."""
    subscription: Subscription = field(init=False, repr=False)
    """What each event is compared with."""

    @classmethod
    def of(cls, config: WebhookConfig, source: str) -> Self:
        """Returns a webhook that was just read from `source`."""
        digest = hashlib.blake2b(orjson.dumps(config.model_dump(mode="json")), digest_size=8)
        for secret in config.secrets():
            digest.update(secret.fingerprint().encode())
        return cls(config, source, digest.hexdigest())

    def __post_init__(self) -> None:
        object.__setattr__(self, "tenant", self.config.tenant)
        object.__setattr__(self, "subscription", Subscription.of(self.config))
