"""Checks token requests byte for byte, and the meaning of each answer."""

import base64
import gzip
import json
import zlib
from collections.abc import Callable
from urllib.parse import parse_qs, unquote_plus

import pytest
from hypothesis import given
from hypothesis import strategies as st
from pydantic import ValidationError

from dispatcher.auth.token_answers import MAX_ANSWER, IssuedToken, TokenAnswer, form_of, token_in
from dispatcher.config.names import stripped
from dispatcher.config.secrets import Secret
from dispatcher.errors import TokenUnavailable
from tests.auth.keys import fetched, signed


def answer(status: int = 200, **members: object) -> TokenAnswer:
    return TokenAnswer(status, json.dumps(members).encode())


def refusal(given_answer: TokenAnswer) -> str:
    with pytest.raises(TokenUnavailable) as caught:
        token_in(given_answer, fetched())
    return str(caught.value)


_IDS = st.text(min_size=1, max_size=50).filter(lambda text: text == stripped(text))
"""Texts that the settings accept."""


@given(client_id=_IDS, secret=_IDS)
def test_any_id_and_secret_survive_basic_authentication(client_id: str, secret: str) -> None:
    config = fetched(client_id=client_id, client_secret=Secret(secret.encode()))

    headers = dict(form_of(config, None)[0])

    scheme, _, pair = headers["authorization"].partition(" ")
    sent_id, _, sent_secret = base64.b64decode(pair).decode("ascii").partition(":")
    assert scheme == "Basic"
    assert (unquote_plus(sent_id), unquote_plus(sent_secret)) == (client_id, secret)


def test_client_credentials_ask_with_scope_and_audience() -> None:
    headers, body = form_of(fetched(scope="a b", audience="https://x/?a=1&b"), None)

    assert [name for name, _ in headers] == ["accept", "accept-encoding", "authorization"]
    assert body == b"grant_type=client_credentials&scope=a+b&audience=https%3A%2F%2Fx%2F%3Fa%3D1%26b"


def test_the_jwt_bearer_grant_sends_its_assertion() -> None:
    config = fetched(grant="jwt-bearer", assertion=signed(), client_secret=None)

    headers, body = form_of(config, "a.b.c")

    assert headers == (("accept", "application/json"), ("accept-encoding", "identity"))
    assert parse_qs(body.decode()) == {
        "grant_type": ["urn:ietf:params:oauth:grant-type:jwt-bearer"],
        "assertion": ["a.b.c"],
        "client_id": ["luma"],
    }


@pytest.mark.parametrize(
    ("expires_in", "life_s"),
    [
        (3600, 3600), (3599.5, 3599.5), ("3600", 3600), (86_400, 86_400), (1, 1),
        (None, 300), ("soon", 300), ([], 300), ({}, 300), (True, 300), ("nan", 300), ("", 300),
        (0, 1), (-1, 1), (-1e300, 1), ("-inf", 1), (0.001, 1),
        (86_401, 86_400), (1e300, 86_400), (10**18, 86_400), ("9" * 400, 86_400), ("inf", 86_400),
    ],
)  # fmt: skip
def test_a_false_lifetime_of_a_token_is_bounded(expires_in: object, life_s: float) -> None:
    given_answer = answer(access_token="t", token_type="Bearer", expires_in=expires_in)

    assert token_in(given_answer, fetched()) == IssuedToken("t", life_s)


def test_an_answer_that_says_no_life_is_used_for_five_minutes() -> None:
    assert token_in(answer(access_token="t"), fetched()).life_s == 300


@pytest.mark.parametrize("kind", ["Bearer", "bearer", "BEARER", "BearerToken"])
def test_a_bearer_token_may_be_spelt_as_servers_spell_it(kind: str) -> None:
    assert token_in(answer(access_token="t", token_type=kind), fetched()).value == "t"


@pytest.mark.parametrize(
    "member",
    [
        b'"iat":NaN', b'"iat":Infinity', b'"x":[{"y":-Infinity}]', b'"id":' + b"9" * 400, b'"id":' + b"9" * 6000,
        b'"id":-1e999', b'"name":"\\ud800"', b'"name":"a\tb\nc"', b'"name":"\xe9"', b'"scope":"a","scope":"b"',
        b'"user":' + b'{"a":' * 200 + b"1" + b"}" * 200,
    ],
)  # fmt: skip
def test_a_member_that_is_not_strict_json_does_not_hide_the_token(member: bytes) -> None:
    for body in (b'{"access_token":"t",%s,"expires_in":60}', b'\xef\xbb\xbf{%s,"access_token":"t","expires_in":60}'):
        assert token_in(TokenAnswer(200, body % member), fetched()) == IssuedToken("t", 60)


@pytest.mark.parametrize(
    ("expires_in", "life_s"),
    [(b"NaN", 300), (b"Infinity", 86_400), (b"-Infinity", 1), (b"9" * 400, 86_400), (b"9" * 6000, 86_400)],
)
def test_a_lifetime_that_is_not_strict_json_is_bounded(expires_in: bytes, life_s: float) -> None:
    body = b'{"access_token":"t","expires_in":%s}' % expires_in
    assert token_in(TokenAnswer(200, body), fetched()) == IssuedToken("t", life_s)


@pytest.mark.parametrize(
    ("given_answer", "said"),
    [
        (TokenAnswer(None, detail="connection refused"), "could not be reached: connection refused"),
        (TokenAnswer(None, detail="a\r\nb\x1b[31m"), "could not be reached: a??b?[31m"),
        (TokenAnswer(200, b"<!doctype html><title>Sign in</title>"), "answered 200 with HTML: check that token_url"),
        (TokenAnswer(200, b""), "no JSON object"),
        (TokenAnswer(200, b"\xff\xfe"), "no JSON object"),
        (TokenAnswer(200, b'["token"]'), "no JSON object"),
        (TokenAnswer(200, b"[" * 60_000), "no JSON object"),
        (TokenAnswer(200, b'{"a":' * 12_000), "no JSON object"),
        (TokenAnswer(200, b'{"access_token":"t"} and more'), "no JSON object"),
        (TokenAnswer(200, b"{'access_token':'t'}"), "no JSON object"),
        (TokenAnswer(200, b'{"access_token":"t\xe9"}'), "can't go into a header"),
        (TokenAnswer(200, b" " * MAX_ANSWER), "answered 200 with 64 KiB or more: check that token_url"),
        (TokenAnswer(503, b"<html>" + b"x" * MAX_ANSWER), "answered 503: try again later"),
        (TokenAnswer(401, b"x" * MAX_ANSWER), "answered 401: check client_id and client_secret"),
        (TokenAnswer(302, b"x" * MAX_ANSWER), "answered 302, a redirect, which is never followed"),
        (TokenAnswer(503, b"<html>"), "answered 503: try again later"),
        (TokenAnswer(429), "answered 429: try again later"),
        (TokenAnswer(401, b"nope"), "answered 401: check client_id and client_secret"),
        (TokenAnswer(404, b"<html>"), "answered 404: check token_url"),
        (TokenAnswer(302), "a redirect, which is never followed"),
        (answer(401, error="invalid_client"), "answered 401 (invalid_client): check client_id and client_secret"),
        (answer(400, error="invalid_grant"), "(invalid_grant): check the assertion's kid, issuer"),
        (answer(400, error="invalid_scope", error_description="say-nothing"), "(invalid_scope): check scope"),
        (answer(200, error="invalid_request"), "answered 200 (invalid_request)"),
        (answer(400, error="account_locked"), "(account_locked): see its documentation"),
        (answer(400, error="client-secret is wrong"), "answered 400: check token_url"),
        (answer(400, error=["invalid_client"]), "answered 400: check token_url"),
        (answer(token="t"), "without an access_token"),
        (answer(access_token=""), "without an access_token"),
        (answer(access_token=7), "without an access_token"),
        (answer(access_token="t", token_type="DPoP"), "didn't return a bearer token"),
        (answer(access_token="t", token_type=["Bearer"]), "didn't return a bearer token"),
        (answer(access_token="t" * 8193), "up to 8,192 visible"),
    ],
)
def test_a_refusal_says_what_came_back_and_what_to_change(given_answer: TokenAnswer, said: str) -> None:
    message = refusal(given_answer)

    assert message.startswith("token endpoint login.luma.example ")
    assert said in message
    assert "say-nothing" not in message
    assert "client-secret" not in message
    assert message.isprintable()


WHOLE = b'{"access_token": "a\\"b", "expires_in": 60, "scope": {"x": ["y", "z"]}}'


@pytest.mark.parametrize("length", range(1, len(WHOLE)))
def test_an_answer_that_breaks_off_is_named_as_such(length: int) -> None:
    message = refusal(TokenAnswer(200, WHOLE[:length]))

    assert message.endswith("answered 200 with no JSON object but the beginning of one: the answer broke off")


@pytest.mark.parametrize(
    "body", [b"", b"ok", b"token", b'"', b"[", b"{'access_token': 1}", b'{"access_token": }', b"{} {}"]
)
def test_another_answer_did_not_break_off(body: bytes) -> None:
    assert "broke off" not in refusal(TokenAnswer(200, body))


@pytest.mark.parametrize("character", ["\r", "\n", "\0", " ", "\t", "\x7f", "é", "\u2028", "\x1b"])
def test_a_token_that_would_break_the_header_is_refused(character: str) -> None:
    assert "can't go into a header" in refusal(answer(access_token=f"abc{character}x-injected: 1"))


def test_an_error_code_that_echoes_the_secret_is_not_repeated() -> None:
    config = fetched(client_secret=Secret(b"correct_horse"))

    with pytest.raises(TokenUnavailable) as caught:
        token_in(answer(400, error="bad_correct_horse"), config)

    assert "correct_horse" not in str(caught.value)


json_values = st.recursive(
    st.none() | st.booleans() | st.integers() | st.floats() | st.text(max_size=20),
    lambda inner: st.lists(inner, max_size=3) | st.dictionaries(st.text(max_size=8), inner, max_size=3),
    max_leaves=6,
)
members = st.sampled_from(["access_token", "token_type", "expires_in", "error", "scope"])


@given(
    status=st.one_of(st.none(), st.integers(100, 999)),
    body=st.binary(max_size=200) | st.dictionaries(members, json_values).map(lambda value: json.dumps(value).encode()),
)
def test_any_answer_is_a_usable_token_or_a_refusal(status: int | None, body: bytes) -> None:
    try:
        issued = token_in(TokenAnswer(status, body), fetched())
    except TokenUnavailable:
        return
    assert issued.value
    assert all("\x21" <= character <= "\x7e" for character in issued.value)
    assert 1 <= issued.life_s <= 86_400


@pytest.mark.parametrize("empty", [None, "", False, 0, [], {}])
@pytest.mark.parametrize("member", ["error", "error_description", "error_uri", "token_type", "scope", "refresh_token"])
def test_an_empty_member_beside_a_token_is_nothing(member: str, empty: object) -> None:
    given_answer = answer(**{"access_token": "t", "expires_in": 60, member: empty})

    assert token_in(given_answer, fetched()) == IssuedToken("t", 60)


@pytest.mark.parametrize("error", ["invalid_client", {"code": 5}, ["no"], True, 1])
def test_an_error_beside_a_token_is_an_error(error: object) -> None:
    assert "answered 200" in refusal(answer(access_token="t", error=error))


def test_a_byte_order_mark_before_the_answer_is_ignored() -> None:
    plain = answer(access_token="t")

    assert token_in(TokenAnswer(200, b"\xef\xbb\xbf" + plain.body), fetched()).value == "t"


@pytest.mark.parametrize("status", [200, 400, 503])
@pytest.mark.parametrize(
    ("compress", "name"),
    [(gzip.compress, "gzip"), (zlib.compress, "deflate"), (lambda b: zlib.compress(b, 9), "deflate")],
)
def test_a_compressed_answer_is_named_as_such(compress: Callable[[bytes], bytes], name: str, status: int) -> None:
    message = refusal(TokenAnswer(status, compress(answer(access_token="t").body)))

    assert f"answered {status} compressed ({name})" in message
    assert "accept-encoding: identity" in message


def test_the_client_can_be_named_in_the_form() -> None:
    config = fetched(client_auth="post", client_secret=Secret(b"se cret&"), scope="a")

    headers, body = form_of(config, None)

    assert "authorization" not in dict(headers)
    assert parse_qs(body.decode()) == {
        "grant_type": ["client_credentials"], "client_id": ["luma"], "client_secret": ["se cret&"], "scope": ["a"],
    }  # fmt: skip


def test_further_parameters_are_sent() -> None:
    config = fetched(parameters={"audience": "https://api.luma.example", "resource": "a b", "empty": ""})

    form = parse_qs(form_of(config, None)[1].decode(), keep_blank_values=True)

    assert form == {
        "grant_type": ["client_credentials"], "audience": ["https://api.luma.example"], "resource": ["a b"], "empty": [""],
    }  # fmt: skip


@pytest.mark.parametrize("name", ["grant_type", "assertion", "client_id", "client_secret", "scope", "client_assertion"])
def test_a_parameter_never_replaces_what_the_grant_sends(name: str) -> None:
    with pytest.raises(ValidationError, match="can't be set here"):
        fetched(parameters={name: "x"})


def test_an_audience_is_given_once() -> None:
    with pytest.raises(ValidationError, match="audience is given twice"):
        fetched(audience="a", parameters={"audience": "b"})
