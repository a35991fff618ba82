"""Handlers for the caller's identity, API tokens and the audit log."""

from datetime import UTC, datetime, timedelta

from dispatcher.console.api.models import (
    AuditList,
    AuditModel,
    AuditPage,
    MadeToken,
    Me,
    NewToken,
    TokenModel,
    TokenPage,
)
from dispatcher.console.api.route import PREFIX, Call, Empty, Reply
from dispatcher.console.api.webhooks import links
from dispatcher.stores.sql.records import ApiToken, AuditEntry, AuditQuery, Orgs


async def get_me(call: Call[Empty, Empty]) -> Reply:
    person = call.person
    return Reply(Me.of(person, orgs=_listed(person.orgs)))


async def list_audit(call: Call[AuditList, Empty]) -> Reply:
    asked = call.query
    query = AuditQuery(
        webhook_id=asked.webhook_id, actor=asked.actor, action=asked.action, before=asked.before, limit=asked.limit
    )
    entries = await call.services.audit.search(query, orgs=call.person.orgs)
    following = call.next_page(before=entries[-1].id) if len(entries) == asked.limit else None
    return Reply(AuditPage(items=tuple(_entry(one) for one in entries), next=following), links(following))


async def list_tokens(call: Call[Empty, Empty]) -> Reply:
    return Reply(TokenPage(items=tuple(map(_token, await call.services.tokens.list_all()))))


async def create_token(call: Call[Empty, NewToken]) -> Reply:
    wanted = call.body
    expires_at = None
    if wanted.expires_in_days is not None:
        expires_at = datetime.now(UTC) + timedelta(days=wanted.expires_in_days)
    orgs = None if wanted.orgs is None else frozenset(wanted.orgs)
    token, text = await call.services.tokens.create(
        wanted.name, wanted.role, orgs=orgs, by=call.person.name, expires_at=expires_at
    )
    return Reply(MadeToken(token=_token(token), text=text), {"Location": f"{PREFIX}/tokens/{token.id}"})


async def revoke_token(call: Call[Empty, Empty]) -> Reply:
    await call.services.tokens.revoke(call.id, by=call.person.name)
    return Reply()


def _listed(orgs: Orgs) -> tuple[str, ...] | None:
    return None if orgs is None else tuple(sorted(orgs))


def _entry(entry: AuditEntry) -> AuditModel:
    org, sandbox = (None, None) if entry.tenant is None else entry.tenant
    return AuditModel.of(entry, action=str(entry.action), org=org, sandbox=sandbox, changes=dict(entry.changes))


def _token(token: ApiToken) -> TokenModel:
    return TokenModel.of(token, orgs=_listed(token.orgs))
