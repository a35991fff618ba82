"""A small OpenID Connect issuer that really signs: discovery, keys, authorization, token endpoint."""

import base64
import hashlib
import json
import ssl
import time
from dataclasses import dataclass, field
from types import TracebackType
from typing import Any, Self
from urllib.parse import parse_qsl, urlencode

import jwt
import trustme
from aiohttp import web
from cryptography.hazmat.primitives import serialization
from cryptography.hazmat.primitives.asymmetric import ec, rsa

from dispatcher.demo.child_process import free_ports

CLIENT_ID, CLIENT_SECRET, AUDIENCE = "console", "canary-client-secret", "feedback-dispatcher"


@dataclass
class Key:
    """A signing key of the issuer."""

    kid: str
    algorithm: str = "ES256"
    private: Any = field(init=False)

    def __post_init__(self) -> None:
        made_for = {
            "ES256": lambda: ec.generate_private_key(ec.SECP256R1()),
            "RS256": lambda: rsa.generate_private_key(65537, 2048),
        }
        self.private = made_for[self.algorithm]()

    def jwk(self) -> dict[str, Any]:
        kind = jwt.algorithms.ECAlgorithm if self.algorithm == "ES256" else jwt.algorithms.RSAAlgorithm
        return {
            **json.loads(kind.to_jwk(self.private.public_key())),
            "kid": self.kid,
            "use": "sig",
            "alg": self.algorithm,
        }

    def public_pem(self) -> bytes:
        return self.private.public_key().public_bytes(
            serialization.Encoding.PEM, serialization.PublicFormat.SubjectPublicKeyInfo
        )


class SmallIssuer:
    """`async with SmallIssuer() as issuer`."""

    def __init__(self, authority: trustme.CA | None = None) -> None:
        """Prepares it. `authority`: issues its certificate; without one it speaks plain HTTP."""
        self.port = free_ports(1)[0]
        self.url = f"{'http' if authority is None else 'https'}://127.0.0.1:{self.port}/realm"
        self.client_secret = CLIENT_SECRET
        self._authority = authority
        self.keys = [Key("first")]
        self.claims: dict[str, Any] = {"roles": ["admin"], "orgs": ["luma@AdobeOrg"], "name": "Ada Lovelace"}
        self.changes: dict[str, Any] = {}
        """Claims of the next ID token that are other than they should be."""
        self.is_away = False
        self.jwks_body: bytes | None = None
        self.discovery: dict[str, Any] = {}
        self.asked: list[str] = []
        self.codes: dict[str, dict[str, str]] = {}
        self._runner: web.AppRunner | None = None

    async def __aenter__(self) -> Self:
        app = web.Application()
        app.router.add_get("/realm/.well-known/openid-configuration", self._discovery)
        app.router.add_get("/realm/keys", self._keys)
        app.router.add_post("/realm/token", self._token)
        self._runner = web.AppRunner(app)
        await self._runner.setup()
        context = None
        if self._authority is not None:
            context = ssl.SSLContext(ssl.PROTOCOL_TLS_SERVER)
            self._authority.issue_cert("127.0.0.1").configure_cert(context)
        await web.TCPSite(self._runner, "127.0.0.1", self.port, ssl_context=context).start()
        return self

    async def __aexit__(
        self, kind: type[BaseException] | None, error: BaseException | None, traceback: TracebackType | None
    ) -> None:
        assert self._runner is not None
        await self._runner.cleanup()

    def token(self, key: Key | None = None, headers: dict[str, Any] | None = None, **changes: Any) -> str:
        """An access token; a change to None leaves the claim out."""
        now = int(time.time())
        claims = {
            "iss": self.url,
            "aud": AUDIENCE,
            "sub": "ada-1",
            "iat": now,
            "exp": now + 300,
            **self.claims,
            **changes,
        }
        claims = {name: value for name, value in claims.items() if value is not None}
        key = key or self.keys[0]
        return jwt.encode(claims, key.private, key.algorithm, headers={"kid": key.kid, **(headers or {})})

    def authorize(self, url: str) -> dict[str, str]:
        """Returns the query of the redirect after a user has signed in at `url`."""
        address, _, query = url.partition("?")
        asked = dict(parse_qsl(query))
        assert address == f"{self.url}/authorize"
        assert asked["response_type"] == "code"
        assert asked["client_id"] == CLIENT_ID
        assert asked["code_challenge_method"] == "S256"
        assert "openid" in asked["scope"].split()
        code = f"code-{len(self.codes)}"
        self.codes[code] = asked
        return {"code": code, "state": asked["state"], "iss": self.url}

    async def _discovery(self, request: web.Request) -> web.Response:
        self.asked.append("discovery")
        document = {
            "issuer": self.url,
            "jwks_uri": f"{self.url}/keys",
            "authorization_endpoint": f"{self.url}/authorize",
            "token_endpoint": f"{self.url}/token",
            **self.discovery,
        }
        return web.json_response(document, status=503 if self.is_away else 200)

    async def _keys(self, request: web.Request) -> web.Response:
        self.asked.append("keys")
        body = self.jwks_body or json.dumps({"keys": [key.jwk() for key in self.keys]}).encode()
        return web.Response(body=body, content_type="application/json", status=503 if self.is_away else 200)

    async def _token(self, request: web.Request) -> web.Response:
        self.asked.append("token")
        form = await request.post()
        asked = self.codes.pop(str(form.get("code")), None)
        verifier = str(form.get("code_verifier", ""))
        challenge = base64.urlsafe_b64encode(hashlib.sha256(verifier.encode()).digest()).rstrip(b"=").decode()
        basic = "Basic " + base64.b64encode(f"{CLIENT_ID}:{self.client_secret}".encode()).decode()
        is_right = (
            asked is not None
            and challenge == asked["code_challenge"]
            and form.get("redirect_uri") == asked["redirect_uri"]
            and form.get("grant_type") == "authorization_code"
            and request.headers.get("Authorization") == basic
        )
        if asked is None or not is_right:
            return web.json_response({"error": "invalid_grant"}, status=400)
        token = self.token(**({"aud": CLIENT_ID, "nonce": asked["nonce"]} | self.changes))
        return web.json_response({"token_type": "Bearer", "access_token": "opaque", "id_token": token})


def settings_for(issuer: SmallIssuer, **others: Any) -> dict[str, Any]:
    """The console's group `oidc`."""
    return {"issuer": issuer.url, "audience": AUDIENCE, "client_id": CLIENT_ID, "client_secret": {"env": "S"}, **others}


def query(parameters: dict[str, str]) -> str:
    return urlencode(parameters)
