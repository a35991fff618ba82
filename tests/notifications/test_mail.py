"""What mail servers do to one e-mail: they refuse us or the recipient, and hang when everything is done."""

import asyncio
import re
from contextlib import AsyncExitStack, suppress
from dataclasses import replace
from email.message import EmailMessage
from pathlib import Path
from typing import Any

import pytest
from aiosmtpd.smtp import SMTP

from dispatcher.contract.history import HistoryOutcome
from dispatcher.contract.tenant import TenantKey
from dispatcher.notifications.content import Content
from dispatcher.notifications.mail import MailSender, NotSent
from dispatcher.notifications.rendering import MailRenderer
from dispatcher.stores.sql.database import Database
from dispatcher.stores.sql.notification_store import OPERATOR, Changes, Message
from tests.notifications.receivers import Certificates, Endpoint, MailServer, mail_server
from tests.notifications.scene import CONTACT, LUMA, PUBLIC_URL, Scene, open_scene, settings_for, webhook_of
from tests.notifications.test_notifications import a_message, body, confirmed
from tests.silent_addresses import SILENT, resolve, silent


def sender_to(directory: Path, issued: Certificates, server: MailServer, **smtp: object) -> MailSender:
    settings = settings_for(directory, issued, server, None, smtp=smtp)
    assert settings.notifications.smtp is not None
    return MailSender(settings.notifications.smtp)


def a_mail() -> EmailMessage:
    mail = EmailMessage()
    mail["From"], mail["To"], mail["Subject"] = "a@b.example", CONTACT, "x"
    mail.set_content("x")
    return mail


async def test_an_accepted_mail_is_sent_however_the_session_ends(
    tmp_path: Path, issued: Certificates, monkeypatch: pytest.MonkeyPatch, history: Database
) -> None:
    """If the server doesn't answer QUIT, refuses it, or is slow throughout."""
    held, endings = asyncio.Event(), ["hangs", "refuses", "closes"]

    async def quit_badly(self: SMTP, _: str | None) -> None:
        ending = endings.pop(0)
        if ending == "hangs":
            await held.wait()
        elif ending == "refuses":
            await self.push("421 busy")
        assert self.transport is not None
        self.transport.close()

    monkeypatch.setattr(SMTP, "smtp_QUIT", quit_badly)
    async with mail_server(issued.server, implicit=False) as server:
        settings = settings_for(tmp_path, issued, server, None, smtp={"timeout": "2s"})
        async with open_scene(settings, history) as scene:
            scene.webhooks = [webhook_of(LUMA, CONTACT, "second@luma.example", "third@luma.example")]
            await scene.work()
            await scene.work(3700)
            held.set()
            assert {one.status for one in await scene.desk.recent(orgs=None)} == {"sent"}
            assert len(server.received) == 3


@pytest.mark.parametrize(
    "answer",
    [
        "554 5.7.1 <ops@luma.example>: Relay access denied",
        "530 5.7.0 Authentication required",
        "550 5.7.1 Sender blocked by policy",
        "550 5.1.8 <dispatcher@operator.example>: Sender address rejected: Domain not found",
        "553 5.1.7 The sender's address is malformed",
        "550 #5.7.1 Your access is denied",
        "550 relay not permitted",
        "550 Authentication is required for relaying",
        "552 5.2.2 Mailbox full",
        "554 Transaction failed",
        "450 4.7.1 Greylisted",
    ],
)
async def test_a_server_that_refuses_us_is_tried_again(tmp_path: Path, issued: Certificates, answer: str) -> None:
    refused = await refusal(tmp_path, issued, answer)
    assert not refused.is_final
    code, _, words = answer.partition(" ")
    assert f"answers {code}" in str(refused)
    assert words.split()[-1] in str(refused)
    assert "ops@" not in str(refused)
    assert "refuses the recipient" not in str(refused)


@pytest.mark.parametrize(
    "answer",
    [
        "550 5.1.1 <ops@luma.example>: Recipient address rejected: User unknown",
        "550 5.1.2 Domain not found",
        "553 5.1.3 Bad address syntax",
        "556 5.1.10 The domain accepts no mail",
        "550 no such mailbox",
        "551 User not local",
        "553 Mailbox name not allowed",
    ],
)
async def test_a_recipient_who_does_not_exist_is_given_up(tmp_path: Path, issued: Certificates, answer: str) -> None:
    refused = await refusal(tmp_path, issued, answer)
    assert refused.is_final
    assert f"refuses the recipient: {answer[:3]}" in str(refused)


async def refusal(directory: Path, issued: Certificates, answer: str) -> NotSent:
    class Refusing(MailServer):
        async def handle_RCPT(self, *_: Any) -> str:
            return answer

    async with mail_server(issued.server, implicit=False, handler=Refusing()) as server:
        with pytest.raises(NotSent) as refused:
            await sender_to(directory, issued, server).send(a_mail())
    return refused.value


def headers_of(raw: bytes) -> dict[str, str]:
    """Header fields as they were on the wire, with their folding undone and nothing decoded."""
    head = raw.decode("ascii").split("\r\n\r\n")[0]
    assert all(len(line) <= 998 for line in head.split("\r\n"))
    return dict(line.split(": ", 1) for line in re.sub(r"\r\n(?=[ \t])", "", head).replace(":  ", ": ").split("\r\n"))


async def test_programs_can_read_the_headers_of_a_mail(tmp_path: Path, issued: Certificates, history: Database) -> None:
    """RFC 2369 and RFC 5322 want URL and id as they are; with long names, too. Only texts for people are encoded."""
    host = ".".join(["operations-and-notifications"] * 6)
    sender, address = f"{'d' * 40}@{host}", f"{'o' * 64}@{host}"
    tenant = TenantKey("9E1005A551ED61CA0A490D45" * 4 + "@AdobeOrg", "sandbox-" * 8)
    async with mail_server(issued.server, implicit=False) as server:
        settings = settings_for(tmp_path, issued, server, None, smtp={"sender": sender})
        async with open_scene(settings, history) as scene:
            for name in ("Bestellungen für " + "ü" * 80, "=?utf-8?q?x=0D=0ABcc:_a@evil.example?=" + "y" * 90):
                scene.webhooks = [webhook_of(tenant, address, name=name)]
                await scene.work()
                await scene.store.set_contact(tenant, scene.notifier._composer.contact_of(address), "confirmed")
                await scene.desk.send_test(scene.webhooks[0].config, "admin")
                await scene.happen(HistoryOutcome.ATTEMPT, tenant=tenant, status=410, verdict="disable_endpoint")
                await scene.work(3700)
        assert len(server.envelopes) == 1 + 2 + 1, "one to confirm, two tests, one notice"
        for envelope, mail in zip(server.envelopes, server.received, strict=True):
            assert isinstance(envelope.content, bytes)
            assert (envelope.mail_from, envelope.rcpt_tos) == (sender, [address])
            headers = headers_of(envelope.content)
            assert headers["From"] == f"Feedback dispatcher <{sender}>"
            assert headers["To"] == address
            assert re.fullmatch(rf"<[0-9a-f]{{32}}@{re.escape(host)}>", headers["Message-ID"])
            assert "Bcc" not in headers
            assert "\n" not in mail["Subject"]
            if "List-Unsubscribe" not in headers:
                assert "Confirm" in mail["Subject"]
                continue
            link = headers["List-Unsubscribe"]
            assert re.fullmatch(rf"<{PUBLIC_URL}/notifications/link\?token=[\w.-]+>", link)
            assert link[1:-1] in body(mail)
            assert headers["List-Unsubscribe-Post"] == "List-Unsubscribe=One-Click"
        assert "Bestellungen für" in str([one["Subject"] for one in server.received])


@pytest.mark.parametrize(
    "address",
    [
        "=?utf-8?q?a?=@luma.example", "ops@-luma.example", "ops@luma.example-", "ops@luma.example.", "ops",
        f"{'o' * 65}@luma.example", "ops@luma..example", "täro@luma.example", "ops@bücher.example",
    ],
)  # fmt: skip
def test_an_address_that_no_mail_can_be_sent_to_is_refused(tmp_path: Path, issued: Certificates, address: str) -> None:
    """Wherever an address is configured, and with the way out if it has letters that are not ASCII."""
    words = "not an e-mail address" if address.isascii() else "xn--"
    with pytest.raises(ValueError, match=words):
        webhook_of(LUMA, address)
    with pytest.raises(ValueError, match=words):
        settings_for(tmp_path, issued, None, None, operator=[address])
    with pytest.raises(ValueError, match=words):
        settings_for(tmp_path, issued, MailServer(port=25), None, smtp={"sender": address})


@pytest.mark.parametrize(
    "address", ["o", "first.last+x=y?z", "{a}|b~`c`", "a-", "_.-", "taro.", ".taro", "ta..ro", ".", "a" * 63 + "."]
)
async def test_every_address_that_is_accepted_can_be_sent_to(
    tmp_path: Path, issued: Certificates, address: str
) -> None:
    (recipient,) = webhook_of(LUMA, f"{address}@luma-1.example").config.notify.emails
    mail = MailRenderer(recipient).render(Message(LUMA, "test", (), "email", recipient, "", "x"), Content("test", "x"))
    async with mail_server(issued.server, implicit=False) as server:
        await sender_to(tmp_path, issued, server).send(mail)
    (envelope,) = server.envelopes
    assert envelope.rcpt_tos == [envelope.mail_from]
    assert isinstance(envelope.content, bytes)
    headers = headers_of(envelope.content)
    needs_quotes = "" in address.split(".")  # RFC 5322: dots have to be between other characters
    written = f'"{address}"@luma-1.example' if needs_quotes else recipient
    assert (headers["To"], headers["From"]) == (written, f"Feedback dispatcher <{written}>")
    assert server.paths == [f"<{written}>"] * 2


async def test_a_contact_whose_name_ends_with_a_dot_is_notified(
    scene: Scene, mail: MailServer, endpoint: Endpoint
) -> None:
    """Mobile providers have given away such addresses. A refusal that quotes one is masked."""
    scene.webhooks = [webhook_of(LUMA, "taro.@docomo.example")]
    await confirmed(scene, mail, "taro.@docomo.example")
    await scene.store.add(Changes({}, [], [a_message("failing", recipient="taro.@docomo.example")]))
    mail.answers.append('451 4.2.1 <"taro."@docomo.example> is busy')
    await scene.notifier.send_due("email")
    (waiting,) = [one for one in await scene.desk.recent(orgs=None) if one.status == "waiting"]
    assert ("is busy" in waiting.problem, "taro" in waiting.problem) == (True, False)
    scene.clock.now += 60
    await scene.notifier.send_due("email")
    (sent,) = mail.received
    assert sent["To"] == "taro.@docomo.example"


async def test_a_message_that_can_not_be_rendered_is_given_up_with_its_reason(scene: Scene, mail: MailServer) -> None:
    """One of a version that accepted more addresses, or wrote another content."""
    unusable = ("=?utf-8?q?taro?=@docomo.example", "taro@@x")
    waiting = [a_message("failing", recipient=one) for one in unusable]
    waiting.append(replace(a_message("failing"), content="{"))
    await scene.store.add(Changes({}, [], [replace(one, tenant=OPERATOR) for one in waiting]))
    await scene.notifier.send_due("email")
    found = await scene.desk.recent(orgs=None)
    assert [one.status for one in found] == ["failed"] * 3
    assert all("can't be rendered" in one.problem for one in found)
    assert "taro" not in str([one.problem for one in found])


async def test_tenants_learn_nothing_of_the_operators_servers(
    tmp_path: Path, issued: Certificates, history: Database
) -> None:
    """Not even from a connection's error, which quotes the address. The operator reads it in the log."""
    async with AsyncExitStack() as stack:
        async with mail_server(issued.server, implicit=False) as server:
            webhook = {"url": "https://127.0.0.1:1/hook", "signing": {"secrets": [{"file": "whsec"}]}}
            settings = settings_for(tmp_path, issued, server, None, webhook=webhook)
            scene = await stack.enter_async_context(open_scene(settings, history))
            scene.webhooks = [webhook_of(LUMA, CONTACT)]
            await confirmed(scene, server, CONTACT)
        to_endpoint = replace(a_message("failing"), channel="webhook", recipient="https://127.0.0.1:1")
        messages = [a_message("failing"), to_endpoint]
        await scene.store.add(Changes({}, [], [*messages, replace(messages[0], tenant=OPERATOR)]))
        await scene.notifier.send_due("email")
        await scene.notifier.send_due("webhook")
        found = await scene.desk.recent(orgs=frozenset({LUMA.org}))
        shown = [one for one in found if one.status != "sent"]
        assert {(one.channel, one.status) for one in shown} == {("email", "waiting"), ("webhook", "waiting")}
        assert {one.problem for one in shown} == {
            "the mail server can't be used right now", "the operator's endpoint doesn't take it",
        }  # fmt: skip
        assert "127.0.0.1" not in "".join(one.recipient for one in shown)
        (own,) = await scene.desk.recent(orgs=None, tenant=OPERATOR)
        assert "127.0.0.1" in own.problem


@pytest.mark.parametrize("implicit", [False, True], ids=["STARTTLS", "TLS"])
async def test_a_silent_address_of_the_mail_server_is_passed_over(
    tmp_path: Path, issued: Certificates, monkeypatch: pytest.MonkeyPatch, implicit: bool
) -> None:
    async with mail_server(issued.server, implicit=implicit) as server:
        resolve(monkeypatch, "localhost", SILENT, "127.0.0.1")
        security = "tls" if implicit else "starttls"
        with silent(server.port):
            await sender_to(tmp_path, issued, server, timeout="5s", security=security).send(a_mail())
    assert len(server.received) == 1


@pytest.mark.parametrize("endless", [b"220-hello\r\n", b"2"], ids=["lines", "line"])
async def test_an_answer_without_end_ends_the_attempt(tmp_path: Path, issued: Certificates, endless: bytes) -> None:
    async def greet(_: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        with suppress(OSError):
            while True:
                writer.write(endless * 1000)
                await writer.drain()

    async with await asyncio.start_server(greet, "127.0.0.1", 0) as server:
        where = MailServer(port=server.sockets[0].getsockname()[1])
        with pytest.raises(NotSent, match=rf"mail server localhost:{where.port}: Response too long$"):
            await sender_to(tmp_path, issued, where, host="localhost").send(a_mail())
