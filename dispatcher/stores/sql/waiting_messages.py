"""Which of the messages that wait to be sent are given up, and which become due sooner. Part of the notification store.

The state of a webhook is news until it changes: a message about the former state that arrives after one about the
present would be wrong. All functions run in the caller's transaction.
"""

from collections import defaultdict
from collections.abc import Callable, Mapping, Sequence
from typing import Any, Final

from sqlalchemy import ColumnElement, RowMapping, select, update
from sqlalchemy.ext.asyncio import AsyncConnection

from dispatcher.contract.redaction import recipient as masked
from dispatcher.contract.tenant import TenantKey
from dispatcher.stores.sql.history_schema import messages

TRIED_AGAIN_MS: Final = 120_000
"""Time since its last try after which a message is tried again because another one of its channel was accepted."""
_REPLACED: Final = "newer news replaces it"
_STATE_NEWS: Final = frozenset({"disabled", "failing", "unstable", "recovered"})
"""News of which only the newest counts. A dead event and an expiry stay news whatever follows."""


def shown_recipient(row: RowMapping | Mapping[str, Any]) -> str:
    """Returns the recipient of a message, masked if it is an address."""
    return masked(row["recipient"]) if row["channel"] == "email" else row["recipient"]


async def end_message(
    connection: AsyncConnection, row: RowMapping | Mapping[str, Any], status: str, problem: str, now_ms: int
) -> None:
    """Notes how a message ended, and removes what only its sending needed: content and address."""
    ended = {
        "status": status, "problem": problem, "changed_at": now_ms, "is_repeat": 0, "content": "",
        "recipient": shown_recipient(row),
    }  # fmt: skip
    is_unchanged = (messages.c.id == row["id"]) & (messages.c.status == row["status"])
    await connection.execute(update(messages).where(is_unchanged).values(ended))


async def end_lost(connection: AsyncConnection, is_due: ColumnElement[bool], now_ms: int) -> None:
    """Ends messages whose sender was killed twice: whether they were sent stays unknown."""
    lost = select(messages).where(messages.c.status == "sending", is_due, messages.c.is_repeat == 1)
    for row in (await connection.execute(lost.with_for_update(skip_locked=True))).mappings().all():
        await end_message(connection, row, "unknown", "killed twice while it was being sent", now_ms)


async def make_way(connection: AsyncConnection, added: Sequence[Mapping[str, Any]], now_ms: int) -> None:
    """Ends waiting notices that the added ones replace. Those to the same recipient that stay are due at once.

    A notice of several webhooks stays: it may have other news.
    """
    newer = [row for row in added if row["kind"] == "notice"]
    if not newer:
        return
    waiting = select(messages).where(messages.c.status == "waiting", messages.c.kind == "notice")
    by_recipient: defaultdict[tuple[str, ...], set[str]] = defaultdict(set)
    for one in newer:  # an operational webhook gets a message for each kind
        by_recipient[line_of(one)].update(one["kinds"].split())
    for row in (await connection.execute(waiting)).mappings().all():
        kinds = by_recipient.get(line_of(row))
        if kinds is None:
            continue
        if _is_state_only(row) and kinds & _STATE_NEWS:
            await end_message(connection, row, "failed", _REPLACED, now_ms)
        else:
            is_waiting = (messages.c.id == row["id"]) & (messages.c.status == "waiting")
            await connection.execute(update(messages).where(is_waiting).values(next_at=now_ms))


async def replaced_problem(connection: AsyncConnection, row: RowMapping) -> str:
    """Returns why a notice isn't tried again: newer news of its webhook was stored meanwhile. Empty if none was."""
    if not _is_state_only(row):
        return ""
    same = (messages.c[name] == row[name] for name in ("org", "sandbox", "channel", "kind"))
    to_same = messages.c.recipient.in_((row["recipient"], shown_recipient(row)))
    newer = select(messages.c.kinds).where(*same, to_same, messages.c.created_at > row["created_at"])
    found = (await connection.execute(newer)).scalars()
    return _REPLACED if any(_STATE_NEWS & set(kinds.split()) for kinds in found) else ""


async def try_again(connection: AsyncConnection, channel: str, now_ms: int) -> None:
    """Has the waiting messages of a channel sent, because it has taken one."""
    is_waiting = (messages.c.status == "waiting") & (messages.c.channel == channel) & (messages.c.next_at > now_ms)
    was_tried_before = messages.c.changed_at <= now_ms - TRIED_AGAIN_MS
    await connection.execute(update(messages).where(is_waiting, was_tried_before).values(next_at=now_ms))


async def wake(connection: AsyncConnection, tenant: TenantKey, is_for: Callable[[str], bool], now_ms: int) -> None:
    """Has the waiting e-mails of a webhook to some addresses looked at, and no other: those stay in their backoff."""
    waits = (
        (messages.c.org == tenant.org) & (messages.c.sandbox == tenant.sandbox) & (messages.c.channel == "email")
        & (messages.c.status == "waiting")
    )  # fmt: skip
    found = (await connection.execute(select(messages.c.recipient).where(waits).distinct())).scalars().all()
    addresses = [address for address in found if is_for(address)]
    await connection.execute(update(messages).where(waits, messages.c.recipient.in_(addresses)).values(next_at=now_ms))


async def is_last_hope(connection: AsyncConnection, row: RowMapping) -> bool:
    """Returns True if none of the notices that were stored together with this one was or may still be sent."""
    same = (messages.c[name] == row[name] for name in ("org", "sandbox", "created_at", "channel", "kind"))
    together = select(messages.c.id, messages.c.status).where(*same).order_by(messages.c.id).with_for_update()
    return all(status == "failed" for other, status in await connection.execute(together) if other != row["id"])


def _is_state_only(row: RowMapping) -> bool:
    """Returns True for a notice to contacts or the endpoint that has no news but of one webhook's state."""
    kinds = set(row["kinds"].split())
    return bool(row["org"] and row["kind"] == "notice" and kinds) and kinds <= _STATE_NEWS


def line_of(row: RowMapping | Mapping[str, Any]) -> tuple[str, ...]:
    """Returns what messages of one webhook to one recipient have in common."""
    return row["org"], row["sandbox"], row["channel"], row["recipient"]
