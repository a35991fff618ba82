"""A small HTTPS receiver for trials: verifies signature and JWT, and prints what arrives.

It keeps only the ids it has seen, and is not meant for production. A CA of its own issues its certificate at start; a
dispatcher trusts that CA if `tls.ca` of the webhook or `egress.ca_bundle` contains it.
"""

import asyncio
import base64
import binascii
import ipaddress
import json
import ssl
import tempfile
import time
from collections import OrderedDict
from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from datetime import UTC, datetime, timedelta
from pathlib import Path
from typing import Final

import jwt
from aiohttp import web
from cryptography import x509
from cryptography.exceptions import InvalidSignature
from cryptography.hazmat.primitives import hashes, serialization
from cryptography.hazmat.primitives.asymmetric import ec
from cryptography.hazmat.primitives.asymmetric.ed25519 import Ed25519PublicKey
from cryptography.x509.oid import NameOID

from dispatcher.auth.signatures import Signer
from dispatcher.config.secrets import Secret
from dispatcher.config.webhooks import Signing

MAX_BODY: Final = 1024 * 1024
MAX_SEEN: Final = 10_000
TOLERANCE_S: Final = 300
"""How far `webhook-timestamp` may be off, in either direction: five minutes, as Standard Webhooks recommends."""
LIFE: Final = timedelta(days=30)


@dataclass(frozen=True, slots=True)
class Expectations:
    """Expected signature and token of a request. A field that is None is not checked."""

    secret: str | None = None
    """`whsec_…` (HMAC-SHA256) or `whpk_…` (Ed25519)."""
    keys: jwt.PyJWKSet | None = None
    """Public keys for the bearer token."""
    audience: str | None = None

    def problem_of(self, headers: Mapping[str, str], body: bytes, now: float) -> str | None:
        """Returns why the request can't be trusted, or None. `now`: Unix seconds."""
        if self.secret is not None and (problem := _signature_problem(self.secret, headers, body, now)):
            return f"signature: {problem}"
        if self.keys is not None and (problem := _token_problem(self.keys, self.audience, headers)):
            return f"token: {problem}"
        return None


def _signature_problem(secret: str, headers: Mapping[str, str], body: bytes, now: float) -> str | None:
    event_id, timestamp = headers.get("webhook-id", ""), headers.get("webhook-timestamp", "")
    if not event_id or not timestamp.isdigit() or len(timestamp) > 12:
        return "webhook-id or webhook-timestamp is missing"
    if abs(now - int(timestamp)) > TOLERANCE_S:
        return "webhook-timestamp is more than five minutes off: compare the clocks"
    given = headers.get("webhook-signature", "").split()
    if not given:
        return "webhook-signature is missing: set signing.secrets of the webhook"
    if secret.startswith("whpk_"):
        key = Ed25519PublicKey.from_public_bytes(base64.b64decode(secret[5:]))
        message = f"{event_id}.{timestamp}.".encode() + body
        fits = any(_is_by(key, one, message) for one in given)
    else:
        signer = Signer.of(Signing(secrets=(Secret(secret.encode()),)))
        fits = signer is not None and signer.sign(event_id, int(timestamp), body) in given
    return None if fits else "none fits this secret"


def _is_by(key: Ed25519PublicKey, signature: str, message: bytes) -> bool:
    version, _, value = signature.partition(",")
    try:
        key.verify(base64.b64decode(value), message)
    except (InvalidSignature, binascii.Error):
        return False
    return version == "v1a"


def _token_problem(keys: jwt.PyJWKSet, audience: str | None, headers: Mapping[str, str]) -> str | None:
    token = headers.get("authorization", "").partition(" ")[2]
    try:
        key = keys[str(jwt.get_unverified_header(token).get("kid", ""))]
        jwt.decode(token, key, audience=audience, leeway=10, options={"verify_aud": audience is not None})
    except KeyError:
        return "its kid is none of the given keys'"
    except jwt.InvalidTokenError as error:
        return str(error)
    return None


@dataclass(slots=True)
class TrialReceiver:
    """Answers requests and reports each to `show`: one line and the payload."""

    expectations: Expectations
    show: Callable[[str], None]
    status: int = 204
    """Answers a request that proved everything with this status."""
    count: int | None = None
    """`finished` is set after this number of different events; None: never."""
    finished: asyncio.Event = field(default_factory=asyncio.Event)
    events: int = 0
    """Different events that were accepted."""
    _seen: OrderedDict[str, None] = field(default_factory=OrderedDict)

    async def handle(self, request: web.BaseRequest) -> web.Response:
        """Verifies and reports one request."""
        body = await request.content.read(MAX_BODY + 1)
        while not request.content.at_eof() and len(body) <= MAX_BODY:
            body += await request.content.read(MAX_BODY + 1 - len(body))
        if request.method != "POST" or len(body) > MAX_BODY:
            return web.Response(status=405 if request.method != "POST" else 413)
        event_id, attempt = request.headers.get("webhook-id", "-"), request.headers.get("webhook-attempt", "-")
        name = f"{datetime.now(UTC):%H:%M:%S} {event_id[:80]} attempt {attempt[:8]}"
        problem = self.expectations.problem_of(request.headers, body, time.time())
        if problem is not None:
            self.show(f"{name} REFUSED {problem}")
            return web.Response(status=401)
        if event_id in self._seen:
            self.show(f"{name} repeat, answered {self.status}")
            return web.Response(status=self.status)
        if self.status < 300:
            self._seen[event_id] = None
            self.events += 1
            if len(self._seen) > MAX_SEEN:
                self._seen.popitem(last=False)
            if self.events == self.count:
                self.finished.set()
        self.show(f"{name} {self._verified()}, answered {self.status}\n{_indented(body)}")
        return web.Response(status=self.status)

    def _verified(self) -> str:
        checked = [("signature", self.expectations.secret), ("token", self.expectations.keys)]
        return ", ".join(f"{name} {'not checked' if given is None else 'verified'}" for name, given in checked)


def _indented(body: bytes) -> str:
    try:
        return json.dumps(json.loads(body), indent=2, ensure_ascii=False)
    except ValueError:
        return body.decode(errors="replace")


def server_tls(host: str, ca_file: Path) -> ssl.SSLContext:
    """Makes a CA and a certificate for `host`, localhost and 127.0.0.1, and writes the CA to `ca_file` as PEM.

    The private keys stay in memory, except briefly in a private temporary file from which OpenSSL reads.
    """
    ca_key, key = ec.generate_private_key(ec.SECP256R1()), ec.generate_private_key(ec.SECP256R1())
    ca_name = x509.Name([x509.NameAttribute(NameOID.COMMON_NAME, "dispatcher receive: trial CA")])
    ca = _certificate(ca_name, ca_name, ca_key.public_key(), ca_key, x509.BasicConstraints(True, 0), None)
    names = x509.SubjectAlternativeName([_general_name(one) for one in dict.fromkeys([host, "localhost", "127.0.0.1"])])
    subject = x509.Name([x509.NameAttribute(NameOID.COMMON_NAME, "dispatcher receive")])
    leaf = _certificate(subject, ca_name, key.public_key(), ca_key, x509.BasicConstraints(False, None), names)
    pem = serialization.Encoding.PEM
    ca_file.write_bytes(ca.public_bytes(pem))
    context = ssl.SSLContext(ssl.PROTOCOL_TLS_SERVER)
    with tempfile.NamedTemporaryFile(suffix=".pem") as chain:  # readable by its owner only
        secret = key.private_bytes(pem, serialization.PrivateFormat.PKCS8, serialization.NoEncryption())
        chain.write(secret + leaf.public_bytes(pem))
        chain.flush()
        context.load_cert_chain(chain.name)
    return context


def _general_name(host: str) -> x509.GeneralName:
    try:
        return x509.IPAddress(ipaddress.ip_address(host))
    except ValueError:
        return x509.DNSName(host)


def _certificate(
    subject: x509.Name,
    issuer: x509.Name,
    public_key: ec.EllipticCurvePublicKey,
    by: ec.EllipticCurvePrivateKey,
    constraints: x509.BasicConstraints,
    names: x509.SubjectAlternativeName | None,
) -> x509.Certificate:
    now = datetime.now(UTC)
    builder = (
        x509.CertificateBuilder()
        .subject_name(subject)
        .issuer_name(issuer)
        .public_key(public_key)
        .serial_number(x509.random_serial_number())
        .not_valid_before(now - timedelta(hours=1))
        .not_valid_after(now + LIFE)
        .add_extension(constraints, critical=True)
    )
    if names is not None:
        builder = builder.add_extension(names, critical=False)
    return builder.sign(by, hashes.SHA256())
