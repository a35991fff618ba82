"""The store `yaml`: a mounted directory of webhook files, loaded again when it changes.

A scan compares all files, and all secret files they refer to, by content. It runs every `reload_interval`, and
immediately after a change in their directories. The directories are watched instead of the files, because a watch on a
mounted file ends with Kubernetes' first swap. The result of a scan is applied in one step between two events, or not at
all:

- a file that changes is used as it was until its new content has been the same for two seconds (`settling`); the start
  waits as long for a file that was written just now;
- a webhook with a mistake keeps its last good version; if it has none, its tenant's events are held;
- a file that can't be read keeps the webhooks it had; if it was never read, its tenants are unknown, and the events of
  every tenant without a webhook are held until it can be;
- a webhook in two files belongs to the file that it belonged to before, otherwise to the first by name; the other is
  refused;
- a scan that would remove all webhooks, or more than half of ten or more, is not applied until the next regular scan,
  or a scan `reload_interval` later, finds the same;
- if no webhook file is left, the webhooks stay in use for ten minutes more: the directory may be mounted again. A file
  with `webhooks: []` says that there are none.
"""

import asyncio
import time
from collections.abc import Callable, Iterable, Mapping
from contextlib import aclosing
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from types import MappingProxyType
from typing import Final

import structlog
from watchfiles import awatch
from watchfiles._rust_notify import WatchfilesRustInternalError

from dispatcher.config.secret_scope import SecretScope
from dispatcher.config.settings import WebhookSettings
from dispatcher.config.webhook_revision import Webhook
from dispatcher.contract.tenant import TenantKey
from dispatcher.errors import ConfigError, Problem, WebhookUndecided, WebhookUnusable
from dispatcher.stores.background_read import BackgroundRead
from dispatcher.stores.cache import NOT_CACHED, NotCached
from dispatcher.stores.directory_snapshot import DirectorySnapshot, differs, next_snapshot, own_problems
from dispatcher.stores.mass_removal import REMOVAL_AFTER_S, is_mass_removal
from dispatcher.stores.settling import SETTLE_S, SettlingFiles
from dispatcher.stores.webhook_file import Rules, WebhookFileReading
from dispatcher.stores.webhook_files import read_directory
from dispatcher.telemetry import metrics

_QUIET_MS = 300  # a scan follows when nothing has changed for this long
_LONGEST_QUIET_MS = 2_000
_TICK_S = 0.5  # interval of scans while files settle

START_WITHIN_S: Final = 2 * SETTLE_S
"""Time for which the start waits for files that are being written."""
MAX_WHY: Final = 200
"""Characters of the watch's error in the log: it may quote a file's name."""

_Watched = dict[Path, tuple[int, int]]
"""Directories to watch, with device and inode."""

log = structlog.get_logger(__name__)


@dataclass(frozen=True, slots=True)
class _Removal:
    """A result that would remove many webhooks, or all, and is held back."""

    content_hash: str
    since: float
    """Seconds of the loop's clock at which it was first found."""


class YamlDirectory:
    """The webhooks of a mounted directory.

    The service calls `load` once, then `run` for the life of the process, and `get` at any time. Used on one event
    loop; files are read in a thread.

    Args:
        settings: the directory, and the interval of scans.
        rules: checks of a webhook beyond its model, and limits of its secret references.
    """

    def __init__(self, settings: WebhookSettings, rules: Rules) -> None:
        if settings.path is None:
            raise ValueError("store yaml needs path")
        self._directory: Path = settings.path
        self._interval_s = settings.reload_interval
        self._rules = rules
        self._read: BackgroundRead[tuple[dict[str, WebhookFileReading], _Watched]] = BackgroundRead()
        self._watched: _Watched = {}
        self._found: Mapping[str, WebhookFileReading] = MappingProxyType({})
        """The files as last read. Those that are still changing differ from `_readings`, which are used."""
        self._settling = SettlingFiles()
        self._read_before: set[str] = set()
        """Files whose tenants were known at least once since the file appeared."""
        self._listeners: list[Callable[[set[TenantKey]], None]] = []
        self._readings: Mapping[str, WebhookFileReading] = MappingProxyType({})
        self._current = DirectorySnapshot()
        self._problems: tuple[Problem, ...] = ()
        self._held_back: _Removal | None = None
        self._scanning = asyncio.Lock()

    def __repr__(self) -> str:
        current = self._current
        return (
            f"<YamlDirectory {self._directory}: {len(current.by_tenant)} webhooks in {len(self._readings)} files, "
            f"{len(self._problems)} problems>"
        )

    @property
    def problems(self) -> tuple[Problem, ...]:
        """Problems in the current files; empty if every file is in use as it is."""
        return self._problems

    @property
    def content_hash(self) -> str:
        """Twelve hexadecimal digits of all webhooks in use, secrets included: the same in pods that agree."""
        return self._current.content_hash

    async def get(self, tenant: TenantKey) -> Webhook | None:
        """Returns the tenant's webhook, or None if it has none. Always answers from memory.

        Raises:
            WebhookUnusable: the tenant's webhook has a mistake and no last good version.
            WebhookUndecided: a file with unknown tenants can't be read; this tenant may be among them.
        """
        current = self._current
        webhook = current.by_tenant.get(tenant)
        if webhook is None and tenant in current.unusable:
            raise WebhookUnusable(f"{tenant}: its webhook can't be used: {current.unusable[tenant]}")
        if webhook is None and not current.is_complete:
            raise WebhookUndecided(f"{tenant}: not known whether it has a webhook: a webhook file can't be read")
        return webhook

    def get_cached(self, tenant: TenantKey) -> Webhook | NotCached | None:
        """Returns the webhook or None; `NOT_CACHED` if `get` would raise an error."""
        current = self._current
        webhook = current.by_tenant.get(tenant)
        is_known = webhook is not None or (current.is_complete and tenant not in current.unusable)
        return webhook if is_known else NOT_CACHED

    def is_held(self, tenant: TenantKey) -> bool:
        """Returns True while the tenant's events wait for a change of its webhook: unusable, undecided or paused."""
        webhook = self.get_cached(tenant)
        return isinstance(webhook, NotCached) or (webhook is not None and webhook.config.paused)

    def all(self) -> list[Webhook]:
        """Returns every webhook in use, in order of tenants."""
        return [webhook for _, webhook in sorted(self._current.by_tenant.items())]

    def on_change(self, listener: Callable[[set[TenantKey]], None]) -> None:
        """Registers a listener, called on the loop with the tenants whose webhook is new, different or gone.

        `get` already returns the new webhook then.
        """
        self._listeners.append(listener)

    async def load(self) -> list[Problem]:
        """Reads the directory. Returns the problems found.

        Waits for files that are being written, at most `START_WITHIN_S`; the tenants of those are unknown meanwhile.

        Raises:
            ConfigError: the directory can't be read, or it has files and none of them can be used.
        """
        async with self._scanning:
            if await self._read_files():
                await self._apply(await self._settled_at_start(), confirms=True)
        unusable = self._readings and not any(reading.is_usable for reading in self._readings.values())
        if (unusable and not self._settling) or (self._problems and not self._readings):
            raise ConfigError(self._problems)
        return list(self._problems)

    async def _settled_at_start(self) -> Mapping[str, WebhookFileReading]:
        now = asyncio.get_running_loop().time
        until = now() + START_WITHIN_S
        readings = self._settling.at_start(self._found, now(), time.time())
        while self._settling and now() < until:
            await asyncio.sleep(_TICK_S)
            if await self._read_files():
                readings = self._settling.settled(self._found, readings, now())
        return readings

    async def run(self) -> None:
        """Follows the directory until cancelled. Errors of the directory and of the watch never end it."""
        can_watch = True
        while True:
            try:
                if can_watch and self._watched and not self._settling:
                    await self._follow(self._watched)
                else:
                    is_settling = bool(self._settling)
                    await asyncio.sleep(min(self._interval_s, SETTLE_S) if is_settling else self._interval_s)
                    await self._scan(confirms=not is_settling)
                can_watch = True
            except* (OSError, WatchfilesRustInternalError) as errors:
                # No watches left, a directory gone, or a file name that is not UTF-8: contents are compared instead
                log.warning("webhook directories can't be watched", why=str(_first_of(errors))[:MAX_WHY])
                can_watch = False
            except* Exception:
                metrics.ERRORS.labels("task").inc()
                log.exception("webhook directories could not be followed because of a bug")
                can_watch = False

    async def _follow(self, watched: _Watched) -> None:
        """Scans at each change and interval, and while files settle. Returns when other directories must be watched."""
        changes_or_time = awatch(
            *watched,
            watch_filter=None,  # a filtered change would restart the interval without a scan
            debounce=_LONGEST_QUIET_MS,
            step=_QUIET_MS,
            rust_timeout=max(1, int(self._interval_s * 1000)),
            yield_on_timeout=True,
            recursive=False,
        )
        async with aclosing(changes_or_time):
            async for changes in changes_or_time:
                await self._scan(confirms=not changes)
                while self._settling and self._watched == watched:
                    await asyncio.sleep(_TICK_S)
                    await self._scan(confirms=False)
                if self._watched != watched:
                    return

    async def _scan(self, *, confirms: bool) -> None:
        async with self._scanning:
            if not await self._read_files():
                return
            readings = self._settling.settled(self._found, self._readings, asyncio.get_running_loop().time())
            if self._held_back is None and self._problems == own_problems(readings) and _same(readings, self._readings):
                return
            await self._apply(readings, confirms=confirms)

    async def _read_files(self) -> bool:
        """Reads the files as they are. Returns False if the directory can't be read, which is then a problem."""
        try:
            self._found, self._watched = await self._read(partial(_read_all, self._directory, self._found, self._rules))
        except OSError as error:  # TimeoutError among them
            why = error.strerror or str(error)
            problem = Problem(f"can't be read ({why}): what was loaded stays", "", str(self._directory))
            self._apply_result(self._current, (problem,))
            return False
        return True

    async def _apply(self, readings: Mapping[str, WebhookFileReading], *, confirms: bool) -> None:
        old = self._current
        # In a thread: with thousands of webhooks it takes a tenth of a second.
        new, problems = await asyncio.to_thread(next_snapshot, readings, old, self._read_before)
        self._readings = readings
        lost, known = sum(tenant not in new.file_of for tenant in old.by_tenant), len(old.by_tenant)
        is_all = bool(old.file_of) and not new.file_of
        is_mass = is_all or is_mass_removal(lost, known)
        if is_mass and not self._is_found_again(new, readings, confirms=confirms):
            message = f"{lost} of {known} webhooks would be removed: held back; done if the next scan finds the same"
            if not readings:
                message = (
                    f"no webhook file is left: {known} webhooks stay in use for {REMOVAL_AFTER_S / 60:.0f} minutes; "
                    "to remove them at once, add a file with `webhooks: []`, or restart"
                )
            self._apply_result(old, (*problems, Problem(message, file=str(self._directory))))
            return
        self._held_back = None
        self._read_before &= readings.keys()
        self._read_before |= {name for name, reading in readings.items() if not reading.has_unknown_tenants}
        tenants = old.file_of.keys() | new.file_of.keys()
        changed = {tenant for tenant in tenants if differs(tenant, old, new)}
        self._apply_result(new, problems)
        for listener in self._listeners if changed or old.is_complete != new.is_complete else ():
            listener(changed)

    def _is_found_again(
        self, new: DirectorySnapshot, readings: Mapping[str, WebhookFileReading], *, confirms: bool
    ) -> bool:
        """Returns True if a mass removal that was held back is confirmed; else it is held back from now on."""
        now, held_back = asyncio.get_running_loop().time(), self._held_back
        if held_back is None or held_back.content_hash != new.content_hash:
            self._held_back = _Removal(new.content_hash, now)
            return False
        since_s = now - held_back.since
        if not readings:
            return since_s >= REMOVAL_AFTER_S
        # Files that change all the time leave no time for a regular scan.
        return confirms or since_s >= self._interval_s

    def _apply_result(self, snapshot: DirectorySnapshot, problems: tuple[Problem, ...]) -> None:
        """Uses the result of a scan, and updates metrics and log. Known problems are not logged again."""
        is_first = not self._current.content_hash
        is_news = is_first or problems != self._problems or snapshot.content_hash != self._current.content_hash
        for problem in problems:
            if problem not in self._problems:
                log.warning(
                    "mistake in a webhook file",
                    file=problem.file,
                    line=problem.line,
                    key=problem.key,
                    problem=problem.message,
                )
        self._current, self._problems = snapshot, problems
        if not is_news:
            return
        metrics.RELOADS.labels("failed" if problems else "ok").inc()
        metrics.RELOAD_OK.set(0 if problems else 1)
        if not problems:
            metrics.RELOAD_TIME.set_to_current_time()
        metrics.CONFIG_TENANTS.set(len(snapshot.by_tenant))
        metrics.CONFIG_UNUSABLE.set(len(snapshot.unusable))
        metrics.CONFIG_INCOMPLETE.set(0 if snapshot.is_complete else 1)
        metrics.CONFIG_HASH.clear()
        metrics.CONFIG_HASH.labels(snapshot.content_hash).set(1)
        log.info(
            "webhooks loaded",
            webhooks=len(snapshot.by_tenant),
            unusable=len(snapshot.unusable),
            complete=snapshot.is_complete,
            files=len(self._readings),
            problems=len(problems),
            hash=snapshot.content_hash,
        )


def _same(new: Mapping[str, WebhookFileReading], old: Mapping[str, WebhookFileReading]) -> bool:
    return new.keys() == old.keys() and all(reading is old[name] for name, reading in new.items())


def _read_all(
    directory: Path, known: Mapping[str, WebhookFileReading], rules: Rules
) -> tuple[dict[str, WebhookFileReading], _Watched]:
    readings = read_directory(directory, known, rules)
    return readings, _directories(directory, readings.values(), rules.scope)


def _directories(directory: Path, readings: Iterable[WebhookFileReading], scope: SecretScope) -> _Watched:
    """Returns the existing directories of webhook and secret files, each with device and inode."""
    wanted = {directory}
    wanted.update(path.parent for reading in readings for path in reading.secret_files if scope.allows(path))
    found: dict[Path, tuple[int, int]] = {}
    for one in wanted:
        try:
            status = one.stat()
            if one.is_dir():
                found[one] = (status.st_dev, status.st_ino)
        except (OSError, ValueError):
            continue
    return found


def _first_of(errors: BaseException) -> BaseException:
    """Returns the first error in a group, which may be in another group."""
    while isinstance(errors, BaseExceptionGroup):
        errors = errors.exceptions[0]
    return errors
