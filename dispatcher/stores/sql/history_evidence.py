"""Adds new entries to the evidence about their tenants, in the transaction that writes the entries.

An entry counts once, because only entries that were not there before are added.
"""

from collections.abc import Iterable, Mapping, Sequence
from typing import Any, Final

from sqlalchemy import text
from sqlalchemy.ext.asyncio import AsyncConnection

from dispatcher.contract.fleet_state import (
    COUNTED,
    FleetState,
    StateEvidence,
    decode_evidence,
    encode_evidence,
    evidence_by_tenant,
)
from dispatcher.contract.tenant import TenantKey
from dispatcher.stores.sql.history_rows import COLUMNS, Row, entry_of

CLOCKS_DIFFER_MS: Final = 60_000
"""An entry from further in the future counts as one of now: one wrong clock must not end every window."""
_TENANTS_A_STATEMENT: Final = 400
_COUNTED: Final = frozenset(outcome.value for outcome in COUNTED)
_OUTCOME: Final = COLUMNS.index("outcome")
_NEW: Final = text(
    "INSERT INTO history_tenants (org, sandbox, evidence, state, since, revision, changed_at, is_paused, touched) "
    "VALUES (:org, :sandbox, :evidence, :state, :now, '', 0, 0, :now) ON CONFLICT DO NOTHING"
)
_MISSING: Final = """
SELECT org, sandbox FROM unnest($1::text[], $2::text[]) AS wanted (org, sandbox)
EXCEPT SELECT org, sandbox FROM history_tenants
"""
_LOCK: Final = """
SELECT org, sandbox, evidence FROM history_tenants JOIN unnest($1::text[], $2::text[]) AS wanted (org, sandbox)
USING (org, sandbox) ORDER BY org, sandbox FOR UPDATE OF history_tenants
"""
_UPDATE: Final = """
UPDATE history_tenants SET evidence = new.evidence, touched = $4::bigint
FROM unnest($1::text[], $2::text[], $3::bytea[]) AS new (org, sandbox, evidence)
WHERE history_tenants.org = new.org AND history_tenants.sandbox = new.sandbox
"""


async def add_tenants(connection: AsyncConnection, tenants: Iterable[TenantKey], now_ms: int) -> None:
    """Adds tenants about which nothing is known; those that are known stay as they are."""
    state, evidence = FleetState.UNKNOWN.value, encode_evidence(StateEvidence())
    rows = [
        {"org": tenant.org, "sandbox": tenant.sandbox, "evidence": evidence, "state": state, "now": now_ms}
        for tenant in sorted(tenants)
    ]
    if rows:
        await connection.execute(_NEW, rows)


async def add_evidence(connection: AsyncConnection, rows: Sequence[Row], now_ms: int, *, is_postgresql: bool) -> None:
    """Adds new rows to the evidence. Tenants are locked in order, so that workers never deadlock."""
    found = evidence_in(rows, now_ms)
    if not found:
        return
    if is_postgresql:
        await _add_to_postgresql(connection, found, now_ms)
    else:
        await _add_to_sqlite(connection, found, now_ms)


def evidence_in(rows: Sequence[Row], now_ms: int) -> dict[TenantKey, StateEvidence]:
    """Returns the evidence of rows by tenant, in order of tenants."""
    entries = []
    for row in rows:
        if row[_OUTCOME] in _COUNTED:
            entry = entry_of(dict(zip(COLUMNS, row, strict=True)))
            entry.at = min(entry.at, now_ms + CLOCKS_DIFFER_MS)
            entries.append(entry)
    return dict(sorted(evidence_by_tenant(entries).items()))


async def _add_to_postgresql(
    connection: AsyncConnection, found: Mapping[TenantKey, StateEvidence], now_ms: int
) -> None:
    raw: Any = (await connection.get_raw_connection()).driver_connection
    orgs, sandboxes = [tenant.org for tenant in found], [tenant.sandbox for tenant in found]
    missing = await raw.fetch(_MISSING, orgs, sandboxes)
    await add_tenants(connection, [TenantKey(org, sandbox) for org, sandbox in missing], now_ms)
    for org, sandbox, data in await raw.fetch(_LOCK, orgs, sandboxes):
        found[TenantKey(org, sandbox)].merge(decode_evidence(data))
    await raw.execute(_UPDATE, orgs, sandboxes, [encode_evidence(one) for one in found.values()], now_ms)


async def _add_to_sqlite(connection: AsyncConnection, found: Mapping[TenantKey, StateEvidence], now_ms: int) -> None:
    tenants, missing = list(found), set(found)
    for at in range(0, len(tenants), _TENANTS_A_STATEMENT):
        piece = tenants[at : at + _TENANTS_A_STATEMENT]
        wanted = ", ".join(["(?, ?)"] * len(piece))
        statement = f"SELECT org, sandbox, evidence FROM history_tenants WHERE (org, sandbox) IN (VALUES {wanted})"  # noqa: S608  (placeholders only)
        known = await connection.exec_driver_sql(statement, tuple(text for tenant in piece for text in tenant))
        for row in known.mappings():
            tenant = TenantKey(row["org"], row["sandbox"])
            found[tenant].merge(decode_evidence(row["evidence"]))
            missing.discard(tenant)
    await add_tenants(connection, missing, now_ms)
    update = text(
        "UPDATE history_tenants SET evidence = :evidence, touched = :now WHERE org = :org AND sandbox = :sandbox"
    )
    rows = [
        {"org": tenant.org, "sandbox": tenant.sandbox, "evidence": encode_evidence(evidence), "now": now_ms}
        for tenant, evidence in found.items()
    ]
    await connection.execute(update, rows)
