"""Decides which file a tenant's webhook belongs to if several files claim it. Pure."""

from collections.abc import Mapping, Sequence

from dispatcher.contract.tenant import TenantKey


def owners(claims: Mapping[str, Sequence[TenantKey]], held: Mapping[TenantKey, str]) -> dict[TenantKey, str]:
    """Returns each tenant's file: its present one if that still claims the tenant, otherwise the first by name.

    Args:
        claims: tenants of each file's entries, by the file's name.
        held: the file that each tenant belongs to at present.
    """
    owner: dict[TenantKey, str] = {}
    for name in sorted(claims):
        for tenant in claims[name]:
            if held.get(tenant) == name:
                owner[tenant] = name
            else:
                owner.setdefault(tenant, name)
    return owner
