"""Which file a tenant's webhook belongs to when several claim it. Pure."""

from collections.abc import Mapping, Sequence

from dispatcher.contract.tenant import TenantKey


def owners(claims: Mapping[str, Sequence[TenantKey]], held: Mapping[TenantKey, str]) -> dict[TenantKey, str]:
    """The file that each claimed tenant belongs to: the one that holds it, while that claims it, else the first.

    Args:
        claims: tenants of each file's entries, by the file's name.
        held: the file that holds each tenant at present.
    """
    owner: dict[TenantKey, str] = {}
    for name in sorted(claims):
        for tenant in claims[name]:
            if held.get(tenant) == name:
                owner[tenant] = name
            else:
                owner.setdefault(tenant, name)
    return owner
