"""Administrators' work on webhooks, on both databases."""

import asyncio
import re
from typing import Any

import orjson
import pytest
from pydantic import JsonValue
from sqlalchemy import create_engine, insert, select, text, update
from sqlalchemy.exc import DBAPIError, IntegrityError

from dispatcher.config.webhooks import Channel
from dispatcher.contract.redaction import contact_of
from dispatcher.contract.tenant import TenantKey
from dispatcher.errors import AlreadyExists, ConfigError, EditConflict, NotAllowed, NotFound, StoreUnavailable
from dispatcher.stores.sql import rows, schema
from dispatcher.stores.sql.audit import AuditLog, write_entry
from dispatcher.stores.sql.database import Database
from dispatcher.stores.sql.records import MAX_LISTED, AuditAction, AuditQuery, Orgs, WebhookQuery
from dispatcher.stores.sql.repository import WebhookRepository
from tests.stores_sql.examples import CANARY, plain, plain_draft, secretive, secretive_draft, with_signing


async def test_a_created_webhook_is_found_by_id_and_by_tenant(repository: WebhookRepository) -> None:
    made = await repository.create(plain(), by="ada", orgs=None)
    assert made.version == 1
    assert made.created_by == made.updated_by == "ada"
    assert await repository.get(made.id, orgs=None) == made
    assert await repository.of_tenant(TenantKey("luma@AdobeOrg", "prod"), orgs=None) == made
    assert made.config() == plain()


async def test_the_webhooks_of_many_tenants_are_found_at_once(
    repository: WebhookRepository, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(rows, "_MOST_KEYS", 2)
    made = await repository.create(plain(), by="ada", orgs=None)
    others = [TenantKey("luma@AdobeOrg", name) for name in ("stage", "a'b", "c\0d")]
    found = await repository.list_tenants([*others, made.tenant], orgs=None)
    assert {tenant: (one.id, one.name, one.enabled) for tenant, one in found.items()} == {
        made.tenant: (made.id, made.name, True)
    }
    assert await repository.list_tenants([made.tenant], orgs=frozenset({"rival@AdobeOrg"})) == {}
    assert await repository.list_tenants([], orgs=None) == {}


@pytest.mark.parametrize("config", ['{"paused": "perhaps"}', '{"paused": 1}', "[]", "null", '"paused"'])
async def test_an_odd_configuration_is_listed_beside_the_others(
    repository: WebhookRepository, database: Database, config: str
) -> None:
    odd, good = [await repository.create(plain(org), by="ada", orgs=None) for org in ("odd", "good")]
    paused = await repository.create(plain("paused", paused=True), by="ada", orgs=None)
    async with database.write() as connection:
        await connection.execute(text("UPDATE webhooks SET config = :config WHERE org = 'odd'"), {"config": config})
    for query, expected in (
        (WebhookQuery(), {odd.id, good.id, paused.id}),
        (WebhookQuery(paused=True), {paused.id}),
        (WebhookQuery(paused=False), {odd.id, good.id}),
    ):
        assert {one.id for one in (await repository.search(query, orgs=None)).items} == expected
        assert {one.id for one in await repository.list_all(query, orgs=None)} == expected


async def test_one_of_twenty_simultaneous_creations_of_a_webhook_succeeds(repository: WebhookRepository) -> None:
    tries = (repository.create(plain(), by=f"p{n}", orgs=None) for n in range(20))
    results = await asyncio.gather(*tries, return_exceptions=True)
    (made,) = (one for one in results if not isinstance(one, BaseException))
    others = [one for one in results if isinstance(one, AlreadyExists)]
    assert [one.existing_id for one in others] == [made.id] * 19
    assert (await repository.search(WebhookQuery(), orgs=None)).total == 1


async def test_the_database_itself_refuses_a_second_webhook(repository: WebhookRepository, database: Database) -> None:
    made = await repository.create(plain(), by="ada", orgs=None)
    async with database.read() as connection:
        row = dict((await connection.execute(select(schema.webhooks))).mappings().one())
    with pytest.raises(StoreUnavailable) as caught:
        async with database.write() as connection:
            await connection.execute(insert(schema.webhooks).values(row | {"id": made.id[::-1]}))
    assert isinstance(caught.value.__cause__, IntegrityError)


async def test_the_second_of_two_editors_gets_a_conflict(repository: WebhookRepository) -> None:
    made = await repository.create(plain(), by="ada", orgs=None)
    config = plain(name="Renamed")
    edits = (repository.update(made.id, config, expected_version=1, by=who, orgs=None) for who in ("ada", "bob"))
    results = await asyncio.gather(*edits, return_exceptions=True)
    (won,) = (one for one in results if not isinstance(one, BaseException))
    (lost,) = (one for one in results if isinstance(one, BaseException))
    assert won.version == 2
    assert isinstance(lost, EditConflict)
    assert lost.current_version == 2
    again = await repository.update(made.id, plain(name="Again"), expected_version=2, by="bob", orgs=None)
    assert (again.version, again.name, again.created_by, again.updated_by) == (3, "Again", "ada", "bob")
    with pytest.raises(EditConflict):
        await repository.delete(made.id, expected_version=2, by="ada", orgs=None)


async def test_a_deleted_webhook_makes_room(repository: WebhookRepository, database: Database) -> None:
    first = await repository.create(secretive(), by="ada", orgs=None)
    await repository.delete(first.id, expected_version=1, by="bob", orgs=None)
    with pytest.raises(NotFound):
        await repository.get(first.id, orgs=None)
    second = await repository.create(plain(), by="ada", orgs=None)
    assert second.id != first.id
    history = await AuditLog(database).search(AuditQuery(webhook_id=first.id), orgs=None)
    assert [entry.action for entry in history] == [AuditAction.DELETE, AuditAction.CREATE]


async def test_another_organisations_webhook_does_not_exist(repository: WebhookRepository, database: Database) -> None:
    made = await repository.create(plain(), by="ada", orgs=frozenset({"luma@AdobeOrg"}))
    foreign = frozenset({"other@AdobeOrg"})
    config = plain(name="stolen")
    for attempt in (
        lambda: repository.get(made.id, orgs=foreign),
        lambda: repository.for_delivery(made.id, orgs=foreign),
        lambda: repository.resolve(plain_draft(), webhook_id=made.id, orgs=foreign),
        lambda: repository.update(made.id, config, expected_version=1, by="eve", orgs=foreign),
        lambda: repository.reactivate(made.id, by="eve", orgs=foreign),
        lambda: repository.delete(made.id, expected_version=1, by="eve", orgs=foreign),
    ):
        with pytest.raises(NotFound):
            await attempt()
    with pytest.raises(NotAllowed):
        await repository.create(plain(sandbox="dev"), by="eve", orgs=foreign)
    with pytest.raises(NotAllowed):
        await repository.create(plain(), by="eve", orgs=foreign)  # not even that it exists
    assert await repository.of_tenant(made.tenant, orgs=foreign) is None
    for query in (WebhookQuery(), WebhookQuery(org="luma@AdobeOrg"), WebhookQuery(text="luma")):
        assert (await repository.search(query, orgs=foreign)).total == 0
    assert (await repository.search(WebhookQuery(), orgs=frozenset())).total == 0
    assert await AuditLog(database).search(AuditQuery(), orgs=foreign) == []
    assert await AuditLog(database).search(AuditQuery(webhook_id=made.id), orgs=foreign) == []


async def test_the_inventory_is_searched_sorted_and_paged(repository: WebhookRepository) -> None:
    for n, sandbox in enumerate(("prod", "stage", "dev")):
        await repository.create(plain(sandbox=sandbox, name=f"{'cab'[n]} É{n}", channels=["email"]), by="a", orgs=None)
    await repository.create(plain("other@Org", enabled=False, channels=["sms"], name="100% Other"), by="a", orgs=None)

    async def names(query: WebhookQuery) -> list[str]:
        return [one.name for one in (await repository.search(query, orgs=None)).items]

    assert await names(WebhookQuery()) == ["100% Other", "a É1", "b É2", "c É0"]
    assert await names(WebhookQuery(descending=True, limit=2)) == ["c É0", "b É2"]
    assert await names(WebhookQuery(offset=3)) == ["c É0"]
    assert await names(WebhookQuery(sort="created", limit=1)) == ["c É0"]
    assert await names(WebhookQuery(sort="tenant", limit=1)) == ["b É2"]
    assert await names(WebhookQuery(text="LUMA é1")) == ["a É1"]
    assert await names(WebhookQuery(text="100%")) == ["100% Other"]
    assert await names(WebhookQuery(text="1_0")) == []
    assert await names(WebhookQuery(text="\0 \ud800")) == []
    assert await names(WebhookQuery(channel=Channel.SMS)) == ["100% Other"]
    assert await names(WebhookQuery(enabled=True, sandbox="dev")) == ["b É2"]
    page = await repository.search(WebhookQuery(limit=0), orgs=None)
    assert (len(page.items), page.total) == (1, 4)


async def test_every_change_leaves_its_line_of_history(repository: WebhookRepository, database: Database) -> None:
    made = await repository.create(plain(), by="ada", orgs=None)
    renamed = plain(name="Renamed", headers={"X-Environment": "prod"})
    await repository.update(made.id, renamed, expected_version=1, by="bob", orgs=None)
    await repository.reactivate(made.id, by="cy", orgs=None)
    audit = AuditLog(database)
    await audit.record(AuditAction.TEST, by="di", tenant=made.tenant, webhook_id=made.id, details={"status": 204})
    await repository.delete(made.id, expected_version=3, by="ed", orgs=None)
    history = await audit.search(AuditQuery(), orgs=frozenset({made.tenant.org}))
    assert [(one.actor, str(one.action)) for one in history] == [
        ("ed", "delete"), ("di", "test"), ("cy", "enable"), ("bob", "edit"), ("ada", "create"),
    ]  # fmt: skip
    assert {(one.tenant, one.webhook_id) for one in history} == {(made.tenant, made.id)}
    assert (
        history[3].changes
        == {
            "name": {"before": "Luma order status", "after": "Renamed"},
            "headers.X-Environment": {"before": None, "after": "prod"},
            "headers": {"before": {}, "after": None},
        }
        or "headers" not in history[3].changes
    )
    url = history[4].changes["url"]
    assert isinstance(url, dict)
    assert re.fullmatch(r"https://hooks\.luma\.example/<secret [0-9a-f]{12}>", str(url["after"]))
    older = await audit.search(AuditQuery(before=history[1].id, limit=2), orgs=None)
    assert [one.actor for one in older] == ["cy", "bob"]
    assert [one.actor for one in await audit.search(AuditQuery(action=AuditAction.TEST), orgs=None)] == ["di"]


async def test_contacts_are_in_the_history_without_their_addresses(
    repository: WebhookRepository, database: Database
) -> None:
    """As the notifications record them; a change of contacts is still seen as a change."""
    ops, jane = (f"<contact {contact_of(one)[:12]}>" for one in ("ops@luma.example", "jane@agency.example"))
    made = await repository.create(plain(notify={"emails": ["Ops@luma.example"]}), by="ada", orgs=None)
    config = plain(notify={"emails": ["ops@luma.example", "jane@agency.example"]})
    await repository.update(made.id, config, expected_version=1, by="ada", orgs=None)
    await repository.delete(made.id, expected_version=2, by="ada", orgs=None)
    clear: JsonValue = {"notify.emails": {"before": None, "after": ["ops@luma.example"]}}
    async with database.write() as connection:  # as earlier versions wrote it
        await write_entry(connection, AuditAction.EDIT, "ada", made.tenant, made.id, clear)
    history = await AuditLog(database).search(AuditQuery(), orgs=None)
    assert [one.changes["notify.emails"] for one in history] == [
        {"before": None, "after": [ops]},
        {"before": [ops, jane], "after": None},
        {"before": [ops], "after": [ops, jane]},
        {"before": None, "after": [ops]},
    ]


async def test_a_secret_in_a_value_that_looks_like_a_fingerprint_is_masked(
    repository: WebhookRepository, database: Database
) -> None:
    claims: JsonValue = {"fingerprint": "f", "api_key": {"fingerprint": CANARY}}
    sign: JsonValue = {"algorithm": "HS256", "key": {"value": "k" * 32}, "claims": claims}
    auth: JsonValue = {"type": "jwt", "sign": sign}
    await repository.create(plain(headers={"fingerprint": CANARY}, auth=auth), by="ada", orgs=None)
    (entry,) = await AuditLog(database).search(AuditQuery(), orgs=None)
    assert CANARY not in repr(entry)
    assert entry.changes["auth.sign.claims.fingerprint"] == {"before": None, "after": "f"}
    assert {"headers.fingerprint", "auth.sign.claims.api_key.fingerprint"} <= entry.changes.keys()


async def test_a_change_that_fails_leaves_no_line(repository: WebhookRepository, database: Database) -> None:
    made = await repository.create(plain(), by="ada", orgs=None)
    with pytest.raises(ConfigError, match="sandbox: can't be changed"):
        await repository.update(made.id, plain(sandbox="dev"), expected_version=1, by="bob", orgs=None)
    assert len(await AuditLog(database).search(AuditQuery(), orgs=None)) == 1
    assert (await repository.get(made.id, orgs=None)).version == 1


async def test_history_can_not_be_rewritten(repository: WebhookRepository, database: Database) -> None:
    await repository.create(plain(), by="ada", orgs=None)
    for statement in (update(schema.audit).values(actor="eve"), schema.audit.delete()):
        with pytest.raises(StoreUnavailable, match="append-only") as caught:
            async with database.write() as connection:
                await connection.execute(statement)
        assert isinstance(caught.value.__cause__, DBAPIError)
    assert [one.actor for one in await AuditLog(database).search(AuditQuery(), orgs=None)] == ["ada"]


async def test_secrets_go_in_and_come_out_for_delivery_only(repository: WebhookRepository, database: Database) -> None:
    given = secretive()
    made = await repository.create(given, by="ada", orgs=None)
    assert await repository.for_delivery(made.id, orgs=None) == given
    page = await repository.search(WebhookQuery(), orgs=None)
    history = await AuditLog(database).search(AuditQuery(), orgs=None)
    for secret in given.secrets():
        text = secret.reveal_text()
        assert text not in repr(made)
        assert text not in repr(page)
    assert CANARY not in repr(history)
    assert all(secret.reveal() == b"" and secret.reference is None for secret in made.config().secrets())
    changes = history[0].changes["auth.fetch.client_secret"]
    assert given.auth.type == "jwt"
    assert given.auth.fetch is not None
    assert given.auth.fetch.client_secret is not None
    assert changes == {"before": None, "after": f"<secret {given.auth.fetch.client_secret.fingerprint()}>"}
    async with database.read() as connection:
        stored = [dict(row) for row in (await connection.execute(select(schema.secrets))).mappings()]
    assert len(stored) == 7
    assert CANARY not in repr(stored)


async def test_saving_the_shown_document_changes_nothing(repository: WebhookRepository) -> None:
    given = secretive()
    made = await repository.create(given, by="ada", orgs=None)
    shown = orjson.loads(orjson.dumps(dict(made.document)))
    config = await repository.resolve(shown, webhook_id=made.id, orgs=None)
    assert config == given
    edited = await repository.update(made.id, config, expected_version=1, by="bob", orgs=None)
    assert dict(edited.document) == dict(made.document)
    assert await repository.for_delivery(made.id, orgs=None) == given


async def test_a_rotation_keeps_the_old_secret_by_its_fingerprint(
    repository: WebhookRepository, database: Database
) -> None:
    made = await repository.create(with_signing("whsec_old"), by="ada", orgs=None)
    shown = orjson.loads(orjson.dumps(dict(made.document)))
    shown["signing"]["secrets"].insert(0, {"value": "whsec_new\n"})
    config = await repository.resolve(shown, webhook_id=made.id, orgs=None)
    await repository.update(made.id, config, expected_version=1, by="ada", orgs=None)
    found = (await repository.for_delivery(made.id, orgs=None)).signing
    assert found is not None
    assert [secret.reveal() for secret in found.secrets] == [b"whsec_new", b"whsec_old"]
    keep = plain_draft(signing={"secrets": [{"keep": True}]})
    config = await repository.resolve(keep, webhook_id=made.id, orgs=None)
    await repository.update(made.id, config, expected_version=2, by="ada", orgs=None)
    async with database.read() as connection:
        assert len((await connection.execute(select(schema.secrets))).all()) == 1
    config = await repository.resolve(plain_draft(), webhook_id=made.id, orgs=None)  # left out: gone
    await repository.update(made.id, config, expected_version=3, by="ada", orgs=None)
    assert (await repository.for_delivery(made.id, orgs=None)).secrets() == []


async def test_a_draft_that_can_not_be_used_names_each_field_and_quotes_nothing(repository: WebhookRepository) -> None:
    draft = secretive_draft(signing={"secrets": [{"file": "/etc/passwd"}, {"keep": True}, CANARY, {"value": ""}]})
    draft |= {"name": {"value": CANARY}, "urll": CANARY, "timeout": CANARY, "channels": [CANARY]}
    with pytest.raises(ConfigError) as caught:
        await repository.resolve(draft, webhook_id=None, orgs=None)
    assert {problem.key for problem in caught.value.problems} == {
        "signing.secrets[0]", "signing.secrets[1]", "signing.secrets[2]", "signing.secrets[3]",
        "name", "urll", "timeout", "channels[0]",
    }  # fmt: skip
    assert CANARY not in str(caught.value)
    assert caught.value.__cause__ is None
    assert caught.value.__context__ is None or caught.value.__suppress_context__
    drafts: list[JsonValue] = [
        None,
        [],
        "text",
        {"name": "\0"},
        {"name": "\ud800"},
        {"auth": 7},
        {"auth": {"type": "x"}},
    ]
    for nonsense in drafts:
        with pytest.raises(ConfigError):
            await repository.resolve(nonsense, webhook_id=None, orgs=None)


async def test_one_tenants_secret_can_not_be_kept_for_another(repository: WebhookRepository) -> None:
    made = await repository.create(with_signing("whsec_a"), by="ada", orgs=None)
    shown = dict(made.document) | {"sandbox": "dev"}
    with pytest.raises(ConfigError, match="no such secret is stored here"):
        await repository.resolve(shown, webhook_id=None, orgs=None)
    other = await repository.create(plain(sandbox="dev"), by="ada", orgs=None)
    with pytest.raises(ConfigError, match="no such secret is stored here"):
        await repository.resolve(shown, webhook_id=other.id, orgs=None)


OTHER_HOSTS = [
    ("https://{}.luma.example/other/path?x=y", True),
    ("https://{}.LUMA.example:443/f", True),
    ("https://{}.evil.example/f", False),
    ("https://{}.luma.example.evil.example/f", False),
    ("https://{}.luma.example:8443/f", False),
    ("http://{}.luma.example/f", False),
]


@pytest.mark.parametrize(("token_url", "is_sent"), OTHER_HOSTS)
@pytest.mark.parametrize("how", ["fingerprint", "keep"])
async def test_a_stored_client_secret_is_sent_to_no_other_host_than_the_one_it_was_given_for(
    repository: WebhookRepository, token_url: str, is_sent: bool, how: str
) -> None:
    """Secrets go in and never come out: an editor of a webhook must not read them at an own token endpoint."""
    made = await repository.create(secretive(), by="ada", orgs=None)
    shown = orjson.loads(orjson.dumps(dict(made.document)))
    fetch = shown["auth"]["fetch"]
    fetch["token_url"] = token_url.format("login")
    if how == "keep":
        fetch["client_secret"] = {"keep": True}
    if is_sent:
        assert (await repository.resolve(shown, webhook_id=made.id, orgs=None)).secrets()
        return
    with pytest.raises(ConfigError, match=r"auth\.fetch\.client_secret: .* give the secret again"):
        await repository.resolve(shown, webhook_id=made.id, orgs=None)
    fetch["client_secret"] = {"value": "another"}
    config = await repository.resolve(shown, webhook_id=made.id, orgs=None)
    assert b"another" in [secret.reveal() for secret in config.secrets()]


@pytest.mark.parametrize(("webhook_url", "is_sent"), OTHER_HOSTS)
@pytest.mark.parametrize("how", ["fingerprint", "keep"])
async def test_a_stored_header_secret_is_sent_to_no_other_host_than_the_one_it_was_given_for(
    repository: WebhookRepository, webhook_url: str, is_sent: bool, how: str
) -> None:
    given = secretive(headers={name: {"value": f"{CANARY}-{name}"} for name in ("X-Api-Key", "X-Client.2")})
    made = await repository.create(given, by="ada", orgs=None)
    shown = orjson.loads(orjson.dumps(dict(made.document)))
    shown["url"] = webhook_url.format("hooks")
    if how == "keep":
        shown["headers"] = {name: {"keep": True} for name in given.headers}
    if is_sent:
        assert (await repository.resolve(shown, webhook_id=made.id, orgs=None)).headers == given.headers
        return
    with pytest.raises(ConfigError) as caught:
        await repository.resolve(shown, webhook_id=made.id, orgs=None)
    assert {one.key for one in caught.value.problems} == {"headers.X-Api-Key", "headers['X-Client.2']"}
    assert all("give the secret again" in one.message for one in caught.value.problems)
    shown["headers"] = {name: {"value": "another"} for name in given.headers}
    assert (await repository.resolve(shown, webhook_id=made.id, orgs=None)).headers.keys() == given.headers.keys()


async def test_the_check_has_the_last_word(database: Database, repository: WebhookRepository) -> None:
    strict = WebhookRepository(database, repository._encryption, check=lambda _: [("auth.sign.key", "is weak")])
    with pytest.raises(ConfigError, match=r"auth\.sign\.key: is weak"):
        await strict.create(plain(), by="ada", orgs=None)
    with pytest.raises(ConfigError, match="is weak"):
        await strict.resolve(plain_draft(), webhook_id=None, orgs=None)


async def test_a_text_that_a_database_can_not_hold_is_refused_as_such(repository: WebhookRepository) -> None:
    for what in ({"name": "a\0b"}, {"org": "a\ud800"}):
        config = plain().model_copy(update=what)
        with pytest.raises(ConfigError, match=r"stored|U\+0000"):
            await repository.create(config, by="ada", orgs=None)
    assert await repository.of_tenant(TenantKey("a\0", "\ud800"), orgs=None) is None
    with pytest.raises(NotFound):
        await repository.get("\0", orgs=None)
    backslash = await repository.create(plain(name="a\\u0000b"), by="ada", orgs=None)
    assert backslash.name == "a\\u0000b"


async def test_a_search_is_sorted_and_paged_by_the_tenants_numbers(repository: WebhookRepository) -> None:
    for number in range(7):
        await repository.create(plain(sandbox=f"s/%{number}", name=f"Webhook {6 - number}"), by="ada", orgs=None)
    await repository.create(plain("other@AdobeOrg", name="Other"), by="ada", orgs=None)
    numbers = {TenantKey("luma@AdobeOrg", f"s/%{number}"): number % 3 for number in range(7) if number != 3}
    numbers |= {TenantKey("gone'\"@AdobeOrg", "prod"): 99, TenantKey("other@AdobeOrg", "prod"): 2**40}

    async def names(orgs: Orgs = None, **query: Any) -> str:
        page = await repository.search(WebhookQuery(**query), orgs=orgs, numbers=numbers)
        return f"{' '.join(one.name.removeprefix('Webhook ') for one in page.items)} of {page.total}"

    assert await names(descending=True) == "Other 1 4 2 5 0 3 6 of 8"
    assert await names() == "0 3 6 2 5 1 4 Other of 8"
    assert await names(descending=True, offset=2, limit=3) == "4 2 5 of 8"
    assert await names(descending=True, offset=7) == "6 of 8"
    assert await names(text="webhook", descending=True, limit=1) == "1 of 7"
    assert await names(frozenset({"luma@AdobeOrg"}), descending=True, limit=1) == "1 of 7"
    numbers = {TenantKey(f"org-{number}", "prod"): 1 for number in range(MAX_LISTED)}
    assert await names(limit=2) == "Other 0 of 8"


def test_sqlite_looks_numbers_up_by_an_index() -> None:
    """Without one it compares each webhook with each number: six seconds for 10,000 webhooks, after which it gave up."""
    numbers = {TenantKey("luma@AdobeOrg", "prod"): 1}
    statement = rows.page_by_number(rows.matching(WebhookQuery(), None), WebhookQuery(), numbers, is_postgresql=False)
    engine = create_engine("sqlite://")
    with engine.connect() as connection:
        schema.metadata.create_all(connection)
        compiled = statement.compile(engine)
        plan = connection.exec_driver_sql(f"EXPLAIN QUERY PLAN {compiled}", tuple(compiled.construct_params().values()))
        steps = [row[3] for row in plan]
    assert any("SEARCH numbers USING AUTOMATIC" in step for step in steps), steps


async def test_numbers_that_are_none_sort_by_name(repository: WebhookRepository) -> None:
    for name in ("b", "a"):
        await repository.create(plain(sandbox=name, name=name), by="ada", orgs=None)
    page = await repository.search(WebhookQuery(descending=True), orgs=None, numbers={})
    assert [one.name for one in page.items] == ["a", "b"]
