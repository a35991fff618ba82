"""Finds tenants, campaigns and resends in the history store, for choices and warnings of the console."""

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Final

from sqlalchemy import TextClause, bindparam, text

from dispatcher.contract.history import HistoryOutcome, KeptAs
from dispatcher.contract.records import Origin
from dispatcher.contract.tenant import TenantKey
from dispatcher.stores.sql.database import Database
from dispatcher.stores.sql.history_rows import clean
from dispatcher.stores.sql.history_schema import KEPT, NO_WEBHOOK
from dispatcher.stores.sql.records import MAX_LISTED, Orgs

SEARCH_WITHIN_S: Final = 8.0
MAX_TENANTS: Final = 200
MAX_CAMPAIGNS: Final = 50
_LATEST: Final = 2_000
"""Latest entries of a tenant that are searched for campaigns."""


@dataclass(frozen=True, slots=True)
class SeenTenant:
    """An organisation and sandbox whose events were read."""

    tenant: TenantKey
    events: int
    """Events that were skipped because the tenant has no webhook."""


class HistorySeen:
    """Queries the counts and the latest entries."""

    def __init__(self, database: Database) -> None:
        self._database = database

    async def without_webhook(self, since: float, *, orgs: Orgs) -> list[SeenTenant]:
        """Returns tenants whose events were skipped as `no_webhook` since then, the most events first.

        Raises:
            StoreUnavailable: the database did not answer in time.
        """
        statement, parameters = without_webhook_statement(since, orgs)
        async with self._database.read(SEARCH_WITHIN_S) as connection:
            found = await connection.execute(statement, parameters)
            return [SeenTenant(TenantKey(row[0], row[1]), int(row[2])) for row in found]

    async def delivered(self, since: float, *, orgs: Orgs) -> dict[TenantKey, int]:
        """Counts the deliveries of each tenant in the quarters of an hour that begin since then.

        An event that was sent again counts each time.

        Tenants without any are left out, and so are those with the fewest beyond `MAX_LISTED`.

        Raises:
            StoreUnavailable: the database did not answer in time.
        """
        statement, parameters = _by_tenant("outcome = 'delivered'", since, orgs, MAX_LISTED)
        async with self._database.read(SEARCH_WITHIN_S) as connection:
            found = await connection.execute(statement, parameters)
            return {TenantKey(row[0], row[1]): int(row[2]) for row in found}

    async def campaigns(self, tenant: TenantKey) -> list[str]:
        """Returns the campaigns of the tenant's latest entries, the latest first, at most `MAX_CAMPAIGNS`.

        Raises:
            StoreUnavailable: the database did not answer in time.
        """
        statement = text(
            'SELECT campaign_id, max("at") FROM (SELECT campaign_id, "at" FROM history_entries WHERE org = :org '
            'AND sandbox = :sandbox ORDER BY "at" DESC LIMIT :latest) AS latest WHERE campaign_id IS NOT NULL '
            "GROUP BY campaign_id ORDER BY 2 DESC LIMIT :limit"
        )
        parameters = {
            "org": clean(tenant.org), "sandbox": clean(tenant.sandbox), "latest": _LATEST, "limit": MAX_CAMPAIGNS,
        }  # fmt: skip
        async with self._database.read(SEARCH_WITHIN_S) as connection:
            return [str(row[0]) for row in await connection.execute(statement, parameters)]

    async def redriven(self, webhook_ids: Sequence[str], since: float) -> dict[Origin, float]:
        """Returns which of these events were sent again at that time or later, and when they last were.

        Raises:
            StoreUnavailable: the database did not answer in time.
        """
        statement, parameters = redriven_statement(webhook_ids, since, has_partitions=self._database.is_postgresql)
        async with self._database.read(SEARCH_WITHIN_S) as connection:
            found = await connection.execute(statement, parameters)
            return {Origin(row[0], row[1], row[2]): row[3] / 1000 for row in found}


def redriven_statement(
    webhook_ids: Sequence[str], since: float, *, has_partitions: bool
) -> tuple[TextClause, dict[str, object]]:
    """Returns the statement of `HistorySeen.redriven`: it reads the entries of these events by their index."""
    # Not on SQLite, which would then read the whole class, of all tenants, by the primary key that begins with `kept`.
    kept = " AND kept = :kept" if has_partitions else ""
    statement = text(
        'SELECT topic, "partition", "offset", max("at") FROM history_entries WHERE webhook_id IN :ids '  # noqa: S608  (constants)
        f'AND "at" >= :since AND outcome = :outcome AND topic IS NOT NULL{kept} GROUP BY topic, "partition", "offset"'
    ).bindparams(bindparam("ids", expanding=True))
    parameters: dict[str, object] = {
        "ids": [clean(one) for one in webhook_ids],
        "since": int(since * 1000),
        "outcome": HistoryOutcome.REDRIVEN.value,
        **({"kept": KEPT[KeptAs.FAILED]} if has_partitions else {}),
    }
    return statement, parameters


def without_webhook_statement(since: float, orgs: Orgs) -> tuple[TextClause, dict[str, object]]:
    """Returns the statement of `HistorySeen.without_webhook`; the index `history_counts_no_webhook` is made for it."""
    return _by_tenant(f"{NO_WEBHOOK} AND org <> '' AND sandbox <> ''", since, orgs, MAX_TENANTS)


def _by_tenant(which: str, since: float, orgs: Orgs, most: int) -> tuple[TextClause, dict[str, object]]:
    """Returns the statement that counts events by tenant, the most first, and its parameters."""
    own = "" if orgs is None else "AND org IN :orgs "
    statement = text(
        f"SELECT org, sandbox, sum(events) FROM history_counts WHERE slot >= :since AND {which} {own}"  # noqa: S608  (constants)
        "GROUP BY org, sandbox ORDER BY 3 DESC, 1, 2 LIMIT :limit"
    )
    parameters: dict[str, object] = {"since": int(since * 1000), "limit": most}
    if orgs is None:
        return statement, parameters
    return statement.bindparams(bindparam("orgs", expanding=True)), parameters | {"orgs": sorted(map(clean, orgs))}
