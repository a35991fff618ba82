"""Token endpoints that hang, lie, flood or redirect, reached as the daemon reaches them: guard, TLS and both transports.

The meaning of single answers is in tests/auth/test_token_answers, the number of requests in
tests/auth/test_fetched_tokens, both with a client of their own.
"""

import asyncio
import base64
import gzip
import json
from collections.abc import AsyncIterator, Callable

import jwt
import pytest
import trustme
from cryptography.hazmat.primitives.asymmetric import ec

from dispatcher.auth.authenticator import TOKEN_TIMEOUT_S, Authenticator
from dispatcher.auth.fetched_tokens import FetchedTokens
from dispatcher.auth.token_answers import MAX_ANSWER, MAX_LIFE_S
from dispatcher.errors import TokenUnavailable
from dispatcher.transport import Transport
from dispatcher.transport.token_client import TokenClient
from tests.auth.keys import NOW, fetched
from tests.auth.keys import webhook as config_of
from tests.transport.conftest import Opener, Serving, server_context
from tests.transport.servers import Endpoint as Server
from tests.transport.servers import NameServer, Peer, Script, answering

TIMEOUT_S = 0.5
"""For an endpoint whose answer never ends."""

AMPLE_S = 20.0
"""For every other."""

NEVER_ENDS = "could not be reached: no "


def answer(body: bytes | dict[str, object], head: bytes = b"HTTP/1.1 200 OK") -> bytes:
    """An answer with its length."""
    body = json.dumps(body).encode() if isinstance(body, dict) else body
    return b"%b\r\ncontent-type: application/json\r\ncontent-length: %d\r\n\r\n%b" % (head, len(body), body)


def good(token: str = "issued", **more: object) -> bytes:
    return answer({"access_token": token, "token_type": "Bearer", "expires_in": 3600} | more)


async def hang(peer: Peer) -> None:
    await peer.request()
    await peer.until_closed()


async def hang_in_the_head(peer: Peer) -> None:
    await peer.request()
    await peer.send(b"HTTP/1.1 200 OK\r\n")
    await peer.until_closed()


async def hang_in_the_body(peer: Peer) -> None:
    await peer.request()
    await peer.send(good()[:-5])
    await peer.until_closed()


async def trickle(peer: Peer) -> None:
    await peer.request()
    for at in range(10_000):
        await peer.send(good()[at : at + 1] or b" ")
        await asyncio.sleep(0.02)


async def trickle_chunks(peer: Peer) -> None:
    await peer.request()
    await peer.send(b"HTTP/1.1 200 OK\r\ntransfer-encoding: chunked\r\n\r\n")
    while True:
        await peer.send(b"1\r\n \r\n")
        await asyncio.sleep(0.02)


async def flood(peer: Peer) -> None:
    await peer.request()
    await peer.send(b"HTTP/1.1 200 OK\r\ntransfer-encoding: chunked\r\n\r\n")
    while True:
        await peer.send(b"10000\r\n" + b'{"access_token":"' * 3855 + b'"\r\n')


async def reset(peer: Peer) -> None:
    await peer.request()
    peer.reset()


BOMB = gzip.compress(b'{"access_token": "x", "z": "' + b"z" * 5_000_000 + b'"}')

MISBEHAVING: dict[str, tuple[Script, str]] = {
    "hangs": (hang, NEVER_ENDS),
    "hangs in the head": (hang_in_the_head, NEVER_ENDS),
    "hangs in the body": (hang_in_the_body, NEVER_ENDS),
    "one byte at a time": (trickle, NEVER_ENDS),
    "one chunk at a time, for ever": (trickle_chunks, NEVER_ENDS),
    "a flood": (flood, "answered 200 with 64 KiB or more: check that token_url"),
    "exactly too much": (answering(answer(b" " * MAX_ANSWER)), "answered 200 with 64 KiB or more"),
    "a large page as an error": (
        answering(answer(b"<html>" + b" " * MAX_ANSWER, b"HTTP/1.1 503 Busy")), "answered 503: try again later",
    ),
    "a length of a terabyte": (
        answering(b"HTTP/1.1 200 OK\r\ncontent-length: 1000000000000\r\n\r\n" + b"x" * 70_000),
        "answered 200 with 64 KiB or more",
    ),
    "a page": (answering(answer(b"<!doctype html><form>Sign in</form>")), "answered 200 with HTML: check that token_url"),
    "a page as an error": (answering(answer(b"<html>", b"HTTP/1.1 503 Busy")), "answered 503: try again later"),
    "a compressed answer": (
        answering(b"HTTP/1.1 200 OK\r\ncontent-encoding: gzip\r\ncontent-length: %d\r\n\r\n%b" % (len(BOMB), BOMB)),
        "compressed (gzip), though it was asked for accept-encoding: identity",
    ),
    "a redirect": (
        answering(b"HTTP/1.1 307 x\r\nlocation: https://169.254.169.254/\r\ncontent-length: 0\r\n\r\n"),
        "a redirect, which is never followed: set token_url",
    ),
    "a redirect with a token": (
        answering(answer({"access_token": "x"}, b"HTTP/1.1 302 x\r\nlocation: https://127.0.0.1/")),
        "a redirect, which is never followed",
    ),
    "half an object": (answering(answer(b'{"access_token": "ab')), "no JSON object"),
    "an answer that is cut": (answering(good()[:-5], close=True), "but the beginning of one: the answer broke off"),
    "nothing": (answering(answer(b"")), "no JSON object"),
    "deep nesting": (answering(answer(b"[" * 60_000)), "no JSON object"),
    "two tokens": (answering(answer(b'{"access_token": ["a", "b"]}')), "without an access_token"),
    "a token with a line": (answering(good("a\r\nx-evil: 1")), "can't go into a header"),
    "a token of 9 KB": (answering(good("a" * 9000)), "up to 8,192 visible ASCII"),
    "another kind of token": (answering(good(token_type="mac")), "didn't return a bearer token"),
    "an error with status 200": (answering(answer({"error": "invalid_scope"})), "(invalid_scope): check scope"),
    "not HTTP": (answering(b"220 smtp.example ESMTP\r\n\r\n"), "could not be reached: the answer is not HTTP"),
    "an upgrade": (
        answering(b"HTTP/1.1 101 x\r\nupgrade: h2c\r\nconnection: upgrade\r\n\r\n"),
        "could not be reached: ",
    ),
    "a reset": (reset, "could not be reached: "),
}  # fmt: skip


async def refusal(transport: Transport, url: str, timeout_s: float = AMPLE_S) -> str:
    tokens = FetchedTokens(fetched(token_url=url), TokenClient(transport), timeout_s)
    with pytest.raises(TokenUnavailable) as caught:
        await tokens.token(NOW)
    await tokens.close()
    return str(caught.value)


@pytest.mark.parametrize("name", MISBEHAVING)
async def test_an_endpoint_that_misbehaves_gives_no_token_and_says_what_to_change(
    transport: Transport, serving: Serving, name: str
) -> None:
    script, says = MISBEHAVING[name]
    async with serving(script) as server, asyncio.timeout(60):
        url = f"{server.url}/secret-path?key=secret-key"
        message = await refusal(transport, url, TIMEOUT_S if says == NEVER_ENDS else AMPLE_S)
        assert len(server.requests) <= 1
    assert says in message
    assert message.startswith("token endpoint 127.0.0.1 ")
    assert "secret" not in message


async def test_the_form_goes_out_once_with_its_own_content_type_and_no_tenant_header(
    transport: Transport, serving: Serving
) -> None:
    async with serving(answering(good())) as server:
        tokens = FetchedTokens(fetched(token_url=server.url, scope="a b"), TokenClient(transport), AMPLE_S)
        assert await tokens.token(NOW) == "issued"
        await tokens.close()
    head, _, body = server.requests[0].partition(b"\r\n\r\n")
    assert body == b"grant_type=client_credentials&scope=a+b"
    assert b"content-type: application/x-www-form-urlencoded\r\n" in head
    assert b"authorization: Basic " + base64.b64encode(b"luma:client-secret") in head


LIES: dict[str, tuple[object, Callable[[float], bool]]] = {
    "never ends": (10**15, lambda life: life <= MAX_LIFE_S),
    "infinite": ("inf", lambda life: life <= MAX_LIFE_S),
    "over already": (-3600, lambda life: 0 < life <= 1),
    "zero": (0, lambda life: 0 < life <= 1),
    "a word": ("tomorrow", lambda life: life == 300),
    "true": (True, lambda life: life == 300),
    "missing": (None, lambda life: life == 300),
}


@pytest.mark.parametrize("name", LIES)
async def test_a_false_lifetime_of_a_token_is_bounded(transport: Transport, serving: Serving, name: str) -> None:
    expires_in, holds = LIES[name]
    async with serving(answering(good(expires_in=expires_in))) as server:
        tokens = FetchedTokens(fetched(token_url=server.url), TokenClient(transport), AMPLE_S)
        await tokens.token(NOW)
        kept = tokens._kept
        assert kept is not None
        assert holds(kept.expires_at - NOW)
        await tokens.close()


async def test_a_token_that_expired_before_it_says_costs_one_fresh_one_and_no_more(
    transport: Transport, serving: Serving
) -> None:
    """The endpoint lies: its tokens are refused at once, each of them. As delivery does it after a 401."""
    async with serving(answering(good())) as server:
        config = config_of({"type": "jwt", "fetch": fetched(token_url=server.url)})
        authenticator = Authenticator.of(config, TokenClient(transport))
        again = 0
        for second in range(9):
            header = await authenticator.header(webhook_id="m", body=b"", now=NOW + second)
            assert header is not None
            again += authenticator.invalidate(header, now=NOW + second)
        await authenticator.close()
    assert (again, len(server.requests)) == (1, 2)


async def test_an_endpoint_that_rotates_its_keys_is_followed_after_one_401(
    transport: Transport, serving: Serving
) -> None:
    keys = [ec.generate_private_key(ec.SECP256R1()) for _ in range(2)]
    current = 0

    async def issue(peer: Peer) -> None:
        while True:
            await peer.request()
            await peer.send(good(jwt.encode({"sub": "luma"}, keys[current], "ES256", headers={"kid": str(current)})))

    async with serving(issue) as server:
        config = config_of({"type": "jwt", "fetch": fetched(token_url=server.url)})
        authenticator = Authenticator.of(config, TokenClient(transport))
        kids = []
        for current in (0, 1, 1):
            header = await authenticator.header(webhook_id="m", body=b"", now=NOW)
            assert header is not None
            if jwt.get_unverified_header(header[1][7:])["kid"] != str(
                current
            ):  # the receiver knows the newest key only
                assert authenticator.invalidate(header, now=NOW)
                header = await authenticator.header(webhook_id="m", body=b"", now=NOW)
            assert header is not None
            kids.append(jwt.get_unverified_header(header[1][7:])["kid"])
        await authenticator.close()
    assert kids == ["0", "1", "1"]
    assert len(server.requests) == 2


# --- the guard and TLS protect token endpoints as they protect webhooks


@pytest.fixture
async def names() -> AsyncIterator[NameServer]:
    async with NameServer().running() as running:
        yield running


@pytest.mark.parametrize(
    "host", ["169.254.169.254", "10.0.0.1", "[::1]", "[::ffff:10.0.0.1]", "inside.example", "mixed.example"]
)
async def test_a_token_endpoint_inside_the_network_is_not_connected_to(
    opening: Opener, names: NameServer, host: str
) -> None:
    names.zone |= {"inside.example": [["10.0.0.1"]], "mixed.example": [["8.8.8.8", "10.0.0.1"]]}
    async with opening(nameservers=(names.address,)) as transport:
        message = await refusal(transport, f"https://{host}/token")
    if "example" in host:
        assert "has no public address: correct the name" in message
    else:
        assert " not public (" in message
        assert "use a host with public addresses only, or allow it in egress.allow" in message


async def test_a_token_endpoint_that_rebinds_gains_nothing(
    opening: Opener, names: NameServer, serving: Serving
) -> None:
    names.zone["rebind.example"] = [["127.0.0.2"], ["127.0.0.1"]]  # the first is allowed, and no server listens there
    allow = ("127.0.0.2/32",)
    async with serving(answering(good())) as server, opening(nameservers=(names.address,), allow=allow) as transport:
        for again in range(3):
            assert "could not be reached" in await refusal(
                transport, f"https://rebind.example:{server.port}/token", NOW + 100 * again
            )
        assert server.connections == 0


async def test_a_token_endpoint_with_a_wrong_certificate_gets_no_secret(transport: Transport) -> None:
    async with Server(answering(good()), server_context(trustme.CA())).running() as server:
        message = await refusal(transport, server.url)
        assert server.requests == []
    assert "certificate not accepted" in message
    assert message.endswith("trust its CA in egress.ca_bundle"), "the webhook's tls.ca is for its own endpoint only"


async def test_plain_http_to_a_token_endpoint_is_refused(transport: Transport) -> None:
    assert "must begin with https://" in await refusal(transport, "http://127.0.0.1:8080/token")


def test_a_token_endpoint_has_half_of_an_attempt_s_time_at_most() -> None:
    assert TOKEN_TIMEOUT_S <= 5
