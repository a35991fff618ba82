"""Finds tenants, channels and campaigns with recent events, for pick lists and warnings of the webhook form."""

import time
from collections import Counter
from dataclasses import dataclass, field
from typing import Final

from dispatcher.console.model import Person
from dispatcher.console.services import Services
from dispatcher.contract.history import HistoryOutcome
from dispatcher.contract.tenant import TenantKey
from dispatcher.errors import DispatcherError
from dispatcher.stores.sql.history_seen import SeenTenant

LOOK_BACK_S: Final = 7 * 86_400.0


@dataclass(frozen=True, slots=True)
class Seen:
    """Suggestions for the webhook form, taken from recent events."""

    orgs: tuple[str, ...] = ()
    sandboxes: tuple[str, ...] = ()
    channels: tuple[tuple[str, int], ...] = ()
    """Channel and number of events in the last 7 days, the most first."""
    campaigns: tuple[str, ...] = ()
    tenants: tuple[SeenTenant, ...] = field(default=())


async def campaigns_of(services: Services, tenant: TenantKey | None) -> tuple[str, ...]:
    """Returns the campaigns that a tenant's events had lately; none without a tenant, or if no store answers."""
    if services.history is None or tenant is None:
        return ()
    try:
        return tuple(await services.history.seen_campaigns(tenant))
    except DispatcherError:
        return ()


async def seen_of(services: Services, person: Person, tenant: TenantKey | None) -> Seen:
    """Returns the tenants, channels and campaigns that had events recently, as suggestions for the webhook form.

    Without a history store, or if it doesn't answer, it returns only the person's organisations.

    Args:
        tenant: tenant of the edited webhook; None for a new webhook.
    """
    own = tuple(sorted(person.orgs or ()))
    if services.history is None:
        return Seen(orgs=own)
    now = time.time()
    try:
        if tenant is None:
            found = await services.history.seen_without_webhook(now - LOOK_BACK_S, orgs=person.orgs)
            orgs = tuple(dict.fromkeys([*(one.tenant.org for one in found), *own]))
            return Seen(orgs, tuple(dict.fromkeys(one.tenant.sandbox for one in found)), tenants=tuple(found))
        channels: Counter[str] = Counter()
        for one in await services.history.counts(tenant, now - LOOK_BACK_S, now + 60):
            if one.channel and one.outcome in (HistoryOutcome.DELIVERED, HistoryOutcome.SKIPPED, HistoryOutcome.DEAD):
                channels[one.channel] += one.events
        campaigns = await services.history.seen_campaigns(tenant)
    except DispatcherError:
        return Seen(orgs=own)
    return Seen(channels=tuple(channels.most_common()), campaigns=tuple(campaigns))
