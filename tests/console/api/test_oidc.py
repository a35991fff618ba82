"""OpenID Connect against an issuer that really signs: bearer tokens of the API, and signing in with a browser."""

import base64
import hmac
import json
from collections.abc import AsyncIterator
from pathlib import Path

import pytest
from structlog.testing import capture_logs

from dispatcher.console import issuer as issuer_module
from dispatcher.console import measures
from tests.console.api.conftest import Answered, Console, StartConsole
from tests.console.api.issuer import AUDIENCE, Key, SmallIssuer, query, settings_for

ME = "/api/v1/me"

pytestmark = pytest.mark.parametrize("empty_url", ["sqlite"], indirect=True)  # no database has a part in this


@pytest.fixture
async def issuer() -> AsyncIterator[SmallIssuer]:
    async with SmallIssuer() as started:
        yield started


@pytest.fixture
async def console(start: StartConsole, issuer: SmallIssuer) -> AsyncIterator[Console]:
    async with start(oidc=settings_for(issuer)) as started:
        yield started


async def me(console: Console, token: str) -> Answered:
    return await console.stranger().get(ME, headers={"Authorization": f"Bearer {token}"})


async def test_the_issuers_word_makes_role_and_organisations(console: Console, issuer: SmallIssuer) -> None:
    for claims, role, orgs in (
        ({}, "admin", ["luma@AdobeOrg"]),
        ({"roles": "openid admin"}, "admin", ["luma@AdobeOrg"]),
        ({"roles": ["administrator"]}, "viewer", ["luma@AdobeOrg"]),
        ({"roles": ["HR admin", "admin of nothing"]}, "viewer", ["luma@AdobeOrg"]),
        ({"roles": ["HR admin", "admin"]}, "admin", ["luma@AdobeOrg"]),
        ({"roles": None, "_claim_names": {"roles": "src1"}}, "viewer", ["luma@AdobeOrg"]),
        ({"roles": None, "orgs": ["*"]}, "viewer", None),
        ({"orgs": "b a"}, "admin", ["b a"]),
        ({"orgs": ["b a", "*x"]}, "admin", ["*x", "b a"]),
    ):
        answer = await me(console, issuer.token(**claims))
        assert (answer.json["role"], answer.json["orgs"]) == (role, orgs), claims
        assert (answer.json["id"], answer.json["name"]) == ("oidc:ada-1", "Ada Lovelace")
    assert (await me(console, issuer.token(orgs=[]))).status == 401
    assert (await me(console, issuer.token(orgs=None))).status == 401
    assert (await me(console, issuer.token(orgs={"*": True}))).status == 401


async def test_organisations_that_the_issuer_left_out_are_named_as_such(console: Console, issuer: SmallIssuer) -> None:
    """As Entra ID does with a person in more than 200 groups."""
    for names in ({"orgs": "src1"}, {"orgs": "src1", "roles": "src1"}):
        answer = await me(console, issuer.token(orgs=None, _claim_names=names, _claim_sources={"src1": {}}))
        assert (answer.status, "claim orgs is not in the token" in answer.text) == (401, True)
    for odd in ("orgs", ["orgs"], {"roles": "src1"}, None):
        answer = await me(console, issuer.token(orgs=None, _claim_names=odd))
        assert (answer.status, "names no organisation" in answer.text) == (401, True)


async def test_roles_that_the_issuer_left_out_are_logged(console: Console, issuer: SmallIssuer) -> None:
    issuer.claims |= {"roles": None, "_claim_names": {"roles": "src1"}}
    url, cookies = await begun(console)
    with capture_logs() as logs:
        assert (await came_back(console, issuer.authorize(url), cookies)).status == 303
    (entry,) = [one for one in logs if one["event"] == "signed in as a viewer"]
    assert entry["why"].startswith("claim roles is not in the token")


async def test_claims_can_be_nested_or_have_dots_in_their_names(start: StartConsole, issuer: SmallIssuer) -> None:
    names = {"role_claim": "realm.access.roles", "orgs_claim": "https://luma.example/orgs", "admin_values": ["boss"]}
    async with start(oidc=settings_for(issuer, **names)) as console:
        token = issuer.token(**{"realm": {"access": {"roles": ["boss"]}}, "https://luma.example/orgs": ["a"]})
        answer = await me(console, token)
        assert (answer.json["role"], answer.json["orgs"]) == ("admin", ["a"])


@pytest.mark.parametrize(
    "changes",
    [
        {"iss": "https://evil.example"},
        {"iss": None},
        {"aud": "another"},
        {"aud": None},
        {"aud": ["another", "two"]},
        {"exp": 1},
        {"exp": None},
        {"exp": "soon"},
        {"nbf": 4_000_000_000},
        {"iat": 4_000_000_000},
        {"sub": None},
        {"sub": 7},
        {"sub": ""},
    ],
    ids=str,
)
async def test_a_token_that_is_not_for_us_is_refused(
    console: Console, issuer: SmallIssuer, changes: dict[str, object]
) -> None:
    assert (await me(console, issuer.token())).status == 200
    answer = await me(console, issuer.token(**changes))
    assert (answer.status, answer.headers["WWW-Authenticate"]) == (401, 'Bearer error="invalid_token"')


async def test_a_signature_by_another_key_is_refused(console: Console, issuer: SmallIssuer) -> None:
    good = issuer.token()
    header, payload, signature = good.split(".")

    def encoded(value: object) -> str:
        return base64.urlsafe_b64encode(json.dumps(value).encode()).rstrip(b"=").decode()

    def confused(key: bytes) -> str:
        signed = f"{encoded({'alg': 'HS256', 'kid': 'first', 'typ': 'JWT'})}.{payload}"
        mac = base64.urlsafe_b64encode(hmac.digest(key, signed.encode(), "sha256")).rstrip(b"=").decode()
        return f"{signed}.{mac}"

    key = issuer.keys[0]
    for token in (
        f"{encoded({'alg': 'none', 'typ': 'JWT'})}.{payload}.",
        f"{encoded({'alg': 'None', 'kid': 'first'})}.{payload}.{signature}",
        confused(key.public_pem()),
        confused(json.dumps(key.jwk()).encode()),
        issuer.token(key=Key("first")),
        issuer.token(key=Key("first", "RS256")),
        issuer.token(headers={"kid": "unknown"}),
        issuer.token(headers={"typ": "logout+jwt"}),
        issuer.token(key=Key("third"), headers={"jku": "http://evil.example", "jwk": Key("third").jwk()}),
        f"{header}.{encoded({'iss': issuer.url, 'aud': AUDIENCE, 'sub': 'x', 'exp': 4_000_000_000, 'orgs': ['*']})}.{signature}",
        f"{header}.{payload}.",
        "e30.e30.e30",
        "..",
        "x" * 40_000,
    ):
        answer = await me(console, token)
        assert answer.status in (400, 401), token[:60]
    assert (await me(console, good)).status == 200


def _segment(text: str) -> str:
    return base64.urlsafe_b64encode(text.encode()).rstrip(b"=").decode()


async def test_a_strange_header_is_not_accepted_as_a_token(console: Console, issuer: SmallIssuer) -> None:
    _, payload, signature = issuer.token().split(".")
    for header in (
        '{"alg": ["ES256"], "kid": "first"}', '{"alg": {"ES256": 1}, "kid": "first"}', '{"alg": null}', '{"alg": 1}', "{}",
        '{"alg": "ES256", "kid": ["first"]}', '{"alg": "ES256", "kid": {"a": 1}}', '{"alg": "ES256", "kid": 7}',
        '{"alg": "ES256", "kid": "first", "typ": ["JWT"]}', '{"alg": "ES256", "kid": "first", "typ": {}}',
        '{"alg": "ES256", "kid": "first", "crit": ["x"]}', '{"alg": "ES256", "kid": "first", "b64": false}',
        '{"alg": "ES256", "kid": "first", "crit": 7}', '{"alg": 1e999, "kid": "first"}', '{"alg": NaN}',
        "[]", "7", "null", '"text"', "[" * 5000, '{"a":' * 1000, '{"alg": "ES256", "kid": "\\ud800"}', "\x00", "{",
    ):  # fmt: skip
        answer = await me(console, f"{_segment(header)}.{payload}.{signature}")
        assert (answer.status, answer.headers["WWW-Authenticate"]) == (401, 'Bearer error="invalid_token"'), header[:60]


async def test_a_strange_claim_of_the_issuer_causes_no_error(console: Console, issuer: SmallIssuer) -> None:
    for name in ("exp", "nbf", "iat", "aud", "sub", "orgs", "roles", "name", "jti"):
        for value in ("1e999", "-1e999", "NaN", "[[1]]", '{"a": [1]}', '"x"', "true", "1" + "0" * 400):
            token = issuer.token(**{name: json.loads(value)})
            assert (await me(console, token)).status in (200, 401), (name, value)


async def test_a_key_that_is_not_for_verifying_signatures_verifies_none(console: Console, issuer: SmallIssuer) -> None:
    clock = Clock(console)
    assert (await me(console, issuer.token())).status == 200
    strange: list[dict[str, object]] = [
        {"use": None, "key_ops": ["encrypt", "decrypt"]}, {"use": None, "key_ops": ["wrapKey"]},
        {"use": None, "key_ops": []}, {"use": None, "key_ops": "verify"}, {"use": None, "key_ops": ["sign"]},
        {"use": "enc"}, {"use": "enc", "key_ops": ["verify"]}, {"use": ["sig"]}, {"kid": ["first"]}, {"kid": {}},
        {"x": None}, {"x": 7}, {"crv": ["P-256"]}, {"alg": ["ES256"]}, {"alg": "ES384"}, {"kty": "oct", "k": "AAAA"},
    ]  # fmt: skip
    other = Key("second").jwk()
    for members in strange:
        jwk = {name: value for name, value in {**issuer.keys[0].jwk(), **members}.items() if value is not None}
        issuer.jwks_body = json.dumps({"keys": [jwk, 7, None, [], {}, other]}).encode()
        clock.pass_s(issuer_module.FRESH_S)
        assert (await me(console, issuer.token())).status == 401, members


@pytest.mark.parametrize("operations", [["verify"], ["sign", "verify"]])
async def test_a_key_for_verifying_needs_no_use(console: Console, issuer: SmallIssuer, operations: list[str]) -> None:
    jwk = {**issuer.keys[0].jwk(), "key_ops": operations}
    del jwk["use"]
    issuer.jwks_body = json.dumps({"keys": [jwk]}).encode()
    assert (await me(console, issuer.token())).status == 200


async def test_a_new_key_is_found_and_a_flood_of_unknown_ones_does_not_reach_the_issuer(
    console: Console, issuer: SmallIssuer
) -> None:
    clock = Clock(console)
    assert (await me(console, issuer.token())).status == 200
    issuer.keys.insert(0, Key("second", "RS256"))
    assert (await me(console, issuer.token())).status == 401
    clock.pass_s(issuer_module.FETCH_INTERVAL_S)
    assert (await me(console, issuer.token())).status == 200
    asked = issuer.asked.count("keys")
    for number in range(20):
        assert (await me(console, issuer.token(headers={"kid": f"unknown-{number}"}))).status == 401
    assert issuer.asked.count("keys") == asked
    issuer.keys.pop()
    clock.pass_s(issuer_module.FRESH_S)
    assert (await me(console, issuer.token())).status == 200
    assert (await me(console, issuer.token(key=Key("first")))).status == 401


async def test_while_the_issuer_is_away_known_keys_serve_for_a_day(console: Console, issuer: SmallIssuer) -> None:
    clock = Clock(console)
    assert (await me(console, issuer.token())).status == 200
    issuer.is_away = True
    failures = measures.KEY_FETCH_FAILURES.labels("discovery")._value.get()
    clock.pass_s(issuer_module.FRESH_S)
    assert (await me(console, issuer.token())).status == 200
    assert measures.KEY_FETCH_FAILURES.labels("discovery")._value.get() == failures + 1
    clock.pass_s(issuer_module.STALE_S)
    answer = await me(console, issuer.token())
    assert (answer.status, "Retry-After" in answer.headers) == (503, True)
    issuer.is_away = False
    clock.pass_s(issuer_module.FETCH_INTERVAL_S)
    assert (await me(console, issuer.token())).status == 200


async def test_an_issuer_that_answers_nonsense_is_away(console: Console, issuer: SmallIssuer) -> None:
    clock = Clock(console)
    for body in (b"[]", b"not json", b'{"keys": 7}', b'{"keys": "' + b"x" * 300_000 + b'"}'):
        issuer.jwks_body = body
        assert (await me(console, issuer.token())).status == 503, body[:20]
        clock.pass_s(issuer_module.FIRST_FETCH_INTERVAL_S)
    issuer.jwks_body = json.dumps(
        {
            "keys": [
                7,
                {"kty": ["x"]},
                {"kty": "oct", "k": "AAAA", "kid": "first"},
                {"kty": "EC", "crv": "P-256", "x": "!"},
                issuer.keys[0].jwk(),
            ]
        }
    ).encode()
    assert (await me(console, issuer.token())).status == 200


async def test_a_member_that_is_not_strict_json_does_not_hide_the_keys(console: Console, issuer: SmallIssuer) -> None:
    keys = json.dumps([issuer.keys[0].jwk()]).encode()
    issuer.jwks_body = b'\xef\xbb\xbf{"at":NaN,"n":' + b"9" * 400 + b',"name":"\xe9","keys":' + keys + b"}"
    assert (await me(console, issuer.token())).status == 200


@pytest.mark.parametrize(
    "discovery",
    [
        {"issuer": "https://evil.example"},
        {"jwks_uri": "http://evil.example/keys"},
        {"jwks_uri": 7},
        {"jwks_uri": "file:///etc/passwd"},
    ],
    ids=str,
)
async def test_a_discovery_document_that_leads_elsewhere_is_not_followed(
    console: Console, issuer: SmallIssuer, discovery: dict[str, object]
) -> None:
    issuer.discovery = discovery
    assert (await me(console, issuer.token())).status == 503
    assert "keys" not in issuer.asked


async def begun(console: Console, next_path: str = "/") -> tuple[str, dict[str, str]]:
    answer = await console.stranger().get(f"/sign-in/oidc?next={next_path}")
    assert answer.status == 303
    return answer.headers["Location"], dict(answer.cookies)


async def came_back(console: Console, parameters: dict[str, str], cookies: dict[str, str]) -> Answered:
    return await console.stranger().get(f"/sign-in/oidc/callback?{query(parameters)}", cookies=cookies)


async def test_a_sign_in_at_the_issuer_returns_to_the_requested_page(console: Console, issuer: SmallIssuer) -> None:
    url, cookies = await begun(console, "/webhooks/new?a=1")
    answer = await came_back(console, issuer.authorize(url), cookies)
    assert (answer.status, answer.headers["Location"]) == (303, "/webhooks/new?a=1"), answer.text
    session = {name: value for name, value in answer.cookies.items() if value}
    assert session.keys() == {"dispatcher-session"}
    read = await console.stranger().get(ME, cookies=session)
    assert (read.json["id"], read.json["name"], read.json["orgs"]) == ("oidc:ada-1", "Ada Lovelace", ["luma@AdobeOrg"])


async def test_a_sign_in_that_another_browser_began_is_refused(console: Console, issuer: SmallIssuer) -> None:
    url, cookies = await begun(console)
    _, others = await begun(console)
    for parameters, jar in (
        (issuer.authorize(url), {}),
        (issuer.authorize(url), others),
        (issuer.authorize(url) | {"state": "x"}, cookies),
        (issuer.authorize(url) | {"state": ""}, cookies),
        (issuer.authorize(url) | {"iss": "https://evil.example"}, cookies),
    ):
        answer = await came_back(console, parameters, jar)
        assert (answer.status, "dispatcher-session" in answer.cookies) == (401, False)
    assert "token" not in issuer.asked


async def test_a_code_is_good_once_and_with_our_verifier_only(console: Console, issuer: SmallIssuer) -> None:
    url, cookies = await begun(console)
    parameters = issuer.authorize(url)
    assert (await came_back(console, parameters, cookies)).status == 303
    assert (await came_back(console, parameters, cookies)).status == 401
    other_url, _ = await begun(console)
    stolen = issuer.authorize(other_url) | {"state": parameters["state"]}
    assert (await came_back(console, stolen, cookies)).status == 401


@pytest.mark.parametrize(
    "changes",
    [
        {"nonce": "x"},
        {"nonce": None},
        {"aud": AUDIENCE},
        {"azp": "another"},
        {"exp": 1},
        {"iss": "https://evil.example"},
        {"orgs": []},
    ],
    ids=str,
)
async def test_an_id_token_that_is_not_of_this_sign_in_is_refused(
    console: Console, issuer: SmallIssuer, changes: dict[str, object]
) -> None:
    issuer.changes = changes
    url, cookies = await begun(console)
    answer = await came_back(console, issuer.authorize(url), cookies)
    assert (answer.status, "dispatcher-session" in answer.cookies) == (401, False)


async def test_a_person_with_too_many_organisations_for_a_cookie_is_refused_with_the_reason(
    console: Console, issuer: SmallIssuer
) -> None:
    issuer.claims["orgs"] = [hmac.digest(b"k", str(n).encode(), "sha256").hex() for n in range(300)]
    url, cookies = await begun(console)
    answer = await came_back(console, issuer.authorize(url), cookies)
    assert (answer.status, "too many organisations" in answer.text) == (401, True)
    issuer.claims["orgs"] = issuer.claims["orgs"][:50]
    url, cookies = await begun(console)
    assert (await came_back(console, issuer.authorize(url), cookies)).status == 303


async def test_an_error_of_the_issuer_is_shown_in_our_words(console: Console, issuer: SmallIssuer) -> None:
    url, cookies = await begun(console)
    state = issuer.authorize(url)["state"]
    answer = await came_back(
        console, {"error": "access_denied", "error_description": "<script>", "state": state}, cookies
    )
    assert (answer.status, "<script>" in answer.text) == (401, False)
    issuer.is_away = True
    Clock(console).pass_s(issuer_module.FRESH_S * 200)
    assert (await console.stranger().get("/sign-in/oidc")).status in (303, 503)


class Clock:
    """The console's idea of the time since its start, as far as the issuer is concerned."""

    def __init__(self, console: Console) -> None:
        assert console.server._oidc is not None
        self._issuer = console.server._oidc._issuer
        self._real, self._passed_s = self._issuer._clock, 0.0
        self._issuer._clock = lambda: self._real() + self._passed_s

    def pass_s(self, seconds: float) -> None:
        self._passed_s += seconds + 1


async def test_a_rotated_client_secret_is_used_without_a_restart(
    start: StartConsole, issuer: SmallIssuer, tmp_path: Path
) -> None:
    """The issuer withdraws the old one. A file that is empty for a moment changes nothing."""
    file = tmp_path / "client-secret"
    file.write_text(issuer.client_secret)
    async with start(oidc=settings_for(issuer, client_secret={"file": str(file)})) as console:
        for rotated in ("rotated", ""):
            file.write_text(rotated)
            issuer.client_secret = rotated or issuer.client_secret
            url, cookies = await begun(console)
            answer = await came_back(console, issuer.authorize(url), cookies)
            assert answer.status == 303, answer.text
