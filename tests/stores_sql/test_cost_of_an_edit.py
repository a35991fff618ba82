"""What an edit costs the event loop: in proportion to the edited webhooks, not to all that are known."""

import sys
from types import FrameType

import pytest

from dispatcher.config.webhook_revision import Webhook
from dispatcher.config.webhooks import WebhookConfig
from dispatcher.contract.tenant import TenantKey
from dispatcher.errors import Problem
from dispatcher.stores.sql.database import Database
from dispatcher.stores.sql.encryption import Encryption
from dispatcher.stores.sql.loading import WebhookRow
from dispatcher.stores.sql.store import SqlStore


def row(number: int, changed: int, *, is_deleted: bool = False, is_usable: bool = True) -> WebhookRow:
    given = {"name": "w", "org": f"org{number}", "sandbox": "prod", "url": f"https://hooks.example/{changed}"}
    webhook = Webhook.of(WebhookConfig.model_validate(given), f"sql:{number}")
    problems = () if is_usable else (Problem("can't be used"),)
    in_use = webhook if is_usable and not is_deleted else None
    return WebhookRow(str(number), TenantKey(f"org{number}", "prod"), changed, is_deleted, in_use, problems)


def loaded(database: Database, encryption: Encryption, count: int) -> SqlStore:
    store = SqlStore(database, encryption)
    store._take_over([row(number, 1) for number in range(count)], 1, is_all=True)
    return store


def lines_of(store: SqlStore, *rows: WebhookRow) -> int:
    """Returns the number of lines of this project's code that taking over the rows executes."""
    lines = 0

    def trace(frame: FrameType, event: str, _: object) -> object:
        nonlocal lines
        if "/dispatcher/" not in frame.f_code.co_filename:
            return None
        lines += event == "line"
        return trace

    before = sys.gettrace()
    sys.settrace(trace)  # type: ignore[arg-type]
    try:
        store._take_over(rows, 2, is_all=False)
    finally:
        sys.settrace(before)
    return lines


@pytest.mark.parametrize(
    "edit", [row(3, 2), row(3, 2, is_deleted=True), row(3, 2, is_usable=False), row(999, 2)], ids=range(4)
)
async def test_an_edit_costs_the_same_beside_any_number_of_webhooks(
    database: Database, encryption: Encryption, edit: WebhookRow
) -> None:
    few, many = (loaded(database, encryption, count) for count in (10, 500))
    assert lines_of(few, edit) == lines_of(many, edit)


async def test_the_hash_depends_on_what_is_in_use_and_not_on_how_it_came_about(
    database: Database, encryption: Encryption
) -> None:
    edited, loaded_later, another = (loaded(database, encryption, count) for count in (3, 0, 0))
    at_first = edited.content_hash
    edited._take_over([row(0, 2), row(1, 2, is_deleted=True), row(2, 2, is_usable=False), row(7, 2)], 2, is_all=False)
    assert edited.content_hash != at_first
    loaded_later._take_over([row(7, 2), row(0, 2)], 2, is_all=True)
    assert edited.content_hash == loaded_later.content_hash
    edited._take_over([row(2, 3)], 3, is_all=False)
    assert edited.content_hash != loaded_later.content_hash
    another._take_over([row(0, 1), row(1, 1), row(2, 1)], 4, is_all=True)
    assert another.content_hash == at_first
