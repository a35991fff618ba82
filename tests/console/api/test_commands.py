"""`dispatcher console` and `dispatcher tokens`, as people run them: real processes, real database, no broker.

What only repeats a command that ran as a process runs in this one, which spares its start.
"""

import asyncio
import re
import signal
from pathlib import Path
from typing import Any

import aiohttp
import pytest

from dispatcher.config.secrets import Secret
from dispatcher.demo.child_process import free_ports
from dispatcher.stores.sql.encryption import new_key
from tests.commands.running import called, dispatcher, ended, start, write_settings


@pytest.fixture
def settings(tmp_path: Path, url: Secret) -> Path:
    return written(tmp_path, url)


def written(tmp_path: Path, url: Secret, **console: Any) -> Path:
    (tmp_path / "url").write_text(url.reveal_text())
    (tmp_path / "key").write_text(new_key())
    console = {"port": free_ports(1)[0]} | console
    webhooks = {"store": "sql", "url": {"file": "url"}, "encryption_keys": [{"file": "key"}]}
    return write_settings(tmp_path, webhooks=webhooks, console=console)


async def test_a_token_is_made_listed_and_revoked(settings: Path) -> None:
    made = await dispatcher("tokens", "create", "--name", "ada", "--role", "admin", "--org", "a@AdobeOrg", "--org", "b@AdobeOrg",
                            "--expires", "90d", "-c", settings)  # fmt: skip
    assert made.status == 0, made.err
    assert re.fullmatch(r"fdt_[0-9a-f]{16}_[\w-]{43}\n", made.out)
    assert "admin of a@AdobeOrg, b@AdobeOrg, good until" in made.err
    token_id = made.out[4:20]
    listed = await called("tokens", "list", "-c", settings)
    assert token_id in listed.out
    assert made.out.strip() not in listed.out
    revoked = await called("tokens", "revoke", token_id, "-c", settings)
    assert (revoked.status, revoked.out) == (0, f"token {token_id} is revoked\n")
    assert "revoked" in (await called("tokens", "list", "-c", settings)).out
    missing = await called("tokens", "revoke", "0123456789abcdef", "-c", settings)
    assert (missing.status, missing.err) == (1, "dispatcher: there is no such token\n")


@pytest.mark.parametrize("empty_url", ["sqlite"], indirect=True)
@pytest.mark.parametrize(
    "wrong",
    [[], ["--org", "a", "--all-orgs"], ["--all-orgs", "--expires", "soon"], ["--all-orgs", "--expires", "0s"], ["--all-orgs", "--role", "root"]],
    ids=" ".join,
)  # fmt: skip
async def test_creating_a_token_requires_its_role_and_scope(settings: Path, wrong: list[str]) -> None:
    assert (await called("tokens", "create", "--name", "ada", *wrong, "-c", settings)).status == 2


async def test_a_console_accepts_its_sign_in_link_and_drains(settings: Path) -> None:
    process = await start("console", "--sign-in-link", "-c", settings)
    try:
        assert process.stdout is not None
        link = (await process.stdout.readline()).decode().strip()
        assert re.fullmatch(r"http://127\.0\.0\.1:\d+/sign-in/link/[\w.-]+", link)
        base = link.partition("/sign-in")[0]
        jar = aiohttp.CookieJar(unsafe=True)
        async with aiohttp.ClientSession(base, cookie_jar=jar) as browser:
            async with browser.get(link) as page:
                assert (page.status, page.url.path) == (200, "/")
            async with browser.get("/api/v1/me") as answer:
                assert (await answer.json())["id"] == "link"
            async with browser.get("/readyz") as answer:
                assert answer.status == 200  # without a broker, too
            async with browser.get("/.well-known/jwks/luma@AdobeOrg/prod.json") as answer:
                assert await answer.json(content_type=None) == {"keys": []}
    finally:
        process.send_signal(signal.SIGTERM)
        ran = await ended(process)
    assert ran.status == 0, ran.err
    assert link.rpartition("/")[2] not in ran.err
    assert '"event":"stopped"' in ran.err


@pytest.mark.parametrize("empty_url", ["sqlite"], indirect=True)
async def test_a_second_signal_cuts_off(settings: Path) -> None:
    process = await start("console", "--sign-in-link", "-c", settings)
    assert process.stdout is not None
    link = (await process.stdout.readline()).decode().strip()
    port = int(link.split(":")[2].partition("/")[0])
    _, writer = await asyncio.open_connection("127.0.0.1", port)
    # A request whose body never ends: the drain waits for it until a second signal.
    writer.write(
        b"POST /sign-in HTTP/1.1\r\nHost: x\r\nContent-Type: application/x-www-form-urlencoded\r\nContent-Length: 9\r\n\r\na"
    )
    await writer.drain()
    async with aiohttp.ClientSession() as client, client.get(f"http://127.0.0.1:{port}/livez") as answer:
        assert answer.status == 200  # and with that the other request has begun, too
    process.send_signal(signal.SIGTERM)
    assert process.stderr is not None
    while "finishing what is under way" not in (await process.stderr.readline()).decode():
        pass
    process.send_signal(signal.SIGTERM)
    ran = await ended(process)
    writer.close()
    assert ran.status == 3, ran.err


@pytest.mark.parametrize("empty_url", ["sqlite"], indirect=True)
async def test_a_console_that_can_not_start_reports_why_in_one_line(
    tmp_path: Path, url: Secret, monkeypatch: pytest.MonkeyPatch
) -> None:
    for name in ("raise_limit", "prepare_interpreter"):  # of a process of its own
        monkeypatch.setattr(f"dispatcher.cli.console.{name}", lambda: None)
    files = tmp_path / "files"
    files.mkdir()
    refused = await dispatcher("console", "-c", write_settings(files))
    assert (refused.status, refused.err.count("\n")) == (78, 1)
    assert "webhooks.store: the console needs store sql" in refused.err

    open_door = await called("console", "-c", written(tmp_path, url, host="0.0.0.0", tokens=False))
    assert open_door.status == 78
    assert "console.host: 0.0.0.0 can be reached by others" in open_door.err

    (tmp_path / "short").write_text("too short")
    short = await called("console", "-c", written(tmp_path, url, session_key={"file": "short"}))
    assert short.status == 78
    assert "console.session_key: has fewer than 32 bytes" in short.err
    assert "too short" not in short.err

    for oidc, problem in (
        ({"issuer": "login.example", "audience": "a"}, "console.oidc.issuer"),
        ({"issuer": "https://login.example"}, "console.oidc.audience: missing"),
        ({"issuer": "http://login.example", "audience": "a"}, "console.oidc.issuer"),
        (
            {"issuer": "https://login.example", "audience": "a", "client_secret": {"file": "url"}},
            "client_secret belongs to client_id",
        ),
    ):
        wrong = await called("console", "-c", written(tmp_path, url, oidc=oidc))
        assert wrong.status == 78
        assert problem in wrong.err


@pytest.mark.parametrize("empty_url", ["sqlite"], indirect=True)
async def test_a_database_without_a_schema_is_reported_in_one_line(tmp_path: Path, empty_url: Secret) -> None:
    ran = await dispatcher("tokens", "list", "-c", written(tmp_path, empty_url))
    assert ran.status == 1
    assert ran.err.endswith("run `dispatcher webhooks migrate`\n")
    assert ran.err.count("\n") == 1
