"""Notifications end to end: a real mail server over TLS and a real HTTPS endpoint receive what is described, once."""

import asyncio
import re
from collections import Counter
from collections.abc import Callable
from dataclasses import replace
from datetime import UTC, datetime
from email.message import EmailMessage
from pathlib import Path

import orjson
import pytest
from prometheus_client import REGISTRY
from sqlalchemy import text
from standardwebhooks.webhooks import Webhook as Verifier

from dispatcher.auth.signing_keys import new_private_key
from dispatcher.config.secrets import Secret
from dispatcher.config.settings import DeliverySettings, EgressSettings
from dispatcher.config.webhook_revision import Webhook
from dispatcher.config.webhooks import WebhookConfig
from dispatcher.contract.history import HistoryOutcome
from dispatcher.contract.outcomes import CONFIGURATION_REASONS, ParkReason
from dispatcher.contract.reason_texts import HELD_REMEDIES, WAITING
from dispatcher.contract.tenant import TenantKey
from dispatcher.errors import BadLink, NotFound, TooSoon
from dispatcher.notifications import notifier
from dispatcher.notifications.composing import ASKS_A_TENANT, EXPIRY_OF_OPERATOR
from dispatcher.notifications.content import Content, Section, encode
from dispatcher.notifications.mail import MailSender, NotSent
from dispatcher.notifications.news import Expiry
from dispatcher.notifications.operational_webhook import OperationalWebhook
from dispatcher.notifications.waiting_counts import WaitingCounts
from dispatcher.stores.sql.audit import AuditLog
from dispatcher.stores.sql.database import Database
from dispatcher.stores.sql.migrate import upgrade
from dispatcher.stores.sql.notification_store import OPERATOR as ALL
from dispatcher.stores.sql.notification_store import Changes, Channel, Message
from dispatcher.stores.sql.records import AuditAction, AuditQuery
from dispatcher.transport import open_transport
from tests.notifications.receivers import USER, Certificates, Endpoint, MailServer, mail_server
from tests.notifications.scene import (
    CONTACT,
    LUMA,
    OPERATOR,
    PUBLIC_URL,
    SECRET,
    Scene,
    open_scene,
    settings_for,
    webhook_of,
)

DAY_S = 86_400
ATTEMPT, DELIVERED, DEAD, HELD = (
    HistoryOutcome.ATTEMPT, HistoryOutcome.DELIVERED, HistoryOutcome.DEAD, HistoryOutcome.HELD,
)  # fmt: skip


def body(mail: EmailMessage, kind: str = "plain") -> str:
    part = mail.get_body((kind,))
    assert part is not None
    return str(part.get_content())


def link_in(mail: EmailMessage) -> str:
    found = re.search(rf"{PUBLIC_URL}/notifications/link\?token=(\S+)", body(mail))
    assert found is not None
    return found[1]


async def confirmed(scene: Scene, mail: MailServer, *addresses: str) -> None:
    """Contacts confirm by their links; what was received so far is forgotten."""
    await scene.work()
    for sent in mail.received:
        await scene.desk.use(link_in(sent))
    assert {str(sent["To"]) for sent in mail.received} == set(addresses)
    mail.received.clear()


async def test_a_failing_webhook_is_described_to_its_contact_once(
    scene: Scene, mail: MailServer, endpoint: Endpoint
) -> None:
    scene.webhooks = [webhook_of(LUMA, CONTACT)]
    await confirmed(scene, mail, CONTACT)
    scene.waiting = WaitingCounts({LUMA: 1234}, is_at_least=True)
    await scene.happen(DELIVERED, tenant=LUMA)
    scene.clock.now += 600
    await scene.happen(ATTEMPT, 19)
    await scene.work(60)
    for _ in range(5):
        await scene.work(60)
    (sent,) = mail.received
    assert sent["Subject"] == "Luma order status is failing: nothing arrives"
    assert (sent["To"], sent["From"].addresses[0].addr_spec) == (CONTACT, "dispatcher@operator.example")
    assert sent["Auto-Submitted"] == "auto-generated"
    for kind in ("plain", "html"):
        text = body(sent, kind)
        for words in (
            "luma@AdobeOrg / prod",
            "at least 1,234",
            "503, 21 September 2026",
            "overloaded or in maintenance",
            "Since",
        ):
            assert words in text, (kind, words)
        assert f"{PUBLIC_URL}/webhooks?org=luma%40AdobeOrg" in text.replace("&amp;", "&")
    assert mail.envelopes[-1].rcpt_tos == [CONTACT]
    assert mail.sessions == [True] * len(mail.sessions)
    assert set(mail.logins) == {USER}

    headers, data = endpoint.requests[-1]
    event = orjson.loads(data)
    assert event["type"] == "webhook.failing"
    assert event["data"]["org"] == LUMA.org
    assert (event["data"]["waiting"], event["data"]["waitingAtLeast"]) == (1234, True)
    assert headers["webhook-id"].startswith("ntf_")
    signed_at = datetime.fromtimestamp(int(headers["webhook-timestamp"]), UTC)
    expected = Verifier(SECRET).sign(headers["webhook-id"], signed_at, data.decode())
    assert headers["webhook-signature"] == expected
    assert len(endpoint.requests) == 1

    await scene.happen(DELIVERED, 60, every_s=1)
    await scene.work(90)
    assert len(mail.received) == 1, "within the hour"
    await scene.work(3600)
    assert [one["Subject"] for one in mail.received[1:]] == ["Luma order status has recovered: events arrive again"]
    reported = [(message.kind, message.status, message.recipient) for message in await scene.desk.recent(orgs=None)]
    assert reported.count(("notice", "sent", "o•••@luma.example")) == 2
    assert await scene.desk.recent(orgs=frozenset({"other"})) == []
    for unknown in ("abc", "a\0b"):
        with pytest.raises(NotFound, match="no such page"):
            await scene.desk.recent(orgs=None, before=unknown)


async def test_disabled_is_reported_at_once_and_everything_else_combined(scene: Scene, mail: MailServer) -> None:
    scene.webhooks = [webhook_of(LUMA, CONTACT)]
    await confirmed(scene, mail, CONTACT)
    await scene.happen(ATTEMPT, status=410, reason="http_4xx", verdict="disable_endpoint", detail="answered 410")
    await scene.happen(DEAD, reason="rejected")
    await scene.work(1)
    (sent,) = mail.received
    assert sent["Subject"] == "Luma order status is disabled: its events wait, and 1 more"
    assert "asked for no more events" in body(sent)
    assert "an event is dead" in body(sent)
    await scene.work(7200)
    assert len(mail.received) == 1


async def test_a_dead_event_is_reported_with_why_it_died(scene: Scene, mail: MailServer, endpoint: Endpoint) -> None:
    """And not with a failure from before the last delivery."""
    scene.webhooks = [webhook_of(LUMA, CONTACT)]
    await confirmed(scene, mail, CONTACT)
    await scene.happen(ATTEMPT, status=404, reason="http_4xx", detail="answered 404")
    scene.clock.now += 20 * DAY_S
    await scene.happen(DELIVERED, 30)
    await scene.work(1)
    await scene.happen(DEAD, reason="too_large", status=None, detail="the payload has 300 kB")
    await scene.work(1)
    (sent,) = mail.received
    for kind in ("plain", "html"):
        text = body(sent, kind)
        assert "it is too large (the payload has 300 kB)" in text
        assert "404" not in text
    event = orjson.loads(endpoint.requests[-1][1])
    assert event["data"]["facts"]["Why the last one died"] == "it is too large (the payload has 300 kB)"
    scene.clock.now += 2 * DAY_S
    await scene.happen(ATTEMPT, status=404, reason="http_4xx", detail="answered 404")
    await scene.happen(DEAD, reason="rejected", status=404, detail="answered 404")
    await scene.work(1)
    assert "the endpoint rejected it (answered 404)" in body(mail.received[1])
    assert "correct the URL" in body(mail.received[1])


@pytest.mark.parametrize("reason", sorted(CONFIGURATION_REASONS))
async def test_an_event_that_died_while_it_was_held_is_reported_with_what_held_it(
    scene: Scene, mail: MailServer, reason: ParkReason
) -> None:
    """An old failure has nothing to do with it, and sent again it would be held and die again."""
    scene.webhooks = [webhook_of(LUMA, CONTACT, paused=reason is ParkReason.PAUSED)]
    await confirmed(scene, mail, CONTACT)
    await scene.happen(ATTEMPT, status=404, reason="http_4xx", detail="answered 404")
    scene.clock.now += 2 * DAY_S
    await scene.happen(DEAD, reason="expired", status=None, detail=WAITING[reason], attempt=0)
    await scene.work(1)
    (sent,) = (one for one in mail.received if "dead" in str(one["Subject"]))
    text = " ".join(body(sent).split())
    assert f"it was not delivered by the age limit ({WAITING[reason]})" in text
    assert f"{HELD_REMEDIES[reason]} A dead event isn't tried again by itself: send it again" in text
    assert "correct the URL" not in text


async def test_a_dead_event_does_not_blame_an_address_that_was_never_tried(scene: Scene, mail: MailServer) -> None:
    """The webhook was edited after the last attempt, and its events reach the age limit."""
    scene.webhooks = [webhook_of(LUMA, CONTACT)]
    await confirmed(scene, mail, CONTACT)
    refused = {"reason": "connect_refused", "status": None, "detail": "connection refused"}
    for host, expected in (("hooks.luma.example", True), ("new.luma.example", False)):
        if not expected:
            scene.clock.now += 2 * DAY_S
            edited = webhook_of(LUMA, CONTACT, url=f"https://{host}/x")
            scene.webhooks = [replace(edited, changed_at=scene.clock.now)]
        else:
            await scene.happen(ATTEMPT, **refused)
        await scene.happen(DEAD, reason="expired", status=None, detail="connection refused")
        await scene.work(1)
        text = " ".join(body(mail.received[-1]).split())
        assert (f"Nothing listens on port 443 of {host}" in text) == expected
        assert ("The webhook was changed since then" in text) != expected


async def test_a_secret_and_a_key_that_are_replaced_are_reported_before_and_never_after(
    scene: Scene, mail: MailServer
) -> None:
    scene.webhooks = [webhook_of(LUMA, CONTACT)]
    await confirmed(scene, mail, CONTACT)
    end = datetime.fromtimestamp(scene.clock.now + 10 * DAY_S, UTC)
    newer, older = (Secret(f"whsec_{letter * 32}".encode()) for letter in "bc")
    key, following = (Secret(new_private_key("ES256")) for _ in range(2))
    sign = {"algorithm": "ES256", "key": key, "kid": "first"}
    sign |= {"next": {"algorithm": "ES256", "key": following, "kid": "second", "starts": end}}
    signing = {"secrets": [newer, older], "ends": {older.fingerprint(): end}}
    scene.webhooks = [webhook_of(LUMA, CONTACT, signing=signing, auth={"type": "jwt", "sign": sign})]

    await scene.work(DAY_S)
    (sent,) = mail.received
    assert "and 1 more" in sent["Subject"]
    for kind in ("plain", "html"):
        text = body(sent, kind)
        for named in (f"the signing secret {older.fingerprint()}", "the signing key first"):
            assert f"{named} signs until" in text, (kind, named)
        assert "Check that your server accepts the newer one" in text
        assert "expire" not in text
        assert newer.fingerprint() not in text
    await scene.work(7 * DAY_S)
    assert len(mail.received) == 2, "two days before the end"
    for _ in range(5):
        await scene.work(DAY_S)
    assert len(mail.received) == 2


async def test_a_certificate_that_was_replaced_in_time_has_not_expired(
    scene: Scene, mail: MailServer, monkeypatch: pytest.MonkeyPatch
) -> None:
    """For a webhook and for the operator: what is known is up to an hour old."""
    scene.webhooks = [webhook_of(LUMA, CONTACT)]
    await confirmed(scene, mail, CONTACT)
    await scene.happen(DELIVERED)
    start = scene.clock.now

    def use(name: str, ends_at: float) -> None:
        found = (Expiry("the client certificate", name, ends_at),)
        monkeypatch.setattr(notifier, "_expiries", lambda *_: {LUMA: found, EXPIRY_OF_OPERATOR: found})

    use("old", start + 7000)
    await scene.work(3700)
    assert sorted(str(one["To"]) for one in mail.received) == [OPERATOR, CONTACT], "it ends within three days"
    mail.received.clear()
    use("new", start + 90 * DAY_S)
    await scene.work(3500)
    assert mail.received == []
    use("newest", start + 7300)
    await scene.work(3700)
    assert len(mail.received) == 2, "it has ended"


async def test_trouble_is_kept_for_a_contact_who_has_still_to_confirm(
    tmp_path: Path, issued: Certificates, mail: MailServer, history: Database
) -> None:
    """If the operator has no address either: else no one is notified."""
    async with open_scene(settings_for(tmp_path, issued, mail, None, operator=[]), history) as scene:
        scene.webhooks = [webhook_of(LUMA, CONTACT)]
        await scene.work()
        (asked,) = mail.received
        await scene.happen(ATTEMPT, 20)
        await scene.work(120)
        await scene.work(7200)
        await scene.desk.use(link_in(asked))
        await scene.happen(ATTEMPT, 20)
        await scene.work(60)
        assert [str(one["To"]) for one in mail.received[1:]] == [CONTACT]
        assert "Luma order status" in body(mail.received[1])


async def test_a_flapping_endpoint_does_not_flood(scene: Scene, mail: MailServer, endpoint: Endpoint) -> None:
    """Six hours in which the endpoint fails for twenty minutes and works for twenty minutes."""
    scene.webhooks = [webhook_of(LUMA, CONTACT)]
    await confirmed(scene, mail, CONTACT)
    for turn in range(18):
        await scene.happen(DELIVERED if turn % 2 else ATTEMPT, 40, every_s=10)
        await scene.work(600)
        await scene.work(600)
    assert 1 <= len(mail.received) <= 8
    assert len(endpoint.requests) == len(mail.received)


async def test_addresses_are_used_only_after_they_were_confirmed(scene: Scene, mail: MailServer) -> None:
    scene.webhooks = [webhook_of(LUMA, CONTACT, "second@luma.example")]
    await scene.work()
    assert sorted(str(one["To"]) for one in mail.received) == [CONTACT, "second@luma.example"]
    assert "Luma order status" in body(mail.received[0])
    assert "ops" not in link_in(mail.received[0])
    await scene.happen(ATTEMPT, 20)
    await scene.work(120)
    assert [one["To"] for one in mail.received[2:]] == [OPERATOR], "no contact confirmed: the operator is notified"
    first = next(one for one in mail.received if one["To"] == CONTACT)
    scene.desk.link(link_in(first))
    facts = await scene.desk.contacts(scene.webhooks[0].config)
    assert [one.status for one in facts] == ["asked", "asked"], "looking at a link changes nothing"
    await scene.desk.use(link_in(first))
    await scene.desk.use(link_in(first))
    facts = await scene.desk.contacts(scene.webhooks[0].config)
    assert [one.status for one in facts] == ["confirmed", "asked"]
    mail.received.clear()
    await scene.happen(DELIVERED, 60, every_s=1)
    await scene.work(3700)
    assert [one["To"] for one in mail.received] == [CONTACT]
    await scene.desk.use(link_in(mail.received[0]))  # the link that stops
    assert [one.status for one in await scene.desk.contacts(scene.webhooks[0].config)] == ["stopped", "asked"]
    for _ in range(2):
        scene.clock.now += 90_000
        await scene.desk.ask_again(scene.webhooks[0].config, "second@luma.example")
        with pytest.raises(TooSoon, match="within a day"):
            await scene.desk.ask_again(scene.webhooks[0].config, "second@luma.example")
    scene.clock.now += 90_000
    with pytest.raises(TooSoon, match="not answered"):
        await scene.desk.ask_again(scene.webhooks[0].config, "second@luma.example")
    with pytest.raises(BadLink):
        await scene.desk.use("made.up")


async def test_an_address_that_is_named_twice_receives_each_message_once(
    tmp_path: Path, issued: Certificates, mail: MailServer, history: Database
) -> None:
    """In any case of its letters; and it stays the same contact if only their case is edited."""
    settings = settings_for(tmp_path, issued, mail, None, operator=[OPERATOR, OPERATOR.upper(), OPERATOR])
    async with open_scene(settings, history) as scene:
        scene.webhooks = [webhook_of(LUMA, CONTACT, CONTACT.upper(), CONTACT)]
        await confirmed(scene, mail, CONTACT)
        assert await scene.desk.send_test(scene.webhooks[0].config, "admin") == 1
        assert await scene.desk.send_test(None, "admin") == 1
        await scene.happen(ATTEMPT, status=410, verdict="disable_endpoint")
        await scene.work(1)
        assert sorted(str(one["To"]).lower() for one in mail.received) == [OPERATOR, CONTACT, CONTACT]
        await scene.store.add(Changes({}, [], [a_message("failing")]))
        scene.webhooks = [webhook_of(LUMA, CONTACT.upper())]
        mail.received.clear()
        await scene.notifier.send_due("email")
        assert [str(one["To"]) for one in mail.received] == [CONTACT]


async def test_tenants_can_not_have_us_write_to_many_addresses(scene: Scene, mail: MailServer) -> None:
    victim = "victim@elsewhere.example"
    scene.webhooks = [webhook_of(TenantKey(f"org-{number}", "prod"), victim) for number in range(10)]
    for turn in range(6):
        scene.webhooks.append(webhook_of(LUMA, *(f"a{turn}-{number}@elsewhere.example" for number in range(10))))
        await scene.work(30)
        scene.webhooks.pop()
    to = [str(one["To"]) for one in mail.received]
    assert to.count(victim) == 3
    assert len(to) - 3 == 20


async def test_asking_again_has_the_same_limits_as_asking(scene: Scene, mail: MailServer) -> None:
    victim = "victim@elsewhere.example"
    others = [f"a{number}@elsewhere.example" for number in range(ASKS_A_TENANT)]
    scene.webhooks = [webhook_of(TenantKey(f"org-{number}", "prod"), victim) for number in range(5)]
    asks = [(webhook.config, victim) for webhook in scene.webhooks]
    for names in (others[:10], others[10:]):
        asks += [(webhook_of(LUMA, *names).config, name) for name in names]
        scene.webhooks.append(webhook_of(LUMA, *names))
        await scene.work(90_000)
        scene.webhooks.pop()
    asks.append((webhook_of(LUMA, "last@elsewhere.example").config, "last@elsewhere.example"))
    scene.webhooks.append(webhook_of(LUMA, "last@elsewhere.example"))
    await scene.work(90_000)
    assert len(mail.received) == 5 + ASKS_A_TENANT + 1
    scene.clock.now += 10 * 86_400

    async def ask(config: WebhookConfig, address: str) -> str:
        try:
            await scene.desk.ask_again(config, address)
        except TooSoon as error:
            return str(error)
        return ""

    answers = [await ask(*one) for one in asks]
    assert sorted(map(bool, answers[:5])) == [False] * 3 + [True] * 2, "3 a day to one address"
    assert sorted(map(bool, answers[5:])) == [False] * 20 + [True], "20 a day for one webhook"
    assert all("tomorrow" in answer for answer in answers if answer)
    scene.clock.now += 90_000
    assert [await ask(*one) for one, answer in zip(asks, answers, strict=True) if answer] == ["", "", ""]


async def test_many_at_once_are_reported_to_the_operator_only(scene: Scene, mail: MailServer) -> None:
    tenants = [TenantKey(f"org-{number}", "prod") for number in range(12)]
    scene.webhooks = [webhook_of(tenant, f"c{number}@x.example") for number, tenant in enumerate(tenants)]
    await confirmed(scene, mail, *(f"c{number}@x.example" for number in range(12)))
    for tenant in tenants[:4]:
        await scene.happen(ATTEMPT, 20, tenant)
    for _ in range(6):
        await scene.work(120)
    assert [(one["To"], one["Subject"]) for one in mail.received] == [
        (OPERATOR, "4 of 12 webhooks are in trouble at once")
    ]


async def test_nothing_is_sent_twice_or_lost_around_a_crash(scene: Scene, mail: MailServer, endpoint: Endpoint) -> None:
    """A worker that is killed while it sends repeats the message once, with the same Message-ID; never a third time."""
    scene.webhooks = [webhook_of(LUMA, CONTACT)]
    await confirmed(scene, mail, CONTACT)
    await scene.happen(ATTEMPT, status=410, verdict="disable_endpoint")
    await scene.work(1)
    assert len(mail.received) == len(endpoint.requests) == 1
    await scene.desk.send_test(scene.webhooks[0].config, "admin")
    assert len(await scene.store.claim(10, "email")) == 1, "claimed by a worker that is killed now"
    assert await scene.work(60) == 0
    assert await scene.work(600) == 1
    assert [one["Subject"] for one in mail.received[1:]] == ["A test of notifications"]
    scene.clock.now += 60
    await scene.desk.send_test(scene.webhooks[0].config, "admin")
    await scene.store.claim(10, "email")
    scene.clock.now += 600
    await scene.store.claim(10, "email")
    assert await scene.work(600) == 0
    newest = (await scene.desk.recent(orgs=None))[0]
    assert (newest.status, newest.content) == ("unknown", "")
    assert len(mail.received) == 2
    async with scene.store._database.read() as connection:
        found = await connection.execute(text("SELECT recipient FROM history_messages WHERE status = 'unknown'"))
        assert [row[0] for row in found] == ["o•••@luma.example"], "masked in the table, too"


def a_message(*kinds: str, channel: Channel = "email", recipient: str = CONTACT) -> Message:
    content = Content("notice", "Luma", [Section("Luma", kinds[0], *LUMA)])
    return Message(LUMA, "notice", kinds, channel, recipient, encode(content), "Luma")


async def test_urgent_messages_are_sent_first(scene: Scene, mail: MailServer) -> None:
    waiting = [a_message("failing", recipient=f"c{number}@luma.example") for number in range(6)]
    waiting.append(a_message("failing", "disabled"))
    await scene.store.add(Changes({}, [], waiting))
    first = await scene.store.claim(2, "email")
    assert [one.kinds for one in first] == [("failing", "disabled"), ("failing",)]
    assert await scene.store.claim(10, "webhook") == []


async def until(is_so: Callable[[], bool]) -> None:
    async with asyncio.timeout(60):
        while not is_so():
            await asyncio.sleep(0.02)


async def test_operational_webhooks_do_not_wait_for_a_mail_server_that_hangs(
    scene: Scene, mail: MailServer, endpoint: Endpoint, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(notifier, "SEND_EVERY_S", 0.1)
    mail.hold = asyncio.Event()
    await scene.store.add(Changes({}, [], [replace(a_message("failing"), tenant=ALL) for _ in range(9)]))
    running = asyncio.create_task(scene.notifier.run())
    try:
        await until(lambda: bool(mail.logins))
        await scene.store.add(Changes({}, [], [a_message("disabled", channel="webhook", recipient=endpoint.url)]))
        await until(lambda: bool(endpoint.requests))
        mails = [one for one in await scene.desk.recent(orgs=None) if one.channel == "email"]
        assert {one.problem for one in mails} == {""}, "none of them has timed out yet"
    finally:
        mail.hold.set()
        running.cancel()
        await asyncio.wait([running])


async def test_several_workers_send_each_message_once(scene: Scene, mail: MailServer, endpoint: Endpoint) -> None:
    scene.webhooks = [webhook_of(LUMA, CONTACT)]
    await confirmed(scene, mail, CONTACT)
    await scene.happen(ATTEMPT, status=410, verdict="disable_endpoint")
    await scene.work(1)
    others = [scene.notifier] + [scene.new_notifier() for _ in range(2)]
    await scene.happen(DELIVERED, 60, every_s=1)
    await scene._judge.judge_once(0, scene.clock.now)
    scene.clock.now += 4000
    await scene._judge.judge_once(0, scene.clock.now)
    for other in others[1:]:
        await other.__aenter__()
    await asyncio.gather(*(other.plan_once() for other in others))
    await asyncio.gather(*(other.send_due(*notifier.CHANNELS) for other in others))
    for other in others[1:]:
        await other.__aexit__()
    assert len(mail.received) == len(endpoint.requests) == 2


def tried_at(channel: str, result: str) -> float:
    name = "dispatcher_notifications_last_try_timestamp_seconds"
    return REGISTRY.get_sample_value(name, {"channel": channel, "result": result}) or 0


async def test_a_refused_message_is_retried_until_a_day_has_passed(
    scene: Scene, mail: MailServer, endpoint: Endpoint
) -> None:
    scene.webhooks = [webhook_of(LUMA, CONTACT)]
    await confirmed(scene, mail, CONTACT)
    mail.answers[:] = [f"451 later, {CONTACT}", "452 full"]
    endpoint.statuses[:] = [503, 500]
    await scene.happen(ATTEMPT, status=410, verdict="disable_endpoint")
    await scene.work(1)
    assert mail.received == endpoint.requests == []
    waiting = [one for one in await scene.desk.recent(orgs=None) if one.status == "waiting"]
    assert {(one.channel, one.tries) for one in waiting} == {("email", 1), ("webhook", 1)}
    assert any("451 later, o•••@luma.example" in one.problem for one in waiting)
    assert tried_at("email", "retried") == tried_at("webhook", "retried") == scene.clock()
    await scene.work(130)
    await scene.work(700)
    assert len(mail.received) == len(endpoint.requests) == 1
    for channel in ("email", "webhook"):
        assert tried_at(channel, "sent") > tried_at(channel, "retried")
    mail.refused.add(CONTACT)
    before = REGISTRY.get_sample_value("dispatcher_notifications_total", {"channel": "email", "result": "failed"})
    await scene.desk.send_test(scene.webhooks[0].config, "admin")
    await scene.work(1)
    after = REGISTRY.get_sample_value("dispatcher_notifications_total", {"channel": "email", "result": "failed"})
    assert (after or 0) - (before or 0) == 1
    assert (await scene.desk.recent(orgs=None))[0].status == "failed"


async def test_tests_are_limited_and_reach_the_operator(scene: Scene, mail: MailServer, endpoint: Endpoint) -> None:
    scene.webhooks = [webhook_of(LUMA, CONTACT)]
    with pytest.raises(NotFound, match="confirmed"):
        await scene.desk.send_test(scene.webhooks[0].config, "admin")
    assert await scene.desk.send_test(None, "the\r\nadmin") == 2
    with pytest.raises(TooSoon, match="minute"):
        await scene.desk.send_test(None, "admin")
    await scene.work()
    assert "the admin sent this test" in body(next(one for one in mail.received if one["To"] == OPERATOR))
    assert orjson.loads(endpoint.requests[0][1])["type"] == "dispatcher.test"
    for _ in range(4):
        scene.clock.now += 61
        await scene.desk.send_test(None, "admin")
    scene.clock.now += 61
    with pytest.raises(TooSoon, match="hour"):
        await scene.desk.send_test(None, "admin")


async def test_of_tests_that_are_ordered_at_once_one_is_sent(scene: Scene) -> None:
    """By several clicks, or in several consoles."""
    ends = await asyncio.gather(*(scene.desk.send_test(None, "admin") for _ in range(5)), return_exceptions=True)
    assert Counter(map(type, ends)) == {int: 1, TooSoon: 4}


async def test_names_can_not_break_out_of_headers_or_markup(scene: Scene, mail: MailServer) -> None:
    evil = "<script>alert(1)</script>\r\nBcc: x@evil.example\u2028" + "x" * 150
    config = webhook_of(LUMA, CONTACT).config.model_copy(update={"name": evil})  # validation refuses some of it
    scene.webhooks = [Webhook.of(config, "test")]
    await confirmed(scene, mail, CONTACT)
    await scene.happen(ATTEMPT, status=410, verdict="disable_endpoint", detail="<img src=x>\nanswered 410")
    await scene.work(1)
    (sent,) = mail.received
    assert sent["Bcc"] is None
    assert mail.envelopes[-1].rcpt_tos == [CONTACT]
    assert len(sent["Subject"]) <= 150
    assert "<script>" not in body(sent, "html")
    assert "<img" not in body(sent, "html")
    assert all(len(line) < 998 for line in sent.as_bytes().splitlines())


async def test_sent_messages_are_in_the_audit(
    tmp_path: Path, issued: Certificates, mail: MailServer, history: Database
) -> None:
    url = Secret(f"sqlite+aiosqlite:///{tmp_path / 'webhooks.db'}".encode())
    await upgrade(url)
    database = Database(url)
    audit = AuditLog(database)
    async with open_scene(settings_for(tmp_path, issued, mail, None), history, audit) as scene:
        scene.webhooks = [webhook_of(LUMA, CONTACT)]
        await confirmed(scene, mail, CONTACT)
        await scene.happen(ATTEMPT, status=410, verdict="disable_endpoint")
        await scene.work(1)
        entries = await audit.search(AuditQuery(), orgs=frozenset({LUMA.org}))
    await database.close()
    assert [(one.action, one.changes.get("kind")) for one in reversed(entries)] == [
        (AuditAction.NOTIFY, "confirm"), (AuditAction.CONTACT, None), (AuditAction.NOTIFY, "notice"),
    ]  # fmt: skip
    assert CONTACT not in str(entries)


@pytest.mark.parametrize("security", ["starttls", "tls"])
async def test_mail_goes_only_over_verified_tls(tmp_path: Path, issued: Certificates, security: str) -> None:
    async with mail_server(issued.server, implicit=security == "tls") as server:
        mail = EmailMessage()
        mail["From"], mail["To"], mail["Subject"] = "a@b.example", CONTACT, "x"
        mail.set_content("x")

        def sender(**more: object) -> MailSender:
            settings = settings_for(tmp_path, issued, server, None, smtp={"security": security} | more)
            assert settings.notifications.smtp is not None
            return MailSender(settings.notifications.smtp)

        await sender().send(mail)
        assert (len(server.received), server.sessions) == (1, [True])
        (tmp_path / "wrong").write_text("wrong")
        for more, words in (
            ({"ca": None}, "certificate"),
            ({"password": {"file": "wrong"}}, "user name|username"),
            ({"ca": tmp_path / "missing"}, "No such file"),
        ):
            with pytest.raises(NotSent, match=f"(?i){words}") as refused:
                await sender(**more).send(mail)
            assert not refused.value.is_final
        assert len(server.received) == 1
        rotating = sender()
        (tmp_path / "mail").write_text("rotated")
        with pytest.raises(NotSent, match="password"):
            await rotating.send(mail)
    with pytest.raises(NotSent):
        await rotating.send(mail)


async def test_a_mail_server_that_hangs_is_left_after_the_timeout(tmp_path: Path, issued: Certificates) -> None:
    async with mail_server(issued.server, implicit=False) as server:
        server.hold = asyncio.Event()
        settings = settings_for(tmp_path, issued, server, None, smtp={"timeout": "1s"})
        assert settings.notifications.smtp is not None
        mail = EmailMessage()
        mail["From"], mail["To"] = "a@b.example", CONTACT
        mail.set_content("x")
        with pytest.raises(NotSent, match=r"within 1 s|[Tt]imed out"):
            await MailSender(settings.notifications.smtp).send(mail)
        server.hold.set()


def test_settings_that_would_send_a_password_in_clear_are_refused(tmp_path: Path, issued: Certificates) -> None:
    server = MailServer(port=25)
    with pytest.raises(ValueError, match="clear text"):
        settings_for(tmp_path, issued, server, None, smtp={"security": "none", "host": "mail.example"})
    with pytest.raises(ValueError, match="belong together"):
        settings_for(tmp_path, issued, server, None, smtp={"password": None})
    with pytest.raises(ValueError, match="10 items"):
        webhook_of(LUMA, *(f"a{number}@x.example" for number in range(11)))


async def test_an_operational_webhook_of_an_unknown_ca_points_to_no_webhooks_setting(
    tmp_path: Path, issued: Certificates, endpoint: Endpoint
) -> None:
    settings = settings_for(tmp_path, issued, None, endpoint).notifications.webhook
    assert settings is not None
    egress = EgressSettings.model_validate({"allow": ["127.0.0.0/8", "::1/128"]})
    async with open_transport(DeliverySettings(), egress) as transport:
        with pytest.raises(NotSent, match=r"; trust its CA in egress\.ca_bundle$"):
            await OperationalWebhook(settings, transport).send("msg_1", {}, 1.0)


async def test_an_operational_webhook_is_signed_with_the_secret_as_its_file_has_it_now(
    tmp_path: Path, issued: Certificates, endpoint: Endpoint
) -> None:
    """A rotated secret signs without a restart; one that can't sign, such as half a file, doesn't."""
    whole = settings_for(tmp_path, issued, None, endpoint)
    settings, rotated = whole.notifications.webhook, "whsec_" + "cm90YXRlZC1yb3RhdGVkLXJvdGF0ZWQtMTIzNA=="
    assert settings is not None
    async with open_transport(DeliverySettings(), whole.egress) as transport:
        webhook = OperationalWebhook(settings, transport)
        for content, secret in ((SECRET, SECRET), (rotated, rotated), ("whsec_", rotated)):
            (tmp_path / "whsec").write_text(content)
            await webhook.send("msg_1", {"type": "test"}, datetime.now(UTC).timestamp())
            headers, body = endpoint.requests.pop()
            Verifier(secret).verify(body, {name.lower(): value for name, value in headers.items()})
