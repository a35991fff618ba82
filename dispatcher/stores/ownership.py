"""Decides which file a tenant's webhook belongs to if several files claim it. Pure."""

from collections.abc import Mapping, Sequence

from dispatcher.contract.tenant import TenantKey

Claims = Mapping[str, Sequence[TenantKey]]
"""Tenants by the name of the file that claims them."""


def owners(claims: Claims, guesses: Claims, present: Mapping[TenantKey, str]) -> dict[TenantKey, str]:
    """Returns each tenant's file: its present one if that still claims the tenant, otherwise the first by name.

    Args:
        claims: tenants of each file's entries.
        guesses: tenants that a broken file may have. They count only if no file claims the tenant.
        present: the file that each tenant belongs to at present.
    """
    return _owners(guesses, present) | _owners(claims, present)


def _owners(claims: Claims, present: Mapping[TenantKey, str]) -> dict[TenantKey, str]:
    owner: dict[TenantKey, str] = {}
    for name in sorted(claims):
        for tenant in claims[name]:
            if present.get(tenant) == name:
                owner[tenant] = name
            else:
                owner.setdefault(tenant, name)
    return owner
