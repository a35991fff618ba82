"""States of webhooks by the evidence of all dispatchers. One worker judges; the console and notifications read."""

import secrets
import time
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any, Final

from sqlalchemy import RowMapping, bindparam, func, select, text
from sqlalchemy.ext.asyncio import AsyncConnection

from dispatcher.contract.fleet_state import (
    TROUBLE,
    Configured,
    FleetState,
    Judged,
    decode_evidence,
    judge,
)
from dispatcher.contract.tenant import TenantKey
from dispatcher.errors import StoreUnavailable
from dispatcher.stores.sql.database import Database
from dispatcher.stores.sql.history_evidence import add_tenants
from dispatcher.stores.sql.history_rows import clean
from dispatcher.stores.sql.history_schema import JUDGE_LOCK, tenants, workers
from dispatcher.stores.sql.records import Orgs

JUDGE_WITHIN_S: Final = 30.0
ALIVE_S: Final = 60.0
"""Time without a sign of life after which a worker counts as gone."""
CURRENT_S: Final = 120.0
"""The states are known if every worker had stored everything within this time."""
OVERLAP_MS: Final = 120_000
"""Evidence of transactions that were under way during the last judgement is judged again."""
_FORGET_WORKERS_MS: Final = 86_400_000


@dataclass(frozen=True, slots=True)
class WebhookInUse:
    """The part of a webhook's configuration that judging its state needs."""

    revision: str
    is_paused: bool
    changed_at: float = field(compare=False)
    """When the store changed it last, or when it was read if the store doesn't know that. Unix seconds."""


@dataclass(frozen=True, slots=True)
class StateReport:
    """The state of one tenant's webhook. Times are Unix seconds."""

    tenant: TenantKey
    state: FleetState
    """`unknown` if `is_current` is false."""
    since: float
    is_current: bool
    """False if no history worker runs, or if it lags behind: then the last known state is worth nothing."""
    delivered_at: float | None = None
    """Latest delivery."""
    attempted_at: float | None = None
    failures: int = 0
    """Failed attempts since the latest delivery, of the last day: at least this number."""
    failure_reason: str = ""
    """Why the latest attempt failed, as in the history: `http_5xx`, `timeout`, …"""
    failure_status: int | None = None
    failure_detail: str = ""
    failed_at: float | None = None
    stopped_by: str = ""
    """If the state is disabled: `suspended` (the endpoint asked for it) or `tenant_disabled` (all failed for a day)."""
    dead: int = 0
    """Events that died since `dead_since`, among them those that were sent again."""
    dead_since: float = 0.0
    """A full hour, 24 to 25 hours ago."""
    dead_at: float | None = None
    death_reason: str = ""
    """Why the latest dead event died: `rejected`, `expired`, …; empty if it is not known."""
    death_detail: str = ""
    own_failure_at: float | None = None
    """Latest attempt that failed on our own side."""
    changed_at: float = 0.0
    """When the webhook's configuration was last seen to change; 0 if it never was."""


@dataclass(frozen=True, slots=True)
class StateChange:
    """A state that replaced another."""

    before: FleetState
    report: StateReport


class TenantStates:
    """Reads and judges the states of webhooks in the history store."""

    def __init__(self, database: Database, clock: Callable[[], float] = time.time) -> None:
        self._database = database
        self._clock = clock
        self._worker = secrets.randbits(62)
        self._judged_to = 0
        self._facts: Mapping[TenantKey, WebhookInUse] = {}

    async def of(self, tenant: TenantKey) -> StateReport:
        """Returns the state of one tenant; `unknown` without evidence.

        Raises:
            StoreUnavailable: the database did not answer in time.
        """
        found = await self._read(tenants.c.org == clean(tenant.org), tenants.c.sandbox == clean(tenant.sandbox))
        return found.get(tenant) or StateReport(tenant, FleetState.UNKNOWN, self._clock(), is_current=True)

    async def all(self, *, orgs: Orgs) -> dict[TenantKey, StateReport]:
        """Returns the state of every tenant of these organisations that has a webhook or evidence.

        Raises:
            StoreUnavailable: the database did not answer in time.
        """
        return await self._read(*([] if orgs is None else [tenants.c.org.in_(sorted(map(clean, orgs)))]))

    async def _read(self, *where: Any) -> dict[TenantKey, StateReport]:
        async with self._database.read() as connection:
            is_current = await self._is_current(connection)
            rows = (await connection.execute(select(tenants).where(*where))).mappings()
            now_ms = int(self._clock() * 1000)
            return {_key(row): _report(row, now_ms, is_current=is_current) for row in rows}

    async def sign_of_life(self, lag: int, *, is_current: bool) -> bool:
        """Records that this worker runs.

        Args:
            lag: records that it has not stored yet.
            is_current: it has stored everything, or nearly.

        Returns:
            True if the states can be judged: every worker is current.

        Raises:
            StoreUnavailable: the database did not answer in time.
        """
        now_ms = int(self._clock() * 1000)
        async with self._database.write() as connection:
            await connection.execute(
                text(
                    'INSERT INTO history_workers (worker, "at", lag, current_at) '
                    "VALUES (:worker, :now, :lag, :current) "
                    'ON CONFLICT (worker) DO UPDATE SET "at" = excluded."at", lag = excluded.lag, '
                    "current_at = CASE WHEN excluded.current_at > 0 THEN excluded.current_at "
                    "ELSE history_workers.current_at END"
                ),
                {"worker": self._worker, "now": now_ms, "lag": lag, "current": now_ms if is_current else 0},
            )
            await connection.execute(
                text('DELETE FROM history_workers WHERE "at" < :oldest'), {"oldest": now_ms - _FORGET_WORKERS_MS}
            )
            return await self._is_current(connection)

    async def sign_off(self) -> None:
        """Removes this worker's sign of life, at its end.

        Raises:
            StoreUnavailable: the database did not answer in time; the sign loses its worth within a minute.
        """
        async with self._database.write() as connection:
            await connection.execute(workers.delete().where(workers.c.worker == self._worker))

    async def complete_at(self) -> float | None:
        """Returns when every worker last had stored everything, 0.0 if one never had. None if no worker runs.

        Raises:
            StoreUnavailable: the database did not answer in time.
        """
        async with self._database.read() as connection:
            complete_ms = await self._complete_ms(connection)
        return None if complete_ms is None else complete_ms / 1000

    async def _complete_ms(self, connection: AsyncConnection) -> int | None:
        alive = workers.c.at >= int((self._clock() - ALIVE_S) * 1000)
        found: int | None = (await connection.execute(select(func.min(workers.c.current_at)).where(alive))).scalar()
        return found

    async def _is_current(self, connection: AsyncConnection) -> bool:
        complete_ms = await self._complete_ms(connection)
        return complete_ms is not None and complete_ms >= int((self._clock() - CURRENT_S) * 1000)

    async def judge(self, webhooks: Mapping[TenantKey, WebhookInUse] | None) -> Sequence[StateChange]:
        """Judges the tenants that have new evidence or a new configuration since this object's last judgement.

        Of several workers one judges at a time; the others return nothing.

        Args:
            webhooks: every webhook in use; None if they are not known, so that only the evidence counts.

        Raises:
            StoreUnavailable: nothing was changed, or it is unknown whether it was; call it again.
        """
        now_ms = int(self._clock() * 1000)
        facts = {TenantKey(clean(key.org), clean(key.sandbox)): one for key, one in (webhooks or {}).items()}
        try:
            changes = await self._judge(facts, now_ms)
        except StoreUnavailable:
            self._judged_to, self._facts = 0, {}  # its rows may be gone
            raise
        return changes

    async def _judge(self, facts: Mapping[TenantKey, WebhookInUse], now_ms: int) -> Sequence[StateChange]:
        async with self._database.write(JUDGE_WITHIN_S) as connection:
            if self._database.is_postgresql and not (await connection.execute(JUDGE_LOCK)).scalar():
                return []
            await add_tenants(connection, [tenant for tenant in facts if tenant not in self._facts], now_ms)
            changes = []
            updates = []
            for row in await self._rows_to_judge(connection, facts):
                update, change = _judged(row, facts.get(_key(row)), now_ms)
                updates += [update] if update is not None else []
                changes += [change] if change is not None else []
            if updates:
                await connection.execute(_UPDATE, updates)
        self._judged_to, self._facts = now_ms, facts
        return changes

    async def _rows_to_judge(
        self, connection: AsyncConnection, facts: Mapping[TenantKey, WebhookInUse]
    ) -> Sequence[RowMapping]:
        """Selects the rows with new evidence; all rows if a webhook changed, which is rare."""
        statement = select(tenants)
        if facts == self._facts:
            statement = statement.where(tenants.c.touched >= self._judged_to - OVERLAP_MS)
        return (await connection.execute(statement)).mappings().all()


_UPDATE: Final = (
    tenants.update()
    .where(tenants.c.org == bindparam("of_org"), tenants.c.sandbox == bindparam("of_sandbox"))
    .values({name: bindparam(name) for name in ("state", "since", "revision", "changed_at", "is_paused")})
)


def _judged(
    row: RowMapping, facts: WebhookInUse | None, now_ms: int
) -> tuple[dict[str, Any] | None, StateChange | None]:
    """Returns what has to be written into a row, and the change of its state."""
    revision, changed_at, is_paused = row["revision"], row["changed_at"], bool(row["is_paused"])
    is_changed = False
    if facts is not None:
        is_changed = bool(revision) and revision != facts.revision
        if is_changed:  # not `now`: dispatchers use it at once, and may have failed many times since
            changed_at = max(changed_at, min(int(facts.changed_at * 1000), now_ms))
        revision, is_paused = facts.revision, facts.is_paused
    before = FleetState(row["state"])
    # The trouble of the former revision has ended; if the new one has any, that is news.
    previous = FleetState.UNKNOWN if is_changed and before in TROUBLE else before
    judged = judge(decode_evidence(row["evidence"]), Configured(is_paused, changed_at), previous, now_ms)
    if judged.state is before:
        judged = Judged(before, row["since"])
    values = {
        "state": judged.state.value, "since": judged.since, "revision": revision, "changed_at": changed_at,
        "is_paused": int(is_paused),
    }  # fmt: skip
    if all(row[name] == value for name, value in values.items()):
        return None, None
    update = values | {"of_org": row["org"], "of_sandbox": row["sandbox"]}
    if judged.state is before:
        return update, None
    return update, StateChange(before, _report(dict(row) | values, now_ms, is_current=True))


def _key(row: RowMapping | Mapping[str, Any]) -> TenantKey:
    return TenantKey(row["org"], row["sandbox"])


def _report(row: RowMapping | Mapping[str, Any], now_ms: int, *, is_current: bool) -> StateReport:
    evidence = decode_evidence(row["evidence"])
    failure, state = evidence.failure, FleetState(row["state"])
    dead, dead_since = evidence.dead_lately(now_ms)
    failures, _ = evidence.failures_since(max(evidence.delivered_at, row["changed_at"]))
    return StateReport(
        tenant=_key(row),
        state=state if is_current or state is FleetState.PAUSED else FleetState.UNKNOWN,
        since=row["since"] / 1000,
        is_current=is_current,
        delivered_at=_seconds(evidence.delivered_at),
        attempted_at=_seconds(evidence.attempted_at),
        failures=failures,
        failure_reason=failure.reason,
        failure_status=failure.status or None,
        failure_detail=failure.detail,
        failed_at=_seconds(failure.at),
        stopped_by=evidence.stopped_by if state is FleetState.DISABLED else "",
        dead=dead,
        dead_since=dead_since / 1000,
        dead_at=_seconds(evidence.dead_at),
        death_reason=evidence.death.reason if evidence.death.at == evidence.dead_at else "",
        death_detail=evidence.death.detail,
        own_failure_at=_seconds(evidence.own_failure_at),
        changed_at=row["changed_at"] / 1000,
    )


def _seconds(at_ms: int) -> float | None:
    return at_ms / 1000 if at_ms else None
