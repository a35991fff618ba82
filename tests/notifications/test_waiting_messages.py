"""What happens to messages that wait for their next try: newer news, a contact who has gone, a server that is back."""

import asyncio
from dataclasses import replace

from dispatcher.contract.history import HistoryOutcome
from dispatcher.contract.tenant import TenantKey
from dispatcher.notifications.notifier import CHANNELS
from dispatcher.stores.sql.notification_store import OPERATOR as ALL
from dispatcher.stores.sql.notification_store import Changes
from tests.notifications.receivers import MailServer
from tests.notifications.scene import CONTACT, LUMA, OPERATOR, Scene, webhook_of
from tests.notifications.test_notifications import a_message, body, confirmed, link_in, until

ATTEMPT, DELIVERED, DEAD = HistoryOutcome.ATTEMPT, HistoryOutcome.DELIVERED, HistoryOutcome.DEAD
SECOND, OTHER = "second@luma.example", TenantKey("other@AdobeOrg", "prod")


def titles(mail: MailServer) -> list[str]:
    return [str(one["Subject"]).partition(": ")[0].removeprefix("Luma order status ") for one in mail.received]


async def problems(scene: Scene) -> list[tuple[str, str]]:
    return [(one.status, one.problem) for one in await scene.desk.recent(orgs=None) if one.status != "sent"]


async def fail_then_recover(scene: Scene, mail: MailServer, *, dies: bool = False) -> None:
    """Reports trouble that the mail server doesn't take, and two hours later that the webhook has recovered."""
    await scene.happen(ATTEMPT, 10)
    if dies:
        await scene.happen(DEAD, reason="rejected")
    mail.answers[:] = ["451 later"] * 6
    for wait_s in (61, 30, 120, 600, 1800, 3600):
        await scene.work(wait_s)
    assert mail.received == []
    await scene.happen(DELIVERED, 60, every_s=1)
    await scene.work(70)
    await scene.work(3700)
    await scene.work(3700)


async def test_news_that_is_out_of_date_is_not_sent_after_the_newer(scene: Scene, mail: MailServer) -> None:
    scene.webhooks = [webhook_of(LUMA, CONTACT)]
    await confirmed(scene, mail, CONTACT)
    await fail_then_recover(scene, mail)
    assert titles(mail) == ["has recovered"]
    assert ("failed", "newer news replaces it") in await problems(scene)


async def test_news_that_the_newer_does_not_contradict_is_sent_before_it(scene: Scene, mail: MailServer) -> None:
    scene.webhooks = [webhook_of(LUMA, CONTACT)]
    await confirmed(scene, mail, CONTACT)
    await fail_then_recover(scene, mail, dies=True)
    assert titles(mail) == ["is failing", "has recovered"]


async def test_the_operators_messages_of_several_webhooks_arrive_in_order(scene: Scene, mail: MailServer) -> None:
    scene.webhooks = [webhook_of(LUMA)]
    await scene.work()
    await fail_then_recover(scene, mail)
    assert titles(mail) == ["is failing", "has recovered"]


async def test_a_message_that_is_being_sent_does_not_follow_the_newer(scene: Scene, mail: MailServer) -> None:
    scene.webhooks = [webhook_of(LUMA, CONTACT)]
    await confirmed(scene, mail, CONTACT)
    await scene.store.add(Changes({}, [], [a_message("failing")]))
    (claimed,) = await scene.store.claim(1, "email")
    scene.clock.now += 1
    await scene.store.add(Changes({}, [], [a_message("recovered")]))
    assert await scene.notifier.send_due("email") == 1
    await scene.store.finish(claimed, "waiting", "451 later", 30)
    await scene.work(3700)
    assert len(mail.received) == 1
    assert ("failed", "newer news replaces it") in await problems(scene)


async def test_each_kind_of_newer_news_replaces_what_waits(scene: Scene) -> None:
    """An operational webhook gets a message for each kind: the last one is not the only one that counts."""
    first, *newer = (replace(a_message(kind), channel="webhook") for kind in ("failing", "disabled", "first_dead"))
    await scene.store.add(Changes({}, [], [first]))
    scene.clock.now += 1
    await scene.store.add(Changes({}, [], newer))
    assert await problems(scene) == [("waiting", ""), ("waiting", ""), ("failed", "newer news replaces it")]


async def test_what_waits_is_sent_once_the_server_takes_messages_again(scene: Scene, mail: MailServer) -> None:
    scene.webhooks = [webhook_of(LUMA, CONTACT)]
    await confirmed(scene, mail, CONTACT)
    await scene.store.add(Changes({}, [], [a_message("first_dead"), a_message("expiring", recipient=CONTACT)]))
    for wait_s in (1, 31, 121, 601, 1801):
        mail.answers[:] = ["454 TLS not available"] * 2
        scene.clock.now += wait_s
        await scene.notifier.send_due("email")
    mail.answers.clear()
    scene.clock.now += 300
    assert await scene.notifier.send_due("email") == 0
    await scene.desk.send_test(scene.webhooks[0].config, "admin")
    assert await scene.notifier.send_due("email") == 3
    assert len(mail.received) == 3


async def test_a_contact_who_stopped_or_is_no_longer_named_receives_nothing_more(
    scene: Scene, mail: MailServer
) -> None:
    """Neither what waits, nor what was being sent and was not accepted."""
    scene.webhooks = [webhook_of(LUMA, CONTACT, SECOND)]
    await confirmed(scene, mail, CONTACT, SECOND)
    await scene.desk.send_test(scene.webhooks[0].config, "admin")
    await scene.work()
    stop = next(link_in(one) for one in mail.received if one["To"] == CONTACT)
    mail.received.clear()
    notices = [a_message("first_dead", recipient=one) for one in (CONTACT, SECOND)]
    await scene.store.add(Changes({}, [], notices))
    mail.answers[:] = ["451 later"] * 4
    await scene.notifier.send_due("email")
    await scene.store.add(Changes({}, [], notices))
    mail.hold, logins = asyncio.Event(), len(mail.logins)
    sending = asyncio.create_task(scene.notifier.send_due("email"))
    await until(lambda: len(mail.logins) == logins + 2)
    await scene.desk.use(stop)
    scene.webhooks = [webhook_of(LUMA, CONTACT)]
    mail.hold.set()
    await asyncio.wait([sending])
    for _ in range(3):
        await scene.work(3700)
    assert {str(one["To"]) for one in mail.received} == {OPERATOR}
    assert [status for status, _ in await problems(scene)] == ["failed"] * 4
    assert {why for _, why in await problems(scene)} == {"the contact doesn't want it, or is no longer named"}


async def test_notices_of_a_webhook_that_can_not_be_used_reach_its_contact(scene: Scene, mail: MailServer) -> None:
    """It is not deleted: its file has a mistake, or can't be read. Who stopped receives nothing all the same."""
    scene.webhooks = [webhook_of(LUMA, CONTACT, SECOND)]
    await confirmed(scene, mail, CONTACT, SECOND)
    await scene.store.set_contact(LUMA, scene.desk._composer.contact_of(SECOND), "stopped")
    notices = [a_message("disabled", recipient=one) for one in (CONTACT, SECOND)]
    await scene.store.add(Changes({}, [], notices))
    scene.webhooks, scene.unusable = [webhook_of(OTHER)], {LUMA}
    await scene.notifier.send_due("email")
    assert [str(one["To"]) for one in mail.received] == [CONTACT]
    scene.unusable = set()
    await scene.store.add(Changes({}, [], notices))
    await scene.notifier.send_due("email")
    assert len(mail.received) == 1, "it is deleted"


async def test_the_operator_receives_what_no_contact_is_to_receive_any_more(scene: Scene, mail: MailServer) -> None:
    """It counts as reported: no later message has it. If the webhook is deleted, it is of no use."""
    scene.webhooks = [webhook_of(LUMA, CONTACT)]
    await confirmed(scene, mail, CONTACT)
    await scene.store.add(Changes({}, [], [a_message("disabled")]))
    scene.webhooks = [webhook_of(LUMA, SECOND)]
    await scene.notifier.send_due("email")
    (sent,) = mail.received
    assert (sent["To"], titles(mail)) == (OPERATOR, ["Luma"])
    scene.webhooks = [webhook_of(OTHER)]
    await scene.store.add(Changes({}, [], [a_message("disabled")]))
    await scene.notifier.send_due("email")
    assert len(mail.received) == 1


async def test_a_contact_who_stops_wakes_only_its_own_messages(scene: Scene, mail: MailServer) -> None:
    """Others stay in their backoff, or a link would have them tried again at each press of its button."""
    scene.webhooks = [webhook_of(LUMA, CONTACT, SECOND)]
    await confirmed(scene, mail, CONTACT, SECOND)
    own, other = (a_message("first_dead", recipient=one) for one in (CONTACT.upper(), SECOND))
    for message in (own, other, replace(other, channel="webhook")):
        await scene.store.add(Changes({}, [], [message]))
        for claimed in await scene.store.claim(1, message.channel):
            await scene.store.finish(claimed, "waiting", "451 later", 3600)
    await scene.store.set_contact(LUMA, scene.desk._composer.contact_of(CONTACT), "stopped")
    due = [await scene.store.claim(9, channel) for channel in CHANNELS]
    assert [[one.recipient for one in some] for some in due] == [[CONTACT.upper()], []]


async def test_the_operator_is_notified_if_no_contact_can_be_reached(scene: Scene, mail: MailServer) -> None:
    scene.webhooks = [webhook_of(LUMA, CONTACT, SECOND)]
    await confirmed(scene, mail, CONTACT, SECOND)
    mail.refused.add(CONTACT)
    await scene.happen(ATTEMPT, status=410, verdict="disable_endpoint")
    await scene.work(1)
    assert [one["To"] for one in mail.received] == [SECOND], "one contact is enough"
    mail.received.clear()
    mail.refused.add(SECOND)
    await scene.happen(DELIVERED, 60, every_s=1)
    await scene.work(3700)
    await scene.work(3700)
    (sent,) = mail.received
    assert (sent["To"], titles(mail)) == (OPERATOR, ["has recovered"])
    for kind in ("plain", "html"):
        assert "no contact of the webhook takes it" in body(sent, kind)
        assert "550 no such mailbox" in body(sent, kind)
        assert "Stop such messages" not in body(sent, kind)
    assert {one.tenant for one in await scene.desk.recent(orgs=None) if one.recipient.startswith("n")} == {ALL}
