"""Statements on the webhooks' tables, each within the caller's transaction."""

from collections.abc import Iterable, Mapping, Sequence
from datetime import datetime
from typing import Final
from urllib.parse import urlsplit

import orjson
from pydantic import JsonValue
from sqlalchemy import (
    BigInteger,
    Boolean,
    ColumnElement,
    RowMapping,
    Select,
    Text,
    and_,
    column,
    delete,
    func,
    insert,
    not_,
    select,
    text,
    tuple_,
    update,
)
from sqlalchemy.ext.asyncio import AsyncConnection
from sqlalchemy.ext.compiler import compiles

from dispatcher.config.secrets import Secret
from dispatcher.config.webhooks import Channel, WebhookConfig
from dispatcher.contract.tenant import TenantKey
from dispatcher.errors import NotFound, StoreUnavailable
from dispatcher.stores.sql.documents import StoredSecret
from dispatcher.stores.sql.encryption import Encryption
from dispatcher.stores.sql.header_values import open_headers, seal_headers, without_headers
from dispatcher.stores.sql.odd_values import number_of, problems_of, text_of
from dispatcher.stores.sql.records import MAX_LISTED, MAX_PAGE, ListedWebhook, Orgs, StoredWebhook, WebhookQuery
from dispatcher.stores.sql.schema import NOTIFY_CHANNEL, change_counter, secrets, webhooks

_MOST_KEYS: Final = 1000
"""Tenants that one statement names: databases limit its parameters."""
_NUMBERS_SQLITE: Final = (
    "SELECT CAST(json_extract(value, '$[0]') AS TEXT) AS org, CAST(json_extract(value, '$[1]') AS TEXT) AS sandbox, "
    "json_extract(value, '$[2]') AS number FROM json_each(:numbers)"
)
"""SQLite looks rows up by an index, which it makes for the query, only if the columns have a type: hence the casts."""
_NUMBERS_POSTGRESQL: Final = (
    "SELECT value->>0 AS org, value->>1 AS sandbox, CAST(value->>2 AS bigint) AS number "
    "FROM json_array_elements(CAST(:numbers AS json)) AS value"
)


class _IsPaused(ColumnElement[bool]):
    """The condition for paused webhooks. A configuration that isn't JSON, which SQLite may hold, says nothing."""

    type = Boolean()
    inherit_cache = True


@compiles(_IsPaused)
def _in_postgresql(*_: object, **__: object) -> str:
    return "(coalesce(webhooks.config->>'paused', '') = 'true')"


@compiles(_IsPaused, "sqlite")
def _in_sqlite(*_: object, **__: object) -> str:
    return "(CASE WHEN json_valid(webhooks.config) THEN json_type(webhooks.config, '$.paused') IS 'true' ELSE 0 END)"


def is_storable(*texts: str) -> bool:
    """Returns True if the databases can store these texts: no U+0000, no lone surrogates."""
    try:
        return b"\0" not in "".join(texts).encode()
    except UnicodeEncodeError:
        return False


async def next_change(connection: AsyncConnection) -> int:
    """Increments the counter of changes. Must be a transaction's first statement: then concurrent changes wait.

    The commit notifies the other processes.
    """
    counted = update(change_counter).where(change_counter.c.id == 1).values(value=change_counter.c.value + 1)
    value = (await connection.execute(counted.returning(change_counter.c.value))).scalar_one_or_none()
    if value is None:
        raise StoreUnavailable("the database has lost its change counter: run `dispatcher webhooks migrate`")
    if connection.dialect.name == "postgresql":
        await connection.execute(
            text("SELECT pg_notify(:channel, :value)"), {"channel": NOTIFY_CHANNEL, "value": str(value)}
        )
    return int(value)


def existing(orgs: Orgs) -> Select[tuple[object, ...]]:
    """Selects the webhooks of these organisations that are not deleted."""
    statement = select(webhooks).where(webhooks.c.deleted_at.is_(None))
    return statement if orgs is None else statement.where(webhooks.c.org.in_(orgs))


def matching(query: WebhookQuery, orgs: Orgs) -> Select[tuple[object, ...]]:
    """Selects the results of a query, without an order."""
    statement = existing(orgs)
    for word in query.text.casefold().split()[:8]:
        statement = statement.where(webhooks.c.search.contains(word, autoescape=True))
    if query.channel is not None:
        statement = statement.where(webhooks.c.channels.contains(f" {query.channel.value} "))
    if query.paused is not None:
        statement = statement.where(_IsPaused() if query.paused else not_(_IsPaused()))
    for member, value in (
        (webhooks.c.enabled, query.enabled),
        (webhooks.c.org, query.org),
        (webhooks.c.sandbox, query.sandbox),
    ):
        if value is not None:
            statement = statement.where(member == value)
    return statement


async def listed(connection: AsyncConnection, query: WebhookQuery, orgs: Orgs) -> list[ListedWebhook]:
    """Returns all results of a query in its order, at most `MAX_LISTED`, without their configurations."""
    return await _listed(connection, matching(query, orgs).order_by(*_order(query)).limit(MAX_LISTED))


async def listed_of(connection: AsyncConnection, tenants: Iterable[TenantKey], orgs: Orgs) -> list[ListedWebhook]:
    """Returns the webhooks of these tenants in any order, without their configurations."""
    wanted = [tenant for tenant in tenants if is_storable(*tenant)]
    key, found = tuple_(webhooks.c.org, webhooks.c.sandbox), []
    for begin in range(0, len(wanted), _MOST_KEYS):
        found += await _listed(connection, existing(orgs).where(key.in_(wanted[begin : begin + _MOST_KEYS])))
    return found


async def _listed(connection: AsyncConnection, statement: Select[tuple[object, ...]]) -> list[ListedWebhook]:
    names = (webhooks.c.id, webhooks.c.org, webhooks.c.sandbox, webhooks.c.name)
    columns = (*names, webhooks.c.enabled, _IsPaused(), webhooks.c.updated_at)
    found = (await connection.execute(statement.with_only_columns(*columns))).all()
    return [
        ListedWebhook(text_of(row[0]), TenantKey(text_of(row[1]), text_of(row[2])), text_of(row[3]), *row[4:])
        for row in found
    ]


async def tenants_of(connection: AsyncConnection, words: str, orgs: Orgs, limit: int) -> list[TenantKey]:
    """Returns organisation and sandbox of the webhooks in which all the words appear, in their order."""
    statement = matching(WebhookQuery(text=words), orgs).with_only_columns(webhooks.c.org, webhooks.c.sandbox)
    found = await connection.execute(statement.order_by(webhooks.c.org, webhooks.c.sandbox).limit(limit))
    return [TenantKey(*map(text_of, row)) for row in found.all()]


async def rows_of(connection: AsyncConnection, webhook_ids: Sequence[str], orgs: Orgs) -> Sequence[RowMapping]:
    """Returns the rows of webhooks that are not deleted, in any order."""
    return (await connection.execute(existing(orgs).where(webhooks.c.id.in_(webhook_ids)))).mappings().all()


def _order(query: WebhookQuery) -> tuple[ColumnElement[object], ...]:
    keys: Mapping[str, tuple[ColumnElement[object], ...]] = {
        "name": (func.lower(webhooks.c.name),),
        "tenant": (webhooks.c.org, webhooks.c.sandbox),
        "created": (webhooks.c.created_at,),
        "updated": (webhooks.c.updated_at,),
    }
    order = (*keys[query.sort], webhooks.c.id)
    return tuple(key.desc() for key in order) if query.descending else order


def page_of(statement: Select[tuple[object, ...]], query: WebhookQuery) -> Select[tuple[object, ...]]:
    """Applies order and page of a query to a statement."""
    return _paged(statement.order_by(*_order(query)), query)


def _paged(statement: Select[tuple[object, ...]], query: WebhookQuery) -> Select[tuple[object, ...]]:
    return statement.offset(max(0, query.offset)).limit(max(1, min(query.limit, MAX_PAGE)))


def page_by_number(
    statement: Select[tuple[object, ...]],
    query: WebhookQuery,
    numbers: Mapping[TenantKey, int],
    *,
    is_postgresql: bool,
) -> Select[tuple[object, ...]]:
    """Applies the page of a query to a statement, ordered by the tenants' numbers, 0 for those without, then by name.

    The numbers are one parameter, because they may come from another database.
    """
    given = orjson.dumps([[*tenant, number] for tenant, number in numbers.items()]).decode()
    source = text(_NUMBERS_POSTGRESQL if is_postgresql else _NUMBERS_SQLITE).bindparams(numbers=given)
    columns = (column("org", Text), column("sandbox", Text), column("number", BigInteger))
    known = source.columns(*columns).subquery("numbers")
    is_same = and_(webhooks.c.org == known.c.org, webhooks.c.sandbox == known.c.sandbox)
    number = func.coalesce(known.c.number, 0)
    order = (number.desc() if query.descending else number, func.lower(webhooks.c.name), webhooks.c.id)
    return _paged(statement.outerjoin(known, is_same).order_by(*order), query)


async def row_of(connection: AsyncConnection, webhook_id: str, orgs: Orgs) -> RowMapping:
    """Returns the row of a webhook that is not deleted. Raises NotFound."""
    statement = existing(orgs).where(webhooks.c.id == webhook_id)
    row = (await connection.execute(statement)).mappings().one_or_none() if is_storable(webhook_id) else None
    if row is None:
        raise NotFound("there is no such webhook")
    return row


async def row_of_tenant(connection: AsyncConnection, tenant: TenantKey, orgs: Orgs) -> RowMapping | None:
    """Returns the row of a tenant's webhook, or None if it has none."""
    if not is_storable(*tenant):
        return None
    statement = existing(orgs).where(webhooks.c.org == tenant.org, webhooks.c.sandbox == tenant.sandbox)
    return (await connection.execute(statement)).mappings().one_or_none()


async def secrets_in(connection: AsyncConnection, webhook_id: str, encryption: Encryption) -> dict[str, StoredSecret]:
    """Returns a webhook's secrets by path, decrypted if possible."""
    statement = select(secrets).where(secrets.c.webhook_id == webhook_id)
    rows = (await connection.execute(statement)).mappings().all()
    return {
        row["path"]: StoredSecret(
            row["path"], row["fingerprint"], encryption.decrypt(row["ciphertext"], webhook_id), row["added_at"]
        )
        for row in rows
    }


async def put_row(
    connection: AsyncConnection,
    webhook_id: str,
    config: WebhookConfig,
    document: Mapping[str, JsonValue],
    values: Mapping[str, object],
    encryption: Encryption,
    *,
    is_new: bool,
) -> None:
    """Writes a webhook's row; `values` are its version, change, times and authors.

    Raises:
        ConfigError: it has header parameters, and no key is configured to encrypt them with.
    """
    host = urlsplit(config.url).netloc
    columns = {
        "org": config.org,
        "sandbox": config.sandbox,
        "name": config.name,
        "url": config.url,
        "channels": f" {' '.join(channel.value for channel in config.channels)} ",
        "enabled": config.enabled,
        "search": "\n".join((config.name, config.org, config.sandbox, host)).casefold(),
        "config": seal_headers(document, webhook_id, encryption),
        **values,
    }
    if is_new:
        await connection.execute(insert(webhooks).values(id=webhook_id, **columns))
    else:
        await connection.execute(update(webhooks).where(webhooks.c.id == webhook_id).values(**columns))


async def put_secrets(
    connection: AsyncConnection, webhook_id: str, given: Mapping[str, Secret], encryption: Encryption, now: datetime
) -> None:
    """Replaces the webhook's secrets by `given`. One that is already stored at its path keeps its ciphertext.

    A secret that moves to another path keeps the date on which it was added.
    """
    stored = await secrets_in(connection, webhook_id, encryption)
    dates = {one.fingerprint: one.added_at for one in stored.values()}
    changed = {path: secret for path, secret in given.items() if path not in stored or stored[path].secret != secret}
    gone = [path for path in stored if path in changed or path not in given]
    if gone:
        await drop_secrets(connection, webhook_id, gone)
    if changed:
        new = [
            {
                "webhook_id": webhook_id,
                "path": path,
                "ciphertext": encryption.encrypt(secret, webhook_id),
                "fingerprint": secret.fingerprint(),
                "added_at": dates.get(secret.fingerprint(), now),
            }
            for path, secret in changed.items()
        ]
        await connection.execute(insert(secrets), new)


async def drop_secrets(connection: AsyncConnection, webhook_id: str, paths: Iterable[str] | None) -> None:
    """Deletes these secrets of a webhook; None: all of them."""
    statement = delete(secrets).where(secrets.c.webhook_id == webhook_id)
    if paths is not None:
        statement = statement.where(secrets.c.path.in_(list(paths)))
    await connection.execute(statement)


async def mark_deleted(
    connection: AsyncConnection, webhook_id: str, version: int, change: int, at: datetime | None, by: str, now: datetime
) -> None:
    """Marks a webhook as deleted at the time `at`, or as not deleted if that is None. Its secrets stay."""
    values = {"version": version, "changed": change, "updated_at": now, "updated_by": by, "deleted_at": at}
    await connection.execute(update(webhooks).where(webhooks.c.id == webhook_id).values(values))


async def erase(connection: AsyncConnection, webhook_id: str, at: datetime) -> None:
    """Erases the secrets and header parameters of a deleted webhook. Its row stays for the audit."""
    config = (await connection.execute(select(webhooks.c.config).where(webhooks.c.id == webhook_id))).scalar_one()
    erased = {"erased_at": at, "config": without_headers(config)}
    await connection.execute(update(webhooks).where(webhooks.c.id == webhook_id).values(erased))
    await drop_secrets(connection, webhook_id, None)


def deleted(orgs: Orgs) -> Select[tuple[object, ...]]:
    """Selects the webhooks of these organisations that were deleted, also those that were erased since."""
    statement = select(webhooks).where(webhooks.c.deleted_at.is_not(None))
    return statement if orgs is None else statement.where(webhooks.c.org.in_(orgs))


def restorable(orgs: Orgs, since: datetime) -> Select[tuple[object, ...]]:
    """Selects the webhooks of these organisations that were deleted after `since` and not erased."""
    return deleted(orgs).where(webhooks.c.deleted_at > since, webhooks.c.erased_at.is_(None))


def stored_webhook(row: RowMapping, encryption: Encryption) -> StoredWebhook:
    """Returns a row as a value, with header parameters as text. What its configuration lacks is in other columns."""
    known = {channel.value: channel for channel in Channel}
    texts = {name: text_of(row[name]) for name in ("id", "org", "sandbox", "name", "url", "created_by", "updated_by")}
    channels = tuple(known[name] for name in text_of(row["channels"]).split() if name in known)
    columns: dict[str, JsonValue] = {name: texts[name] for name in ("name", "org", "sandbox", "url")}
    columns["channels"] = [channel.value for channel in channels]
    return StoredWebhook(
        id=texts["id"],
        tenant=TenantKey(texts["org"], texts["sandbox"]),
        name=texts["name"],
        url=texts["url"],
        channels=channels,
        enabled=row["enabled"],
        paused=row["config"].get("paused") is True,
        document=columns | open_headers(row["config"], texts["id"], encryption)[0],
        version=number_of(row["version"]),
        created_at=row["created_at"],
        created_by=texts["created_by"],
        updated_at=row["updated_at"],
        updated_by=texts["updated_by"],
        deleted_at=row["deleted_at"],
        problems=tuple(problems_of(row)),
    )
