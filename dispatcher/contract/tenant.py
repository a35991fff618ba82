"""The tenant: the organisation and sandbox that an event and a webhook belong to."""

from typing import NamedTuple


class TenantKey(NamedTuple):
    """Identifies a tenant. It is part of every key, cache entry, lane and metric, so tenants never mix."""

    org: str
    sandbox: str
    """The sandbox's name, such as `prod`; not its id."""

    def __str__(self) -> str:
        return f"{self.org}/{self.sandbox}"
