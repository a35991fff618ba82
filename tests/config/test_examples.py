"""Loads the committed examples unchanged and checks that they match the committed schemas."""

import json
import re
import shutil
import subprocess
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import jsonschema
import pytest
import yaml

from dispatcher.config.documents import read_document
from dispatcher.config.loader import load_settings, webhook_secret_scope
from dispatcher.config.schemas import SchemaKind, schema_of
from dispatcher.config.settings import Settings
from dispatcher.stores import open_source
from dispatcher.stores.webhook_file import Rules

CONFIG = Path(__file__).parents[2] / "config"
EXAMPLES = sorted(CONFIG.rglob("*.yaml"))


@pytest.fixture(scope="module")
def config(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A copy of `config/` with the secrets made as its README says."""
    copy = tmp_path_factory.mktemp("examples") / "config"
    shutil.copytree(CONFIG, copy)
    commands = re.findall(r"^    ((?:openssl|printf) .*)$", (CONFIG / "README.md").read_text(), re.MULTILINE)
    assert len(commands) == 3
    secrets = copy / "webhooks.d" / "secrets-example"
    for command in commands if shutil.which("openssl") else ():
        subprocess.run(["sh", "-ec", command], cwd=secrets, check=True, capture_output=True)
    made = {command.rsplit(maxsplit=1)[-1] for command in commands}
    for name in made:
        if not (secrets / name).exists():
            (secrets / name).write_text("made by the test\n")
    for name in ("kafka-password", "kafka-ca.pem", "kafka-client.pem", "kafka-client-key.pem"):
        (copy / "secrets-example" / name).write_text("made by the test\n")
    return copy


@pytest.mark.parametrize("name", ["dispatcher.yaml", "dispatcher-secured.yaml"])
def test_the_example_settings_load(config: Path, name: str) -> None:
    settings = load_settings(config / name, {})
    assert settings.webhooks.path == config / "webhooks.d"


def test_the_example_settings_show_every_group_and_only_defaults(config: Path) -> None:
    document = read_document(config / "dispatcher.yaml").data
    assert isinstance(document, dict)
    assert set(document) == set(Settings.model_fields)
    settings = load_settings(config / "dispatcher.yaml", {})
    least = Settings.model_validate(
        {key: document[key] for key in ("apiVersion", "kafka")} | {"webhooks": {"path": settings.webhooks.path}}
    )
    assert settings == least


def test_what_the_comments_call_defaults_are_the_defaults(config: Path) -> None:
    text = (config / "dispatcher.yaml").read_text()
    shown = re.sub(r"^  # (\w+: (?!see ))", r"  \1", text, flags=re.MULTILINE)
    examples = ("group_instance_id", "ca_bundle", "proxy", "nameservers", "ports", "secrets", "url", "tls")
    data = {
        group: {key: value for key, value in values.items() if key not in examples}
        if isinstance(values, dict)
        else values
        for group, values in yaml.safe_load(shown).items()
    }
    data["webhooks"]["path"] = str(config / "webhooks.d")
    settings = load_settings(config / "dispatcher.yaml", {})
    assert Settings.model_validate(data) == settings
    for group, values in data.items():
        if isinstance(values, dict):
            optional = {"security", "topic_prefix", *examples}
            assert set(values) >= set(type(getattr(settings, group)).model_fields) - optional, group


def test_every_setting_is_in_the_example_settings() -> None:
    shown = set[str]()
    for name in ("dispatcher.yaml", "dispatcher-secured.yaml"):
        text = (CONFIG / name).read_text()
        shown |= _keys(yaml.safe_load(re.sub(r"^( +)# ( *[a-z_]+:(?= |$))", r"\1\2", text, flags=re.MULTILINE)))
    assert _keys_of_schema(schema_of(SchemaKind.SETTINGS)) - shown == set()


def _keys(value: object, before: str = "") -> set[str]:
    """Returns the dotted keys of a document."""
    if not isinstance(value, dict):
        return set()
    return {before + key for key in value} | {found for key in value for found in _keys(value[key], f"{before}{key}.")}


def _keys_of_schema(schema: dict[str, Any]) -> set[str]:
    """Returns the dotted keys that a schema knows, except those of secret references."""

    def keys(node: dict[str, Any], before: str) -> Iterator[str]:
        if "$ref" in node:
            node = schema["$defs"][node["$ref"].rpartition("/")[2]]
        for inner in node.get("anyOf", ()):
            yield from keys(inner, before)
        for key, inner in node.get("properties", {}).items():
            yield before + key
            yield from keys(inner, f"{before}{key}.")

    return set(keys(schema, ""))


async def test_the_example_webhooks_load_without_a_problem(config: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("WEBHOOK_CONTOSO_CLIENT_SECRET", "made by the test")
    settings = load_settings(config / "dispatcher.yaml", {})
    async with open_source(settings.webhooks, Rules(lambda config: [], webhook_secret_scope(settings))) as source:
        assert list(source.problems) == []
        assert {webhook.config.name for webhook in source.all()} == {
            "Luma order status",
            "Northwind",
            "Northwind, development",
            "Contoso, client credentials",
            "Contoso, JWT bearer grant",
            "Fabrikam texts",
        }


@pytest.mark.parametrize("kind", list(SchemaKind))
def test_the_committed_schemas_are_current(kind: SchemaKind) -> None:
    committed = (CONFIG / "schema" / f"{kind}.json").read_text()
    made = json.dumps(schema_of(kind), indent=2, ensure_ascii=False) + "\n"
    assert committed == made, f"run: dispatcher schema {kind} > config/schema/{kind}.json"


@pytest.mark.parametrize("example", EXAMPLES, ids=lambda path: path.name)
def test_each_example_names_its_schema_and_matches_it(example: Path) -> None:
    first = example.read_text().split("\n", 1)[0]
    named = re.fullmatch(r"# yaml-language-server: \$schema=(\S+)", first)
    assert named is not None
    schema = json.loads((example.parent / named[1]).read_text())
    jsonschema.Draft202012Validator.check_schema(schema)
    jsonschema.validate(read_document(example).data, schema, jsonschema.Draft202012Validator)


def test_nothing_in_the_examples_is_a_secret() -> None:
    committed = subprocess.run(
        ["git", "ls-files", "--cached", "--others", "--exclude-standard", "config"],
        cwd=CONFIG.parent, capture_output=True, text=True, check=True,
    ).stdout.split()  # fmt: skip
    assert "config/dispatcher.yaml" in committed
    assert not [name for name in committed if name.endswith((".pem", ".whsec", ".key"))]
    for example in EXAMPLES:
        assert not re.search(r"BEGIN|whsec_|whsk_", example.read_text())


def test_the_guide_for_receivers_shows_a_request_that_the_dispatcher_sends() -> None:
    """The payload is the reference of tests/data, for another organisation."""
    text = (CONFIG.parent / "docs" / "receiving.md").read_text()
    payload = re.search(r"^    \{\n(?:    .*\n)+", text, re.MULTILINE)
    assert payload
    shown = json.loads(payload[0])
    reference = json.loads((CONFIG.parent / "tests" / "data" / "feedback-v1.json").read_text())
    assert shown == reference | {"imsOrg": shown["imsOrg"]}
    body = json.dumps(shown, separators=(",", ":"))
    assert f"    content-length: {len(body)}\n" in text
    assert re.search(r"^    webhook-id: msg_[0-9a-f]{32}$", text, re.MULTILINE)
