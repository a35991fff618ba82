"""The OpenAPI document: public validators and client generators take it, and a generated client works."""

import asyncio
import os
import re
import shutil
from pathlib import Path
from typing import Any

import jsonschema
import pytest

from dispatcher.console.api import openapi_document
from dispatcher.console.api.openapi import TAGS
from dispatcher.stores.sql.records import Role
from tests.console.api.conftest import Console
from tests.console.api.fakes import LUMA
from tests.console.history_store import FilledHistory, entry_of
from tests.deploy.tools import missing

ROOT = Path(__file__).parents[3]
TOOLS = ROOT / ".venv" / "openapi" / "bin"
DOCUMENT = ROOT / "config" / "schema" / "openapi.json"
OPERATIONS: dict[str, dict[str, Any]] = {
    operation["operationId"]: operation
    for item in openapi_document()["paths"].values()  # type: ignore[union-attr]
    for operation in item.values()
}
REFERENCES = re.findall(r'"#/components/schemas/(\w+)"', DOCUMENT.read_text())


async def run(*command: str | Path, cwd: Path) -> tuple[int, str]:
    """Runs a program with the tools in its path. Returns its status and what it printed."""
    path = f"{TOOLS}{os.pathsep}{os.environ.get('PATH', '')}"
    process = await asyncio.create_subprocess_exec(
        *command, cwd=cwd, env=os.environ | {"PATH": path},
        stdout=asyncio.subprocess.PIPE, stderr=asyncio.subprocess.STDOUT,
    )  # fmt: skip
    out, _ = await process.communicate()
    return process.returncode or 0, out.decode()


def tool(name: str) -> Path:
    path = TOOLS / name
    if not path.exists():
        missing(name, f"make {(TOOLS / 'openapi-python-client').relative_to(ROOT)}")
    return path


async def test_a_public_validator_accepts_the_document(tmp_path: Path) -> None:
    status, out = await run(tool("openapi-spec-validator"), DOCUMENT, cwd=tmp_path)
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


@pytest.mark.parametrize("name", [name for name, one in OPERATIONS.items() if "requestBody" in one])
def test_every_body_has_an_example_that_its_schema_accepts(name: str) -> None:
    content = OPERATIONS[name]["requestBody"]["content"]["application/json"]
    document = openapi_document()
    schema = {**content["schema"], "components": document["components"]}
    jsonschema.Draft202012Validator(schema).validate(content["example"])


CLIENT = """
import sys

from client import AuthenticatedClient
from client.api.dead_events import list_dead_events
from client.api.history import search_history
from client.api.sending_again import get_redrive, list_redrives, redrive, resend, stop_redrive
from client.api.webhooks import create_webhook, get_webhook, list_webhooks, pause_webhook, replace_webhook, test_webhook
from client.models import (
    ChosenEvents, HistorySearchOrder, RedriveOrder, ResendRequest, SampleEvent, WebhookDraft,
)

base, token = sys.argv[1:]
api = AuthenticatedClient(base, token, raise_on_unexpected_status=True)
draft = WebhookDraft.from_dict({
    "name": "Generated", "org": "luma@AdobeOrg", "sandbox": "prod", "url": "https://hooks.luma.example/f",
    "auth": {"type": "jwt", "sign": {"algorithm": "HS256", "key": {"value": "k" * 32}}},
    "signing": {"secrets": [{"value": "whsec_MfKQ9r8GKYqrTwjUPD8ILPZIo2LaLaSw"}]}, "headers": {"X-Environment": "prod"},
})
made = create_webhook.sync(client=api, body=draft)
assert made.version == 1, made
read = get_webhook.sync_detailed(made.id, client=api)
changed = WebhookDraft.from_dict(read.parsed.configuration.to_dict() | {"name": "Edited"})
edited = replace_webhook.sync(made.id, client=api, body=changed, if_match=read.headers["etag"])
assert (edited.name, edited.version) == ("Edited", 2), edited
assert test_webhook.sync(made.id, client=api, body=SampleEvent()).verdict == "delivered"
assert [one.name for one in list_webhooks.sync(client=api, text="edited").items] == ["Edited"]
found = search_history.sync(client=api, body=HistorySearchOrder(id="r-1"))
assert [one.request_id for one in found.items] == ["r-1"], found
dead = list_dead_events.sync(client=api, org="luma@AdobeOrg", sandbox="prod").items
order = RedriveOrder("luma@AdobeOrg", "prod", ChosenEvents("ids", [dead[0].id]))
job = redrive.sync(client=api, body=order)
assert get_redrive.sync(job.id, client=api).total == 1
again = resend.sync(made.id, client=api, body=ResendRequest(event_ids=["msg_1"])).items[0]
assert stop_redrive.sync(again.id, client=api).state == "stopped"
assert {one.id for one in list_redrives.sync(client=api).items} >= {job.id, again.id}
assert pause_webhook.sync(made.id, client=api).paused
problem = get_webhook.sync("00000000-0000-0000-0000-000000000000", client=api)
assert problem.status == 404, problem
print("done")
"""


@pytest.mark.parametrize("empty_url", ["sqlite"], indirect=True)
async def test_a_generated_python_client_does_what_a_person_does(
    console: Console, history: FilledHistory, tmp_path: Path
) -> None:
    generate = ("generate", "--path", DOCUMENT, "--meta", "none", "--output-path", tmp_path / "client")
    status, out = await run(tool("openapi-python-client"), *generate, cwd=tmp_path)
    assert status == 0, out
    assert "arning" not in out, out
    await history.add(entry_of(LUMA))
    (tmp_path / "use.py").write_text(CLIENT)
    token = await console.token(Role.ADMIN, frozenset({LUMA.org}))
    status, out = await run(TOOLS / "python", "use.py", console.base, token, cwd=tmp_path)
    assert (status, out.strip()) == (0, "done"), out


@pytest.mark.slow
@pytest.mark.parametrize("generator", ["python", "typescript-fetch"])
async def test_openapi_generator_accepts_the_document(generator: str, tmp_path: Path) -> None:
    """Needs Maven and its central repository; skipped without."""
    if shutil.which("mvn") is None or shutil.which("java") is None:
        pytest.skip("Maven is not installed")
    jar = ROOT / ".tools" / "openapi-generator" / "openapi-generator-cli-7.17.0.jar"
    if not jar.exists():
        artifact = "-Dartifact=org.openapitools:openapi-generator-cli:7.17.0"
        status, out = await run(
            "mvn", "-q", "dependency:copy", artifact, f"-DoutputDirectory={jar.parent}", cwd=tmp_path
        )
        if status or not jar.exists():
            pytest.skip(f"the generator can't be downloaded: {out[-300:]}")
    status, out = await run(
        "java", "-jar", jar, "generate", "-i", DOCUMENT, "-g", generator, "-o", tmp_path / "client", cwd=tmp_path
    )
    assert status == 0, out[-4000:]
    assert "invalid" not in out, out[-4000:]
    assert list((tmp_path / "client").rglob("*ebhook*raft*"))
