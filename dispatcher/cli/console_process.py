"""Runs the console as a process: builds its parts once, starts them in order, and stops them in reverse.

Start: database, sources of facts, server. Stop, on SIGTERM or SIGINT: readiness goes, nothing new is accepted, requests
under way finish within `delivery.drain_timeout`; then the sources end. A second signal cuts off what is still under
way. Neither a database nor a broker that is away keeps it from starting.
"""

import asyncio
from collections.abc import Callable
from contextlib import AsyncExitStack

import structlog

from dispatcher.cli.webhook_database import database_url
from dispatcher.config.settings import Settings
from dispatcher.console.access import is_open_console
from dispatcher.console.assembly import RunningServices, open_services
from dispatcher.console.server import ConsoleServer
from dispatcher.errors import ConfigError, Problem
from dispatcher.service import CUT_OFF
from dispatcher.stores.sql.database import Database
from dispatcher.stores.sql.erasing import ERASE_EVERY_S, erase_what_is_over
from dispatcher.stores.sql.repeating import keep_trying
from dispatcher.tasks import stop_on_signals
from dispatcher.telemetry import metrics
from dispatcher.transport.egress import egress_problems
from dispatcher.transport.tls import bundle_problems

log = structlog.get_logger(__name__)


class ConsoleProcess:
    """The console's process. `run` starts it, serves until a signal, and stops it."""

    def __init__(self, settings: Settings, tell_link: Callable[[str], None] | None = None) -> None:
        """Builds the process without starting it.

        Args:
            tell_link: given a sign-in link once the server listens.
        """
        self._settings = settings
        self._tell_link = tell_link
        self._stop = asyncio.Event()

    async def run(self) -> int:
        """Runs until a signal. Returns the exit status: 0 if everything under way was finished.

        Raises:
            ConfigError: the settings can't be used for a console.
            DispatcherError: its address can't be listened on.
        """
        settings = self._settings
        if settings.webhooks.store != "sql":
            message = (
                "the console needs store sql: mounted files can't be edited (`dispatcher webhooks import` moves them)"
            )
            raise ConfigError([Problem(message, "webhooks.store")])
        is_open_console(settings.console)
        oidc = settings.console.oidc
        problems = [
            *egress_problems(settings.egress),
            *bundle_problems(None if oidc is None else oidc.ca, "console.oidc.ca"),
        ]
        if problems:
            raise ConfigError(problems)
        async with AsyncExitStack() as stack:
            database = Database(database_url(settings))
            stack.push_async_callback(database.close)
            running = await stack.enter_async_context(open_services(settings, database))
            following = asyncio.create_task(_background(running, database), name="sources")
            serving = asyncio.create_task(self._serve(ConsoleServer(running.services)), name="server")
            with stop_on_signals(self._stop, serving.cancel, log):
                status = await _first_end(serving, following)
        log.info("stopped", status=status)
        return status

    async def _serve(self, server: ConsoleServer) -> None:
        async with server:
            if self._tell_link is not None:
                self._tell_link(server.new_sign_in_link())
            await self._stop.wait()
            server.drain()


async def _background(running: RunningServices, database: Database) -> None:
    """Keeps the services up to date, and erases secrets that have ended. Never returns."""
    async with asyncio.TaskGroup() as tasks:
        tasks.create_task(running.run(), name="sources")
        erasing = keep_trying(
            lambda: erase_what_is_over(database),
            ERASE_EVERY_S,
            component="task",
            if_unavailable="secrets that are over could not be erased",
            if_bug="secrets that are over could not be erased because of a bug",
            failures=metrics.STORE_FAILURES,
        )
        tasks.create_task(erasing, name="erasing")


async def _first_end(serving: "asyncio.Task[None]", following: "asyncio.Task[None]") -> int:
    """Waits until one task ends, and cancels the other. Returns the exit status. Errors of either propagate."""
    try:
        await asyncio.wait({serving, following}, return_when=asyncio.FIRST_COMPLETED)
    finally:
        tasks = (following, serving)
        for task in tasks:
            task.cancel()
        await asyncio.wait(tasks)
    for task in tasks:
        if not task.cancelled() and (error := task.exception()) is not None:
            raise error
    return CUT_OFF if serving.cancelled() else 0
