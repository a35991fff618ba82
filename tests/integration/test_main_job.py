"""The main job, end to end: events in a real Kafka, the real process, webhooks at an HTTPS receiver."""

import asyncio
import json
import time
from pathlib import Path

import jwt
import orjson
import pytest
from cryptography.hazmat.primitives import serialization
from cryptography.hazmat.primitives.asymmetric import ec
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from dispatcher.contract.events import webhook_id
from dispatcher.contract.records import Origin
from tests.commands.running import called
from tests.integration.brokers import PASSWORD, USER, needs_kafka
from tests.integration.harness import RSS_LIMIT, Dispatcher, Stage, event, slowly, tenants, until, webhook_id_of
from tests.kafka import topics
from tests.kafka.apache_kafka import ApacheKafka
from tests.kafka.server_properties import Listener
from tests.published import DATA
from tests.unit.examples import EMAIL_EVENT, TENANT, email_event

pytestmark = [needs_kafka, pytest.mark.timeout(300)]


async def test_the_reference_event_arrives_byte_for_byte_with_the_documented_headers(scene: Stage) -> None:
    scene.mount([scene.webhook(TENANT, "/hook", headers={"X-Env": "prod"})])
    async with scene.dispatcher() as dispatcher:
        dispatcher.start()
        await scene.send(orjson.dumps(EMAIL_EVENT))
        await until(lambda: scene.receiver.requests, "the event", 60, dispatcher)
        ops = f"http://127.0.0.1:{dispatcher.ops_port}"
        await dispatcher.ready()
        checked = await called("check", "-c", dispatcher.path, "--ops", ops)
        assert (checked.status, checked.out.splitlines()[-1]) == (0, f"{ops} is ready"), checked
    arrived = scene.receiver.requests[0]
    reference = json.loads((DATA / "feedback-v1.json").read_text())
    assert arrived.body == orjson.dumps(reference)
    headers = {name.lower(): value for name, value in arrived.headers.items()}
    expected_id = webhook_id(TENANT, EMAIL_EVENT["body"]["xdmEntity"]["_id"], Origin("", 0, 0))
    assert headers["webhook-id"] == expected_id
    assert abs(int(headers["webhook-timestamp"]) - time.time()) < 30
    assert headers["webhook-attempt"] == "1"
    assert headers["webhook-event-time"] == "2025-07-22T08:00:00.000Z"
    assert headers["content-type"] == "application/json"
    assert headers["content-length"] == str(len(arrived.body))
    assert headers["user-agent"].startswith("feedback-dispatcher/")
    assert headers["x-env"] == "prod"
    assert "authorization" not in headers


async def test_tokens_that_we_sign_are_verified_by_the_receiver(scene: Stage, tmp_path: Path) -> None:
    secret = b"0123456789abcdef0123456789abcdef0123"
    private = ec.generate_private_key(ec.SECP256R1())
    pem = private.private_bytes(
        serialization.Encoding.PEM, serialization.PrivateFormat.PKCS8, serialization.NoEncryption()
    )
    keys = {"hs.key": scene.secret("hs.key", secret), "es.key": scene.secret("es.key", pem)}
    hs, es = tenants(2)

    def sign(algorithm: str, key: str) -> dict[str, object]:
        signed = {"algorithm": algorithm, "key": keys[key], "kid": "k1", "subject": "feedback"}
        return {"type": "jwt", "sign": signed}

    scene.mount([scene.webhook(hs, auth=sign("HS256", "hs.key")), scene.webhook(es, auth=sign("ES256", "es.key"))])
    async with scene.dispatcher() as dispatcher:
        dispatcher.start()
        await scene.produce([hs, es], 2)
        await scene.all_accepted(dispatcher)
    audience = scene.receiver.url("")
    for tenant, key, algorithm in ((hs, secret, "HS256"), (es, private.public_key(), "ES256")):
        (arrived,) = scene.receiver.at(f"/{tenant.org}")
        scheme, _, token = arrived.headers["authorization"].partition(" ")
        claims = jwt.decode(token, key, algorithms=[algorithm], audience=audience)
        assert scheme == "Bearer"
        assert jwt.get_unverified_header(token) == {"alg": algorithm, "kid": "k1", "typ": "JWT"}
        assert (claims["iss"], claims["sub"]) == ("feedback-dispatcher", "feedback")
        assert claims["exp"] - claims["iat"] == 300


def _malformed() -> dict[bytes, tuple[bytes | None, str]]:
    """Returns value and reason of each malformed record by its key."""
    good = orjson.dumps(email_event())
    nested = b"[" * 100_000 + b"]" * 100_000
    deep = b"[" * 250 + b"]" * 250  # orjson reads it, our limit does not
    found: dict[str, tuple[bytes | None, str]] = {
        "truncated": (good[: len(good) // 2], "unreadable"),
        "empty": (b"", "unreadable"),
        "tombstone": (None, "unreadable"),
        "not an object": (b"[1, 2, 3]", "unreadable"),
        "null": (b"null", "unreadable"),
        "org is a number": (orjson.dumps(email_event(imsOrgId=5)), "unreadable"),
        "body is a text": (orjson.dumps({**email_event(), "body": "x"}), "unreadable"),
        "no channel": (orjson.dumps(email_event(channel={}, emailChannelContext=None)), "unreadable"),
        "over a megabyte": (orjson.dumps(email_event(offers=["x" * 1_100_000])), "unreadable"),
        "payload too large": (orjson.dumps(email_event(offers=["x" * 300_000])), "too_large"),
        "nested out of reach": (good.replace(b'"retryCount":0', b'"retryCount":0,"offers":' + nested), "unreadable"),
        "nested too deeply": (good.replace(b'"retryCount":0', b'"retryCount":0,"offers":' + deep), "unreadable"),
        "NaN": (good.replace(b'"retryCount":0', b'"retryCount":NaN'), "unreadable"),
        "infinity": (good.replace(b'"retryCount":0', b'"retryCount":-Infinity'), "unreadable"),
        "bad UTF-8": (good.replace(b"john.doe", b"john\xff\xfe"), "unreadable"),
    }
    drawn: list[bytes] = []
    shapes = (
        st.binary(max_size=400)
        | st.text(max_size=100).map(str.encode)
        | st.integers(1, len(good) - 1).map(lambda cut: good[:cut])
    )

    @settings(max_examples=100, database=None, derandomize=True, suppress_health_check=list(HealthCheck))
    @given(shapes)
    def draw(value: bytes) -> None:
        drawn.append(value)

    draw()
    found |= {f"drawn {number}": (value, "unreadable") for number, value in enumerate(drawn)}
    return {name.encode(): pair for name, pair in found.items()}


async def test_every_malformed_record_is_dead_lettered_with_a_reason_and_good_ones_between_are_delivered(
    scene: Stage,
) -> None:
    bad = _malformed()
    good = tenants(1)[0]
    scene.mount([scene.webhook(good), scene.webhook(TENANT)])
    async with scene.dispatcher() as dispatcher:
        dispatcher.start()
        for number, (key, (value, _)) in enumerate(bad.items()):
            await scene.send(value, key, partition=number % 4)
            await scene.send(event(good, f"g{number}"), partition=number % 4)
            scene.expected[webhook_id_of(good, f"g{number}")] = good
        await scene.all_accepted(dispatcher)

        async def all_dead() -> bool:
            return sum((await topics.end_offsets(scene.bootstrap_servers, scene.dead_topic)).values()) >= len(bad)

        await until(all_dead, "the dead letters", 60, dispatcher)
        assert dispatcher.running
        assert (await dispatcher.get("/livez"))[0] == 200
        assert dispatcher.peak_rss < RSS_LIMIT
        dispatcher.sigterm()
        assert await dispatcher.wait() == 0
        dead = {one.key: one for one in await topics.read_all(scene.bootstrap_servers, scene.dead_topic)}
        headers = {key: dict(one.headers) for key, one in dead.items()}
        assert dead.keys() == bad.keys(), f"not dead: {bad.keys() - dead.keys()}\n{dispatcher.log[-2000:]}"
        assert {key: headers[key]["feedback-reason"].decode() for key in dead} == {
            key: reason for key, (_, reason) in bad.items()
        }
        assert all(headers[key]["feedback-detail"] for key in dead)
        assert {key: one.value for key, one in dead.items()} == {key: value for key, (value, _) in bad.items()}
    assert scene.receiver.repeats() == 0


@pytest.mark.slow
@pytest.mark.timeout(600)
async def test_twenty_thousand_events_survive_a_kill_and_ten_seconds_without_a_broker(
    scene: Stage, mortal: ApacheKafka
) -> None:
    everybody = tenants(50)
    scene.mount([scene.webhook(tenant) for tenant in everybody])
    # 500 connections are made at once, and the test's own process answers all of them.
    async with scene.dispatcher(delivery={"timeout": "30s"}) as dispatcher:
        await scene.produce(everybody, 15_000, "first")
        dispatcher.start()
        await scene.accepted(4_000, dispatcher, 240)
        dispatcher.kill9()
        dispatcher.start()
        await scene.accepted(9_000, dispatcher, 240)
        await mortal.stop()
        await asyncio.sleep(10)
        await mortal.start()
        await scene.produce(everybody, 5_000, "last")
        await scene.all_accepted(dispatcher, 240)
        dispatcher.sigterm()
        assert await dispatcher.wait() == 0
        peak = dispatcher.peak_rss
    lost, repeats = await scene.lost(), scene.receiver.repeats()
    print(f"\n20,000 events: lost = {lost}, came twice = {repeats}, peak RSS = {peak >> 20} MiB")
    assert len(scene.expected) == 20_000
    assert lost == 0
    assert repeats <= 3_000  # one kill: 500 in flight, and what was finished since the last commit
    assert await scene.dead() == {}
    assert peak < RSS_LIMIT


async def test_a_webhook_added_and_edited_by_a_swap_takes_effect(scene: Stage) -> None:
    old, new = tenants(2)
    scene.mount([scene.webhook(old, "/before")])
    async with scene.dispatcher() as dispatcher:
        dispatcher.start()
        await scene.produce([old], 1)
        await scene.all_accepted(dispatcher)
        assert scene.receiver.at("/before")
        await scene.send(event(new, "no webhook yet"))  # and its absence is cached
        scene.mount([scene.webhook(old, "/after", headers={"X-Edited": "yes"}), scene.webhook(new)])
        async with asyncio.timeout(60):
            number = 0
            while not (scene.receiver.at("/after") and scene.receiver.at(f"/{new.org}")):
                number += 1
                await scene.send(event(old, f"o{number}"))
                await scene.send(event(new, f"n{number}"))
                await asyncio.sleep(0.1)
    assert scene.receiver.at("/after")[0].headers["x-edited"] == "yes"
    assert scene.receiver.at(f"/{new.org}")


async def test_a_drain_under_load_repeats_nothing(scene: Stage) -> None:
    everybody = tenants(10)
    scene.mount([scene.webhook(tenant) for tenant in everybody])
    for tenant in everybody:
        scene.receiver.behave(f"/{tenant.org}", slowly(0.05))
    async with scene.dispatcher() as dispatcher:
        await scene.produce(everybody, 4_000)
        dispatcher.start()
        await scene.accepted(1_000, dispatcher)
        dispatcher.sigterm()
        assert await dispatcher.wait() == 0
        assert scene.missing(), "all were delivered before the drain"
        dispatcher.start()
        await scene.all_accepted(dispatcher)
        dispatcher.sigterm()
        assert await dispatcher.wait() == 0
    assert await scene.lost() == 0
    assert scene.receiver.repeats() == 0


async def test_bad_configuration_ends_with_78_and_a_line_for_each_problem(scene: Stage, tmp_path: Path) -> None:
    scene.mount([])
    async with Dispatcher(tmp_path, scene.settings, name="bad") as dispatcher:
        text = dispatcher.path.read_text().replace("topic:", "topik:").replace("max_age: 1h", "max_age: soon")
        dispatcher.path.write_text(text)
        dispatcher.start()
        assert await dispatcher.wait() == 78
        lines = [line for line in dispatcher.log.splitlines() if f"{dispatcher.path.name}:" in line]
    assert any("topik" in line for line in lines), dispatcher.log
    assert any("max_age" in line for line in lines), dispatcher.log
    numbers = {line.partition(f"{dispatcher.path.name}:")[2].partition(":")[0] for line in lines}
    assert all(number.isdigit() for number in numbers)


async def test_a_broker_that_is_absent_at_the_start_is_waited_for(scene: Stage, mortal: ApacheKafka) -> None:
    tenant = tenants(1)[0]
    scene.mount([scene.webhook(tenant)])
    await scene.produce([tenant], 10)
    await mortal.stop()
    try:
        async with scene.dispatcher() as dispatcher:
            dispatcher.start()
            await until(lambda: dispatcher.answers("/livez"), "the ops endpoint", 60, dispatcher)
            await asyncio.sleep(1)
            assert (await dispatcher.get("/livez"))[0] == 200
            status, text = await dispatcher.get("/readyz")
            assert (status, "kafka" in text) == (503, True)
            await mortal.start()
            await scene.all_accepted(dispatcher)
            await dispatcher.ready()
            assert scene.receiver.repeats() == 0
    except BaseException:
        await mortal.restart()  # the next test needs it
        raise


async def test_a_start_that_is_still_waiting_for_the_broker_ends_on_sigterm(scene: Stage, mortal: ApacheKafka) -> None:
    scene.mount([])
    async with scene.dispatcher(kafka={"bootstrap_servers": "127.0.0.1:1"}) as dispatcher:
        dispatcher.start()
        await until(lambda: "nothing listens there" in dispatcher.log, "a word about the broker", 60, dispatcher)
        dispatcher.sigterm()
        assert await dispatcher.wait(60) == 0


@pytest.mark.parametrize(
    ("listener", "mechanism"),
    [
        (Listener.SASL_SSL, "SCRAM-SHA-512"),
        (Listener.SASL_SSL, "PLAIN"),
        (Listener.SASL_PLAINTEXT, "SCRAM-SHA-256"),
        (Listener.SSL, None),
        (Listener.MTLS, None),
    ],
)
async def test_events_come_in_by_every_way_that_operators_have(
    scene: Stage, mortal: ApacheKafka, tmp_path: Path, listener: Listener, mechanism: str | None
) -> None:
    tenant = tenants(1)[0]
    (tmp_path / "password").write_text(PASSWORD + "\n")
    security: dict[str, object] = {"protocol": listener.protocol, "ca": str(mortal.certificates.ca)}
    if mechanism is not None:
        security |= {"mechanism": mechanism, "username": USER, "password": {"file": str(tmp_path / "password")}}
    if listener is Listener.MTLS:
        certificates = mortal.certificates
        security |= {"certificate": str(certificates.client_cert), "key": str(certificates.client_key)}
    scene.mount([scene.webhook(tenant)])
    kafka = {"bootstrap_servers": mortal.address(listener), "security": security}
    async with scene.dispatcher(kafka=kafka) as dispatcher:
        dispatcher.start()
        await scene.produce([tenant], 50)
        await scene.send(b"unreadable")  # the producer logs in, too
        await scene.all_accepted(dispatcher)
        await dispatcher.ready()
        dispatcher.sigterm()
        assert await dispatcher.wait() == 0
        assert PASSWORD not in dispatcher.log
    dead = await topics.read_all(scene.bootstrap_servers, scene.dead_topic)
    assert [one.value for one in dead] == [b"unreadable"]
