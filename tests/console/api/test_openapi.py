"""The OpenAPI document: public validators and client generators take it, and a generated client works."""

import re
import shutil
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import jsonschema
import pytest

from dispatcher.console.api import openapi_document
from dispatcher.console.api.openapi import TAGS
from dispatcher.stores.sql.records import Role
from tests.console.api.conftest import Console
from tests.console.api.fakes import LUMA
from tests.console.api.generators import CLIENTS, DOCUMENT, generate, npm_tool, python_tool, run
from tests.console.history_store import FilledHistory, entry_of

OPERATIONS: dict[str, dict[str, Any]] = {
    operation["operationId"]: operation
    for item in openapi_document()["paths"].values()  # type: ignore[union-attr]
    for operation in item.values()
}
REFERENCES = re.findall(r'"#/components/schemas/(\w+)"', DOCUMENT.read_text())


async def test_a_public_validator_accepts_the_document(tmp_path: Path) -> None:
    status, out = await run(python_tool("openapi-spec-validator"), DOCUMENT, cwd=tmp_path)
    assert status == 0, out


@pytest.mark.timeout(300)
async def test_a_public_ruleset_finds_nothing_in_the_document(tmp_path: Path) -> None:
    ruleset = ("--ruleset", CLIENTS / "ruleset.yaml", "--fail-severity", "hint")
    status, out = await run(await npm_tool("spectral"), "lint", DOCUMENT, *ruleset, cwd=tmp_path)
    assert status == 0, out


@pytest.mark.parametrize("name", OPERATIONS)
def test_every_operation_is_described_and_grouped(name: str) -> None:
    operation = OPERATIONS[name]
    assert len(operation["tags"]) == 1
    assert operation["tags"][0] in TAGS
    for text in (operation["summary"], operation["description"]):
        assert text.endswith(".")
        assert "None" not in text
    assert any(status.startswith("4") for status in operation["responses"])
    parameters = [(one["name"], one["in"]) for one in operation.get("parameters", [])]
    assert len(parameters) == len(set(parameters))


def test_every_schema_is_used_and_every_reference_leads_somewhere() -> None:
    schemas = openapi_document()["components"]["schemas"]  # type: ignore[index,call-overload]
    assert set(REFERENCES) == set(schemas)
    assert not [name for name, schema in schemas.items() if "title" in schema]


def test_choices_exclude_each_other() -> None:
    """So `oneOf` means what pydantic's `anyOf` does."""
    document = openapi_document()
    schemas: Any = document["components"]["schemas"]  # type: ignore[index,call-overload]

    def form(choice: dict[str, Any]) -> tuple[str, ...]:
        schema = schemas[choice["$ref"].rpartition("/")[2]] if "$ref" in choice else choice
        return (schema["type"].replace("integer", "number"), *schema.get("required", ()))

    def choices(schema: object) -> Iterator[list[dict[str, Any]]]:
        if isinstance(schema, dict):
            if "oneOf" in schema and "discriminator" not in schema:
                yield schema["oneOf"]
            yield from (found for value in schema.values() for found in choices(value))
        elif isinstance(schema, list):
            yield from (found for value in schema for found in choices(value))

    found = [[form(choice) for choice in group] for group in choices(document)]
    assert found
    assert not [forms for forms in found if len(forms) != len(set(forms))]


@pytest.mark.parametrize("name", [name for name, one in OPERATIONS.items() if "requestBody" in one])
def test_every_body_has_an_example_that_its_schema_accepts(name: str) -> None:
    content = OPERATIONS[name]["requestBody"]["content"]["application/json"]
    document = openapi_document()
    schema = {**content["schema"], "components": document["components"]}
    jsonschema.Draft202012Validator(schema).validate(content["example"])


@pytest.fixture(scope="session")
async def generated(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Clients by OpenAPI Generator, in `python` and `typescript-fetch`."""
    folder = tmp_path_factory.mktemp("generated")
    await generate("python", "typescript-fetch", out=folder)
    return folder


async def do_what_a_person_does(console: Console, history: FilledHistory, *program: str | Path, cwd: Path) -> None:
    """Runs a program that uses a generated client, against the console."""
    await history.add(entry_of(LUMA))
    token = await console.token(Role.ADMIN, frozenset({LUMA.org}))
    status, out = await run(*program, console.base, token, cwd=cwd)
    assert (status, out.strip()) == (0, "done"), out


@pytest.mark.parametrize("empty_url", ["sqlite"], indirect=True)
async def test_the_client_of_openapi_python_client_does_what_a_person_does(
    console: Console, history: FilledHistory, tmp_path: Path
) -> None:
    command = ("generate", "--path", DOCUMENT, "--meta", "none", "--output-path", tmp_path / "client")
    status, out = await run(python_tool("openapi-python-client"), *command, cwd=tmp_path)
    assert status == 0, out
    assert "arning" not in out, out
    shutil.copy(CLIENTS / "use_openapi_python_client.py", tmp_path)
    await do_what_a_person_does(console, history, python_tool("python"), "use_openapi_python_client.py", cwd=tmp_path)


@pytest.mark.slow
@pytest.mark.timeout(300)
@pytest.mark.parametrize("empty_url", ["sqlite"], indirect=True)
async def test_the_python_client_of_openapi_generator_does_what_a_person_does(
    console: Console, history: FilledHistory, generated: Path, tmp_path: Path
) -> None:
    python = python_tool("python")
    install = ("install", "-q", "--no-index", "--no-deps", "--no-build-isolation", "--target", tmp_path)
    status, out = await run(python, "-m", "pip", *install, generated / "python", cwd=tmp_path)
    assert status == 0, out
    status, out = await run(python, "-m", "pip", "check", cwd=tmp_path, PYTHONPATH=str(tmp_path))
    assert status == 0, out
    shutil.copy(CLIENTS / "use_openapi_generator.py", tmp_path)
    await do_what_a_person_does(console, history, python, "use_openapi_generator.py", cwd=tmp_path)


@pytest.mark.slow
@pytest.mark.timeout(300)
@pytest.mark.parametrize("empty_url", ["sqlite"], indirect=True)
async def test_the_typescript_client_of_openapi_generator_does_what_a_person_does(
    console: Console, history: FilledHistory, generated: Path, tmp_path: Path
) -> None:
    shutil.copytree(generated / "typescript-fetch", tmp_path / "client")
    shutil.copy(CLIENTS / "use_typescript_fetch.ts", tmp_path)
    options = ("--strict", "--target", "es2022", "--lib", "es2022,dom", "--module", "nodenext", "--outDir", "made")
    status, out = await run(await npm_tool("tsc"), *options, "use_typescript_fetch.ts", cwd=tmp_path)
    assert status == 0, out
    await do_what_a_person_does(console, history, "node", "made/use_typescript_fetch.js", cwd=tmp_path)
