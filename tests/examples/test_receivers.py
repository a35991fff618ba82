"""The example receivers accept what the dispatcher sends, refuse what was tampered with, and drop repeats."""

import asyncio
import json
import os
import shutil
import ssl
import subprocess
import sys
import time
from collections.abc import AsyncIterator, Sequence
from dataclasses import dataclass
from pathlib import Path

import aiohttp
import pytest
import trustme
from cryptography.hazmat.primitives import serialization
from cryptography.hazmat.primitives.asymmetric import ec

from dispatcher.auth.jwt_signer import JwtSigner
from dispatcher.auth.signatures import Signer
from dispatcher.config.secrets import Secret
from dispatcher.config.webhook_auth import SignedToken
from dispatcher.config.webhook_revision import Webhook
from dispatcher.config.webhooks import Signing, WebhookConfig
from dispatcher.contract.feedback import encode_feedback
from dispatcher.contract.records import AssignmentEpoch, ProcessingAttempt
from dispatcher.delivery.pending_delivery import PendingDelivery, request_headers
from dispatcher.delivery.permits import Priority
from dispatcher.demo.child_process import free_ports
from tests.auth.keys import jwks_of
from tests.unit.examples import email_event, read

EXAMPLES = Path(__file__).parents[2] / "examples" / "receivers"
START_WITHIN_S = 400  # Go compiles, Java starts
WHSEC = "whsec_" + "cmVjZWl2ZXJzIGFyZSB0ZXN0ZWQgZm9yIHJlYWwgISE="
ISSUER = "feedback-dispatcher"


def command(language: str) -> Sequence[str]:
    """Returns the command that starts a receiver. Skips the test, or fails it in CI, if the language is missing."""
    program = {"python": sys.executable, "node": "node", "go": "go", "java": "java"}[language]
    if shutil.which(program) is None or (language == "java" and shutil.which("mvn") is None):
        reason = f"{program} is not installed"
        pytest.fail(reason) if os.environ.get("CI") == "true" else pytest.skip(reason)
    match language:
        case "python":
            return [program, str(EXAMPLES / "python" / "receiver.py")]
        case "node":
            return [program, str(EXAMPLES / "node" / "receiver.mjs")]
        case "go":
            return [program, "run", "-C", str(EXAMPLES / "go"), "."]
        case _:
            library = EXAMPLES / "java" / "target" / "lib"
            if not list(library.glob("*.jar")):
                fetch = ["mvn", "-q", "-B", "-f", str(EXAMPLES / "java" / "pom.xml"), "dependency:copy-dependencies"]
                subprocess.run([*fetch, f"-DoutputDirectory={library}"], check=True, timeout=600, capture_output=True)
            return [program, "-cp", f"{library}/*", str(EXAMPLES / "java" / "Receiver.java")]


@dataclass
class Running:
    """A receiver that runs, and what the dispatcher would send it."""

    url: str
    tls: ssl.SSLContext
    output: list[str]
    signer: Signer
    token: SignedToken
    tokens: JwtSigner
    pending: PendingDelivery

    def headers(self, now: float | None = None) -> dict[str, str]:
        """The headers of a first attempt made now."""
        now = time.time() if now is None else now
        token = ("authorization", f"Bearer {self.tokens.token(now)}")
        own = {"content-type": "application/json"}
        return own | dict(request_headers(self.pending, 1, now, self.signer, token))

    async def post(self, headers: dict[str, str], body: bytes | None = None) -> int:
        """Sends a request. Returns the status of the answer."""
        body = self.pending.body if body is None else body
        async with (
            aiohttp.ClientSession(timeout=aiohttp.ClientTimeout(60)) as session,
            session.post(self.url, data=body, headers=headers, ssl=self.tls) as response,
        ):
            return response.status


@pytest.fixture(params=["python", "node", "go", "java"])
async def running(request: pytest.FixtureRequest, tmp_path: Path) -> AsyncIterator[Running]:
    start = command(request.param)
    (port,) = free_ports(1)
    authority = trustme.CA()
    certificate = authority.issue_cert("127.0.0.1")
    certificate.cert_chain_pems[0].write_to_path(tmp_path / "cert.pem")
    key = serialization.load_pem_private_key(certificate.private_key_pem.bytes(), None)
    pkcs8 = serialization.PrivateFormat.PKCS8
    pem = key.private_bytes(serialization.Encoding.PEM, pkcs8, serialization.NoEncryption())
    (tmp_path / "key.pem").write_bytes(pem)

    private = ec.generate_private_key(ec.SECP256R1())
    signing_pem = private.private_bytes(serialization.Encoding.PEM, pkcs8, serialization.NoEncryption())
    url = f"https://127.0.0.1:{port}/feedback"
    sign = {"algorithm": "ES256", "key": Secret(signing_pem), "kid": "k1", "issuer": ISSUER}
    webhook = WebhookConfig.model_validate(
        {
            "name": "Luma", "org": "myImsOrg", "sandbox": "prod", "url": url,
            "auth": {"type": "jwt", "sign": sign}, "signing": {"secrets": [Secret(WHSEC.encode())]},
        }
    )  # fmt: skip
    (tmp_path / "jwks.json").write_text(json.dumps(jwks_of([webhook])))
    event = read(email_event())
    body = encode_feedback(event, 1)
    pending = PendingDelivery.of(
        event, Webhook.of(webhook, "test"), body, 0, Priority.NEW, ProcessingAttempt(AssignmentEpoch())
    )
    signer = Signer.of(Signing(secrets=(Secret(WHSEC.encode()),)))
    assert signer is not None
    environment = os.environ | {
        "PORT": str(port), "CERT": str(tmp_path / "cert.pem"), "KEY": str(tmp_path / "key.pem"), "SECRET": WHSEC,
        "JWKS": str(tmp_path / "jwks.json"), "AUDIENCE": f"https://127.0.0.1:{port}", "ISSUER": ISSUER,
    }  # fmt: skip
    process = await asyncio.create_subprocess_exec(
        *start, env=environment, stdout=subprocess.PIPE, stderr=subprocess.STDOUT, start_new_session=True
    )
    output: list[str] = []
    ready = asyncio.Event()

    async def collect() -> None:
        assert process.stdout is not None
        async for line in process.stdout:
            output.append(line.decode(errors="replace").strip())
            if output[-1] == "ready":
                ready.set()
        ready.set()

    collecting = asyncio.create_task(collect())
    try:
        async with asyncio.timeout(START_WITHIN_S):
            await ready.wait()
        assert "ready" in output, output
        tls = ssl.create_default_context()
        authority.configure_trust(tls)
        token = SignedToken.model_validate(sign)
        yield Running(url, tls, output, signer, token, JwtSigner(token, f"https://127.0.0.1:{port}"), pending)
    finally:
        os.killpg(process.pid, 9)
        await process.wait()
        await collecting


@pytest.mark.timeout(600)
async def test_an_example_receiver_verifies_and_drops_repeats(running: Running) -> None:
    sent = running.headers()
    assert await running.post(sent) == 204, running.output
    assert await running.post(running.headers()) == 204  # a repeat is accepted, and not processed again

    assert await running.post(sent, running.pending.body.replace(b"bounce", b"delivered")) == 401
    assert await running.post(sent | {"webhook-id": "msg_another"}) == 401
    assert await running.post(running.headers(time.time() - 3600)) == 401  # replayed an hour later
    assert await running.post({name: value for name, value in sent.items() if name != "webhook-signature"}) == 401

    elsewhere = JwtSigner(running.token, "https://other.example")
    assert await running.post(sent | {"authorization": f"Bearer {elsewhere.token(time.time())}"}) == 401
    head, claims, signature = sent["authorization"].removeprefix("Bearer ").split(".")
    assert await running.post(sent | {"authorization": f"Bearer {head}.{claims}.{signature[::-1]}"}) == 401
    assert await running.post({name: value for name, value in sent.items() if name != "authorization"}) == 401

    rotated = f"v1,{'A' * 43}= {sent['webhook-signature']}"
    assert await running.post(sent | {"webhook-signature": rotated}) == 204  # one signature that fits is enough
    seen = [line.split()[0] for line in running.output if not line.startswith(("ready", "refused"))]
    assert seen == ["event", "repeat", "repeat"], running.output
    assert f"event {running.pending.webhook_id} email bounce" in running.output
