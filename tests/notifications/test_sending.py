"""What happens around a send: the database is away when it ends, another send has a bug, the worker is stopped."""

import asyncio
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager

import pytest
from aiosmtpd.smtp import SMTP, Envelope, Session
from prometheus_client import REGISTRY
from sqlalchemy import ColumnElement, text
from sqlalchemy.ext.asyncio import AsyncConnection

from dispatcher.errors import StoreUnavailable
from dispatcher.notifications import notifier
from dispatcher.notifications.content import Content
from dispatcher.stores.sql import notification_store
from dispatcher.stores.sql.notification_store import Changes, Message
from tests.notifications.receivers import MailServer
from tests.notifications.scene import CONTACT, LUMA, Scene, webhook_of
from tests.notifications.test_notifications import a_message, confirmed, until


def store_failures() -> float:
    return REGISTRY.get_sample_value("dispatcher_history_store_failures_total") or 0


async def statuses_of_notices(scene: Scene) -> list[str]:
    return sorted(one.status for one in await scene.desk.recent(orgs=None) if one.kind == "notice")


async def rename(scene: Scene, before: str, after: str) -> None:
    async with scene.store._database.write() as connection:
        await connection.execute(text(f"ALTER TABLE {before} RENAME TO {after}"))


@asynccontextmanager
async def database_away(scene: Scene, mail: MailServer) -> AsyncIterator[None]:
    """Sends what is due; the database is away from before the server answers until the body has ended."""
    mail.hold = asyncio.Event()
    logins, failures = len(mail.logins), store_failures()
    sending = asyncio.create_task(scene.notifier.send_due("email"))
    await until(lambda: len(mail.logins) > logins)
    await rename(scene, "history_messages", "moved")
    mail.hold.set()
    await until(lambda: store_failures() > failures or sending.done())
    yield
    await rename(scene, "moved", "history_messages")
    await asyncio.wait([sending])
    mail.hold = None


async def test_a_message_is_sent_once_if_the_database_is_away_when_its_send_ends(
    scene: Scene, mail: MailServer, monkeypatch: pytest.MonkeyPatch
) -> None:
    """However long it is away, and whatever happened to the message."""
    monkeypatch.setattr(notifier, "NOTE_FIRST_S", 0.01)
    scene.webhooks = [webhook_of(LUMA, CONTACT)]
    await confirmed(scene, mail, CONTACT)
    await scene.store.add(Changes({}, [], [a_message("failing")]))
    for _ in range(3):
        scene.clock.now += 3700
        mail.answers[:] = ["451 later"]
        async with database_away(scene, mail):
            scene.clock.now += 3700
    (waiting,) = [one for one in await scene.desk.recent(orgs=None) if one.kind == "notice"]
    assert (waiting.status, waiting.tries, "451" in waiting.problem) == ("waiting", 3, True)
    scene.clock.now += 3700
    async with database_away(scene, mail):
        scene.clock.now += 3700
    await scene.work(3700)
    assert await statuses_of_notices(scene) == ["sent"]
    assert len(mail.received) == 1


async def test_a_late_note_does_not_end_what_another_worker_has_taken(scene: Scene) -> None:
    await scene.store.add(Changes({}, [], [a_message("failing")]))
    (first,) = await scene.store.claim(1, "email")
    scene.clock.now += 600
    (second,) = await scene.store.claim(1, "email")
    await scene.store.finish(first, "waiting", "451 later", 30)
    assert [one.status for one in await scene.desk.recent(orgs=None)] == ["sending"]
    await scene.store.finish(second, "sent")
    await scene.store.finish(first, "waiting", "451 later", 30)
    assert [one.status for one in await scene.desk.recent(orgs=None)] == ["sent"]


async def test_the_wait_before_another_try_begins_when_the_database_is_free(scene: Scene) -> None:
    """Else a message would be due already when it is noted that it waits."""
    await scene.store.add(Changes({}, [], [a_message("failing")]))
    (taken,) = await scene.store.claim(1, "email")
    async with scene.store._database.write() as connection:
        await connection.execute(text("UPDATE history_messages SET title = title"))
        noting = asyncio.create_task(scene.store.finish(taken, "waiting", "451 later", 30))
        await asyncio.sleep(0.1)
        scene.clock.now += 600
    await noting
    assert await scene.store.claim(1, "email") == []
    scene.clock.now += 30
    async with scene.store._database.write() as connection:
        await connection.execute(text("UPDATE history_messages SET title = title"))
        taking = asyncio.create_task(scene.store.claim(1, "email"))
        await asyncio.sleep(0.1)
        scene.clock.now += 600
    (again,) = await taking or await scene.store.claim(1, "email")
    scene.clock.now += 200
    assert await scene.new_notifier().send_due("email") == 0, "the claim lasts as long as it should"
    await scene.store.finish(again, "failed")


async def test_a_claim_begins_once_its_messages_are_locked(scene: Scene, monkeypatch: pytest.MonkeyPatch) -> None:
    """Else another worker would take them while the first one sends."""
    await scene.store.add(Changes({}, [], [a_message("failing")]))
    end_lost = notification_store.end_lost

    async def slowly(connection: AsyncConnection, is_due: ColumnElement[bool], now_ms: int) -> None:
        await end_lost(connection, is_due, now_ms)
        scene.clock.now += 600

    with monkeypatch.context() as patch:
        patch.setattr(notification_store, "end_lost", slowly)
        assert len(await scene.store.claim(1, "email")) == 1
    scene.clock.now += 200
    assert await scene.new_notifier().send_due("email") == 0


async def test_no_message_is_sent_twice_while_a_slow_server_takes_several_in_turn(
    scene: Scene, mail: MailServer, monkeypatch: pytest.MonkeyPatch
) -> None:
    """To one recipient, each in the longest `smtp.timeout`, while another worker sends what it finds."""
    scene.webhooks = [webhook_of(LUMA, CONTACT)]
    await confirmed(scene, mail, CONTACT)
    kinds = ("first_dead", "failing", "expiring", "unstable")
    await scene.store.add(Changes({}, [], [a_message(kind) for kind in kinds]))
    other, take, is_slow = scene.new_notifier(), mail.handle_DATA, [True] * len(kinds)

    async def take_slowly(server: SMTP, session: Session, envelope: Envelope) -> str:
        if is_slow:
            is_slow.pop()
            scene.clock.now += 300
            rest, is_slow[:] = is_slow[:], []
            await other.send_due("email")
            is_slow[:] = rest
        return await take(server, session, envelope)

    monkeypatch.setattr(mail, "handle_DATA", take_slowly)
    await scene.notifier.send_due("email")
    assert await statuses_of_notices(scene) == ["sent"] * len(kinds)
    assert len(mail.received) == len(kinds)


async def test_no_message_is_sent_late_by_a_worker_that_waited_for_the_database(
    scene: Scene, mail: MailServer, monkeypatch: pytest.MonkeyPatch
) -> None:
    """The database is away when the contacts are read; meanwhile the claim expires."""
    monkeypatch.setattr(notifier, "NOTE_FIRST_S", 0.2)
    scene.webhooks = [webhook_of(LUMA, CONTACT)]
    await confirmed(scene, mail, CONTACT)
    await scene.store.add(Changes({}, [], [a_message("failing")]))
    await rename(scene, "history_contacts", "moved")
    failures = store_failures()
    sending = asyncio.create_task(scene.notifier.send_due("email"))
    await until(lambda: store_failures() > failures or sending.done())
    scene.clock.now += 600
    await rename(scene, "moved", "history_contacts")
    await scene.new_notifier().send_due("email")
    await sending
    await scene.work(600)
    assert await statuses_of_notices(scene) == ["sent"]
    assert len(mail.received) == 1


async def test_a_worker_takes_nothing_from_its_sender_just_after_the_database_was_away(
    scene: Scene, mail: MailServer, monkeypatch: pytest.MonkeyPatch
) -> None:
    """The sender is about to note how sending ended; if it doesn't, the message is taken half a minute later."""
    monkeypatch.setattr(notifier, "NOTE_FIRST_S", 2.0)
    scene.webhooks = [webhook_of(LUMA, CONTACT)]
    await confirmed(scene, mail, CONTACT)
    await scene.store.add(Changes({}, [], [a_message("failing")]))
    other = scene.new_notifier()
    async with database_away(scene, mail):
        scene.clock.now += 600
        with pytest.raises(StoreUnavailable):
            await other.send_due("email")
        await rename(scene, "moved", "history_messages")
        await other.send_due("email")
        await rename(scene, "history_messages", "moved")
    assert await statuses_of_notices(scene) == ["sent"]
    assert len(mail.received) == 1
    await scene.store.add(Changes({}, [], [a_message("first_dead")]))
    await scene.store.claim(1, "email")
    scene.clock.now += 600
    assert await other.send_due("email") == 1


async def test_an_answer_of_any_bytes_can_be_noted(scene: Scene, mail: MailServer) -> None:
    await scene.store.add(Changes({}, [], [a_message("failing")]))
    (claimed,) = await scene.store.claim(1, "email")
    await scene.store.finish(claimed, "waiting", "451 sp\udce4ter\x00", 30)
    assert [one.status for one in await scene.desk.recent(orgs=None)] == ["waiting"]


async def test_a_bug_in_one_send_does_not_touch_the_others(
    scene: Scene, mail: MailServer, monkeypatch: pytest.MonkeyPatch
) -> None:
    scene.webhooks = [webhook_of(LUMA, CONTACT)]
    await confirmed(scene, mail, CONTACT)
    await scene.store.add(Changes({}, [], [a_message(kind) for kind in ("failing", "first_dead", "expiring")]))
    assert scene.notifier._mail is not None
    renderer, _ = scene.notifier._mail
    render = renderer.render

    def failing(message: Message, content: Content) -> object:
        if message.kinds == ("failing",):
            raise RuntimeError("a bug")
        return render(message, content)

    monkeypatch.setattr(renderer, "render", failing)
    errors = {"where": "notifications"}
    before = REGISTRY.get_sample_value("dispatcher_internal_errors_total", errors) or 0
    await scene.notifier.send_due("email")
    assert REGISTRY.get_sample_value("dispatcher_internal_errors_total", errors) == before + 1
    assert await statuses_of_notices(scene) == ["sending", "sent", "sent"]
    assert len(mail.received) == 2


@pytest.mark.parametrize("is_in_time", [True, False])
async def test_a_worker_that_is_stopped_ends_what_it_sends(
    scene: Scene, mail: MailServer, monkeypatch: pytest.MonkeyPatch, is_in_time: bool
) -> None:
    monkeypatch.setattr(notifier, "SEND_EVERY_S", 0.05)
    if not is_in_time:
        monkeypatch.setattr(notifier, "GRACE_S", 0.05)
    contacts = [f"c{number}@luma.example" for number in range(notifier.AT_ONCE + 1)]
    scene.webhooks = [webhook_of(LUMA, *contacts)]
    await confirmed(scene, mail, *contacts)
    await scene.store.add(Changes({}, [], [a_message("failing", recipient=one) for one in contacts]))
    mail.hold, logins = asyncio.Event(), len(mail.logins)
    running = asyncio.create_task(scene.notifier.run())
    await until(lambda: len(mail.logins) == logins + notifier.AT_ONCE)
    running.cancel()
    if is_in_time:
        await asyncio.sleep(0)
        mail.hold.set()
    await asyncio.wait([running], timeout=60)
    mail.hold.set()
    assert running.cancelled()
    expected = ["sent" if is_in_time else "sending"] * notifier.AT_ONCE + ["waiting"]
    assert await statuses_of_notices(scene) == expected
