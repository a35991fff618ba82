"""The receiver of the demo and of tests: what it insists on, how it answers, what it writes down."""

import asyncio
import hashlib
import json
import ssl
import threading
import time
from collections.abc import AsyncIterator, Iterator, Mapping
from datetime import UTC, datetime
from pathlib import Path

import aiohttp
import jwt
import pytest
from cryptography.hazmat.primitives.asymmetric import ec
from standardwebhooks import Webhook as StandardWebhook

from dispatcher.demo.behaviours import Behaviour, ReceiverAnswer
from dispatcher.demo.checks import ArrivalCheck, DeliveryCheck, HeaderCheck, JwtCheck, SignatureCheck
from dispatcher.demo.child_process import ChildProcess
from dispatcher.demo.ledger import Arrival, EndpointTally, Ledger
from dispatcher.demo.receiver import DemoEndpoint, Receiver
from tests.demo.behaviours import Flaky, HangsUp, Outage
from tests.published import DATA

KEY = ec.generate_private_key(ec.SECP256R1())
SECRET = "whsec_MfKQ9r8GKYqrTwjUPD8ILPZIo2LaLaSw"
JWT = JwtCheck(KEY.public_key(), "ES256", issuer="us", audience="them", kid="k1", claims={"tenant": "luma"})
DELIVERY = DeliveryCheck("myImsOrg", frozenset({"bounce"}), frozenset({"email"}))


@pytest.fixture(scope="module")
def receiver() -> Iterator[Receiver]:
    """Yields one server for the module; each test sets endpoints with names of its own."""
    with Receiver({}) as running:
        yield running


@pytest.fixture
async def session(receiver: Receiver) -> AsyncIterator[aiohttp.ClientSession]:
    """Yields a client that trusts only the receiver's CA."""
    tls = ssl.create_default_context(cadata=receiver.ca_pem.decode())
    async with aiohttp.ClientSession(connector=aiohttp.TCPConnector(ssl=tls)) as client:
        yield client


async def post(
    session: aiohttp.ClientSession, url: str, headers: Mapping[str, str] | None = None, body: bytes = b"{}"
) -> int:
    given = {"webhook-id": "msg_1", "webhook-attempt": "1", **(headers or {})}
    async with session.post(url, data=body, headers=given) as answer:
        return answer.status


async def test_each_attempt_is_in_the_ledger_with_its_answer(
    receiver: Receiver, session: aiohttp.ClientSession
) -> None:
    receiver.set("flaky", DemoEndpoint(Flaky(failures=2)))
    answers = [await post(session, receiver.url("flaky"), {"webhook-attempt": str(n)}) for n in (1, 2, 3, 4)]

    assert answers == [503, 503, 200, 200]
    seen = receiver.ledger.attempts("flaky", "msg_1")
    assert [(one.attempt, one.status) for one in seen] == [(1, 503), (2, 503), (3, 200), (4, 200)]
    assert receiver.ledger.tally("flaky") == EndpointTally(requests=4, accepted=1, twice=1)
    assert receiver.ledger.accepted()["flaky", "msg_1"] == 2


async def test_a_path_without_an_endpoint_is_not_found(receiver: Receiver, session: aiohttp.ClientSession) -> None:
    assert await post(session, receiver.url("nobody")) == 404
    assert receiver.ledger.tally("nobody") == EndpointTally(requests=1)


async def test_a_closed_connection_does_not_count_as_an_answer(
    receiver: Receiver, session: aiohttp.ClientSession
) -> None:
    receiver.set("rude", DemoEndpoint(HangsUp()))
    with pytest.raises(aiohttp.ClientConnectionError):
        await post(session, receiver.url("rude"))
    assert [one.status for one in receiver.ledger.attempts("rude", "msg_1")] == [0]


async def test_a_slow_endpoint_does_not_delay_the_others(receiver: Receiver, session: aiohttp.ClientSession) -> None:
    arrived, released = threading.Event(), threading.Event()  # the receiver is a thread

    class Held:
        async def answer(self, arrival: Arrival) -> ReceiverAnswer:
            arrived.set()
            while not released.is_set():
                await asyncio.sleep(0.01)
            return ReceiverAnswer(202)

    receiver.set("slow", DemoEndpoint(Held()))
    receiver.set("fast", DemoEndpoint())
    async with asyncio.timeout(60), asyncio.TaskGroup() as group:
        slow = group.create_task(post(session, receiver.url("slow")))
        assert await asyncio.to_thread(arrived.wait, 60)
        assert await post(session, receiver.url("fast")) == 200
        assert not slow.done()
        released.set()
    assert await slow == 202


async def test_a_test_can_bring_its_own_behaviour(receiver: Receiver, session: aiohttp.ClientSession) -> None:
    class Echo:
        async def answer(self, arrival: Arrival) -> ReceiverAnswer:
            return ReceiverAnswer(201, {"x-length": str(len(arrival.body))})

    receiver.set("echo", DemoEndpoint(Echo()))
    async with session.post(receiver.url("echo"), data=b"12345") as answer:
        assert (answer.status, answer.headers["x-length"]) == (201, "5")


async def test_a_broken_rule_is_a_violation_and_never_accepted(
    receiver: Receiver, session: aiohttp.ClientSession
) -> None:
    receiver.set("strict", DemoEndpoint(checks=(HeaderCheck({"X-Environment": "prod"}),)))
    before = receiver.ledger.violation_count

    assert await post(session, receiver.url("strict")) == 400
    assert await post(session, receiver.url("strict"), {"x-environment": "prod"}) == 200
    assert receiver.ledger.violation_count == before + 1
    assert "X-Environment" in str(receiver.ledger.violations[-1])
    assert receiver.ledger.tally("strict") == EndpointTally(requests=2, accepted=1)


async def test_the_ledger_can_be_waited_for(receiver: Receiver, session: aiohttp.ClientSession) -> None:
    receiver.set("later", DemoEndpoint())
    with pytest.raises(TimeoutError, match="accepted in"):
        await receiver.ledger.until(lambda ledger: ledger.tally("later").accepted == 1, timeout_s=0.05)
    await post(session, receiver.url("later"))
    await receiver.ledger.until(lambda ledger: ledger.tally("later").accepted == 1, timeout_s=60)


async def test_a_stranger_to_its_ca_is_not_served(receiver: Receiver) -> None:
    async with aiohttp.ClientSession() as client:
        with pytest.raises(aiohttp.ClientConnectorCertificateError):
            await post(client, receiver.url("fast"))


def test_its_port_is_free_again_and_the_same_after_a_restart() -> None:
    receiver = Receiver({})
    for _ in range(2):
        with receiver:
            url = receiver.url("x")
    assert receiver.url("x") == url


def test_a_port_in_use_is_reported_to_the_caller(receiver: Receiver) -> None:
    with pytest.raises(OSError, match="in use"), Receiver({}, port=receiver.port):
        pass


# Behaviours


async def statuses(behaviour: Behaviour, moments: list[float]) -> list[int]:
    return [(await behaviour.answer(arrived({}, at=moment))).status for moment in moments]


async def test_an_outage_begins_after_some_requests_and_ends_by_itself() -> None:
    assert await statuses(Outage(for_s=5, after=2), [0, 0, 10, 14.9, 15, 16]) == [200, 200, 503, 503, 200, 200]
    assert (await Outage(for_s=5, status=429, retry_after_s=3).answer(arrived({}))).headers == {"retry-after": "3"}


# Checks


def arrived(headers: Mapping[str, str], body: bytes = b"{}", at: float | None = None) -> Arrival:
    return Arrival("luma", headers.get("webhook-id", "msg_1"), 1, headers, body, time.time() if at is None else at)


def token(**changes: object) -> dict[str, str]:
    now = int(time.time())
    claims = {"iss": "us", "aud": "them", "iat": now, "exp": now + 60, "tenant": "luma"} | changes
    return {"authorization": f"Bearer {jwt.encode(claims, KEY, 'ES256', headers={'kid': 'k1'})}"}


def test_a_token_that_verifies_is_taken() -> None:
    assert JWT.refusal(arrived(token())) is None


@pytest.mark.parametrize(
    "headers",
    [
        {},
        {"authorization": "Basic eDp5"},
        {"authorization": "Bearer x.y.z"},
        token(aud="others"),
        token(iss="others"),
        token(exp=int(time.time()) - 1),
        token(tenant="contoso"),
        {"authorization": f"Bearer {jwt.encode({'iss': 'us', 'aud': 'them'}, 'k' * 32, 'HS256')}"},
    ],
)
def test_any_other_token_is_refused_with_401(headers: dict[str, str]) -> None:
    refusal = JWT.refusal(arrived(headers))
    assert refusal is not None
    assert refusal.status == 401


def signed(body: bytes) -> dict[str, str]:
    now = int(time.time())
    webhook = StandardWebhook(SECRET)
    signature = webhook.sign("msg_1", datetime.fromtimestamp(now, UTC), body.decode())
    return {"webhook-id": "msg_1", "webhook-timestamp": str(now), "webhook-signature": signature}


def test_the_signature_of_another_implementation_is_taken() -> None:
    check: ArrivalCheck = SignatureCheck((SECRET,))
    assert check.refusal(arrived(signed(b'{"a":1}'), b'{"a":1}')) is None
    for wrong in (arrived(signed(b'{"a":1}'), b'{"a":2}'), arrived({}, b"{}")):
        refusal = check.refusal(wrong)
        assert refusal is not None
        assert refusal.status == 401


def contract_headers(**changes: str) -> dict[str, str]:
    headers = {
        "content-type": "application/json",
        "user-agent": "feedback-dispatcher/0.2.0",
        "webhook-id": "msg_" + hashlib.sha256(b"").hexdigest()[:32],
        "webhook-timestamp": str(int(time.time())),
    }
    return headers | {name.replace("_", "-"): value for name, value in changes.items()}


def reference(**changes: object) -> bytes:
    return json.dumps(json.loads((DATA / "feedback-v1.json").read_text()) | changes).encode()


def test_the_reference_payload_is_taken() -> None:
    assert DELIVERY.refusal(arrived(contract_headers(), reference())) is None


@pytest.mark.parametrize(
    ("wrong", "body", "reason"),
    [
        ({"content_type": "text/plain"}, reference(), "content-type"),
        ({"user_agent": "curl/8"}, reference(), "user-agent"),
        ({"webhook_id": "a.b"}, reference(), "webhook-id"),
        ({"webhook_timestamp": "1"}, reference(), "webhook-timestamp"),
        ({}, b"{", "JSON"),
        ({}, reference(further=1), "keys"),
        ({}, reference(imsOrg="another"), "another organisation"),
        ({}, reference(channel="push"), "channel push"),
        ({}, reference(messageDeliveryFeedback={}), "messageDeliveryFeedback"),
    ],
)
def test_a_request_that_breaks_the_contract_is_refused(wrong: dict[str, str], body: bytes, reason: str) -> None:
    refusal = DELIVERY.refusal(arrived(contract_headers(**wrong), body))
    assert refusal is not None
    assert reason in refusal.reason


def test_violations_are_counted_past_those_that_are_kept() -> None:
    ledger = Ledger()
    for _ in range(150):
        ledger.violate(arrived({}), "wrong")
    assert (len(ledger.violations), ledger.violation_count) == (100, 150)
    assert "150 violations" in repr(ledger)


def test_a_program_that_cannot_run_here_is_reported_in_one_line(tmp_path: Path) -> None:
    (tmp_path / "alien").write_bytes(b"\x7fELF of another platform")
    (tmp_path / "alien").chmod(0o700)
    child = ChildProcess([str(tmp_path / "alien")], log=tmp_path / "log")
    child.start()
    give_up_at = time.monotonic() + 60
    while child.running and time.monotonic() < give_up_at:
        time.sleep(0.02)
    assert child.log_tail().strip() == f"{tmp_path / 'alien'} can't be run on this machine: Exec format error"
