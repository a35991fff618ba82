"""The demo from beginning to end: start everything, produce, account for every event, stop everything."""

import asyncio
import tempfile
import time
from contextlib import AsyncExitStack, suppress
from dataclasses import dataclass
from pathlib import Path

import aiohttp

from dispatcher.demo.accounts import Balance, balance
from dispatcher.demo.broker import BrokerNotInstalledError, EmbeddedBroker
from dispatcher.demo.child_process import ChildFailedError, free_ports
from dispatcher.demo.console import Console, fill_database
from dispatcher.demo.display import Display, Sent, complain, rows, say
from dispatcher.demo.kafka_side import Outcomes, make_topics, produce
from dispatcher.demo.mail_sink import mail_sink
from dispatcher.demo.planning import plan
from dispatcher.demo.receiver import DemoEndpoint, Receiver
from dispatcher.demo.subject import Counts, Subject
from dispatcher.demo.tenants import (
    GROUP,
    MAX_AGE_S,
    TENANTS,
    TOPIC,
    endpoints,
    write_configuration,
    write_signing_key,
    write_signing_secret,
)
from dispatcher.tasks import stop_on_signals

PRODUCE_S = 8.0
LOOK_S = 0.25
"""How often the dispatcher's counters are looked at."""
ACCOUNT_S = 1.0
"""How often every event is accounted for, once all were produced."""
SETTLE_S = 40.0
"""After the last event, time until every one must be accounted for."""
STOP_S = 30.0
HARD_LIMIT_S = 90.0
INTERRUPTED = 130
MAX_TOLD = 20
"""Problems that are printed one by one."""

INTRO = """\
feedback-dispatcher, at work on this machine: a Kafka-compatible broker in memory, seven tenants, six of
them with a webhook, the real `dispatcher run` between them, and `dispatcher console` beside it.

  {tenants}

Events that fail are parked in retry topics (1 s, 2 s) and dead after {age} s, so that you need not wait a day.
"""


@dataclass(frozen=True, slots=True)
class Options:
    """Options of the demo."""

    events: int = 2000
    forever: bool = False

    @property
    def per_second(self) -> float:
        return 50.0 if self.forever else max(1.0, self.events / PRODUCE_S)


class Demo:
    """One run."""

    def __init__(self, options: Options) -> None:
        self._options = options
        self._receiver = Receiver({})
        self._operator = Receiver({"operator": DemoEndpoint()})
        self._ledger = self._receiver.ledger
        self._sent = Sent()
        self._counts = Counts()
        self._display = Display()
        self._stop = asyncio.Event()
        self._given_up = False
        self._mail_page = ""
        self._began = time.monotonic()
        self._show_at = 0.0

    async def run(self) -> int:
        """Runs the demo from beginning to end. Returns the exit status."""
        notes = "\n  ".join(f"{tenant.title:10} {tenant.note}" for tenant in TENANTS)
        say(INTRO.format(tenants=notes, age=MAX_AGE_S))
        try:
            task = asyncio.current_task()
            with stop_on_signals(self._stop, lambda: self._give_up(task)):
                async with asyncio.timeout(None if self._options.forever else HARD_LIMIT_S):
                    return await self._run()
        except TimeoutError:
            complain(f"the demo was not over after {HARD_LIMIT_S:.0f} s")
        except (ChildFailedError, BrokerNotInstalledError) as error:
            complain(f"demo: {error}")
        return 1

    async def _run(self) -> int:
        async with AsyncExitStack() as parts:
            directory = Path(parts.enter_context(tempfile.TemporaryDirectory(prefix="dispatcher-demo-")))
            broker = await parts.enter_async_context(EmbeddedBroker())
            key = write_signing_key(directory / "webhooks.d" / "secrets" / "luma.pem")
            origin = self._receiver.url("").rstrip("/")
            secret = write_signing_secret(directory / "webhooks.d" / "secrets" / "fabrikam")
            for org, endpoint in endpoints(key, secret, origin).items():
                self._receiver.set(org, endpoint)
            (directory / "ca.pem").write_bytes(self._receiver.ca_pem + self._operator.ca_pem)
            parts.enter_context(self._receiver)
            parts.enter_context(self._operator)
            closed, ops, port, smtp, mails = free_ports(5)
            config = write_configuration(
                directory, brokers=broker.bootstrap_servers, origin=origin, closed_port=closed, ops_port=ops,
                console_port=port, operator=self._operator.url("operator"), smtp_port=smtp,
            )  # fmt: skip
            self._mail_page = await parts.enter_async_context(mail_sink(smtp, mails))
            await make_topics(config)
            await fill_database(config, directory / "webhooks.d")
            subject, console = Subject(config, ops), Console(config)
            for child in (subject, console):
                parts.callback(child.kill)
                child.start()
            session = await parts.enter_async_context(aiohttp.ClientSession())
            try:
                outcomes = Outcomes(broker.bootstrap_servers, GROUP)
                return await self._watch(broker.bootstrap_servers, subject, console, session, outcomes)
            except BaseException:
                if not self._given_up:
                    self._quote(subject)
                raise

    async def _watch(
        self, brokers: str, subject: Subject, console: Console, session: aiohttp.ClientSession, outcomes: Outcomes
    ) -> int:
        await subject.ready(session)
        link = await console.link()
        if link is None:
            raise ChildFailedError(f"the console did not come up:\n{console.log_tail()}")
        say(f"{self._elapsed:4.1f} s  the console is open for you, by this link, once: {link}")
        say(f"        e-mails to its operator and contacts are shown here: {self._mail_page}")
        if not self._options.forever:
            say("        (it ends with the demo: `make demo FOREVER=1` keeps both)")
        say(f"{self._elapsed:4.1f} s  the dispatcher has joined its consumer group; here come the events\n")
        with self._display.showing():
            await self._flow(brokers, subject, session)
            async with outcomes:
                await self._settle(subject, console, session, outcomes)
                await console.stop(timeout_s=STOP_S)
                await subject.stop(timeout_s=STOP_S)
                changed = await console.changed_tenants()
                found = await self._account(outcomes, changed)
        return self._conclude(found, subject, changed)

    async def _flow(self, brokers: str, subject: Subject, session: aiohttp.ClientSession) -> None:
        """Produces events and shows what happens."""
        events = plan(None if self._options.forever else self._options.events)
        producing = asyncio.create_task(
            produce(brokers, TOPIC, events, self._options.per_second, self._sent.add, self._stop), name="produce"
        )
        try:
            while subject.running and not producing.done():
                await self._look(subject, session, "events are produced")
                await asyncio.wait([producing], timeout=LOOK_S)
            if producing.done():
                await producing  # a failure of it is ours
        finally:
            producing.cancel()
            with suppress(asyncio.CancelledError):
                await asyncio.wait([producing])

    async def _settle(
        self, subject: Subject, console: Console, session: aiohttp.ClientSession, outcomes: Outcomes
    ) -> None:
        """Waits until each produced event is accounted for, or time is up."""
        give_up_at = time.monotonic() + SETTLE_S
        while subject.running and time.monotonic() < give_up_at:
            await self._look(subject, session, "waiting until every event is accounted for")
            if (await self._account(outcomes, await console.changed_tenants())).is_complete:
                break
            await asyncio.sleep(ACCOUNT_S)
        await self._look(subject, session, "done", last=True)

    async def _account(self, outcomes: Outcomes, changed: frozenset[str]) -> Balance:
        await outcomes.read()
        return balance(
            self._sent.events, self._ledger.accepted(), outcomes.dead, self._counts.skipped, outcomes.history, changed
        )

    async def _look(self, subject: Subject, session: aiohttp.ClientSession, phase: str, *, last: bool = False) -> None:
        self._counts = await subject.counts(session) or self._counts
        if last or time.monotonic() >= self._show_at:
            self._show_at = time.monotonic() + self._display.every_s
            self._display.show(self._elapsed, phase, rows(self._sent, self._ledger, self._counts))

    def _conclude(self, found: Balance, subject: Subject, changed: frozenset[str]) -> int:
        say(f"\n{found}")
        if changed:
            names = ", ".join(sorted(changed))
            say(f"Changed, tested or sent again in the console: {names}. There, what the dispatcher says counts, too.")
        violations = [one for one in self._ledger.violations if one.endpoint not in changed]
        problems = [*found.problems, *map(str, violations)]
        if subject.exit_status != 0:
            problems.insert(0, f"the dispatcher ended with status {subject.exit_status}, not 0")
        if found.holds and not problems:
            say(f"It balances, no receiver had anything to object to, and it took {self._elapsed:.0f} s.")
            return 0
        complain("It does NOT balance:" if not found.holds else "Something is wrong:")
        for problem in problems[:MAX_TOLD]:
            complain(f"  {problem}")
        if len(problems) > MAX_TOLD:
            complain(f"  and {len(problems) - MAX_TOLD} more")
        self._quote(subject)
        return 1

    def _quote(self, subject: Subject) -> None:
        complain(f"the dispatcher's last words (all of them: {subject.keep_log()}):\n{subject.log_end()}")

    @property
    def _elapsed(self) -> float:
        return time.monotonic() - self._began

    def _give_up(self, task: "asyncio.Task[object] | None") -> None:
        """Cancels the run, at a second Ctrl-C. The first one ends production only, and the events are still counted."""
        if task is not None:
            self._given_up = True
            task.cancel()


def run(options: Options) -> int:
    """Runs the demo and returns the exit status."""
    try:
        return asyncio.run(_demo(options))
    except asyncio.CancelledError:
        return INTERRUPTED


async def _demo(options: Options) -> int:
    return await Demo(options).run()
