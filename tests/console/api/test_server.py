"""Properties of every response, the probes, and responses to errors."""

import asyncio
from pathlib import Path

import pytest
import structlog
from aiohttp import web
from structlog.testing import capture_logs

from dispatcher.console.api import openapi_document
from dispatcher.console.probes import keys_path
from dispatcher.console.server import ConsoleServer
from dispatcher.contract.tenant import TenantKey
from dispatcher.errors import DispatcherError, StoreUnavailable
from dispatcher.stores.sql.records import Role, StoredWebhook
from tests.console.api.conftest import Console, StartConsole
from tests.console.api.fakes import LUMA
from tests.stores_sql.examples import CANARY

pytestmark = pytest.mark.parametrize("empty_url", ["sqlite"], indirect=True)


async def test_every_answer_keeps_browsers_strict(console: Console) -> None:
    for path in ("/livez", "/sign-in", "/", "/no/such", "/api/v1/me", "/api/v1/openapi.json", "/.well-known/jwks.json"):
        answer = await console.stranger().get(path, headers={"X-Request-ID": "mine-1"})
        assert "default-src 'none'" in answer.headers["Content-Security-Policy"]
        assert "unsafe" not in answer.headers["Content-Security-Policy"]
        assert answer.headers["X-Content-Type-Options"] == "nosniff"
        assert answer.headers["X-Request-ID"] == "mine-1"
        assert "aiohttp" not in answer.headers["Server"]
    assert (await console.stranger().get("/livez", headers={"X-Request-ID": "a b\tc"})).headers[
        "X-Request-ID"
    ] != "a b\tc"


async def test_machines_ask_without_signing_in(console: Console, monkeypatch: pytest.MonkeyPatch) -> None:
    ask = console.stranger().get
    assert (await ask("/livez")).json == {"ok": True}
    assert (await ask("/readyz")).status == 200
    console.attempts.problem = "kafka at kafka.internal:9092 does not answer"
    ready = await ask("/readyz")
    assert (ready.status, ready.json["checks"]["attempts"]["ok"], "internal" in ready.text) == (200, False, False)
    assert (
        'dispatcher_console_requests_total{method="GET",route="/readyz",status="200"}' in (await ask("/metrics")).text
    )
    keys = await ask(keys_path(TenantKey("luma/æ@AdobeOrg", "prod.json")))
    assert keys.json == {"keys": [{"kid": "luma/æ@AdobeOrg/prod.json"}]}
    assert keys.headers["Cache-Control"] == "public, max-age=300"
    common = await ask("/.well-known/jwks.json")
    assert (common.status, "/.well-known/jwks/ORGANISATION/SANDBOX.json" in common.text) == (404, True)
    assert (await ask("/api/v1/openapi.json")).json == openapi_document()
    console.server.drain()
    assert (await ask("/readyz")).status == 503
    assert (await ask("/livez")).status == 200


async def test_without_the_database_the_answer_says_so_without_naming_it(
    console: Console, luma: StoredWebhook, monkeypatch: pytest.MonkeyPatch
) -> None:
    api = await console.client()

    async def away(*args: object, **options: object) -> None:
        raise StoreUnavailable("PostgreSQL at db.internal:5432/w: no answer within 3 s")

    for name in ("search", "get", "reactivate"):
        monkeypatch.setattr(type(console.services.webhooks), name, away)
    for method, path in (
        ("GET", "/webhooks"),
        ("GET", f"/webhooks/{luma.id}"),
        ("POST", f"/webhooks/{luma.id}/enable"),
    ):
        answer = await api(method, f"/api/v1{path}")
        assert (answer.status, answer.headers["Retry-After"], "internal" in answer.text) == (503, "2", False)
        assert ("Check whether the change was made" in answer.text) == (method == "POST")
    ready = await console.stranger().get("/readyz")
    assert (ready.status, "internal" in ready.text) == (503, False)


async def test_a_bug_is_a_500_without_details_and_a_log_line_with_them(
    console: Console, monkeypatch: pytest.MonkeyPatch
) -> None:
    async def broken(*args: object, **options: object) -> None:
        raise KeyError(CANARY)

    monkeypatch.setattr(type(console.services.webhooks), "search", broken)
    api = await console.client()
    with capture_logs(processors=[structlog.contextvars.merge_contextvars]) as logged:
        answer = await api.get("/api/v1/webhooks")
    assert (answer.status, answer.headers["Content-Type"]) == (500, "application/problem+json")
    assert CANARY not in answer.text
    (line,) = [line for line in logged if line["log_level"] == "error"]
    assert line["request_id"] == answer.json["request_id"]


async def test_the_log_contains_no_names_and_no_addresses(console: Console, luma: StoredWebhook) -> None:
    api = await console.client(Role.VIEWER, frozenset({LUMA.org}), name="ada.lovelace")
    link = console.server.new_sign_in_link().removeprefix(console.server.public_url)
    with capture_logs(processors=[structlog.contextvars.merge_contextvars]) as logged:
        await api.get(f"/api/v1/webhooks/{luma.id}?secret=x")
        await api.get("/api/v1/webhooks?text=jane@luma.example")
        await console.stranger().get(link)
        await console.stranger().post("/sign-in", data={"token": f"fdt_{CANARY}"})
        await console.stranger().get("/jane@luma.example")
    text = repr(logged)
    assert len(logged) >= 5
    assert not [
        word for word in ("jane", "lovelace", luma.id, CANARY, link[-20:], "secret=x", "127.0.0.1") if word in text
    ]
    assert {line["route"] for line in logged if "route" in line} >= {
        "/api/v1/webhooks/{id}",
        "/sign-in/link/{link}",
        "_unknown",
    }


async def test_unknown_paths_and_methods_are_answered_in_form(console: Console) -> None:
    api = await console.client()
    answer = await api.get("/api/v1/no/such")
    assert (answer.status, answer.json["type"]) == (404, "urn:dispatcher:problem:not_found")
    answer = await api("PATCH", "/api/v1/webhooks")
    assert (answer.status, answer.headers["Allow"]) == (405, "GET,POST")
    assert (await api.get("/api/v1/webhooks/not-an-id")).status == 404
    assert (await api("OPTIONS", "/api/v1/webhooks", headers={"Origin": "https://evil.example"})).status == 405


async def test_a_request_under_way_is_finished_when_it_stops(
    start: StartConsole, monkeypatch: pytest.MonkeyPatch
) -> None:
    begun, resume = asyncio.Event(), asyncio.Event()
    async with start() as console:
        api = await console.client()
        search = console.services.webhooks.search

        async def slow(*args: object, **options: object) -> object:
            begun.set()
            await resume.wait()
            return await search(*args, **options)  # type: ignore[arg-type]

        monkeypatch.setattr(type(console.services.webhooks), "search", staticmethod(slow))
        asking = asyncio.create_task(api.get("/api/v1/webhooks"))
        await begun.wait()
        stopping = asyncio.create_task(console.server.__aexit__(None, None, None))
        await asyncio.sleep(0)
        resume.set()
        assert (await asking).status == 200
        await stopping


async def test_a_port_in_use_is_reported_in_words(start: StartConsole, console: Console) -> None:
    with pytest.raises(DispatcherError, match=r"console.port \d+: another process has the port"):
        async with start(port=console.server.port):
            pass


async def test_no_page_is_open_by_accident(console: Console) -> None:
    """Only the public paths answer without authentication."""
    app: web.Application = ConsoleServer(console.services).build()
    public = {
        "/livez",
        "/readyz",
        "/metrics",
        "/favicon.ico",
        "/.well-known/jwks.json",
        "/api/v1/openapi.json",
        "/notifications/link",
    }
    resources = {route.resource.canonical for route in app.router.routes() if route.resource is not None}
    open_to_all = {
        one for one in resources if one in public or one.startswith(("/static", "/sign-in", "/.well-known/jwks/"))
    }
    runner = web.AppRunner(app, access_log=None)
    await runner.setup()
    await web.TCPSite(runner, "127.0.0.1", 0).start()
    port = runner.addresses[0][1]
    try:
        for resource in resources - open_to_all:
            path = resource.replace("{id}", "0-1").replace("{", "x").replace("}", "x")
            async with console.session.get(f"http://127.0.0.1:{port}{path}", allow_redirects=False) as answer:
                assert answer.status == (401 if path.startswith("/api") else 303), resource
    finally:
        await runner.cleanup()
    assert len(resources - open_to_all) > 20


def test_the_committed_openapi_document_is_current(empty_url: object) -> None:
    import json

    committed = (Path(__file__).parents[3] / "config" / "schema" / "openapi.json").read_text()
    made = json.dumps(openapi_document(), indent=2, ensure_ascii=False) + "\n"
    assert committed == made, "run: dispatcher schema openapi > config/schema/openapi.json"
