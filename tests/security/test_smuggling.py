"""Requests and answers that try to mean two things at once, against both HTTP clients.

Outwards, nothing that a tenant, a token endpoint or an event says may add a line to a request. Inwards, bytes behind
an answer must never be taken for the answer to the next request, which may be another tenant's: every row is
tried twice on what would be the same connection. What single answers mean is in tests/transport/test_conformance.
"""

import asyncio
from typing import Any

import orjson
import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from dispatcher.auth.authenticator import Authenticator
from dispatcher.auth.signatures import Signer
from dispatcher.auth.token_answers import TokenAnswer, token_in
from dispatcher.config.secrets import Secret
from dispatcher.config.webhooks import Signing
from dispatcher.contract.events import DeliveryEvent, read_event
from dispatcher.contract.feedback import encode_feedback
from dispatcher.contract.outcomes import Attempt, FailureReason
from dispatcher.contract.records import AssignmentEpoch, ProcessingAttempt
from dispatcher.delivery.pending_delivery import PendingDelivery, request_headers
from dispatcher.delivery.permits import Priority
from dispatcher.errors import TokenUnavailable, UnreadableEvent
from dispatcher.transport import Endpoint, Transport
from dispatcher.transport.request_head import HeaderBlock
from tests.auth.keys import NOW, WHSEC, WHSK, fetched, signed
from tests.auth.keys import webhook as config_of
from tests.transport.conftest import Serving, post_to
from tests.transport.servers import Peer
from tests.unit.examples import ORIGIN, email_event, record, webhook

POISON = b"HTTP/1.1 200 OK\r\nretry-after: 666\r\ncontent-length: 6\r\n\r\npoison"

AMBIGUOUS = {
    "length and chunked": b"HTTP/1.1 503 x\r\ncontent-length: 5\r\ntransfer-encoding: chunked\r\n\r\n0\r\n\r\n",
    "chunked and length": b"HTTP/1.1 503 x\r\ntransfer-encoding: chunked\r\ncontent-length: 5\r\n\r\n0\r\n\r\n",
    "two lengths": b"HTTP/1.1 503 x\r\ncontent-length: 0\r\ncontent-length: 60\r\n\r\n",
    "lengths in a list": b"HTTP/1.1 503 x\r\ncontent-length: 0, 60\r\n\r\n",
    "a length with a sign": b"HTTP/1.1 503 x\r\ncontent-length: +0\r\n\r\n",
    "a length in hex": b"HTTP/1.1 503 x\r\ncontent-length: 0x0\r\n\r\n",
    "a length with a space": b"HTTP/1.1 503 x\r\ncontent-length: 0 0\r\n\r\n",
    "an empty length": b"HTTP/1.1 503 x\r\ncontent-length:\r\n\r\n",
    "chunked twice": b"HTTP/1.1 503 x\r\ntransfer-encoding: chunked\r\ntransfer-encoding: chunked\r\n\r\n0\r\n\r\n",
    "chunked, then identity": b"HTTP/1.1 503 x\r\ntransfer-encoding: chunked, identity\r\n\r\n0\r\n\r\n",
    "an unknown coding": b"HTTP/1.1 503 x\r\ntransfer-encoding: xchunked\r\n\r\n0\r\n\r\n",
    "a tab before chunked": b"HTTP/1.1 503 x\r\ntransfer-encoding:\tchunked\r\ncontent-length: 5\r\n\r\n0\r\n\r\n",
    "a vertical tab in chunked": b"HTTP/1.1 503 x\r\ntransfer-encoding: \x0bchunked\r\n\r\n0\r\n\r\n",
    "a space before the colon": b"HTTP/1.1 503 x\r\ncontent-length : 60\r\n\r\n",
    "a folded length": b"HTTP/1.1 503 x\r\ncontent-length:\r\n 0\r\n\r\n",
    "a folded line first": b"HTTP/1.1 503 x\r\n content-length: 0\r\n\r\n",
    "bare line feeds": b"HTTP/1.1 503 x\ncontent-length: 0\n\n",
    "a bare carriage return": b"HTTP/1.1 503 x\r\nx: y\rcontent-length: 60\r\ncontent-length: 0\r\n\r\n",
    "a carriage return before the end": b"HTTP/1.1 503 x\r\ncontent-length: 0\r\n\r\r\n",
    "a NUL in a value": b"HTTP/1.1 503 x\r\nx: \0\r\ncontent-length: 0\r\n\r\n",
    "chunks that are too long": b"HTTP/1.1 503 x\r\ntransfer-encoding: chunked\r\n\r\n1\r\nabc\r\n0\r\n\r\n",
    "a chunk size with an underscore": b"HTTP/1.1 503 x\r\ntransfer-encoding: chunked\r\n\r\n1_0\r\na\r\n0\r\n\r\n",
    "a chunk size of 2 to the 64th": b"HTTP/1.1 503 x\r\ntransfer-encoding: chunked\r\n\r\n10000000000000000\r\na\r\n0\r\n\r\n",
    "a chunk that ends in a line feed": b"HTTP/1.1 503 x\r\ntransfer-encoding: chunked\r\n\r\n1\na\n0\n\n",
    "a line feed in a chunk extension": b"HTTP/1.1 503 x\r\ntransfer-encoding: chunked\r\n\r\n1;a\nb\r\na\r\n0\r\n\r\n",
    "framing in a trailer": b"HTTP/1.1 503 x\r\ntransfer-encoding: chunked\r\n\r\n0\r\ncontent-length: 60\r\n\r\n",
    "a body after 204": b"HTTP/1.1 204 x\r\ncontent-length: 0\r\n\r\n",
    "a chunked 204": b"HTTP/1.1 204 x\r\ntransfer-encoding: chunked\r\n\r\n",
    "a 304 with a length": b"HTTP/1.1 304 x\r\ncontent-length: 60\r\n\r\n",
    "HTTP/0.9": b"hello\r\n",
    "HTTP/1.0 that wants to stay": b"HTTP/1.0 503 x\r\nconnection: keep-alive\r\ncontent-length: 0\r\n\r\n",
    "an interim answer with a body": b"HTTP/1.1 103 x\r\ncontent-length: 60\r\n\r\nHTTP/1.1 503 x\r\ncontent-length: 0\r\n\r\n",
    "an upgrade": b"HTTP/1.1 101 x\r\nupgrade: h2c\r\nconnection: upgrade\r\n\r\n",
    "an HTTP/2 preface": b"PRI * HTTP/2.0\r\n\r\nSM\r\n\r\n",
}
"""Answers that two readers could end at different places, none of them with status 200."""


@pytest.mark.parametrize("name", AMBIGUOUS)
async def test_bytes_behind_an_ambiguous_answer_never_answer_another_request(
    transport: Transport, serving: Serving, name: str
) -> None:
    """The poison comes in the same bytes, and again a moment later; only the script's own second answer is 202."""
    accepted = b"HTTP/1.1 202 x\r\ncontent-length: 0\r\n\r\n"
    first: Attempt | None = None

    async def script(peer: Peer) -> None:
        await peer.request()
        if first is not None:
            await peer.send(accepted)
            await peer.until_closed()
            return
        await peer.send(AMBIGUOUS[name] + POISON)
        await asyncio.sleep(0.03)
        await peer.send(POISON)
        await peer.request()  # the next request on this connection gets the poison
        await peer.send(POISON)
        await peer.until_closed()

    async with serving(script) as server:
        first = await transport.post(post_to(server.url, keep_body=64, timeout_s=0.4))
        await asyncio.sleep(0.06)
        second = await transport.post(post_to(server.url, keep_body=64))
    assert first.status != 200, "the poison was taken for the answer"
    assert (first.retry_after, first.status in (None, 503, 204, 304)) == (None, True)
    assert (second.status, second.reused, second.retry_after) == (202, False, None), "the connection was used again"


@pytest.mark.parametrize("line", [b"\r\n", b"\n", b"\r", b"\0"])
async def test_a_header_of_an_answer_that_holds_a_line_is_kept_as_no_line(
    transport: Transport, serving: Serving, line: bytes
) -> None:
    async def script(peer: Peer) -> None:
        await peer.request()
        await peer.send(
            b"HTTP/1.1 503 x\r\nretry-after: 1" + line + b"webhook-delivery: disable\r\ncontent-length: 0\r\n\r\n"
        )
        await peer.until_closed()

    async with serving(script) as server:
        attempt = await transport.post(post_to(server.url))
    for kept in (attempt.retry_after or "", attempt.webhook_delivery or "", attempt.detail):
        assert kept.isprintable()
    assert attempt.failure is FailureReason.PROTOCOL or attempt.status == 503


# --- what goes out: values that come from elsewhere than the configuration

texts = st.one_of(
    st.text(max_size=30), st.text("ab\r\n\0: ", max_size=20), st.just("x\r\nhost: evil\r\n\r\nGET / HTTP/1.1")
)
OURS = {"host", "content-type", "user-agent", "content-length", "webhook-id", "webhook-timestamp", "webhook-attempt"}
OURS |= {"webhook-event-time", "webhook-signature", "traceparent", "authorization"}


def head_of(event: DeliveryEvent, token: tuple[str, str] | None) -> bytes:
    """The head of the request that would be sent for this event."""
    about = webhook(signing=Signing(secrets=[Secret(WHSEC.encode()), Secret(WHSK.encode())]))
    parcel = PendingDelivery.of(
        event, about, encode_feedback(event, 1), 0, Priority.NEW, ProcessingAttempt(AssignmentEpoch())
    )
    headers = request_headers(parcel, 1, NOW, Signer.of(about.config.signing), token)
    return HeaderBlock(Endpoint.of(about.config)).render("application/json", len(parcel.body), tuple(headers))


@given(texts, texts, texts, st.binary(max_size=60), texts)
@settings(max_examples=600, suppress_health_check=list(HealthCheck))
def test_no_event_and_no_record_header_can_add_a_line_to_a_request(
    event_id: str, timestamp: str, request_id: str, traceparent: bytes, sandbox: str
) -> None:
    document = email_event(_id=event_id, timestamp=timestamp, requestId=request_id)
    document["header"]["sandbox"] = {"name": sandbox}
    try:
        value = orjson.dumps(document)
        event = read_event(record(value, {"traceparent": traceparent}), ORIGIN)
    except (UnreadableEvent, orjson.JSONEncodeError):
        return
    assert isinstance(event, DeliveryEvent)
    lines = head_of(event, ("authorization", "Bearer x")).decode("ascii").split("\r\n")
    assert {line.partition(":")[0] for line in lines[1:-2]} <= OURS
    assert lines[-2:] == ["", ""]
    assert not any("\r" in line or "\n" in line or "\0" in line for line in lines)


@given(st.dictionaries(st.sampled_from(["access_token", "token_type", "expires_in"]), texts))
@settings(max_examples=600)
def test_no_token_endpoint_can_add_a_line_to_a_request(answer: dict[str, str]) -> None:
    try:
        body = orjson.dumps({"access_token": "t", **answer})
        issued = token_in(TokenAnswer(200, body), fetched())
    except (TokenUnavailable, orjson.JSONEncodeError):
        return
    event = read_event(record(email_event()), ORIGIN)
    assert isinstance(event, DeliveryEvent)
    lines = head_of(event, ("authorization", f"Bearer {issued.value}")).decode("ascii").split("\r\n")
    assert f"authorization: Bearer {issued.value}" in lines
    assert len(lines) == len(head_of(event, ("authorization", "Bearer t")).decode().split("\r\n"))


@given(kid=texts, issuer=texts, subject=texts, audience=texts, claims=st.dictionaries(texts, texts, max_size=3))
@settings(max_examples=300, suppress_health_check=list(HealthCheck))
def test_no_claim_can_add_a_line_to_a_request(**texts_of_the_tenant: Any) -> None:
    try:
        token = signed(**texts_of_the_tenant)
        header = Authenticator.of(config_of({"type": "jwt", "sign": token}), None).cached_header(NOW)  # type: ignore[arg-type]
    except ValueError:
        return
    assert header is not None
    assert header[1].isascii()
    assert header[1].isprintable()
    assert " " not in header[1].removeprefix("Bearer ")
