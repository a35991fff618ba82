"""Checks that each refusal that a tenant can meet names the place and the cure, and quotes no value."""

import base64
import json
import re
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import trustme
from cryptography.hazmat.primitives.serialization import (
    BestAvailableEncryption,
    Encoding,
    PrivateFormat,
    load_pem_private_key,
)

from dispatcher.checks import webhook_rules
from dispatcher.config.settings import EgressSettings, Settings
from dispatcher.errors import Problem
from dispatcher.stores.webhook_files import read_directory
from dispatcher.transport.egress import EgressGuard
from tests.auth.keys import WHSEC, pem, public_pem

CURES = re.compile(
    r"\b(use|write|give|make|leave|choose|must|check|put|keep|shorten|set|create|copy|export|decrypt|convert|did you mean"
    r"|known here|missing;|drop|rename|percent-encode|split)\b"
)
"""Words that say what to do."""

Json = dict[str, Any]
CANARY = "cnry-never-quoted"


def whsk(size: int) -> str:
    return "whsk_" + base64.b64encode(b"x" * size).decode()


def secret(directory: Path, content: str | bytes) -> Json:
    path = directory / f"secret{len(list(directory.iterdir()))}"
    path.write_bytes(content.encode() if isinstance(content, str) else content)
    return {"file": str(path)}


def signing(*contents: str | bytes) -> Callable[[Path], Json]:
    return lambda to: {"signing": {"secrets": [secret(to, content) for content in contents]}}


def sign(content: str | bytes, algorithm: str = "HS256", **more: Any) -> Callable[[Path], Json]:
    return lambda to: {"auth": {"type": "jwt", "sign": {"algorithm": algorithm, "key": secret(to, content), **more}}}


def fetch(**changes: Any) -> Callable[[Path], Json]:
    def made(to: Path) -> Json:
        base = {"grant": "client-credentials", "token_url": "https://login.luma.example/", "client_id": "luma"}
        base |= {"client_secret": secret(to, "s")}
        given = {name: value(to) if callable(value) else value for name, value in {**base, **changes}.items()}
        return {"auth": {"type": "jwt", "fetch": {name: value for name, value in given.items() if value is not None}}}

    return made


def an_assertion(content: str | bytes = "k" * 40, **more: Any) -> Callable[[Path], Json]:
    return lambda to: {"algorithm": "HS256", "key": secret(to, content), **more}


GOOD_KEY = "k" * 40
_LEAF = trustme.CA().issue_cert("a.example")
LEAF, LEAF_KEY = _LEAF.cert_chain_pems[0].bytes(), _LEAF.private_key_pem.bytes()
LOCKED = load_pem_private_key(LEAF_KEY, None).private_bytes(
    Encoding.PEM, PrivateFormat.PKCS8, BestAvailableEncryption(CANARY.encode())
)
ROWS: list[tuple[Json | Callable[[Path], Json], str, str]] = [
    # the URL, as text
    ({"url": ""}, "url", "visible ASCII"),
    ({"url": f"ftp://hooks.example/{CANARY}"}, "url", "must begin with https://"),
    ({"url": f"https://u:{CANARY}@hooks.example/"}, "url", "use authentication or a header parameter"),
    ({"url": f"https://hooks.example/#{CANARY}"}, "url", "must not carry a fragment"),
    ({"url": f"https://hooks.example:{CANARY}/"}, "url", "a port as a number"),
    ({"url": "https://hooks.example:99999/"}, "url", "a port as a number"),
    ({"url": "https://[::1/"}, "url", "in brackets"),
    ({"url": f"https:///{CANARY}"}, "url", "write https://host/path"),
    ({"url": f"https://hooks.example/{CANARY} b"}, "url", "percent-encode"),
    ({"url": f"https://hooks.example/{CANARY}".ljust(2049, "a")}, "url", "shorten"),
    # the URL, to the egress guard
    ({"url": f"http://hooks.example/{CANARY}"}, "url", "must begin with https://"),
    ({"url": f"https://127.0.0.1/{CANARY}"}, "url", "use a host with public addresses only"),
    ({"url": "https://[fd00::1]/"}, "url", "use a host with public addresses only"),
    ({"url": "https://169.254.169.254/"}, "url", "metadata service"),
    ({"url": "https://localhost/"}, "url", "use a host with public addresses only"),
    ({"url": "https://2130706433/"}, "url", "write four decimal numbers"),
    ({"url": "https://[fe80::1%25eth0]/"}, "url", "without a zone"),
    ({"url": "https://hooks.example./"}, "url", "leave the dot out"),
    ({"url": "https://-a.example/"}, "url", "use letters, digits"),
    ({"url": "https://kubernetes/"}, "url", "use a public host name"),
    ({"url": "https://hooks.example:22/"}, "url", "use 443, 8443"),
    ({"url": "https://a.denied.example/"}, "url", "use another host"),
    # headers
    ({"headers": {"Host": CANARY}}, "headers.Host", "choose another name"),
    ({"headers": {"Content-Type": CANARY}}, "headers.Content-Type", "choose another name"),
    ({"headers": {"webhook-id": CANARY}}, "headers.webhook-id", "choose another name"),
    ({"headers": {"a b": CANARY}}, "headers['a b']", "use up to 64 letters"),
    ({"headers": {"x" * 65: CANARY}}, f"headers.{'x' * 65}", "use up to 64 letters"),
    ({"headers": {"x": f"{CANARY}\r\ny: z"}}, "headers.x", "use visible ASCII"),
    ({"headers": {"x": f"{CANARY}\ny: z"}}, "headers.x", "use visible ASCII"),
    ({"headers": {"x": f"{CANARY} ☂"}}, "headers.x", "use visible ASCII"),
    ({"headers": {"x": CANARY * 300}}, "headers.x", "shorten"),
    ({"headers": {"x": CANARY, "X": CANARY}}, "headers.X", "keep one"),
    ({"headers": {f"x{n}": CANARY for n in range(21)}}, "headers", "must have at most 20"),
    ({"headers": {"x": [CANARY]}}, "headers.x", "must be text"),
    (lambda to: sign(GOOD_KEY)(to) | {"headers": {"Authorization": CANARY}}, "headers.Authorization", "choose another name"),
    # tokens that we sign
    (sign(CANARY), "auth.sign.key", "use 32 or more random bytes"),
    (sign(pem("P-256")), "auth.sign.key", "use 32 or more random bytes"),
    (sign(GOOD_KEY, "ES256"), "auth.sign.key", "give the private key"),
    (sign(public_pem("P-256"), "ES256"), "auth.sign.key", "give the private key"),
    (sign(pem("P-384"), "ES256"), "auth.sign.key", "choose ES384"),
    (sign(pem("rsa 1024"), "RS256"), "auth.sign.key", "make one with `openssl genpkey"),
    (sign(pem("Ed25519"), "Ed448"), "auth.sign.key", "choose EdDSA or Ed25519"),
    (sign(pem("P-256")[:90], "ES256"), "auth.sign.key", "copy the whole file"),
    (sign(GOOD_KEY, "none"), "auth.sign.algorithm", "must be one of HS256"),
    (sign(GOOD_KEY, "es256"), "auth.sign.algorithm", "did you mean 'ES256'"),
    (sign(GOOD_KEY, ttl="1h"), "auth.sign.ttl", "must be at most 5m"),
    (sign(GOOD_KEY, ttl="1s"), "auth.sign.ttl", "must be at least 10"),
    (sign(GOOD_KEY, claims={"exp": CANARY}), "auth.sign.claims", "use issuer"),
    (sign(GOOD_KEY, claims={"a": CANARY * 400}), "auth.sign.claims", "shorten"),
    ({"auth": {"type": "jwt", "sign": {"algorithm": "HS256", "key": CANARY}}}, "auth.sign.key", "write {file: PATH}"),
    ({"auth": {"type": "jwt", "sign": {"algorithm": "HS256", "key": {"vault": CANARY}}}}, "auth.sign.key", "write {file"),
    ({"auth": {"type": "jwt"}}, "auth", "give either sign"),
    ({"auth": {"type": "basic"}}, "auth.type", "must be one of none, jwt"),
    (lambda to: {"auth": sign(GOOD_KEY)(to)["auth"] | {"header": "Cookie"}}, "auth.header", "choose another name"),
    (lambda to: {"auth": sign(GOOD_KEY)(to)["auth"] | {"header": "a\r\nb"}}, "auth.header", "use up to 64 letters"),
    (lambda to: {"auth": sign(GOOD_KEY)(to)["auth"] | {"scheme": f"{CANARY}\r\n"}}, "auth.scheme", "must match"),
    # tokens that we fetch
    (fetch(token_url=f"https://10.0.0.1/{CANARY}"), "auth.fetch.token_url", "use a host with public addresses only"),
    (fetch(token_url=f"https://u:{CANARY}@login.example/"), "auth.fetch.token_url", "must not carry a user name"),
    (fetch(token_url=f"https://127.1/{CANARY}"), "auth.fetch.token_url", "write four decimal numbers"),
    (fetch(client_id=None), "auth.fetch", "give both"),
    (fetch(client_secret=None), "auth.fetch", "give both"),
    (fetch(grant="jwt-bearer"), "auth.fetch", "give its algorithm and key"),
    (fetch(grant="password"), "auth.fetch.grant", "must be one of client-credentials, jwt-bearer"),
    (fetch(client_secret=lambda to: secret(to, b"\xff\xfe")), "auth.fetch.client_secret", "check that it is the right"),
    (fetch(assertion=an_assertion()), "auth.fetch.assertion", "choose that grant"),
    (fetch(grant="jwt-bearer", assertion=an_assertion(CANARY)), "auth.fetch.assertion.key", "use 32 or more"),
    (fetch(grant="jwt-bearer", assertion=an_assertion(body_hash=True)), "auth.fetch.assertion.body_hash", "leave it out"),
    (fetch(grant="jwt-bearer", assertion=an_assertion(), client_id=None), "auth.fetch.client_id", "give both"),
    # signing secrets
    (signing(CANARY), "signing.secrets[0]", "write whsec_"),
    (signing("whsec_" + CANARY), "signing.secrets[0]", "use the standard alphabet"),
    (signing("whsec_" + base64.b64encode(b"x" * 10).decode()), "signing.secrets[0]", "make one with"),
    (signing("whpk_" + base64.b64encode(b"x" * 32).decode()), "signing.secrets[0]", "give the private key"),
    (signing(whsk(31)), "signing.secrets[0]", "must hold an Ed25519 key"),
    (signing(whsk(64)), "signing.secrets[0]", "copy the key once more"),
    (signing(WHSEC, WHSEC), "signing.secrets[1]", "leave it out"),
    (signing(*[WHSEC] * 5), "signing.secrets", "must have at most 4"),
    ({"signing": {"secrets": []}}, "signing.secrets", "must have at least 1"),
    ({"signing": {"secrets": [CANARY]}}, "signing.secrets[0]", "write {file: PATH}"),
    ({"signing": {"secrets": [{"file": "nowhere"}]}}, "signing.secrets[0]", "create it, or correct the path"),
    ({"signing": {"secrets": [{"env": "WEBHOOK_NOWHERE_SET"}]}}, "signing.secrets[0]", "set it"),
    (signing(""), "signing.secrets[0]", "write the secret in it"),
    (signing("x" * 70_000), "signing.secrets[0]", "check that it is the right file"),
    # the endpoint's TLS
    (lambda to: {"tls": {"certificate": secret(to, "x")}}, "tls", "give both"),
    (lambda to: {"tls": {"key": secret(to, "x")}}, "tls", "give both"),
    (lambda to: {"tls": {"ca": secret(to, CANARY)}}, "tls.ca", "give the issuer's certificate"),
    (lambda to: {"tls": {"ca": secret(to, b"\xff\xfe")}}, "tls.ca", "not a bundle"),
    (lambda to: {"tls": {"ca": secret(to, pem("P-256"))}}, "tls.ca", "give the issuer's certificate"),
    (lambda to: {"tls": {"certificate": secret(to, CANARY), "key": secret(to, CANARY)}}, "tls.certificate", "give both"),
    (lambda to: {"tls": {"certificate": secret(to, LEAF), "key": secret(to, pem("P-256"))}}, "tls.certificate",
     "of this very key"),
    (lambda to: {"tls": {"certificate": secret(to, LEAF), "key": secret(to, LOCKED)}}, "tls.certificate",
     "without a passphrase"),
    # the rest
    ({"name": None}, "name", "must be text"),
    ({"name": ""}, "name", "must have at least 1"),
    ({"org": 5}, "org", "put it in quotes"),
    ({"channels": [CANARY]}, "channels[0]", "must be one of email, sms"),
    ({"events": []}, "events", "must have at least 1"),
    ({"campaigns": [f"{CANARY}{n}" for n in range(1001)]}, "campaigns", "must have at most 1000"),
    ({"events": [f"{CANARY}{n}" for n in range(51)]}, "events", "must have at most 50"),
    ({"channels": ["email"] * 3}, "channels", "must have at most 2"),
    ({"campaigns": CANARY}, "campaigns", "must be all, or a list"),
    ({"payload": 3}, "payload", "must be one of 1, 2"),
    ({"timeout": "31s"}, "timeout", "must be at most 30s"),
    ({"timeout": CANARY}, "timeout", "write a duration"),
    ({"rate_limit": CANARY}, "rate_limit", "write a rate"),
    ({"enabled": CANARY}, "enabled", "must be true or false"),
    ({"ulr": CANARY}, "ulr", "did you mean 'url'"),
    ({"zzz": CANARY}, "zzz", "known here"),
]  # fmt: skip


def problems_of(directory: Path, changes: Json | Callable[[Path], Json]) -> tuple[Problem, ...]:
    """The problems that `dispatcher check` and the store report for a webhook with these changes."""
    (directory / "secrets").mkdir()
    (directory / "webhooks.d").mkdir()
    given = changes(directory / "secrets") if callable(changes) else changes
    base = {"name": "Luma", "org": "luma", "sandbox": "prod", "url": "https://hooks.luma.example/in"}
    document = {"apiVersion": "dispatcher/v1", "webhooks": [base | given]}
    (directory / "webhooks.d" / "luma.yaml").write_text(json.dumps(document, indent=1))
    settings = Settings.model_validate(
        {
            "apiVersion": "dispatcher/v1",
            "kafka": {"bootstrap_servers": "kafka:9092"},
            "webhooks": {"path": directory},
            "egress": {"deny": [".denied.example"]},
        }
    )
    (reading,) = read_directory(directory / "webhooks.d", {}, webhook_rules(settings)).values()
    return reading.problems


@pytest.mark.parametrize(("changes", "key", "says"), ROWS, ids=[f"{n}-{row[2]}" for n, row in enumerate(ROWS)])
def test_a_refusal_names_the_place_and_the_cure(
    tmp_path: Path, changes: Json | Callable[[Path], Json], key: str, says: str
) -> None:
    problems = problems_of(tmp_path, changes)
    assert problems, "was accepted"
    assert [problem.key for problem in problems] == [f"webhooks[0].{key}".rstrip(".")]
    (problem,) = problems
    assert says in problem.message
    assert CURES.search(problem.message), problem.message
    assert problem.line is not None
    assert problem.file.endswith("luma.yaml")
    assert CANARY not in str(problem)
    assert str(problem).isprintable()


def test_a_webhook_without_a_mistake_is_not_refused(tmp_path: Path) -> None:
    tls = {"ca": secret(tmp_path, LEAF), "certificate": secret(tmp_path, LEAF), "key": secret(tmp_path, LEAF_KEY)}
    assert problems_of(tmp_path, {"tls": tls}) == ()


@pytest.mark.parametrize(
    ("address", "egress"),
    [
        ("10.0.0.1", {}), ("::1", {}), ("169.254.169.254", {}), ("2002:7f00:1::", {}), ("fe80::1%eth0", {}),
        ("not an address", {}), ("8.8.8.8", {"deny": ["8.8.8.0/24"]}), ("8.8.8.8", {"ports": [8443]}),
    ],
)  # fmt: skip
def test_a_refusal_at_connect_names_the_host_and_the_cure(address: str, egress: Json) -> None:
    guard = EgressGuard(EgressSettings.model_validate(egress))
    problem = guard.problem_of_address("hooks.luma.example", address, 443)
    assert problem is not None
    assert "hooks.luma.example" in problem or "port 443" in problem
    assert CURES.search(problem), problem
