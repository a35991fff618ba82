"""Which file a webhook belongs to when several claim it. Pure."""

from collections.abc import Collection, Mapping
from typing import NamedTuple

from dispatcher.contract.tenant import TenantKey


class OwnershipRefusal(NamedTuple):
    """Why a file's new content can't be used."""

    tenant: TenantKey
    """The tenant that it claims."""
    owner: str
    """The file whose webhook stays."""


def settle(
    new: Mapping[str, Collection[TenantKey]], held: Mapping[str, Collection[TenantKey]]
) -> dict[str, OwnershipRefusal]:
    """The files whose new content is refused because another file has one of its tenants.

    A tenant stays with the file that holds it as long as that still claims it, else it goes to the first by name.
    A refused file keeps what it holds, and that may cost another file a tenant in turn.

    Args:
        new: tenants in the new content of each good file.
        held: tenants in the last good content of each file that is still there; no tenant twice.
    """
    holder = {tenant: name for name, tenants in held.items() for tenant in tenants}
    refused: dict[str, OwnershipRefusal] = {}
    names = sorted(new.keys() | held.keys())
    while True:
        before = len(refused)
        claimed: dict[TenantKey, str] = {}
        for name in names:
            claims = held.get(name, ()) if name in refused or name not in new else new[name]
            for tenant in claims:
                other = claimed.setdefault(tenant, name)
                if other == name or (other in refused and tenant not in held.get(other, ())):
                    claimed[tenant] = name
                elif holder.get(tenant) == name:
                    refused[other] = OwnershipRefusal(tenant, name)
                    claimed[tenant] = name
                else:
                    refused[name] = OwnershipRefusal(tenant, other)
                    break
        if len(refused) == before:
            return refused
