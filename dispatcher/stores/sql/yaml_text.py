"""Writes a webhook as a YAML document that is read back as exactly the same webhook. Pure."""

import hashlib
import re
from collections.abc import Mapping

import yaml
from pydantic import JsonValue

from dispatcher.config.documents import Loc
from dispatcher.config.units import format_duration, parse_duration
from dispatcher.config.webhooks import WebhookConfig
from dispatcher.contract.tenant import TenantKey

_PLAIN = re.compile(r"[A-Za-z][A-Za-z0-9_@./-]*")
_NOT_TEXT = frozenset({"null", "true", "false", "yes", "no", "on", "off", "y", "n"})
_NOT_IN_NAMES = re.compile(r"[^a-z0-9]+")


class _Dumper(yaml.SafeDumper):
    """Quotes every text that some version of YAML could interpret as another type."""

    def ignore_aliases(self, data: object) -> bool:  # noqa: ARG002
        return True


def _text(dumper: _Dumper, text: str) -> yaml.ScalarNode:
    is_plain = _PLAIN.fullmatch(text) is not None and text.lower() not in _NOT_TEXT
    return dumper.represent_scalar("tag:yaml.org,2002:str", text, style=None if is_plain else '"')


_Dumper.add_representer(str, _text)


def yaml_document(config: WebhookConfig, references: Mapping[Loc, str]) -> str:
    """Returns the document of a file with this one webhook, without default values.

    Args:
        references: the file of each secret in it, by place.
    """
    plain: dict[str, JsonValue] = config.model_dump(mode="json", exclude_defaults=True)
    for path, file in references.items():
        at: JsonValue = plain
        for step in path[:-1]:
            at = at[step]  # type: ignore[index]  # the model's own dump has this shape
        at[path[-1]] = {"file": file}  # type: ignore[index]
    _write_durations(plain, ("timeout",))
    for way in (("sign",), ("fetch", "assertion")):
        _write_durations(plain, ("auth", *way, "ttl"))
    document = {"apiVersion": "dispatcher/v1", "webhooks": [plain]}
    return str(yaml.dump(document, Dumper=_Dumper, sort_keys=False, allow_unicode=True, width=120))


def file_stem(tenant: TenantKey) -> str:
    """Returns a file name for a tenant's webhook, unique even if case is ignored."""
    slug = "-".join(_NOT_IN_NAMES.sub("-", part.lower()).strip("-")[:60] for part in tenant)
    digest = hashlib.blake2b("\0".join(tenant).encode(), digest_size=4).hexdigest()
    return f"{slug}-{digest}"


def _write_durations(plain: JsonValue, path: tuple[str, ...]) -> None:
    at = plain
    for step in path[:-1]:
        at = at.get(step) if isinstance(at, dict) else None
    value = at.get(path[-1]) if isinstance(at, dict) else None
    if isinstance(at, dict) and isinstance(value, float) and parse_duration(format_duration(value)) == value:
        at[path[-1]] = format_duration(value)
