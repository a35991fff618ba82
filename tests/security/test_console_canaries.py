"""Searches all answers of a real console, API and pages, to every kind of client, for secrets.

Canaries are planted in every place of a webhook that can hold a secret, and of the settings; the broker, whose address
is not for tenants, is away. Endpoints and token endpoints echo what they were sent, drafts have secrets in wrong places,
strangers try tokens. Then every answer and the log are searched.

Output by design: an admin sees what tenants wrote themselves unless the model calls it a secret: URL, header parameters,
claims. Viewers see the header parameters whose names don't suggest a secret; strangers and the log nothing.
"""

import base64
import re
import signal
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from dataclasses import dataclass, field
from datetime import UTC, datetime, timedelta
from pathlib import Path
from typing import Any

import aiohttp
import pytest
import trustme

from dispatcher.config.secrets import Secret
from dispatcher.console.api.routes import ROUTES
from dispatcher.demo.child_process import free_ports
from dispatcher.stores.sql.database import Database
from dispatcher.stores.sql.encryption import new_key
from dispatcher.stores.sql.migrate import upgrade
from dispatcher.stores.sql.records import Role
from dispatcher.stores.sql.tokens import ApiTokens
from tests.commands.running import ended, start, write_settings
from tests.security.canaries import Aviary, traces_in
from tests.security.test_canaries import WEBHOOK_PLACES
from tests.security.witness import Witness, echo_as_an_error, echo_everywhere, issuing

Json = dict[str, Any]
ORG = "luma@AdobeOrg"
OWN_WORDS = (
    "url",
    "headers",
    "auth.sign.claims",
    "auth.fetch.token_url",
    "auth.fetch.parameters",
    "auth.fetch.assertion.claims",
    "a plain header",
)
"""What an admin sees of it: no secrets of the model's."""
PAGES = ("", "/configuration", "/edit", "/test", "/deliveries", "/deliveries/msg_1", "/audit", "/delete")


@dataclass
class Scene:
    """A running console, and its answers so far, by client."""

    base: str
    aviary: Aviary
    witness: Witness
    answers: dict[str, dict[str, str]] = field(default_factory=lambda: {"admin": {}, "viewer": {}, "stranger": {}})
    tokens: dict[str, str] = field(default_factory=dict)
    session: aiohttp.ClientSession | None = None

    async def ask(self, who: str, method: str, path: str, **options: Any) -> tuple[int, str]:
        """Sends a request as a client and keeps the answer."""
        assert self.session is not None
        headers = {"Authorization": f"Bearer {self.tokens[who]}"} if who in self.tokens else {}
        headers |= options.pop("headers", {})
        async with self.session.request(
            method, self.base + path, headers=headers, allow_redirects=False, **options
        ) as answer:
            text = await answer.text()
            self.answers[who][f"{len(self.answers[who])} {method} {path}"] = f"{dict(answer.headers)}\n{text}"
            return answer.status, text

    def secret(self, place: str) -> Json:
        """A new secret, as a draft has it."""
        return {"value": self.aviary.secret(place) * 3}

    def pem(self, place: str, text: bytes) -> Json:
        self.aviary.secret(place, text.decode().splitlines()[3])
        return {"value": text.decode()}

    def draft(self, sandbox: str, auth: Json, end: str = "/ok") -> Json:
        """A webhook with a secret in every place."""
        secret, client = self.aviary.secret, self.witness.client
        raw = (secret("signing.secrets") + "0" * 32)[:32]
        return {
            "name": "Luma", "org": ORG, "sandbox": sandbox, "auth": auth, "timeout": "1s",
            "url": self.witness.url(f"/{secret('url')}{end}"),
            "headers": {"X-Api-Key": secret("headers"), "X-Plain": secret("a plain header")},
            "signing": {"secrets": [{"value": kind + base64.b64encode(raw.encode()).decode()} for kind in ("whsec_", "whsk_")]},
            "tls": {
                "ca": self.pem("tls.ca", self.witness.authority.cert_pem.bytes()),
                "certificate": self.pem("tls.certificate", client.cert_chain_pems[0].bytes()),
                "key": self.pem("tls.key", client.private_key_pem.bytes()),
            },
        }  # fmt: skip

    def signed(self) -> Json:
        claims = {"api_key": self.aviary.secret("auth.sign.claims")}
        return {"type": "jwt", "sign": {**self._keys("auth.sign"), "claims": claims}}

    def _keys(self, place: str) -> Json:
        """A key that signs, and the one that follows it in an hour."""
        now, later = ({"algorithm": "HS256", "key": self.secret(f"{place}{end}")} for end in (".key", ".next.key"))
        return {**now, "next": {**later, "starts": (datetime.now(UTC) + timedelta(hours=1)).isoformat()}}

    def fetched(self, end: str) -> Json:
        secret = self.aviary.secret
        claims = {"api_key": secret("auth.fetch.assertion.claims")}
        return {
            "type": "jwt",
            "fetch": {
                "grant": "jwt-bearer", "client_id": "luma", "client_secret": self.secret("auth.fetch.client_secret"),
                "token_url": self.witness.url(f"/{secret('auth.fetch.token_url')}{end}"),
                "parameters": {"api_key": secret("auth.fetch.parameters")},
                "assertion": {**self._keys("auth.fetch.assertion"), "claims": claims},
            },
        }  # fmt: skip


@asynccontextmanager
async def a_scene(directory: Path) -> AsyncIterator[tuple[Scene, Any]]:
    """The console as people start it, and its process; without a broker."""
    aviary, witness = Aviary(), Witness(trustme.CA())
    witness.authority.cert_pem.write_to_path(str(directory / "ca.pem"))

    def hidden(name: str, text: str) -> Json:
        (directory / name).write_text(text)
        return {"file": name}

    url, key = f"sqlite+aiosqlite:///{directory / aviary.secret('webhooks.url')}.db", new_key()
    aviary.secret("webhooks.encryption_keys", key)
    oidc = {
        "issuer": "https://127.0.0.1:1", "audience": "dispatcher", "client_id": "console",
        "client_secret": hidden("client", aviary.secret("console.oidc.client_secret")),
    }  # fmt: skip
    settings = write_settings(
        directory,
        aviary.secret("the broker's address", f"127.0.0.1:{free_ports(1)[0]}"),
        webhooks={"store": "sql", "url": hidden("url", url), "encryption_keys": [hidden("key", key)]},
        console={
            "port": free_ports(1)[0], "oidc": oidc,
            "session_key": hidden("session", aviary.secret("console.session_key") * 3),
        },
        egress={"allow": ["127.0.0.0/8"], "ca_bundle": str(directory / "ca.pem")},
        log={"level": "debug"},
    )  # fmt: skip
    await upgrade(Secret(url.encode()))
    database = Database(Secret(url.encode()))
    async with witness, aiohttp.ClientSession(cookie_jar=aiohttp.DummyCookieJar()) as session:
        process = await start("console", "--sign-in-link", "-c", settings)
        try:
            assert process.stdout is not None
            link = (await process.stdout.readline()).decode().strip()
            scene = Scene(link.partition("/sign-in")[0], aviary, witness, session=session)
            for role in Role:
                _, text = await ApiTokens(database).create(role.value, role, orgs=frozenset({ORG}), by="test")
                scene.tokens[role.value] = aviary.secret(f"the {role.value}'s token", text)
            aviary.secret("a sign-in link", link.rpartition("/")[2])
            await database.close()
            yield scene, process
        finally:
            if process.returncode is None:
                process.kill()
                await process.communicate()


async def administer(scene: Scene) -> list[str]:
    """By the API, as an admin: make, test, change, and everything that can be wrong. Gives the ids of the webhooks."""
    ok = scene.witness.behave
    url, token_url = (f"/{scene.aviary.secret(place)}" for place in ("url", "auth.fetch.token_url"))
    ok(f"{url}/echo", echo_everywhere)
    ok(f"{token_url}/token", issuing(scene.aviary.secret("an issued token")))
    ok(f"{token_url}/error", echo_as_an_error)
    drafts = {
        "sign": scene.draft("sign", scene.signed(), "/echo"),
        "fetch": scene.draft("fetch", scene.fetched("/token"), "/echo"),
        "refused": scene.draft("refused", scene.fetched("/error")),
    }
    ids = []
    for sandbox, draft in drafts.items():
        for path in ("/webhooks/preview", "/webhooks/test"):
            assert (await scene.ask("admin", "POST", f"/api/v1{path}", json={"webhook": draft}))[0] == 200
        status, text = await scene.ask("admin", "POST", "/api/v1/webhooks", json=draft)
        assert status == 201, text
        ids.append(re.findall(r'"id":"([0-9a-f-]{36})"', text)[0])
        assert (await scene.ask("admin", "POST", f"/api/v1/webhooks/{ids[-1]}/test", json={}))[0] == 200
        put = {"json": {**draft, "name": "Another"}, "headers": {"If-Match": '"1"'}}
        assert (await scene.ask("admin", "PUT", f"/api/v1/webhooks/{ids[-1]}", **put))[0] == 200, sandbox
    for wrong in spoilt(scene, drafts["sign"]):
        for method, path, body in (
            ("POST", "/api/v1/webhooks", wrong),
            ("POST", "/api/v1/webhooks/test", {"webhook": wrong}),
            ("PUT", f"/api/v1/webhooks/{ids[0]}", wrong),
        ):
            status, _ = await scene.ask("admin", method, path, json=body, headers={"If-Match": "*"})
            assert status == 422, wrong
    return ids


def spoilt(scene: Scene, good: Json) -> list[Json]:
    """Drafts with a secret in every wrong place."""
    inline = scene.aviary.secret("a secret in a wrong place")
    ec = {"algorithm": "ES256", "key": {"value": inline}}
    return [
        {**good, "auth": {"type": "jwt", "sign": {"algorithm": inline, "key": inline, "ttl": inline}}},
        {**good, "auth": {"type": "jwt", "sign": ec}},
        {**good, "auth": {"type": "jwt", "sign": {"algorithm": "HS256", "key": {"file": inline}}}},
        {**good, "url": f"https://user:{inline}@localhost/"},
        {**good, "url": f"https://10.0.0.1/{inline}"},
        {**good, "headers": {"X-Api-Key": f"{inline}\r\nx: y"}},
        {**good, "signing": {"secrets": [{"value": inline}, {"fingerprint": inline}, {"keep": inline}, inline]}},
        {**good, "tls": {"ca": {"value": inline}, "certificate": {"value": inline}, "key": {"value": inline}}},
        {**good, "tls": inline, "channels": [inline], "rate_limit": inline, "payload": inline},
    ]


async def look(scene: Scene, who: str, ids: list[str]) -> None:
    """Every GET of the API, and of the pages with a session."""
    ways = [route for route in ROUTES if route.method == "GET"]
    for route in ways:
        for webhook_id in ids if "webhooks/{id}" in route.full_path else ["0-1"]:
            await scene.ask(who, "GET", route.full_path.replace("{id}", webhook_id))
    for path in ("/api/v1/openapi.json", "/metrics", "/readyz", "/livez", f"/.well-known/jwks/{ORG}/sign.json"):
        await scene.ask(who, "GET", path)
    if who not in scene.tokens:
        return
    cookie = await signed_in(scene, who)
    for path in ("/", "/deliveries", "/dead-events", "/audit", "/webhooks/new", "/nowhere"):
        await scene.ask(who, "GET", path, headers=cookie)
    for webhook_id in ids:
        for end in PAGES:
            status, _ = await scene.ask(who, "GET", f"/webhooks/{webhook_id}{end}", headers=cookie)
            assert status in ((200, 404, 503) if who == "admin" else (200, 403, 404, 503)), end


async def signed_in(scene: Scene, who: str) -> dict[str, str]:
    """The header of a browser that signed in with the token."""
    assert scene.session is not None
    form = {"token": scene.tokens[who], "next": "/"}
    async with scene.session.post(f"{scene.base}/sign-in", data=form, allow_redirects=False) as answer:
        assert answer.status == 303
        (cookie,) = answer.cookies.values()
    scene.aviary.secret(f"the {who}'s session", cookie.value.partition(".")[2])
    return {"Cookie": f"{cookie.key}={cookie.value}"}


async def edit_by_page(scene: Scene, webhook_id: str) -> None:
    """Secrets are typed into the form while something else is wrong, and a test is sent."""
    cookie = await signed_in(scene, "admin")
    _, page = await scene.ask("admin", "GET", f"/webhooks/{webhook_id}/edit", headers=cookie)
    (csrf,) = set(re.findall(r'name="csrf_token" value="([^"]+)"', page))
    typed = {
        place: scene.aviary.secret(f"typed: {place}") * 3
        for place in ("auth.sign.key", "auth.fetch.client_secret", "auth.fetch.assertion.key", "signing.new", "tls.ca",
                      "tls.certificate", "tls.key")
    }  # fmt: skip
    form = {"csrf_token": csrf, "version": "2", "name": "n", "auth": "sign", "auth.sign.algorithm": "HS256", **typed}
    for action in ("save", "test", "add-header"):
        body = {**form, "url": "https://10.0.0.1/", "action": action}
        status, text = await scene.ask("admin", "POST", f"/webhooks/{webhook_id}/edit", headers=cookie, data=body)
        assert (status, ".sealed" in text) == (200 if action == "add-header" else 422, True)
    await scene.ask("admin", "POST", "/webhooks/preview", headers=cookie, data={**form, "webhook_id": webhook_id})
    body = {"csrf_token": csrf, "test_channel": "email"}
    assert (await scene.ask("admin", "POST", f"/webhooks/{webhook_id}/test", headers=cookie, data=body))[0] == 200


async def intrude(scene: Scene) -> None:
    """A stranger tries what might be a token, a link, a code or a session."""
    guess = scene.aviary.secret("what a stranger tried")
    for token in (guess, f"fdt_{'0' * 16}_{(guess * 3)[:43]}", f"eyJ.{guess}.x"):
        await scene.ask("stranger", "GET", "/api/v1/me", headers={"Authorization": f"Bearer {token}"})
        await scene.ask("stranger", "POST", "/sign-in", data={"token": token, "next": "/"})
        await scene.ask("stranger", "GET", "/", headers={"Cookie": f"dispatcher-session={token}"})
    for path in (f"/sign-in/link/{guess}", f"/sign-in/oidc/callback?code={guess}&state={guess}", "/sign-in/oidc"):
        await scene.ask("stranger", "GET", path)


@pytest.mark.slow
@pytest.mark.timeout(300)
async def test_no_output_of_the_console_contains_a_secret(tmp_path: Path) -> None:
    async with a_scene(tmp_path) as (scene, process):
        ids = await administer(scene)
        await edit_by_page(scene, ids[0])
        for who in ("admin", "viewer", "stranger"):
            await look(scene, who, ids)
        await intrude(scene)
        process.send_signal(signal.SIGTERM)
        ran = await ended(process)
    assert ran.status == 0, ran.err
    aviary, sent = (
        scene.aviary,
        "\n".join(f"{one.path} {dict(one.headers)} {one.body!r}" for one in scene.witness.requests),
    )
    # That the canaries were in use: else their absence says nothing.
    assert aviary.secrets.keys() >= WEBHOOK_PLACES
    for place in ("url", "headers", "an issued token", "auth.fetch.token_url", "auth.fetch.client_secret"):
        assert [form for form in aviary.secrets[place].forms if form in sent], place
    assert scene.witness.shown.total() > 3, "client certificates"
    assert min(len(answers) for answers in scene.answers.values()) > 20
    assert "sign-in refused" in ran.err
    assert ran.err.count('"level":"debug"') > 3, "without lines at debug level nothing is proven of them"
    own = [aviary.secrets[place] for place in OWN_WORDS]
    leaks = aviary.found_in(scene.answers["admin"], but=own)
    leaks += aviary.found_in(scene.answers["viewer"], but=[aviary.secrets["a plain header"]])
    leaks += aviary.found_in(scene.answers["stranger"])
    broker = aviary.secrets["the broker's address"]
    assert broker.text in ran.err, "the operator sees it"
    leaks += aviary.found_in({"log": ran.err, "standard output": ran.out}, but=[broker]) + traces_in({"log": ran.err})
    api = {name: text for name, text in scene.answers["admin"].items() if "/api/v1/webhooks" in name}
    leaks += traces_in(api)
    assert leaks == [], "\n".join(leaks[:40])
