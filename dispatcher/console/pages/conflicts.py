"""Compares two people's edits of a webhook field by field: the saved values with those entered in the form."""

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Final

from pydantic import JsonValue

from dispatcher.config.secrets import suggests_a_secret
from dispatcher.console.formatting import value_text
from dispatcher.console.pages.fields import LISTS, SECRETS, SWITCHES, TEXTS, HeaderRow, SecretField
from dispatcher.console.pages.form import WebhookForm
from dispatcher.stores.sql.audit import AuditLog
from dispatcher.stores.sql.records import AuditAction, AuditEntry, AuditQuery, Orgs, StoredWebhook

MAX_ENTRIES: Final = 200
"""Entries of the audit that are looked at, the newest first."""
SIGNING: Final = "signing"
"""Key of the signing secrets, which are one field: a typed secret comes before the stored ones."""
_HEADER: Final = "headers."
"""Before the name of a header parameter in its key."""
_AS_SAVED: Final = "as saved"
_METHODS: Final = {"sign": "auth.sign.algorithm", "fetch": "auth.fetch.grant"}
"""A member of the configuration that only this method of authentication has, and always."""
_KEEPS_FIELDS: Final = frozenset(
    {AuditAction.ENABLE, AuditAction.PAUSE, AuditAction.RESUME, AuditAction.DELETE, AuditAction.RESTORE}
)
"""Actions that make a new version, and change nothing that the form has a field for."""


@dataclass(frozen=True, slots=True)
class FieldConflict:
    """A field that was changed while it was being edited. Secrets are named by fingerprints, never shown."""

    key: str
    before: str
    """Its value before, as in the audit."""
    saved: str
    """Its value now."""
    by: str
    """The person who saved it last."""
    entered: str
    """The value that the second editor entered."""


@dataclass(frozen=True, slots=True)
class _Change:
    """A change that was saved meanwhile, at one path of the configuration."""

    before: JsonValue
    after: JsonValue
    by: str


async def conflicts_of(
    form: WebhookForm, webhook: StoredWebhook, since: int, audit: AuditLog, orgs: Orgs
) -> list[FieldConflict]:
    """Returns the fields that were changed since version `since` and differ from the form.

    What the form has no field for is kept as it was saved.
    """
    entries = await _versions(webhook.id, webhook.version - since, audit, orgs)
    changes: dict[str, _Change] = {}
    for entry in reversed([one for one in entries if one.action not in _KEEPS_FIELDS]):
        for path, change in entry.changes.items():
            if isinstance(change, Mapping) and "before" in change:
                earlier = changes.pop(path, None)  # what was saved last comes last
                before = change["before"] if earlier is None else earlier.before
                changes[path] = _Change(before, change.get("after"), entry.actor)
    fields: dict[str, dict[str, _Change]] = {}
    for path, made in (changes | _change_of_method(changes)).items():
        if path == "auth.type":
            continue  # the method says more
        fields.setdefault(_field_of(path), {})[path] = made
    saved = WebhookForm.of_document(webhook.document)
    found = ((key, made, field_text(form, key)) for key, made in fields.items())
    return [
        _conflict(key, made, entered, saved)
        for key, made, entered in found
        if entered is not None and entered != field_text(saved, key)
    ]


async def is_edited_since(webhook_id: str, since: int, version: int, audit: AuditLog, orgs: Orgs) -> bool:
    """Returns True if the form's fields may have changed between two versions."""
    entries = await _versions(webhook_id, version - since, audit, orgs)
    return len(entries) < version - since or not all(one.action in _KEEPS_FIELDS for one in entries)


async def _versions(webhook_id: str, number: int, audit: AuditLog, orgs: Orgs) -> list[AuditEntry]:
    """Returns the audit's entries of the last versions, the newest first."""
    entries = await audit.search(AuditQuery(webhook_id=webhook_id, limit=MAX_ENTRIES), orgs=orgs)
    return [one for one in entries if one.action in _KEEPS_FIELDS or one.action is AuditAction.EDIT][:number]


def take_saved(form: WebhookForm, key: str, document: Mapping[str, JsonValue]) -> None:
    """Puts the saved value of a field into the form. For a secret, drops what was typed."""
    saved = WebhookForm.of_document(document)
    if key in saved.texts:
        form.texts[key] = saved.texts[key]
        if key == "campaigns":
            form.campaign_ids = saved.campaign_ids
    elif key in LISTS:
        form.lists[key] = saved.lists[key]
    elif key in SWITCHES:
        form.switches[key] = saved.switches[key]
    elif key in SECRETS:
        form.secrets[key] = saved.secrets[key]
    elif key == SIGNING:
        form.secrets["signing.new"], form.signing = SecretField(), saved.signing
    elif key.startswith(_HEADER):
        _take_header(form, saved, key.removeprefix(_HEADER))
    form.errors.pop("signing.new" if key == SIGNING else key, None)


def field_text(form: WebhookForm, key: str) -> str | None:
    """Returns a field of the form as one text, which describes secrets and doesn't show them; None without a field."""
    if key == "campaigns" and form.texts[key] == "some":
        return ", ".join(form.campaign_ids.split())
    if key in form.texts:
        return form.texts[key].replace("\r\n", "\n")
    if key in LISTS:
        return ", ".join(sorted(form.lists[key]))
    if key in SWITCHES:
        return "on" if form.switches[key] else "off"
    if key in SECRETS:
        return _secret_text(form.secrets[key])
    if key == SIGNING:
        texts = (_secret_text(one) for one in (form.secrets["signing.new"], *form.signing))
        return next((text for text in texts if text != _AS_SAVED), _AS_SAVED)
    return _header_text(form, key.removeprefix(_HEADER)) if key.startswith(_HEADER) else None


def _secret_text(one: SecretField) -> str:
    if one.typed:
        return "a new one, not shown"
    return "removed" if one.stored and one.is_removed else _AS_SAVED


def _header_text(form: WebhookForm, name: str) -> str:
    row = _row_of(form, name)
    if row is None:
        return "removed"
    if row.is_stored and not row.value:
        return _AS_SAVED
    return "a new one, not shown" if row.is_stored or suggests_a_secret(name) else row.value


def _row_of(form: WebhookForm, name: str) -> HeaderRow | None:
    return next((row for row in form.headers if row.name.lower() == name.lower()), None)


def _take_header(form: WebhookForm, saved: WebhookForm, name: str) -> None:
    old, new = _row_of(form, name), _row_of(saved, name)
    if old is not None and new is not None:
        form.headers[form.headers.index(old)] = new
    elif new is not None:
        form.headers = [*(row for row in form.headers if row.name or row.value), new]
    elif old is not None:
        form.headers.remove(old)


def _change_of_method(changes: Mapping[str, _Change]) -> dict[str, _Change]:
    """Returns the change of the method of authentication; the configuration has no single member for it."""
    found = {method: changes[path] for method, path in _METHODS.items() if path in changes}
    found = {method: one for method, one in found.items() if one.before is None or one.after is None}
    before = next((method for method, one in found.items() if one.before is not None), "none")
    last = next(reversed(found.values()), None)
    return {} if last is None else {"auth": _Change(before, None, last.by)}


def _field_of(path: str) -> str:
    """Returns the key of the form's field that has a path of the configuration; the path itself without a field."""
    if path.startswith(f"{SIGNING}."):
        return SIGNING
    at, is_next, _ = path.partition(".next.")
    if is_next and f"{at}.key" in SECRETS:
        return f"{at}.key"  # a key that is typed replaces the next one, too
    return next((key for key in TEXTS if path.startswith(f"{key}.")), path)


def _conflict(key: str, changes: Mapping[str, _Change], entered: str, saved: WebhookForm) -> FieldConflict:
    shown = field_text(saved, key)
    after = shown or "–"
    if shown == _AS_SAVED:
        after = _joined(key, {path: one.after for path, one in changes.items()})
    before = _joined(key, {path: one.before for path, one in changes.items()})
    return FieldConflict(key, before, after, list(changes.values())[-1].by, entered)


def _joined(key: str, values: Mapping[str, JsonValue]) -> str:
    """Returns the values at the paths of one field, each after its place if that is below the field."""
    return ", ".join(
        _as_in_form(key, value) if path == key else f"{path.removeprefix(f'{key}.')}: {value_text(value)}"
        for path, value in values.items()
    )


def _as_in_form(key: str, value: JsonValue) -> str:
    """Returns a value of the audit as `field_text` shows the one in the form."""
    if isinstance(value, bool):
        return "on" if value else "off"
    if isinstance(value, list):
        return ", ".join(sorted(map(str, value)) if key in LISTS else map(str, value))
    return value_text(value)
