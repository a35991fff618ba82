"""Hostile requests, authenticated and not: no client chooses how long a response or a computation is."""

import asyncio
import gzip
import io
import json
import threading
import zlib
from collections.abc import AsyncIterator
from typing import Any

import pytest

from dispatcher.console import request_body
from dispatcher.console.api import route
from dispatcher.console.api_errors import ApiError
from dispatcher.console.request_body import MAX_BODY, MAX_FIELDS, MAX_KEPT_BODY, MAX_PUBLIC_BODY, MAX_VALUES
from dispatcher.errors import MAX_PROBLEMS
from dispatcher.stores.sql import repository
from tests.console.api.conftest import Client, Console
from tests.console.api.fakes import LUMA
from tests.stores_sql.examples import plain_draft

pytestmark = pytest.mark.parametrize("empty_url", ["sqlite"], indirect=True)  # no database has a part in this

LONGEST_ANSWER = 64 * 1024
FORM = {"Content-Type": "application/x-www-form-urlencoded"}
JSON = {"Content-Type": "application/json"}


async def _posted(client: Client, path: str, body: Any, headers: dict[str, str]) -> Any:
    data = io.BytesIO(body if isinstance(body, bytes) else json.dumps(body).encode())
    answer = await client.post(path, data=data, headers=headers)
    assert len(answer.text) <= LONGEST_ANSWER
    assert answer.status != 500, answer.text
    return answer


@pytest.mark.parametrize("path", ["/api/v1/webhooks", "/api/v1/webhooks/test", "/api/v1/webhooks/preview"])
async def test_a_hundred_and_fifty_thousand_unknown_keys_are_too_many(console: Console, path: str) -> None:
    body = {**plain_draft(*LUMA), **{f"{number:06}": 0 for number in range(150_000)}}
    answer = await _posted(await console.client(), path, body, JSON)
    assert (answer.status, answer.json["type"]) == (413, "urn:dispatcher:problem:too_large")


async def test_twenty_mistakes_are_listed_and_the_others_counted(console: Console) -> None:
    client, most = await console.client(), MAX_VALUES - 100
    drafts: list[dict[str, Any]] = [
        {**plain_draft(*LUMA), **{f"k{number:06}": 0 for number in range(most)}},
        plain_draft(*LUMA, headers={f"X {number:06}": "x" for number in range(most)}),
        plain_draft(*LUMA, headers={f"X-{number:06}": 7 for number in range(most)}),
        plain_draft(*LUMA, campaigns=list(range(999))),
        plain_draft(*LUMA, events=[[]] * 49),
        plain_draft(*LUMA, channels=[{}] * most),
        {"a" * 100_000: 1, "b" * 100_000: 2, "c.d" * 100_000: 3},
    ]
    for draft in drafts:
        answer = await _posted(client, "/api/v1/webhooks", draft, JSON)
        assert (answer.status, answer.json["type"]) == (422, "urn:dispatcher:problem:invalid")
        errors = answer.json["errors"]
        assert 1 <= len(errors) <= MAX_PROBLEMS + 1
        assert all(len(error["field"]) < 300 and len(error["pointer"]) < 300 for error in errors)
        if len(errors) > MAX_PROBLEMS:
            assert "more problems: correct these first" in errors[-1]["detail"]
    first = (await _posted(client, "/api/v1/webhooks", drafts[0], JSON)).json["errors"]
    assert len(first) == MAX_PROBLEMS + 1
    assert first[-1]["detail"] == f"and {most - MAX_PROBLEMS:,} more problems: correct these first"


@pytest.mark.parametrize(
    "body", [b"[" * 500_000, b'{"a":' * 300_000, b"[" * 1000 + b"]" * 1000, b"1" * 1_000_000, b"9e999999"]
)
async def test_a_document_of_another_kind_is_refused_in_few_words(console: Console, body: bytes) -> None:
    answer = await _posted(await console.client(), "/api/v1/webhooks", body, JSON)
    assert answer.status in (400, 413, 422)


async def test_an_integer_that_would_be_rounded_is_named(console: Console) -> None:
    claims = '{"a": [null, 18446744073709551615, 1e30, {"b": 18446744073709551616}], "c": -9223372036854775809}'
    auth = {"type": "jwt", "sign": {"algorithm": "HS256", "key": {"value": "k" * 32}, "claims": "CLAIMS"}}
    body = json.dumps(plain_draft(*LUMA, auth=auth)).replace('"CLAIMS"', claims).encode()
    answer = await _posted(await console.client(), "/api/v1/webhooks", body, JSON)
    assert answer.status == 422
    pointers = {one["pointer"]: one["detail"] for one in answer.json["errors"]}
    assert pointers.keys() == {"/auth/sign/claims/a/3/b", "/auth/sign/claims/c"}
    assert all("more than 64 bits" in detail for detail in pointers.values())
    body = body.replace(b"18446744073709551616", b"1").replace(b"-9223372036854775809", b"1")
    assert (await _posted(await console.client(), "/api/v1/webhooks", body, JSON)).status == 201
    deep = b'{"a": 1e30, "b": ' + b"[" * 1000 + b"9" * 300 + b"]" * 1000 + b"}"
    assert (await _posted(await console.client(), "/api/v1/webhooks", deep, JSON)).status == 422


STEPS = {
    "JSON is parsed": (request_body, "_json"),
    "the model is checked": (route, "_validated"),
    "the webhook is checked": (repository, "resolve_draft"),
}


@pytest.mark.parametrize("step", STEPS)
async def test_each_costly_step_of_a_large_body_runs_beside_the_event_loop(
    console: Console, monkeypatch: pytest.MonkeyPatch, step: str
) -> None:
    """Whatever a step costs, other requests go on meanwhile."""
    module, name = STEPS[step]
    real, beside = getattr(module, name), []

    def watched(*arguments: Any) -> Any:
        try:
            asyncio.get_running_loop()
        except RuntimeError:
            beside.append(True)
        else:
            beside.append(False)
        return real(*arguments)

    monkeypatch.setattr(module, name, watched)
    client = await console.client()
    for draft in (
        plain_draft(*LUMA, name="x" * 1_900_000),
        plain_draft(*LUMA, headers={f"X {number:06}": "x" for number in range(MAX_VALUES - 100)}),
        {**plain_draft(*LUMA), **{f"k{number:06}": 0 for number in range(MAX_VALUES - 100)}},
    ):
        await _posted(client, "/api/v1/webhooks", draft, JSON)
    assert beside == [True] * 3


async def test_a_large_form_is_parsed_beside_the_event_loop(console: Console, monkeypatch: pytest.MonkeyPatch) -> None:
    beside: list[bool] = []
    real = request_body._form

    def watched(body: bytes) -> Any:
        beside.append(threading.current_thread() is not threading.main_thread())
        return real(body)

    monkeypatch.setattr(request_body, "_form", watched)
    await _posted(await console.client(), "/webhooks/new", b"name=" + b"x" * 1_900_000, FORM)
    await _posted(console.stranger(), "/sign-in", b"token=x", FORM)
    assert beside[-1:] == [False]
    assert all(beside[:-1])


@pytest.mark.parametrize(
    ("body", "headers", "status"),
    [
        (b"no gzip", FORM | {"Content-Encoding": "gzip"}, 415),
        (gzip.compress(b"token=x"), FORM | {"Content-Encoding": "gzip"}, 415),
        (gzip.compress(b"token=x")[:-4], FORM | {"Content-Encoding": "gzip"}, 415),
        (zlib.compress(bytes(10_000_000)), FORM | {"Content-Encoding": "deflate"}, 415),
        (b"x", FORM | {"Content-Encoding": "br"}, 415),
        (b"x", FORM | {"Content-Encoding": "gzip, identity"}, 415),
        (b"token=x", FORM | {"Content-Encoding": "identity"}, 401),
        (b"token=x", {"Content-Type": "application/x-www-form-urlencoded; charset=nonsense"}, 401),
        (b"token=\xff\xfe", FORM, 400),
        (b"token=%ff%fe%00", FORM, 401),
        (b"token=" + "\u2603".encode() * 3000, FORM, 401),
        (b"&" * MAX_PUBLIC_BODY, FORM, 413),
        (b"a=b&" * MAX_FIELDS, FORM, 413),
        (b"token=" + b"x" * MAX_KEPT_BODY, FORM, 413),
        (b"x" * (MAX_BODY + 1), FORM, 413),
        (b"--x\r\n\r\n", {"Content-Type": "multipart/form-data; boundary=x"}, 401),
        (b"--x\r\n\r\n", {"Content-Type": "multipart/form-data"}, 401),
        (b"{}", {"Content-Type": "application/json"}, 401),
        (b"token=x", {"Content-Type": "\xe9;;;=,"}, 401),
    ],
)
async def test_any_body_at_sign_in_is_read_or_refused(
    console: Console, body: bytes, headers: dict[str, str], status: int
) -> None:
    answer = await _posted(console.stranger(), "/sign-in", body, headers)
    assert answer.status == status


@pytest.mark.parametrize("data", [b"ZZ\r\nxx\r\n", b"5\r\ntok", b"-5\r\n", b"5\r\ntoken0\r\n"])
async def test_a_body_that_is_framed_wrongly_is_a_bad_request(console: Console, data: bytes) -> None:
    reader, writer = await asyncio.open_connection("127.0.0.1", console.server.port)
    head = b"POST /sign-in HTTP/1.1\r\nHost: x\r\nTransfer-Encoding: chunked\r\nConnection: close\r\n"
    writer.write(head + b"Content-Type: application/x-www-form-urlencoded\r\n\r\n" + data)
    writer.write_eof()
    answer = await reader.read()
    writer.close()
    assert b" 500 " not in answer.partition(b"\r\n")[0]


async def test_a_form_field_with_a_number_of_five_thousand_digits_is_refused(console: Console) -> None:
    body = b"headers." + b"1" * 5000 + b".name=x"
    answer = await _posted(await console.client(), "/", body, FORM)
    assert answer.status in (303, 401, 403)


@pytest.mark.parametrize("chunked", [False, True], ids=["with its length", "in chunks"])
async def test_a_body_of_exactly_the_limit_is_read_and_one_byte_more_is_not(console: Console, chunked: bool) -> None:
    async def pieces(body: bytes) -> AsyncIterator[bytes]:
        for start in range(0, len(body), 65536):
            yield body[start : start + 65536]

    async def status(client: Client, path: str, body: bytes, headers: dict[str, str]) -> int:
        data = pieces(body) if chunked else io.BytesIO(body)
        return int((await client.post(path, data=data, headers=headers)).status)

    client, stranger = await console.client(), console.stranger()
    draft = json.dumps(plain_draft(*LUMA, name="NAME")).encode()
    for size, expected in ((MAX_BODY, 422), (MAX_BODY + 1, 413)):
        body = draft.replace(b"NAME", b"x" * (size - len(draft) + 4))
        assert len(body) == size
        assert await status(client, "/api/v1/webhooks", body, JSON) == expected
    for most, path in ((MAX_PUBLIC_BODY, "/sign-in"), (MAX_KEPT_BODY, "/sign-in?kept=1")):
        for size, expected in ((most, 401), (most + 1, 413)):
            assert await status(stranger, path, b"token=" + b"x" * (size - 6), FORM) == expected


@pytest.mark.usefixtures("empty_url")
def test_the_numbers_of_values_and_fields_have_exact_limits() -> None:
    assert request_body._json(b"[" + b"0," * (MAX_VALUES - 2) + b"0]")
    nested = json.dumps({f"k{number}": [number] for number in range((MAX_VALUES - 1) // 2)}).encode()
    assert request_body._json(nested)
    for too_many in (b"[" + b"0," * (MAX_VALUES - 1) + b"0]", nested[:-1] + b', "a": [1, 2, 3]}'):
        with pytest.raises(ApiError) as caught:
            request_body._json(too_many)
        assert caught.value.status == 413
    assert len(request_body._form(b"&".join([b"a=b"] * MAX_FIELDS))) == MAX_FIELDS
    with pytest.raises(ApiError):
        request_body._form(b"&".join([b"a=b"] * (MAX_FIELDS + 1)))
