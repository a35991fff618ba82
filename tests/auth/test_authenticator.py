"""The header that delivery sends, for each way to authenticate."""

import traceback
from collections.abc import AsyncIterator
from typing import Any

import jwt
import pytest
from aiohttp import web

from dispatcher.auth.authenticator import Authenticator
from dispatcher.auth.token_answers import TokenAnswer
from dispatcher.config.secrets import Secret
from dispatcher.contract.values import HttpHeaders
from dispatcher.errors import TokenUnavailable
from tests.auth.keys import NOW, fetched, signed, webhook
from tests.auth.token_server import HttpEndpoint, TokenServer, http_endpoint, token, token_server


class NoEndpoint:
    """A token endpoint that must never be used."""

    async def post_form(self, url: str, headers: HttpHeaders, body: bytes, timeout_s: float) -> TokenAnswer:
        raise AssertionError


def signing(**more: Any) -> Authenticator:
    how: dict[str, Any] = {name: more.pop(name) for name in ("header", "scheme") if name in more}
    return Authenticator.of(webhook({"type": "jwt", "sign": signed(**more), **how}), NoEndpoint())


async def ask(authenticator: Authenticator, now: float = NOW) -> tuple[str, str] | None:
    return await authenticator.header(webhook_id="msg_1", body=b"{}", now=now)


async def test_without_authentication_there_is_no_header() -> None:
    authenticator = Authenticator.of(webhook(), NoEndpoint())

    assert authenticator.is_none
    assert authenticator.cached_header(NOW) is None
    assert await ask(authenticator) is None
    assert (authenticator.is_fetched, authenticator.needs_body, authenticator.public_jwk) == (False, False, None)
    assert not authenticator.invalidate(("authorization", "Bearer x"), now=NOW)
    await authenticator.close()


async def test_a_signed_token_is_a_bearer_token_for_the_endpoints_origin() -> None:
    authenticator = signing(algorithm="ES256")

    header = await ask(authenticator)

    assert header is authenticator.cached_header(NOW + 1), "made once"
    assert header is not None
    assert header[0] == "authorization"
    assert header[1].startswith("Bearer ")
    claims = jwt.decode(header[1][7:], options={"verify_signature": False})
    assert claims["aud"] == "https://hooks.luma.example"
    assert not authenticator.is_none
    assert not authenticator.is_fetched
    assert not authenticator.invalidate(header, now=NOW), "another token that we sign would fare no better"
    assert authenticator.public_jwk is not None


@pytest.mark.parametrize(("scheme", "start"), [("Bearer", "Bearer ey"), ("JWT", "JWT ey"), ("", "ey")])
async def test_header_and_scheme_are_the_tenants_choice(scheme: str, start: str) -> None:
    header = await ask(signing(header="X-Auth-Token", scheme=scheme))

    assert header is not None
    assert header[0] == "x-auth-token"
    assert header[1].startswith(start)


async def test_with_a_body_hash_each_request_has_a_token_of_its_own() -> None:
    authenticator = signing(body_hash=True)

    first = await authenticator.header(webhook_id="msg_1", body=b"a", now=NOW)
    second = await authenticator.header(webhook_id="msg_2", body=b"b", now=NOW)

    assert authenticator.needs_body
    assert authenticator.cached_header(NOW) is None
    assert first is not None
    assert second is not None
    claims = [jwt.decode(header[1][7:], options={"verify_signature": False}) for header in (first, second)]
    assert [claim["jti"] for claim in claims] == ["msg_1", "msg_2"]
    assert claims[0]["body_sha256"] != claims[1]["body_sha256"]


def test_a_key_that_can_not_sign_is_refused_when_the_authenticator_is_made() -> None:
    with pytest.raises(ValueError, match="at least 32 bytes"):
        signing(key=b"weak")


@pytest.fixture
async def server() -> AsyncIterator[TokenServer]:
    async with token_server() as started:
        yield started


@pytest.fixture
async def endpoint() -> AsyncIterator[HttpEndpoint]:
    async with http_endpoint() as made:
        yield made


@pytest.mark.parametrize("scheme", ["Bearer", "JWT", ""])
async def test_a_fetched_token_is_replaced_once_after_a_401(
    server: TokenServer, endpoint: HttpEndpoint, scheme: str
) -> None:
    """As delivery does it: a receiver that knows only the newest key of the token endpoint."""
    config = webhook({"type": "jwt", "fetch": fetched(token_url=server.url), "scheme": scheme})
    authenticator = Authenticator.of(config, endpoint)
    assert authenticator.is_fetched
    assert authenticator.cached_header(NOW) is None
    header = await ask(authenticator)
    assert header == ("authorization", f"{scheme} token-1".lstrip())
    assert authenticator.cached_header(NOW) == header

    assert authenticator.invalidate(header, now=NOW + 1)
    fresh = await ask(authenticator, NOW + 1)
    assert fresh == ("authorization", f"{scheme} token-2".lstrip())
    assert not authenticator.invalidate(fresh, now=NOW + 2)
    assert server.requests == 2
    await authenticator.close()


async def test_a_token_endpoint_that_rotates_its_keys_costs_one_request(
    server: TokenServer, endpoint: HttpEndpoint
) -> None:
    keys, generation = [b"k" * 32, b"l" * 32], 0

    async def issue(_: web.Request) -> web.StreamResponse:
        return token(jwt.encode({"sub": "dispatcher"}, keys[generation], "HS256"))

    def accepted(header: tuple[str, str] | None) -> bool:
        try:
            jwt.decode((header or ("", ""))[1].removeprefix("Bearer "), keys[generation], algorithms=["HS256"])
        except jwt.InvalidSignatureError:
            return False
        return True

    server.answer = issue
    authenticator = Authenticator.of(webhook({"type": "jwt", "fetch": fetched(token_url=server.url)}), endpoint)
    before = await ask(authenticator)
    assert accepted(before)

    generation = 1

    assert before is not None
    assert not accepted(before)
    assert authenticator.invalidate(before, now=NOW)
    assert accepted(await ask(authenticator))
    assert server.requests == 2


async def test_no_token_is_an_exception_of_its_own(server: TokenServer, endpoint: HttpEndpoint) -> None:
    server.answers(web.Response(status=500))
    authenticator = Authenticator.of(webhook({"type": "jwt", "fetch": fetched(token_url=server.url)}), endpoint)

    assert authenticator.cached_header(NOW) is None
    with pytest.raises(TokenUnavailable, match="answered 500"):
        await ask(authenticator)


@pytest.mark.parametrize("trusted", [True, False])
async def test_no_secret_is_in_any_error_representation_or_log(
    server: TokenServer, trusted: bool, caplog: pytest.LogCaptureFixture
) -> None:
    caplog.set_level(0)
    canary = "canary_secret_" + "z" * 40
    server.answers(
        web.json_response({"error": canary, "error_description": canary}, status=400),
        web.Response(text=canary),
        web.json_response({"access_token": canary + "\n", "token_type": canary}),
        token(canary),
    )
    secret = Secret(canary.encode())
    config = webhook({"type": "jwt", "fetch": fetched(token_url=f"{server.url}/{canary}", client_secret=secret)})
    said: list[str] = []
    async with http_endpoint(trusted=trusted) as endpoint:
        authenticator = Authenticator.of(config, endpoint)
        for step in range(4):
            try:
                await ask(authenticator, NOW + 60 * step)
            except TokenUnavailable as error:
                said += [*traceback.format_exception(error), repr(error.__cause__), repr(error.__context__)]
            said.append(repr(authenticator))
            kept = authenticator._fetched
            said += [repr(value) for name, value in vars(kept).items() if name != "_config"]
        await authenticator.close()

    assert len(said) >= 40
    assert (trusted, authenticator.cached_header(NOW + 240)) in (
        (True, ("authorization", f"Bearer {canary}")),
        (False, None),
    )
    assert "canary" not in "".join(said) + caplog.text
