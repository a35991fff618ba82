"""Fetches tokens from real token endpoints: the number of requests, and what follows a failure.

What single answers mean is in test_token_answers.
"""

import asyncio
from collections.abc import AsyncIterator
from dataclasses import replace

import pytest
from aiohttp import web
from joserfc.jwk import KeySet

from dispatcher.auth.fetched_tokens import FetchedTokens
from dispatcher.auth.token_answers import TokenAnswer
from dispatcher.contract.values import HttpHeaders
from dispatcher.errors import TokenUnavailable
from tests.auth.keys import NOW, fetched, jwks_of, signed, webhook
from tests.auth.test_jwt_signer import verified
from tests.auth.token_server import HttpEndpoint, TokenServer, http_endpoint, token, token_server


@pytest.fixture(params=["https", "http"])
async def server(request: pytest.FixtureRequest) -> AsyncIterator[TokenServer]:
    async with token_server(tls=request.param == "https") as started:
        yield started


@pytest.fixture
async def endpoint() -> AsyncIterator[HttpEndpoint]:
    async with http_endpoint() as made:
        yield made


@pytest.fixture
async def tokens(server: TokenServer, endpoint: HttpEndpoint) -> AsyncIterator[FetchedTokens]:
    made = FetchedTokens(fetched(token_url=server.url), endpoint, 20.0)
    yield made
    await made.close()


async def refusal(tokens: FetchedTokens, now: float) -> str:
    with pytest.raises(TokenUnavailable) as caught:
        await tokens.token(now)
    return str(caught.value)


def fetches() -> list[asyncio.Task[object]]:
    """Requests that are under way."""
    return [task for task in asyncio.all_tasks() if task.get_name() == "token fetch"]


async def renewed() -> None:
    """Waits until the renewal that is under way has ended."""
    await asyncio.wait(fetches(), timeout=60)


async def test_a_token_is_fetched_once_and_kept(server: TokenServer, tokens: FetchedTokens) -> None:
    assert tokens.kept(NOW) is None
    assert await tokens.token(NOW) == "token-1"
    assert tokens.kept(NOW + 2000) == await tokens.token(NOW + 2000) == "token-1"
    assert server.requests == 1
    assert server.forms == [{"grant_type": "client_credentials"}]


async def test_a_hundred_callers_at_once_share_one_request(server: TokenServer, tokens: FetchedTokens) -> None:
    server.released.clear()
    callers = [asyncio.create_task(tokens.token(NOW)) for _ in range(100)]
    await server.arrived.wait()
    server.released.set()

    assert await asyncio.gather(*callers) == ["token-1"] * 100
    assert server.requests == 1


async def test_a_hundred_callers_share_one_failure_too(server: TokenServer, tokens: FetchedTokens) -> None:
    server.answers(web.Response(status=500))

    answers = await asyncio.gather(*[tokens.token(NOW) for _ in range(100)], return_exceptions=True)

    assert {str(answer) for answer in answers} == {"token endpoint localhost answered 500: try again later"}
    assert len({id(answer) for answer in answers}) == 100, "each has an exception of its own"
    assert server.requests == 1


@pytest.mark.parametrize("cancelled", [slice(0, 1), slice(5, 7), slice(0, 9)])
async def test_cancelling_a_caller_leaves_the_others_their_token(
    server: TokenServer, tokens: FetchedTokens, cancelled: slice
) -> None:
    server.released.clear()
    callers = [asyncio.create_task(tokens.token(NOW)) for _ in range(10)]
    await server.arrived.wait()
    for caller in callers[cancelled]:
        caller.cancel()
    server.released.set()

    answers = await asyncio.gather(*callers, return_exceptions=True)

    assert answers.count("token-1") == 10 - len(callers[cancelled])
    assert server.requests == 1


async def test_a_request_whose_callers_all_left_still_brings_its_token(
    server: TokenServer, tokens: FetchedTokens
) -> None:
    server.released.clear()
    with pytest.raises(TimeoutError):
        await asyncio.wait_for(tokens.token(NOW), 0.05)
    server.released.set()

    assert await tokens.token(NOW) == "token-1"
    assert server.requests == 1


async def test_past_the_renewal_point_one_request_renews_while_the_old_token_serves(
    server: TokenServer, tokens: FetchedTokens
) -> None:
    await tokens.token(NOW)
    server.released.clear()
    late = NOW + 3600 - 700

    assert [await tokens.token(late) for _ in range(50)] == ["token-1"] * 50

    server.released.set()
    await renewed()
    assert tokens.kept(late) == "token-2"
    assert server.requests == 2


async def test_an_expired_token_is_waited_for_by_all_and_fetched_once(
    server: TokenServer, tokens: FetchedTokens
) -> None:
    await tokens.token(NOW)

    assert await asyncio.gather(*[tokens.token(NOW + 3600) for _ in range(50)]) == ["token-2"] * 50
    assert server.requests == 2


async def test_a_renewal_that_fails_leaves_the_old_token_and_is_not_repeated_at_once(
    server: TokenServer, tokens: FetchedTokens
) -> None:
    server.answers(token("old"), web.Response(status=503))
    await tokens.token(NOW)
    late = NOW + 3600 - 700

    assert tokens.kept(late) == "old"
    await renewed()
    assert "failures in a row: 1" in repr(tokens)
    assert [tokens.kept(late + 0.5) for _ in range(50)] == ["old"] * 50
    assert not fetches()
    assert server.requests == 2
    assert "answered 503" in await refusal(tokens, NOW + 3600)


async def test_a_token_that_is_already_expired_is_fetched_again_once_a_second(
    server: TokenServer, tokens: FetchedTokens
) -> None:
    server.answers(token("short", expires_in=-5))

    for tenth in range(100):
        assert await tokens.token(NOW + tenth / 100) == "short"

    assert server.requests <= 3


async def test_a_token_without_end_is_fetched_again_after_a_day(server: TokenServer, tokens: FetchedTokens) -> None:
    server.answers(token("first", expires_in=10**12), token("second", expires_in=10**12))
    await tokens.token(NOW)

    assert tokens.kept(NOW + 86_399 - 18_000) == "first"
    assert await tokens.token(NOW + 86_401) == "second"


async def test_a_clock_that_was_set_back_does_not_keep_a_token_for_ever(
    server: TokenServer, tokens: FetchedTokens
) -> None:
    await tokens.token(NOW)

    assert tokens.kept(NOW - 10 * 86_400) is None
    assert await tokens.token(NOW - 10 * 86_400) == "token-2"


async def test_fetches_from_a_failing_endpoint_repeat_after_1_s_then_2_s_up_to_30_s(
    server: TokenServer, endpoint: HttpEndpoint
) -> None:
    class Instant:
        """Answers take no time here: a cool-down begins at the end of the request that failed."""

        async def post_form(self, url: str, headers: HttpHeaders, body: bytes, timeout_s: float) -> TokenAnswer:
            return replace(await endpoint.post_form(url, headers, body, timeout_s), elapsed_s=0.0)

    tokens = FetchedTokens(fetched(token_url=server.url), Instant(), 20.0)
    server.answers(web.Response(status=500))
    now, waits = NOW, [1, 2, 4, 8, 16, 30, 30]
    for number, wait_s in enumerate(waits, 1):
        await refusal(tokens, now)
        assert server.requests == number
        message = await refusal(tokens, now + wait_s * 0.99)
        assert "answered 500: try again later; the next request is in " in message
        assert server.requests == number, "no request is sent within the cool-down"
        now += wait_s

    server.answers(token("mended"), web.Response(status=500))
    server.forms.clear()
    assert await tokens.token(now) == "mended"
    now += 3600
    await refusal(tokens, now)
    await refusal(tokens, now + 1)
    assert server.requests == 3, "after a success the cool-down begins at 1 s again"


async def test_a_clock_that_was_set_back_does_not_prolong_a_cool_down(
    server: TokenServer, tokens: FetchedTokens
) -> None:
    server.answers(web.Response(status=500), token("mended"))
    await refusal(tokens, NOW)

    assert await tokens.token(NOW - 3600) == "mended"


async def test_a_hanging_token_endpoint_times_out_and_the_pause_begins_then(
    server: TokenServer, endpoint: HttpEndpoint
) -> None:
    server.released.clear()
    tokens = FetchedTokens(fetched(token_url=server.url), endpoint, 1.0)

    assert "no answer in" in await refusal(tokens, NOW)
    assert "next request is in" in await refusal(tokens, NOW + 1.1)
    assert server.requests == 1


async def test_a_client_that_keeps_no_deadline_is_held_to_it() -> None:
    class Stuck:
        async def post_form(self, url: str, headers: HttpHeaders, body: bytes, timeout_s: float) -> TokenAnswer:
            await asyncio.sleep(3600)
            raise AssertionError

    tokens = FetchedTokens(fetched(), Stuck(), 0.05)

    assert await refusal(tokens, NOW) == "token endpoint login.luma.example could not be reached: no answer in 0.05 s"


async def test_a_bug_in_the_client_reaches_the_caller_and_cools_down() -> None:
    class Broken:
        async def post_form(self, url: str, headers: HttpHeaders, body: bytes, timeout_s: float) -> TokenAnswer:
            raise ZeroDivisionError

    tokens = FetchedTokens(fetched(), Broken(), 1)
    with pytest.raises(ZeroDivisionError):
        await tokens.token(NOW)

    assert "internal error" in await refusal(tokens, NOW)


async def oversized(request: web.Request) -> web.StreamResponse:
    response = web.StreamResponse()
    await response.prepare(request)
    try:
        for _ in range(1000):
            await response.write(b'{"access_token": "' + b"x" * 65_536)
    except ConnectionError:
        pass
    return response


async def cut(request: web.Request) -> web.StreamResponse:
    if request.transport is not None:
        request.transport.close()
    return web.Response()


async def redirect(_: web.Request) -> web.StreamResponse:
    raise web.HTTPTemporaryRedirect("/elsewhere")


async def html(_: web.Request) -> web.StreamResponse:
    return web.Response(text="<html><form>Sign in</form></html>", content_type="text/html")


async def half(_: web.Request) -> web.StreamResponse:
    return web.Response(text='{"access_token": "abc', content_type="application/json")


async def injected(_: web.Request) -> web.StreamResponse:
    return token("abc\r\nx-injected: 1")


async def invalid_client(_: web.Request) -> web.StreamResponse:
    return web.json_response({"error": "invalid_client", "error_description": "client-secret"}, status=401)


async def invalid_grant(_: web.Request) -> web.StreamResponse:
    return web.json_response({"error": "invalid_grant"}, status=400)


@pytest.mark.parametrize(
    ("answer", "said"),
    [
        (oversized, "64 KiB or more"),
        (cut, "could not be reached: ServerDisconnectedError"),
        (redirect, "answered 307, a redirect, which is never followed"),
        (html, "answered 200 with HTML"),
        (half, "no JSON object"),
        (injected, "can't go into a header"),
        (invalid_client, "answered 401 (invalid_client): check client_id and client_secret"),
        (invalid_grant, "answered 400 (invalid_grant)"),
    ],
)
async def test_an_endpoint_that_misbehaves_gives_no_token_and_a_message(
    server: TokenServer, tokens: FetchedTokens, answer: object, said: str
) -> None:
    server.answer = answer  # type: ignore[assignment]

    message = await refusal(tokens, NOW)

    assert said in message
    assert "client-secret" not in message
    assert server.requests == 1


async def test_an_endpoint_with_an_unknown_certificate_gives_no_token() -> None:
    async with token_server() as server, http_endpoint(trusted=False) as endpoint:
        tokens = FetchedTokens(fetched(token_url=server.url), endpoint, 20)

        assert "could not be reached: ClientConnectorCertificateError" in await refusal(tokens, NOW)
        assert server.requests == 0


@pytest.mark.parametrize("algorithm", ["ES256", "RS256", "EdDSA", "Ed25519"])
async def test_a_token_endpoint_can_verify_the_assertion_with_our_jwks(
    server: TokenServer, endpoint: HttpEndpoint, algorithm: str
) -> None:
    config = fetched(grant="jwt-bearer", token_url=server.url, assertion=signed(algorithm), client_secret=None)
    keys = KeySet.import_key_set(jwks_of([webhook({"type": "jwt", "fetch": config})]))  # type: ignore[arg-type]
    seen: list[str] = []

    async def verify(request: web.Request) -> web.StreamResponse:
        claims = verified(str((await request.post())["assertion"]), keys, algorithm)
        assert (claims["aud"], claims["iss"], claims["sub"]) == (server.url, "feedback-dispatcher", "luma")
        seen.append(claims["jti"])
        return token()

    server.answer = verify
    tokens = FetchedTokens(config, endpoint, 20)

    assert await tokens.token(NOW) == await tokens.token(NOW + 3601) == "issued"
    assert len(set(seen)) == 2, "an assertion is used once"


async def test_a_refused_token_is_replaced_by_one_fresh_one(server: TokenServer, tokens: FetchedTokens) -> None:
    first = await tokens.token(NOW)

    assert tokens.invalidate(first, NOW) is True
    assert await tokens.token(NOW) == "token-2"
    assert tokens.invalidate(first, NOW) is True, "a newer one is there already"
    assert tokens.invalidate("token-2", NOW + 5) is False, "the fresh one is refused as well"
    assert tokens.kept(NOW + 5) == "token-2"
    assert server.requests == 2
    assert tokens.invalidate("token-2", NOW + 11) is True


async def test_many_refusals_of_one_token_fetch_one_fresh_one(server: TokenServer, tokens: FetchedTokens) -> None:
    first = await tokens.token(NOW)

    async def refused() -> str:
        assert tokens.invalidate(first, NOW)
        return await tokens.token(NOW)

    assert await asyncio.gather(*[refused() for _ in range(100)]) == ["token-2"] * 100
    assert server.requests == 2


async def test_closing_ends_the_request_and_fails_the_waiting_callers(
    server: TokenServer, tokens: FetchedTokens
) -> None:
    server.released.clear()
    callers = [asyncio.create_task(tokens.token(NOW)) for _ in range(3)]
    await server.arrived.wait()

    await tokens.close()

    answers = await asyncio.gather(*callers, return_exceptions=True)
    assert {str(answer) for answer in answers} == {
        "token endpoint localhost gets no more requests: its webhook was closed"
    }
    assert "webhook was closed" in await refusal(tokens, NOW + 100)
    assert not fetches()


async def test_the_representation_shows_the_state_and_no_token(server: TokenServer, tokens: FetchedTokens) -> None:
    assert repr(tokens) == "<FetchedTokens client-credentials [token: none, failures in a row: 0]>"
    await tokens.token(NOW)
    assert repr(tokens) == "<FetchedTokens client-credentials [token: kept, failures in a row: 0]>"
