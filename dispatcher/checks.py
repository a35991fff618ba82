"""Checks of a webhook, beyond its model, by `check` and the stores: egress, TLS, authentication.

Warnings are about what can be used, but is probably a mistake.
"""

import os
import re
from codecs import BOM_UTF8
from collections.abc import Callable, Iterator, Sequence
from dataclasses import replace
from itertools import islice
from pathlib import Path
from typing import Final

from dispatcher.auth.problems import problems_of
from dispatcher.config.documents import nearest
from dispatcher.config.loader import webhook_secret_scope
from dispatcher.config.settings import Settings, WebhookSettings
from dispatcher.config.units import format_duration
from dispatcher.config.webhook_auth import JwtAuth
from dispatcher.config.webhook_revision import Webhook
from dispatcher.config.webhooks import MESSAGE_STATUSES, WebhookConfig
from dispatcher.contract.feedback import MAX_WARNED
from dispatcher.errors import ConfigError
from dispatcher.stores.webhook_file import Rules
from dispatcher.transport.egress import EgressGuard, rule_problems
from dispatcher.transport.tls import problems_of_pem

_ORG_ID: Final = re.compile(r"[0-9A-F]{24}")
_ORG_ID_LENGTHS: Final = range(20, 29)
"""Characters of a text that is probably intended as an organisation's id."""
_ORG_DOMAIN: Final = "AdobeOrg"
_SYNONYMS: Final = {"failed": "error", "failure": "error"}
_MAX_FILES: Final = 6
"""Ignored files that are named."""
_MAX_DIRECTORIES: Final = 1_000
"""Directories that are searched for them."""


def webhook_rules(settings: Settings, directory: Path | None = None) -> Rules:
    """Returns the rules for reading webhook files. References may also name secret files in `directory`."""
    scope = webhook_secret_scope(settings)
    if directory is not None:
        scope = replace(scope, roots=(*scope.roots, directory))
    return Rules(webhook_check(settings), scope)


def webhook_check(settings: Settings) -> Callable[[WebhookConfig], list[tuple[str, str]]]:
    """Returns a function that checks a webhook. It returns each problem with its dotted key, for example `url`.

    Raises:
        ConfigError: the operator's rules for endpoints can't be used.
    """
    problems = rule_problems(settings.egress)
    if problems:
        raise ConfigError(problems)
    guard = EgressGuard(settings.egress)
    return lambda config: [
        *_by_url(config, guard.problem_of_url), *problems_of_pem(config.tls), *problems_of(config)
    ]  # fmt: skip


def webhook_warnings(settings: Settings) -> Callable[[WebhookConfig], list[tuple[str, str]]]:
    """Returns a function that finds what a usable webhook probably doesn't mean, each with its dotted key."""
    guard = EgressGuard(settings.egress)
    return lambda config: [
        *_misspelt_org(config), *_by_url(config, guard.warning_of_url), *_unmatched(config), *_marked(config)
    ]  # fmt: skip


def _misspelt_org(config: WebhookConfig) -> Iterator[tuple[str, str]]:
    """Yields a warning about an organisation that is nearly an id of Adobe's (`9E10…0D45@AdobeOrg`)."""
    name, _, domain = config.org.partition("@")
    if domain == _ORG_DOMAIN:
        if len(name) in _ORG_ID_LENGTHS and _ORG_ID.fullmatch(name) is None:
            other = re.sub("[0-9A-F]", "", name)[:1] or f"{len(name)} characters"
            yield "org", f"an id of Adobe's has 24 digits, 0-9 and A-F, before the @; {name!r} has {other}"
    elif _ORG_ID.fullmatch(name) or nearest(domain, [_ORG_DOMAIN]):
        yield "org", f"an id of Adobe's ends with @{_ORG_DOMAIN}; {config.org!r} doesn't"


def _unmatched(config: WebhookConfig) -> Iterator[tuple[str, str]]:
    """Yields warnings about statuses and campaigns that no event has. They are accepted, since Adobe may add some."""
    for status in config.events:
        if status not in MESSAGE_STATUSES:
            near = _SYNONYMS.get(status.lower()) or nearest(status, MESSAGE_STATUSES)
            hint = f"did you mean {near!r}?" if near else f"known: {', '.join(sorted(MESSAGE_STATUSES))}"
            yield "events", f"{status!r} isn't a status of message feedback; {hint}"
    if not config.campaigns:
        yield "campaigns", "is empty, so every event is skipped; write campaigns: all to send them all"
    for campaign in config.campaigns if config.campaigns != "all" else ():
        if campaign.lower() == "all":
            message = f"{campaign!r} in a list is the id of one campaign; write campaigns: all to send all events"
            yield "campaigns", message


def _marked(config: WebhookConfig) -> Iterator[tuple[str, str]]:
    """Yields warnings about keys that an editor saved with a byte order mark. Only HMAC takes such a key."""
    token = config.signed_token
    keys = {"key": token, "next.key": token.next if token is not None else None}
    for name, one in keys.items():
        if one is not None and one.key.reveal().startswith(BOM_UTF8):
            place = "auth.sign" if isinstance(config.auth, JwtAuth) and config.auth.sign else "auth.fetch.assertion"
            yield f"{place}.{name}", "begins with a byte order mark, which is signed with, too; save the key without it"


def settings_warnings(settings: Settings) -> Iterator[tuple[str, str]]:
    """Yields what usable settings probably don't mean, each with its dotted key: mostly a unit that was forgotten."""
    security = settings.kafka.security
    if security.unused:
        how = " with ".join(one for one in (security.protocol, security.mechanism) if one)
        yield "kafka.security", f"{', '.join(security.unused)} not used: protocol {how} doesn't need it"
    age, longest = settings.retry.max_age, max(settings.retry.tiers)
    if age < longest:
        message = f"{format_duration(age)} is shorter than the longest tier, {format_duration(longest)}"
        yield "retry.max_age", f"{message}; a number without a unit is in seconds"
    if settings.delivery.max_body < MAX_WARNED:
        size = settings.delivery.max_body
        message = f"ordinary events are larger than {size} bytes, and would be dead-lettered as too_large"
        yield "delivery.max_body", f"{message}; a number without a unit is in bytes"


def store_warnings(settings: WebhookSettings, webhooks: Sequence[Webhook]) -> Iterator[str]:
    """Yields warnings about a directory of webhook files; `webhooks` are those in use."""
    if settings.path is None:
        return
    if not webhooks:
        yield f"{settings.path}: no webhooks: every event is skipped"
    files = list(islice(_files_below(settings.path), _MAX_FILES + 1))
    if files:
        names = ", ".join(str(file) for file in sorted(files[:_MAX_FILES])) + (", …" if files[_MAX_FILES:] else "")
        yield f"{settings.path}: files in subdirectories aren't read: {names}"


def _files_below(path: Path) -> Iterator[Path]:
    """Yields YAML files in subdirectories that aren't hidden, as Kubernetes' generations are."""
    for directory, subdirectories, files in islice(os.walk(path), _MAX_DIRECTORIES):
        subdirectories[:] = sorted(name for name in subdirectories if not name.startswith("."))
        if Path(directory) != path:
            yield from (Path(directory, name) for name in sorted(files) if name.lower().endswith((".yaml", ".yml")))


def _by_url(config: WebhookConfig, text_of: Callable[[str], str | None]) -> Iterator[tuple[str, str]]:
    text = text_of(config.url)
    if text is not None:
        yield "url", text
    if isinstance(config.auth, JwtAuth) and config.auth.fetch is not None:
        text = text_of(config.auth.fetch.token_url)
        if text is not None:
            yield "auth.fetch.token_url", text
