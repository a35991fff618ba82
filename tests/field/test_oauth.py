"""SASL OAUTHBEARER against a real broker that verifies signed tokens (RFC 7628, RFC 7523)."""

import time
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import jwt
import orjson
import pytest
from aiohttp import web
from cryptography.hazmat.primitives.asymmetric import rsa
from jwt.algorithms import RSAAlgorithm

from tests.auth.token_server import TokenServer, authority, token, token_server
from tests.commands.running import called as command
from tests.field.readiness import reports, reports_nothing
from tests.integration.brokers import needs_kafka
from tests.integration.harness import Dispatcher, Stage, stage, tenants
from tests.kafka.apache_kafka import ApacheKafka
from tests.kafka.server_properties import KafkaOptions, Listener

pytestmark = [needs_kafka, pytest.mark.timeout(300)]

TENANTS = tenants(1)
AUDIENCE, SCOPE, ISSUER = "kafka", "events:read", "https://issuer.example"


@dataclass
class Issuer:
    """Signs tokens that the broker accepts."""

    key: rsa.RSAPrivateKey
    life_s: float = 3600

    @classmethod
    def made(cls, jwks: Path) -> "Issuer":
        issuer = cls(rsa.generate_private_key(65537, 2048))
        public = orjson.loads(RSAAlgorithm.to_jwk(issuer.key.public_key()))
        jwks.write_bytes(orjson.dumps({"keys": [public | {"kid": "k1", "alg": "RS256", "use": "sig"}]}))
        return issuer

    def token(self, **claims: Any) -> str:
        now = int(time.time())
        known: dict[str, Any] = {"iss": ISSUER, "sub": "dispatcher", "aud": AUDIENCE, "scope": SCOPE}
        known |= {"iat": now, "exp": now + int(self.life_s)}
        return jwt.encode(known | claims, self.key, "RS256", {"kid": "k1"})


@asynccontextmanager
async def oauth_broker(directory: Path) -> AsyncIterator[tuple[ApacheKafka, Issuer]]:
    jwks = directory / "jwks.json"
    issuer = Issuer.made(jwks)
    oauthbearer = "org.apache.kafka.common.security.oauthbearer"
    prefix = f"listener.name.{Listener.SASL_PLAINTEXT.lower()}"
    options = KafkaOptions(
        listeners=frozenset({Listener.SASL_PLAINTEXT}),
        users={},
        extra={
            f"{prefix}.sasl.enabled.mechanisms": "OAUTHBEARER",
            f"{prefix}.oauthbearer.sasl.jaas.config": f"{oauthbearer}.OAuthBearerLoginModule required;",
            f"{prefix}.oauthbearer.sasl.server.callback.handler.class": (
                f"{oauthbearer}.OAuthBearerValidatorCallbackHandler"
            ),
            "sasl.oauthbearer.jwks.endpoint.url": jwks.as_uri(),
            "sasl.oauthbearer.expected.audience": AUDIENCE,
            "sasl.oauthbearer.expected.issuer": ISSUER,  # newer brokers don't start without it
        },
        java_flags=(f"-Dorg.apache.kafka.sasl.oauthbearer.allowed.urls={jwks.as_uri()}",),
    )
    async with ApacheKafka(options) as broker:
        yield broker, issuer


@pytest.fixture(scope="module")
async def broker(tmp_path_factory: pytest.TempPathFactory) -> AsyncIterator[tuple[ApacheKafka, Issuer]]:
    async with oauth_broker(tmp_path_factory.mktemp("oauth")) as made:
        yield made


@pytest.fixture
async def scene(broker: tuple[ApacheKafka, Issuer], tmp_path: Path) -> AsyncIterator[Stage]:
    async with stage(broker[0].bootstrap_servers, tmp_path) as made:
        made.mount([made.webhook(TENANTS[0])])
        yield made


def _dispatcher(scene: Stage, broker: ApacheKafka, **oauth: Any) -> Dispatcher:
    security = {"protocol": "SASL_PLAINTEXT", "mechanism": "OAUTHBEARER", "oauth": oauth}
    return scene.dispatcher(kafka={"bootstrap_servers": broker.address(Listener.SASL_PLAINTEXT), "security": security})


def _endpoint(tmp_path: Path, url: str) -> dict[str, Any]:
    authority().cert_pem.write_to_path(str(tmp_path / "token-ca.pem"))
    (tmp_path / "client-secret").write_text("s3cret")
    return {
        "token_url": url,
        "client_id": "dispatcher",
        "client_secret": {"file": str(tmp_path / "client-secret")},
        "scope": SCOPE,
        "ca": str(tmp_path / "token-ca.pem"),
    }


def _issue(server: TokenServer, issuer: Issuer, **claims: Any) -> None:
    async def answer(_: web.Request) -> web.Response:
        return token(issuer.token(**claims), issuer.life_s)

    server.answer = answer


async def test_a_token_is_fetched_from_the_token_endpoint_with_its_ca_and_scope(
    scene: Stage, broker: tuple[ApacheKafka, Issuer], tmp_path: Path
) -> None:
    kafka, issuer = broker
    async with token_server() as server:
        _issue(server, issuer)
        async with _dispatcher(scene, kafka, **_endpoint(tmp_path, server.url)) as dispatcher:
            dispatcher.start()
            await scene.produce(TENANTS, 5)
            await scene.all_accepted(dispatcher)
            assert server.forms[0]["scope"] == SCOPE
            checked = await command("check", "--kafka", "-c", dispatcher.path)
            assert checked.status == 0, checked
            await kafka.restart()
            await scene.produce(TENANTS, 5, "after")
            await scene.all_accepted(dispatcher)


@pytest.mark.all_faults
async def test_a_failing_token_endpoint_is_named_and_tried_again(
    scene: Stage, broker: tuple[ApacheKafka, Issuer], tmp_path: Path
) -> None:
    kafka, issuer = broker
    async with token_server() as server:
        server.answers(web.json_response({"error": "invalid_client"}, status=401))
        async with _dispatcher(scene, kafka, **_endpoint(tmp_path, server.url)) as dispatcher:
            dispatcher.start()
            await reports(dispatcher, "token_unavailable", "check client_id and client_secret")
            checked = await command("check", "--kafka", "-c", dispatcher.path)
            assert checked.status == 1, checked
            assert "check client_id and client_secret" in checked.err, checked
            _issue(server, issuer, aud="another")  # the broker refuses it, though the endpoint gives it
            await reports(dispatcher, "authentication_refused", "the token was not accepted (OAUTHBEARER)")
            checked = await command("check", "--kafka", "-c", dispatcher.path)
            assert "the token was not accepted (OAUTHBEARER)" in checked.err, checked
            _issue(server, issuer)
            await scene.produce(TENANTS, 5)
            await scene.all_accepted(dispatcher)
            await reports_nothing(dispatcher, 60)


@pytest.mark.all_faults
async def test_a_token_in_a_file_is_read_for_every_connection(
    scene: Stage, broker: tuple[ApacheKafka, Issuer], tmp_path: Path
) -> None:
    kafka, issuer = broker
    file = tmp_path / "token"
    file.write_text(issuer.token(exp=int(time.time()) - 600, iat=int(time.time()) - 1200) + "\n")
    async with _dispatcher(scene, kafka, token={"file": str(file)}) as dispatcher:
        dispatcher.start()
        await reports(dispatcher, "authentication_refused", "the token was not accepted (OAUTHBEARER)")
        file.write_text(issuer.token() + "\n")
        await scene.produce(TENANTS, 5)
        await scene.all_accepted(dispatcher)
        await reports_nothing(dispatcher, 60)
