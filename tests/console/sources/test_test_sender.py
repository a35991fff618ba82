"""Test events to real servers: the request, the phases that were measured, and the words for the result."""

import asyncio
import json
from collections.abc import AsyncIterator
from dataclasses import asdict
from pathlib import Path
from typing import Any

import pytest
import trustme
from aiohttp import web
from standardwebhooks import Webhook as Verifier

from dispatcher.config.secrets import Secret
from dispatcher.config.settings import Settings
from dispatcher.config.webhook_revision import Webhook
from dispatcher.config.webhooks import Channel, WebhookConfig
from dispatcher.console import model
from dispatcher.console.sources.sample_events import sample_event
from dispatcher.console.sources.test_sender import AT_ONCE, AT_ONCE_EACH, SampleSender
from dispatcher.demo.child_process import free_ports
from dispatcher.errors import ConfigError
from dispatcher.flow.decision import eligibility
from tests.auth.keys import WHSEC, signed
from tests.auth.token_server import TokenServer, authority, token_server
from tests.console.sources.conftest import settings_for
from tests.integration.harness import Receiver, slowly, status
from tests.transport.servers import Endpoint, NameServer, Peer

CANARY = "canary-never-to-be-seen"
NAMES = ["address", "connect", "tls", "token", "request", "first_byte", "answer"]


@pytest.fixture
async def receiver() -> AsyncIterator[Receiver]:
    async with Receiver() as made:
        yield made


@pytest.fixture
async def tokens() -> AsyncIterator[TokenServer]:
    async with token_server() as made:
        yield made


@pytest.fixture(params=["aiohttp", "lean"])
def settings(request: pytest.FixtureRequest, receiver: Receiver, tmp_path: Path) -> Settings:
    return making(receiver, tmp_path, request.param)


def making(receiver: Receiver, directory: Path, transport: str = "aiohttp", **egress: Any) -> Settings:
    bundle = directory / "ca.pem"
    bundle.write_bytes(receiver.authority.cert_pem.bytes() + authority().cert_pem.bytes())
    return settings_for(
        "127.0.0.1:1", "events",
        egress={"allow": ["127.0.0.0/8", "localhost"], "ca_bundle": str(bundle), **egress},
        delivery={"transport": transport},
    )  # fmt: skip


def webhook(receiver: Receiver, **fields: Any) -> WebhookConfig:
    base = {"name": "Luma", "org": "luma@AdobeOrg", "sandbox": "prod", "url": receiver.url("/luma"), "timeout": "20s"}
    return WebhookConfig.model_validate(base | fields)


def fetching(tokens: TokenServer) -> dict[str, Any]:
    return fetching_from(tokens.url)


def step(result: Any, name: str) -> model.StepModel:
    found: model.StepModel = next(step for step in result.steps if step.name == name)
    return found


async def test_a_delivered_test_event_lists_every_step(settings: Settings, receiver: Receiver) -> None:
    config = webhook(
        receiver, auth={"type": "jwt", "sign": signed("ES256")}, headers={"X-Env": "prod", "X-Api-Key": CANARY},
        signing={"secrets": [Secret(WHSEC.encode())]},
    )  # fmt: skip
    result = await SampleSender(settings).send(config, Channel.EMAIL, "bounce")
    assert [one.name for one in result.steps] == NAMES
    assert [one.ok for one in result.steps] == [True] * 7
    assert step(result, "address").detail == "127.0.0.1"
    assert step(result, "connect").detail == f"port {receiver.port}"
    assert step(result, "token").detail == "signed by us"
    assert step(result, "request").detail == f"{len(result.body.encode()):,} bytes"
    assert step(result, "tls").detail.startswith("TLSv1.3, certificate until 3000-")
    assert step(result, "answer").detail == "200"
    for name in NAMES:
        assert step(result, name).ms is not None
    assert (result.verdict, result.reason, result.status, result.remedy) == ("delivered", "http_2xx", 200, "")
    assert result.verdict_in_words == "Delivered: your server took the event."

    (arrived,) = receiver.requests
    assert arrived.headers["webhook-id"] == result.event_id
    assert arrived.headers["x-env"] == "prod"
    assert arrived.headers["x-api-key"] == CANARY
    assert arrived.headers["authorization"].startswith("Bearer ey")
    assert arrived.body.decode() == result.body
    Verifier(WHSEC).verify(arrived.body, dict(arrived.headers))
    assert [name.lower() for name, _ in result.request] == [
        name.lower() for name in arrived.headers if name.lower() != "accept-encoding"
    ]
    shown = dict(result.request)
    assert (shown["authorization"], shown["X-Api-Key"], shown["X-Env"]) == ("Bearer <secret>", "<secret>", "prod")
    assert CANARY not in repr(asdict(result))


async def test_a_sample_is_marked_as_a_test_and_has_no_personal_data(receiver: Receiver, tmp_path: Path) -> None:
    tester = SampleSender(making(receiver, tmp_path))
    for channel, recipient in ((Channel.EMAIL, "test.recipient@example.com"), (Channel.SMS, "+15555550100")):
        for message_status in ("sent", "bounce", "exclude", "one that comes later"):
            result = await tester.send(webhook(receiver, payload=2), channel, message_status)
            body = json.loads(receiver.requests[-1].body)
            assert body["requestId"].startswith("test-event-")
            assert body["messageExecution"]["campaignID"] == "test-event"
            assert body["messageDeliveryFeedback"]["feedbackStatus"]["value"] == message_status
            assert recipient in repr(body["identityMap"])
            assert (body["channel"], body["imsOrg"]) == (channel.value, "luma@AdobeOrg")
            assert result.verdict == "delivered"
    assert len({arrived.headers["webhook-id"] for arrived in receiver.requests}) == 8


def test_a_sample_in_the_topic_would_be_skipped(receiver: Receiver) -> None:
    config = WebhookConfig(name="x", org="o", sandbox="s", sandbox_id="17", url="https://hooks.example/x")
    event = sample_event(config, Channel.EMAIL, "sent", 1_790_000_000.0)
    assert event.tenant == config.tenant
    assert event.sandbox_id == "17"
    assert eligibility(event, Webhook.of(config, "test")) == "test_execution"


async def test_a_preview_is_the_same_request_and_sends_nothing(receiver: Receiver, tmp_path: Path) -> None:
    """Also of a webhook whose secrets are empty, as the console has it for display."""
    tester = SampleSender(making(receiver, tmp_path))
    config = webhook(receiver, auth={"type": "jwt", "sign": signed()}, headers={"X-Api-Key": CANARY})
    preview = tester.preview(config, Channel.EMAIL, "sent")
    sent = await tester.send(config, Channel.EMAIL, "sent")
    assert [name for name, _ in preview.request] == [name for name, _ in sent.request]
    assert json.loads(preview.body).keys() == json.loads(sent.body).keys()
    assert (preview.steps, preview.answer, preview.verdict) == ((), "", "")
    assert len(receiver.requests) == 1
    empty = webhook(receiver, auth={"type": "jwt", "sign": signed(key=b"")})
    assert dict(tester.preview(empty, Channel.EMAIL, "sent").request)["authorization"] == "Bearer <secret>"


async def test_a_fetched_token_is_a_step_of_its_own(
    settings: Settings, receiver: Receiver, tokens: TokenServer
) -> None:
    result = await SampleSender(settings).send(webhook(receiver, auth=fetching(tokens)), Channel.EMAIL, "sent")
    assert step(result, "token").ok
    assert step(result, "token").ms is not None
    assert step(result, "token").detail == "fetched"
    assert receiver.requests[0].headers["authorization"] == "Bearer token-1"
    assert result.verdict == "delivered"


async def test_a_refused_token_is_fetched_once_more_as_for_a_delivery(
    settings: Settings, receiver: Receiver, tokens: TokenServer
) -> None:
    async def picky(request: web.Request, receiver: Receiver) -> web.StreamResponse:
        fresh = request.headers["authorization"] == "Bearer token-2"
        return receiver.accept(request) if fresh else web.Response(status=401)

    receiver.behave("/luma", picky)
    result = await SampleSender(settings).send(webhook(receiver, auth=fetching(tokens)), Channel.EMAIL, "sent")
    assert (result.verdict, tokens.requests, len(receiver.requests)) == ("delivered", 2, 2)
    assert "the first was refused" in step(result, "token").detail

    receiver.behave("/luma", status(401))
    result = await SampleSender(settings).send(webhook(receiver, auth=fetching(tokens)), Channel.EMAIL, "sent")
    assert (result.status, result.verdict, tokens.requests) == (401, "retry_later", 4)
    assert "localhost" in result.remedy
    assert CANARY not in repr(asdict(result))


async def test_a_token_endpoint_that_refuses_ends_the_way_before_it_begins(
    settings: Settings, receiver: Receiver, tokens: TokenServer
) -> None:
    tokens.answers(web.json_response({"error": "invalid_client"}, status=401))
    result = await SampleSender(settings).send(webhook(receiver, auth=fetching(tokens)), Channel.EMAIL, "sent")
    assert [one.ok for one in result.steps] == [None, None, None, False, None, None, None]
    assert (result.reason, result.verdict) == ("token", "retry_soon")
    assert "check client_id and client_secret" in result.remedy
    assert receiver.requests == []


@pytest.mark.parametrize(
    ("code", "verdict", "words"),
    [
        (401, "retry_later", "choose JWT Authentication"),
        (404, "retry_later", "correct the URL"),
        (302, "dead", "never follow"),
        (400, "retry_later", "refused the request (400)"),
        (501, "dead", "correct the URL"),
        (410, "disable_endpoint", "gone for good"),
        (503, "retry_soon", "Retry-After"),
    ],
)
async def test_an_answer_is_judged_as_a_deliverys_is(
    receiver: Receiver, tmp_path: Path, code: int, verdict: str, words: str
) -> None:
    receiver.behave("/luma", status(code))
    result = await SampleSender(making(receiver, tmp_path)).send(webhook(receiver), Channel.EMAIL, "sent")
    assert (result.status, result.verdict) == (code, verdict)
    assert words in result.remedy
    assert step(result, "answer").detail == str(code)
    assert result.verdict_in_words.startswith("Not delivered.")


async def test_the_first_bytes_of_the_answer_are_shown_as_text_without_what_was_secret(
    settings: Settings, receiver: Receiver
) -> None:
    """An endpoint that echoes must not show an administrator a secret that is write-only."""

    async def echo(request: web.Request, _: Receiver) -> web.StreamResponse:
        echo = "\n".join(f"{name}: {value}" for name, value in request.headers.items())
        return web.Response(status=400, text=f"<script>\x1b[31m\x00{echo}\n" + "x" * 5000)

    receiver.behave("/luma", echo)
    config = webhook(
        receiver, auth={"type": "jwt", "sign": signed(), "header": "x-luma", "scheme": ""},
        headers={"X-Api-Key": CANARY, "X-Env": "prod"}, signing={"secrets": [Secret(WHSEC.encode())]},
    )  # fmt: skip
    result = await SampleSender(settings).send(config, Channel.EMAIL, "sent")
    (arrived,) = receiver.requests
    assert result.answer.startswith("<script>\ufffd[31m\ufffd")
    assert len(result.answer) <= 2048
    assert "prod" in result.answer
    for hidden in (CANARY, arrived.headers["x-luma"], arrived.headers["webhook-signature"]):
        assert hidden not in result.answer
    assert result.answer.count("<secret>") == 3


async def test_an_untrusted_certificate_is_reported_at_the_tls_step(
    settings: Settings, tmp_path: Path, receiver: Receiver
) -> None:
    async with Receiver(trustme.CA()) as stranger, Receiver(receiver.authority, "elsewhere.example") as elsewhere:
        result = await SampleSender(settings).send(webhook(stranger), Channel.EMAIL, "sent")
        assert [one.ok for one in result.steps] == [True, True, False, None, None, None, None]
        assert "give your own CA" in result.remedy
        assert (result.reason, result.verdict) == ("tls", "retry_soon")
        assert (step(result, "address").detail, step(result, "connect").ms is None) == ("127.0.0.1", False)
        result = await SampleSender(settings).send(webhook(elsewhere), Channel.EMAIL, "sent")
        assert "The certificate is not for localhost" in result.remedy


async def test_a_refused_connection_is_reported_at_the_connect_step(settings: Settings, receiver: Receiver) -> None:
    port = free_ports(1)[0]
    config = webhook(receiver, url=f"https://localhost:{port}/x")
    result = await SampleSender(settings).send(config, Channel.EMAIL, "sent")
    assert [one.ok for one in result.steps] == [True, False, None, None, None, None, None]
    assert step(result, "address").detail == "127.0.0.1"
    assert f"Nothing listens on port {port} of localhost" in result.remedy


async def test_a_private_address_is_not_even_connected_to(receiver: Receiver, tmp_path: Path) -> None:
    guarded = making(receiver, tmp_path, allow=[])
    result = await SampleSender(guarded).send(webhook(receiver), Channel.EMAIL, "sent")
    assert [one.ok for one in result.steps] == [False, None, None, None, None, None, None]
    assert (result.reason, result.verdict) == ("egress_denied", "retry_later")
    assert "We don't send there" in result.remedy
    assert receiver.requests == []


async def test_a_name_that_does_not_resolve(settings: Settings, receiver: Receiver) -> None:
    result = await SampleSender(settings).send(webhook(receiver, url="https://nobody.invalid/"), Channel.EMAIL, "sent")
    assert step(result, "address").ok is False
    assert "nobody.invalid" in result.remedy


async def test_a_server_that_is_too_slow_was_reached(settings: Settings, receiver: Receiver) -> None:
    receiver.behave("/luma", slowly(60))
    result = await SampleSender(settings).send(webhook(receiver, timeout="3s"), Channel.EMAIL, "sent")
    assert [one.ok for one in result.steps] == [True, True, True, None, True, False, None]
    assert step(result, "token").detail == "none is needed"
    assert result.reason == "timeout"
    assert "as soon as the event is stored" in result.remedy


async def test_an_answer_that_is_not_http_is_shown(receiver: Receiver, tmp_path: Path) -> None:
    async def script(peer: Peer) -> None:
        await peer.request()
        await peer.send(b"SSH-2.0-OpenSSH_9.2\r\n\r\n")

    plain = making(receiver, tmp_path, allow_http=True)
    async with Endpoint(script, None).running() as endpoint:
        config = webhook(receiver, url=f"http://127.0.0.1:{endpoint.port}/x")
        result = await SampleSender(plain).send(config, Channel.EMAIL, "sent")
    assert (result.reason, step(result, "tls").detail) == ("protocol", "not used")
    assert [one.ok for one in result.steps] == [True, True, None, None, True, False, None]


async def test_a_token_endpoint_and_a_server_that_both_hang_take_twice_the_timeout_at_most(
    receiver: Receiver, tokens: TokenServer, tmp_path: Path
) -> None:
    tokens.released.clear()
    config = webhook(receiver, auth=fetching(tokens), timeout="1s")
    async with asyncio.timeout(60):
        result = await SampleSender(making(receiver, tmp_path)).send(config, Channel.EMAIL, "sent")
    assert result.verdict == "retry_soon"
    assert result.elapsed_ms < 5000, "less than a token endpoint may take of a delivery"


async def test_a_key_that_can_not_be_used_is_a_problem_of_the_configuration(receiver: Receiver, tmp_path: Path) -> None:
    broken = webhook(receiver, auth={"type": "jwt", "sign": signed("ES256", key=b"no key")})
    with pytest.raises(ConfigError, match="private key"):
        await SampleSender(making(receiver, tmp_path)).send(broken, Channel.EMAIL, "sent")


async def test_the_number_of_tests_in_progress_is_limited(receiver: Receiver, tmp_path: Path) -> None:
    under_way = most = 0

    async def count(request: web.Request, receiver: Receiver) -> web.StreamResponse:
        nonlocal under_way, most
        under_way += 1
        most = max(most, under_way)
        await asyncio.sleep(0.05)
        under_way -= 1
        return receiver.accept(request)

    receiver.behave("/luma", count)
    tester = SampleSender(making(receiver, tmp_path))
    await asyncio.gather(*(tester.send(webhook(receiver, timeout="20s"), Channel.EMAIL, "sent") for _ in range(20)))
    assert 1 < most <= 8


async def test_a_hanging_endpoint_of_one_organisation_does_not_block_other_tests(
    settings: Settings, receiver: Receiver
) -> None:
    reached, let_go = asyncio.Event(), asyncio.Event()

    async def hang(request: web.Request, _receiver: Receiver) -> web.StreamResponse:
        reached.set()
        await let_go.wait()
        return web.Response()

    receiver.behave("/hangs", hang)
    sender = SampleSender(settings)
    slow = webhook(receiver, url=receiver.url("/hangs"), timeout="30s")
    tests = [asyncio.create_task(sender.send(slow, Channel.EMAIL, "bounce")) for _ in range(3 * AT_ONCE)]
    await reached.wait()  # the others are in line by now
    async with asyncio.timeout(60):
        result = await sender.send(webhook(receiver, org="other@AdobeOrg"), Channel.EMAIL, "bounce")
    assert result.status == 200
    assert len(receiver.at("/hangs")) <= AT_ONCE_EACH
    let_go.set()
    assert {one.status for one in await asyncio.gather(*tests)} == {200}


@pytest.mark.parametrize("fetched", [False, True], ids=["webhook", "token endpoint"])
async def test_a_test_event_does_not_reveal_which_internal_names_exist(
    receiver: Receiver, tmp_path: Path, fetched: bool
) -> None:
    """A name of the operator's network and an unknown name read the same: otherwise tests could list such names."""
    results = []
    async with NameServer().running() as names:
        names.zone |= {
            "name-1.example": [["10.0.0.1"]],
            "name-3.example": [["8.8.8.8", "10.0.0.1"]],
            "name-4.example": [[]],
        }
        settings = making(receiver, tmp_path, nameservers=[names.address])
        for host in ("name-1.example", "name-2.example", "name-3.example", "name-4.example", "name-1.example"):
            url = f"https://{host}/x"
            auth = fetching_from(url) if fetched else {"type": "none"}
            config = webhook(receiver, auth=auth, **({} if fetched else {"url": url}))
            result = asdict(await SampleSender(settings).send(config, Channel.EMAIL, "bounce"))
            assert "has no public address" in result["remedy"]
            for own in ("event_id", "request", "body", "elapsed_ms"):  # different for each event
                result.pop(own)
            results.append(repr(result).replace(host, "name"))
    assert len(set(results)) == 1, results


async def test_the_address_of_an_internal_name_is_not_shown(receiver: Receiver, tmp_path: Path) -> None:
    async with NameServer().running() as names:
        names.zone["hooks.example"] = [["127.0.0.1"]]
        settings = making(receiver, tmp_path, allow=["hooks.example"], nameservers=[names.address])
        config = webhook(receiver, url=f"https://hooks.example:{receiver.port}/")
        result = await SampleSender(settings).send(config, Channel.EMAIL, "sent")
    assert step(result, "address").ok
    assert step(result, "address").detail == "in the operator's network"
    assert "127.0.0.1" not in repr(result)


def fetching_from(url: str) -> dict[str, Any]:
    secret = Secret(f"{CANARY}-client".encode())
    fetch = {"grant": "client-credentials", "token_url": url, "client_id": "c", "client_secret": secret}
    return {"type": "jwt", "fetch": fetch}
