"""Checks of a webhook, beyond its model, by `check` and the stores: egress, TLS, authentication."""

from collections.abc import Callable, Iterator
from dataclasses import replace
from pathlib import Path

from dispatcher.auth.problems import problems_of
from dispatcher.config.loader import webhook_secret_scope
from dispatcher.config.settings import Settings
from dispatcher.config.webhook_auth import JwtAuth
from dispatcher.config.webhooks import WebhookConfig
from dispatcher.errors import ConfigError
from dispatcher.stores.webhook_file import Rules
from dispatcher.transport.egress import EgressGuard, rule_problems
from dispatcher.transport.tls import problems_of_pem


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


def webhook_warnings(settings: Settings, config: WebhookConfig) -> Iterator[tuple[str, str]]:
    """Yields warnings about a usable webhook, each with its dotted key, for example `url`."""
    return _by_url(config, EgressGuard(settings.egress).warning_of_url)


def _by_url(config: WebhookConfig, text_of: Callable[[str], str | None]) -> Iterator[tuple[str, str]]:
    text = text_of(config.url)
    if text is not None:
        yield "url", text
    if isinstance(config.auth, JwtAuth) and config.auth.fetch is not None:
        text = text_of(config.auth.fetch.token_url)
        if text is not None:
            yield "auth.fetch.token_url", text
