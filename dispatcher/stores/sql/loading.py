"""Reads webhooks for delivery: rows and their secrets in one statement, so that an edit can't come in between."""

from collections.abc import Iterable, Iterator, Sequence
from dataclasses import dataclass, replace
from hashlib import blake2b
from itertools import groupby

import orjson
from sqlalchemy import ColumnElement, RowMapping, Text, cast, select
from sqlalchemy.ext.asyncio import AsyncConnection

from dispatcher.config.secrets import Secret
from dispatcher.config.webhooks import Webhook
from dispatcher.contract.tenant import TenantKey
from dispatcher.errors import ConfigError, Problem
from dispatcher.stores.sql.documents import restore_secrets
from dispatcher.stores.sql.encryption import Encryption
from dispatcher.stores.sql.header_values import open_headers
from dispatcher.stores.sql.schema import secrets, webhooks

_LOST = "can't be decrypted with any of webhooks.encryption_keys: configure the old key again, or give the secret again"
_CONFIG = cast(webhooks.c.config, Text).label("config_text")  # repeated for each secret, but parsed once


@dataclass(frozen=True, slots=True)
class WebhookRow:
    """A webhook as it was read."""

    id: str
    tenant: TenantKey
    changed: int
    """The change counter at its last change."""
    is_deleted: bool
    webhook: Webhook | None
    """None if it is deleted or can't be used."""
    problems: tuple[Problem, ...] = ()
    """Reasons why it can't be used."""


async def select_rows(connection: AsyncConnection, *which: ColumnElement[bool]) -> Sequence[RowMapping]:
    """Returns a row for each secret of each webhook, or one for a webhook without secrets, in order of changes."""
    columns = (webhooks.c.id, webhooks.c.org, webhooks.c.sandbox, webhooks.c.version, webhooks.c.changed)
    statement = (
        select(*columns, webhooks.c.deleted_at, _CONFIG, secrets.c.path, secrets.c.ciphertext)
        .outerjoin(secrets, secrets.c.webhook_id == webhooks.c.id)
        .where(*which)
        .order_by(webhooks.c.changed, webhooks.c.id, secrets.c.path)
    )
    return (await connection.execute(statement)).mappings().all()


def read_rows(selected: Iterable[RowMapping], encryption: Encryption) -> Iterator[WebhookRow]:
    """Converts the rows of `select_rows`. Pure; takes about 0.2 ms for a webhook and 0.05 ms for each secret."""
    for _, group in groupby(selected, key=lambda row: row["id"]):
        yield _read(list(group), encryption)


def _read(group: Sequence[RowMapping], encryption: Encryption) -> WebhookRow:
    first = group[0]
    tenant, is_deleted = TenantKey(first["org"], first["sandbox"]), first["deleted_at"] is not None
    row = WebhookRow(first["id"], tenant, first["changed"], is_deleted, None)
    if is_deleted:
        return row
    source = f"sql:{first['id']}"
    found: dict[str, Secret] = {}
    problems: list[Problem] = []
    for one in group:
        if one["path"] is None:
            continue
        secret = encryption.decrypt(one["ciphertext"], first["id"])
        if secret is None:
            problems.append(Problem(_LOST, one["path"], source))
        else:
            found[one["path"]] = secret
    document, lost = open_headers(orjson.loads(first["config_text"]), first["id"], encryption)
    problems += [Problem(_LOST, f"headers.{name}", source) for name in lost]
    if problems:
        return replace(row, problems=tuple(problems))
    try:
        webhook = Webhook.of(restore_secrets(document, found), source)
    except ConfigError as error:
        return replace(row, problems=tuple(replace(problem, file=source) for problem in error.problems))
    # An edit without a difference counts, too: it re-enables a disabled webhook. That an old signing secret or key ends
    # isn't an edit: such secrets don't count, their version does.
    lasting = webhook.config.settled()
    if lasting is not webhook.config:
        webhook = replace(webhook, revision=Webhook.of(lasting, source).revision)
    digest = blake2b(f"{webhook.revision} {first['id']} {first['version']}".encode(), digest_size=8)
    return replace(row, webhook=replace(webhook, revision=digest.hexdigest()))
