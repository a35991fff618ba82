"""The tables of notifications in the history store: what was reported, messages and their state, and contacts.

A message is stored in the transaction that remembers what it reports, and is marked before and after it is sent. If a
worker is killed while it sends, the message is sent once more, and never a third time.
"""

import secrets
import time
from collections.abc import AsyncIterator, Callable, Mapping, Sequence
from contextlib import asynccontextmanager
from dataclasses import dataclass, replace
from types import MappingProxyType
from typing import Any, Final, Literal

from sqlalchemy import RowMapping, and_, func, select, text, true, update
from sqlalchemy.ext.asyncio import AsyncConnection

from dispatcher.contract.redaction import contact_of
from dispatcher.contract.tenant import TenantKey
from dispatcher.errors import NotFound, StoreUnavailable
from dispatcher.stores.sql.contacts import Contacts, ContactStatus, ContactTable, KnownContact
from dispatcher.stores.sql.database import WRITE_WITHIN_S, Database
from dispatcher.stores.sql.history_schema import ADD_LOCK, PLAN_LOCK, messages, reported
from dispatcher.stores.sql.records import Orgs
from dispatcher.stores.sql.rows import is_storable
from dispatcher.stores.sql.slices import delete_in_slices
from dispatcher.stores.sql.waiting_messages import (
    end_lost,
    end_message,
    is_last_hope,
    line_of,
    make_way,
    replaced_problem,
    shown_recipient,
    try_again,
    wake,
)

OPERATOR: Final = TenantKey("", "")
"""Stands for the installation as a whole."""
KEEP_MS: Final = 30 * 86_400_000
"""Time for which sent and failed messages are listed."""
SENDING_MS: Final = 420_000
"""Time after which a message that is still being sent has lost its sender: more than it takes to read whether the
message is still wanted, and the longest `smtp.timeout`."""
AFTER_OUTAGE_S: Final = 30.0
"""Time after the database was away in which no message is taken from its sender, which may be about to note its end."""
MAX_PAGE: Final = 200
WITHIN_S: Final = 30.0
_DELETED_AT_ONCE: Final = 5_000
_URGENT: Final = "disabled"
"""Messages with this news are sent before others."""

Channel = Literal["email", "webhook"]
MessageStatus = Literal["waiting", "sending", "sent", "failed", "unknown"]


@dataclass(frozen=True, slots=True)
class Message:
    """A message that waits to be sent, or was sent. Times are Unix seconds."""

    tenant: TenantKey
    """OPERATOR if it concerns more than one webhook."""
    kind: str
    """`notice`, `confirm` or `test`."""
    kinds: tuple[str, ...]
    """Kinds of the news in it."""
    channel: Channel
    recipient: str
    """Address or origin of the URL. Masked once it was sent."""
    content: str
    """JSON. Empty once it was sent."""
    title: str
    id: str = ""
    created_at: float = 0.0
    status: MessageStatus = "waiting"
    tries: int = 0
    """Tries that have ended, for a message that is claimed."""
    problem: str = ""
    changed_at: float = 0.0


@dataclass(frozen=True, slots=True)
class Stored:
    """Everything that planning reads from the store."""

    contacts: Contacts
    memories: Mapping[TenantKey, bytes]
    """The operator's under `OPERATOR`."""


@dataclass(frozen=True, slots=True)
class Changes:
    """Everything that planning writes to the store."""

    memories: Mapping[TenantKey, bytes]
    asked: Sequence[tuple[TenantKey, str]]
    """Contacts whose confirmation message is among the messages."""
    messages: Sequence[Message]


class NotificationStore:
    """The tables of notifications in the history store."""

    def __init__(
        self, database: Database, clock: Callable[[], float] = time.time, keyed: Callable[[str], str] = str
    ) -> None:
        """Creates the store.

        Args:
            keyed: returns the form in which the hash of a contact is stored, also for one that is stored already.
        """
        self._database = database
        self._clock = clock
        self._keyed = keyed
        self._contacts = ContactTable(keyed)
        self._away_at = float("-inf")
        """When a write failed last because the database was away."""

    @property
    def now(self) -> float:
        """The current time in Unix seconds."""
        return self._clock()

    def _now_ms(self) -> int:
        """Returns the time of a change. Read after the lock was taken: a worker may have waited for it for long."""
        return int(self._clock() * 1000)

    async def read(self) -> Stored:
        """Returns what planning reads, outside a transaction.

        Raises:
            StoreUnavailable: the database did not answer in time.
        """
        async with self._database.read(WITHIN_S) as connection:
            return await self._read(connection)

    async def plan(self, decide: Callable[[Stored], Changes]) -> Changes | None:
        """Reads, decides and writes in one transaction. Returns None if another worker plans right now.

        Raises:
            StoreUnavailable: nothing was written, or it is unknown whether it was; call it again.
        """
        async with self._writing(WITHIN_S) as connection:
            if self._database.is_postgresql and not (await connection.execute(PLAN_LOCK)).scalar():
                return None
            changes = decide(await self._read(connection))
            await self._write(connection, changes)
        return changes

    @asynccontextmanager
    async def _writing(self, within_s: float = WRITE_WITHIN_S) -> AsyncIterator[AsyncConnection]:
        """Yields a connection in a transaction that has locked a SQLite file.

        The lock is taken before anything is read, so that no two workers decide or take the same.
        """
        try:
            async with self._database.write(within_s) as connection:
                if not self._database.is_postgresql:
                    await connection.execute(text("DELETE FROM history_reported WHERE 1 = 0"))
                yield connection
        except StoreUnavailable:
            self._away_at = self._clock()
            raise

    async def _read(self, connection: AsyncConnection) -> Stored:
        memories = (await connection.execute(select(reported))).mappings().all()
        return Stored(await self._contacts.all(connection), {_tenant(row): row["memory"] for row in memories})

    async def _write(self, connection: AsyncConnection, changes: Changes) -> None:
        now_ms = self._now_ms()
        if changes.memories:
            await connection.execute(
                text(
                    "INSERT INTO history_reported (org, sandbox, memory) VALUES (:org, :sandbox, :memory) "
                    "ON CONFLICT (org, sandbox) DO UPDATE SET memory = excluded.memory"
                ),
                [
                    {"org": tenant.org, "sandbox": tenant.sandbox, "memory": memory}
                    for tenant, memory in sorted(changes.memories.items())
                ],
            )
        if changes.asked:
            await self._contacts.note_asked(connection, changes.asked, now_ms)
        if changes.messages:
            added = [_row(message, now_ms) for message in changes.messages]
            await make_way(connection, added, now_ms)
            await connection.execute(messages.insert(), added)

    async def contacts_of(self, tenant: TenantKey) -> dict[str, KnownContact]:
        """Returns the known contacts of a webhook, by hash of the address.

        Raises:
            StoreUnavailable: the database did not answer in time.
        """
        async with self._database.read() as connection:
            return await self._contacts.of(connection, tenant)

    async def set_contact(self, tenant: TenantKey, contact: str, status: ContactStatus) -> bool:
        """Sets the status of a contact. Returns False if there is no such contact.

        Raises:
            StoreUnavailable: nothing was changed, or it is unknown whether it was; call it again.
        """
        async with self._writing() as connection:
            now_ms = self._now_ms()
            is_known = await self._contacts.set_status(connection, tenant, contact, status, now_ms)
            if status == "stopped":  # the worker finds at once that what waits for the contact isn't wanted
                await wake(connection, tenant, lambda address: self._keyed(contact_of(address)) == contact, now_ms)
            return is_known

    async def note_named(self, is_named: Callable[[TenantKey, str], bool]) -> None:
        """Notes which contacts no webhook names, and deletes those that none has named for 30 days.

        Contacts who stopped notifications are kept for a year, so that they are not asked again. Keys those that stay.

        Args:
            is_named: called with a tenant and the stored hash of an address.

        Raises:
            StoreUnavailable: the database did not answer in time.
        """
        async with self._writing(WITHIN_S) as connection:
            await self._contacts.note_named(connection, is_named, self._now_ms())

    async def claim(self, most: int, channel: Channel) -> list[Message]:
        """Takes messages of a channel that are due, urgent ones first, and marks them as being sent.

        Takes at most one to each recipient, so that no message waits for another one while its claim runs out. A
        message whose sender is gone is taken once more; after that its fate is unknown, and stays so.

        Raises:
            StoreUnavailable: the database did not answer in time.
        """
        is_urgent = messages.c.kinds.contains(_URGENT)
        async with self._writing() as connection:
            now_ms = self._now_ms()
            is_due = (messages.c.next_at <= now_ms) & (messages.c.channel == channel)
            statuses = ["waiting"]
            if now_ms / 1000 - self._away_at >= AFTER_OUTAGE_S:
                await end_lost(connection, is_due, now_ms)
                statuses.append("sending")
            wanted = (
                select(messages)
                .where(is_due, messages.c.status.in_(statuses))
                .order_by(is_urgent.desc(), messages.c.created_at, messages.c.next_at)
                .limit(most)
                .with_for_update(skip_locked=True)
            )
            rows: dict[tuple[str, ...], RowMapping] = {}
            for row in (await connection.execute(wanted)).mappings().all():
                rows.setdefault(line_of(row), row)
            now_ms = self._now_ms()  # the rows are locked only now
            for row in rows.values():
                await connection.execute(
                    update(messages)
                    .where(messages.c.id == row["id"])
                    .values(
                        status="sending",
                        tries=row["tries"] + 1,
                        is_repeat=int(row["status"] == "sending"),
                        next_at=now_ms + SENDING_MS,
                        changed_at=now_ms,
                    )
                )
        return [_message(row) for row in rows.values()]

    async def finish(
        self,
        message: Message,
        status: MessageStatus,
        problem: str = "",
        again_in_s: float | None = None,
        instead: Sequence[Message] = (),
    ) -> None:
        """Notes how sending a claimed message ended, unless it was claimed again since: then its sender was too late.

        Args:
            again_in_s: the message waits this long for its next try, unless newer news replaces it.
            instead: stored if none of the notices that were stored together with this one was or may be sent.

        Raises:
            StoreUnavailable: it is unknown whether it was noted: call it again, or the message is sent once more.
        """
        problem = _storable(problem)
        is_mine = (messages.c.id == message.id, messages.c.status == "sending", messages.c.tries == message.tries + 1)
        async with self._writing() as connection:
            row = (
                (await connection.execute(select(messages).where(*is_mine).with_for_update())).mappings().one_or_none()
            )
            if row is None:
                return
            now_ms = self._now_ms()
            replaced = "" if again_in_s is None else await replaced_problem(connection, row)
            if again_in_s is not None and not replaced:
                again = {"next_at": now_ms + int(again_in_s * 1000), "changed_at": now_ms, "is_repeat": 0}
                values = again | {"status": status, "problem": problem}
                await connection.execute(update(messages).where(*is_mine).values(values))
                return
            if instead and await is_last_hope(connection, row):
                await connection.execute(messages.insert(), [_row(one, now_ms) for one in instead])
            await end_message(connection, row, "failed" if replaced else status, replaced or problem, now_ms)
            if status == "sent":
                await try_again(connection, message.channel, now_ms)

    async def recent(
        self, *, orgs: Orgs, tenant: TenantKey | None = None, before: str | None = None, limit: int = 50
    ) -> list[Message]:
        """Returns messages, the newest first, with masked recipients and without content.

        Args:
            orgs: organisations that the caller may see; the operator's messages need access to all.
            before: id of the last message of the previous page.

        Raises:
            NotFound: there is no message with the id `before`.
            StoreUnavailable: the database did not answer in time.
        """
        may_see = true() if orgs is None else and_(messages.c.org.in_(sorted(orgs)), messages.c.org != "")
        statement = select(messages).order_by(messages.c.created_at.desc(), messages.c.id.desc()).where(may_see)
        if tenant is not None:
            statement = statement.where(messages.c.org == tenant.org, messages.c.sandbox == tenant.sandbox)
        async with self._database.read() as connection:
            if before is not None:
                last = select(messages.c.created_at).where(messages.c.id == before, may_see)
                at = (await connection.execute(last)).scalar_one_or_none() if is_storable(before) else None
                if at is None:
                    raise NotFound("there is no such page: begin at the first one")
                is_older = (messages.c.created_at < at) | ((messages.c.created_at == at) & (messages.c.id < before))
                statement = statement.where(is_older)
            rows = await connection.execute(statement.limit(max(1, min(limit, MAX_PAGE))))
            return [_message(row, is_masked=True) for row in rows.mappings()]

    async def add(self, changes: Changes, limits: Mapping[float, int] = MappingProxyType({})) -> float | None:
        """Stores messages that a person asked for, all of one tenant and kind, unless a limit is reached.

        Args:
            limits: seconds, and the number of such messages within them from which on no more are stored.

        Returns:
            The seconds of the limit that is reached; None if the messages are stored.

        Raises:
            StoreUnavailable: nothing was written, or it is unknown whether it was.
        """
        async with self._writing() as connection:
            if limits and self._database.is_postgresql:
                await connection.execute(ADD_LOCK)
            for within_s, most in limits.items():
                if await self._count_like(connection, changes.messages[0], within_s) >= most:
                    return within_s
            await self._write(connection, changes)
        return None

    async def _count_like(self, connection: AsyncConnection, message: Message, within_s: float) -> int:
        statement = select(func.count()).where(
            messages.c.org == message.tenant.org, messages.c.sandbox == message.tenant.sandbox,
            messages.c.kind == message.kind, messages.c.created_at >= self._now_ms() - int(within_s * 1000),
        )  # fmt: skip
        return int((await connection.execute(statement)).scalar_one())

    async def expire(self) -> None:
        """Removes messages that were sent or given up long ago.

        Raises:
            StoreUnavailable: the database did not answer in time.
        """
        oldest = {"oldest": self._now_ms() - KEEP_MS}
        where = "status IN ('sent', 'failed', 'unknown') AND created_at < :oldest"
        await delete_in_slices(self._database, "history_messages", "created_at", where, oldest, _DELETED_AT_ONCE)


def _storable(problem: str) -> str:
    """Returns a problem without what a database refuses: an answer may have any bytes."""
    return problem[:500].encode(errors="replace").decode().replace("\0", "\ufffd")


def _row(message: Message, now_ms: int) -> dict[str, Any]:
    return {
        "id": secrets.token_hex(16), "created_at": now_ms, "org": message.tenant.org, "sandbox": message.tenant.sandbox,
        "kind": message.kind, "kinds": " ".join(message.kinds), "channel": message.channel,
        "recipient": message.recipient, "content": message.content, "title": message.title, "status": "waiting",
        "next_at": now_ms, "tries": 0, "is_repeat": 0, "problem": "", "changed_at": now_ms,
    }  # fmt: skip


def _message(row: RowMapping, *, is_masked: bool = False) -> Message:
    message = Message(
        id=row["id"], tenant=_tenant(row), kind=row["kind"], kinds=tuple(row["kinds"].split()), channel=row["channel"],
        recipient=row["recipient"], content="" if is_masked else row["content"], title=row["title"],
        created_at=row["created_at"] / 1000, status=row["status"], tries=row["tries"], problem=row["problem"],
        changed_at=row["changed_at"] / 1000,
    )  # fmt: skip
    return replace(message, recipient=shown_recipient(row)) if is_masked else message


def _tenant(row: RowMapping) -> TenantKey:
    return TenantKey(row["org"], row["sandbox"])
