"""Combines the readings of all files of a directory to the webhooks in use. Pure."""

import hashlib
from collections.abc import Collection, Iterable, Iterator, Mapping
from dataclasses import dataclass, field, replace

from dispatcher.config.webhook_revision import Webhook
from dispatcher.contract.tenant import TenantKey
from dispatcher.errors import Problem
from dispatcher.stores.ownership import owners
from dispatcher.stores.webhook_file import MAX_PROBLEMS, WebhookFileReading


@dataclass(frozen=True, slots=True)
class DirectorySnapshot:
    """Everything in use; replaced in one step."""

    by_tenant: Mapping[TenantKey, Webhook] = field(default_factory=dict)
    unusable: Mapping[TenantKey, str] = field(default_factory=dict)
    """Tenants whose webhook has a mistake and no last good version, with the reason."""
    file_of: Mapping[TenantKey, str] = field(default_factory=dict)
    """The file of each of these tenants."""
    is_complete: bool = True
    """False while a file may have unknown tenants."""
    content_hash: str = ""


def differs(tenant: TenantKey, old: DirectorySnapshot, new: DirectorySnapshot) -> bool:
    """Returns True if the tenant's webhook, or whether it can be used, is another in the new snapshot."""
    before, after = old.by_tenant.get(tenant), new.by_tenant.get(tenant)
    is_same = before is after or (before is not None and after is not None and before.revision == after.revision)
    return not is_same or (tenant in old.unusable) != (tenant in new.unusable)


def next_snapshot(
    readings: Mapping[str, WebhookFileReading], old: DirectorySnapshot, read_before: Collection[str]
) -> tuple[DirectorySnapshot, tuple[Problem, ...]]:
    """Returns the snapshot to use with these files, and their problems.

    Args:
        read_before: files whose tenants were known before. If such a file can't be read any more, it keeps them.
    """
    is_complete = True
    entries = {name: {e.tenant: e for e in reading.entries or () if e.tenant} for name, reading in readings.items()}
    claims = {name: [tenant for tenant, e in own.items() if not e.is_guess] for name, own in entries.items()}
    guesses = {name: [tenant for tenant, e in own.items() if e.is_guess] for name, own in entries.items()}
    for name, reading in readings.items():
        if reading.has_unknown_tenants:
            kept = [tenant for tenant, file in old.file_of.items() if file == name and tenant not in entries[name]]
            guesses[name] += kept
            is_known = name in read_before if reading.entries is None else _are_recognised(reading, kept, old.by_tenant)
            is_complete = is_complete and is_known
    owner = owners(claims, guesses, old.file_of)
    by_tenant: dict[TenantKey, Webhook] = {}
    unusable: dict[TenantKey, str] = {}
    for tenant, name in owner.items():
        entry, before = entries[name].get(tenant), old.by_tenant.get(tenant)
        if entry is not None and entry.webhook is not None:
            by_tenant[tenant] = _previous_if_same(before, entry.webhook)
        elif before is not None:
            by_tenant[tenant] = before
        else:
            unusable[tenant] = entry.why if entry is not None else old.unusable.get(tenant, "its file can't be read")
    problems = [*own_problems(readings), *_claimed_elsewhere(readings, owner)]
    return DirectorySnapshot(by_tenant, unusable, owner, is_complete, _content_hash(by_tenant)), tuple(problems)


def _are_recognised(
    reading: WebhookFileReading, kept: Iterable[TenantKey], by_tenant: Mapping[TenantKey, Webhook]
) -> bool:
    """Returns True if each entry without a tenant has the name or URL of a different webhook that the file had."""
    known = {tenant: by_tenant[tenant].config for tenant in kept if tenant in by_tenant}
    by_name = {config.name: tenant for tenant, config in known.items()}
    by_url = {config.url: tenant for tenant, config in known.items()}
    nameless = [entry for entry in reading.entries or () if entry.is_nameless]
    found = {by_name.get(entry.name) or by_url.get(entry.url) for entry in nameless}
    return None not in found and len(found) == len(nameless)


def _claimed_elsewhere(readings: Mapping[str, WebhookFileReading], owner: Mapping[TenantKey, str]) -> Iterator[Problem]:
    for name, reading in readings.items():
        found = 0
        for entry in reading.entries or ():
            if entry.tenant is None or entry.is_guess or owner[entry.tenant] == name:
                continue
            found += 1
            if found <= MAX_PROBLEMS:
                other = readings[owner[entry.tenant]].file
                message = f"{entry.tenant} is in {other} already: one webhook for each organisation and sandbox"
                yield Problem(message, entry.key, reading.file, entry.line)
        if found > MAX_PROBLEMS:
            yield Problem(f"{found - MAX_PROBLEMS:,} more of its tenants are in other files", file=reading.file)


def _previous_if_same(old: Webhook | None, new: Webhook) -> Webhook:
    """Returns `old` if nothing has changed. If only its line has, the result has the old configuration."""
    if old is None or old.revision != new.revision:
        return new
    return old if old.source == new.source else replace(old, source=new.source)


def own_problems(readings: Mapping[str, WebhookFileReading]) -> tuple[Problem, ...]:
    """Returns the problems that the files have by themselves, without tenants that several claim."""
    return tuple(problem for reading in readings.values() for problem in reading.problems)


def _content_hash(by_tenant: Mapping[TenantKey, Webhook]) -> str:
    digest = hashlib.blake2b(digest_size=6)
    for tenant, webhook in sorted(by_tenant.items()):
        digest.update(f"{tenant}\n{webhook.revision}\n".encode())
    return digest.hexdigest()
