"""The store `yaml`: a mounted directory of webhook files, loaded again when it changes.

A scan compares all files, and all secret files they refer to, by content. One is made every `reload_interval`, and
at once when something moves in their directories: the directories are watched, for a watch on a mounted file dies
with Kubernetes' first swap. What a scan finds is applied in one step between two events, or not at all:

- a file with any mistake is not applied; the last good version of its webhooks stays, and `problems` names it;
- a webhook in two files stays where it was, at first where the file's name comes first; the other file is refused;
- a scan that would remove more than half of ten or more webhooks is held back until the next regular scan or
  `reload` finds the same: somebody emptied a directory, and may be about to fill it again.
"""

import asyncio
import hashlib
from collections.abc import Callable, Mapping
from contextlib import aclosing
from dataclasses import dataclass, field
from pathlib import Path
from types import MappingProxyType
from typing import Final

import structlog
from watchfiles import awatch

from dispatcher.config.settings import WebhookSettings
from dispatcher.config.webhooks import Webhook
from dispatcher.contract.tenant import TenantKey
from dispatcher.errors import ConfigError, Problem
from dispatcher.stores.ownership import settle
from dispatcher.stores.webhook_files import Check, WebhookFileReading, read_directory
from dispatcher.telemetry import metrics

GUARDED_FROM: Final = 10
"""From so many webhooks on, losing more than half of them at once needs a second look."""
_QUIET_MS = 300  # a change is looked at when nothing more moved for so long
_LONGEST_QUIET_MS = 2_000

log = structlog.get_logger(__name__)


@dataclass(frozen=True, slots=True)
class _Snapshot:
    """What is in use, whole: replaced in one step."""

    by_file: Mapping[str, tuple[Webhook, ...]] = field(default_factory=dict)
    by_tenant: Mapping[TenantKey, Webhook] = field(default_factory=dict)
    content_hash: str = ""


class YamlDirectory:
    """The webhooks of a mounted directory.

    `load` once, then `run` for as long as the process lives; `find` at any time. Used on one event loop; files are
    read in a thread.

    Args:
        settings: names the directory, and how often it is looked at.
        check: what is wrong with a webhook beyond its own model. Called in a thread.
    """

    def __init__(self, settings: WebhookSettings, check: Check) -> None:
        if settings.path is None:
            raise ValueError("store yaml needs path")
        self._directory: Path = settings.path
        self._interval_s = settings.reload_interval
        self._check = check
        self._listeners: list[Callable[[set[TenantKey]], None]] = []
        self._readings: Mapping[str, WebhookFileReading] = MappingProxyType({})
        self._current = _Snapshot()
        self._problems: tuple[Problem, ...] = ()
        self._held_back: str | None = None
        self._is_settled = False
        self._scanning = asyncio.Lock()

    def __repr__(self) -> str:
        current = self._current
        return (
            f"<YamlDirectory {self._directory}: {len(current.by_tenant)} webhooks in {len(self._readings)} files, "
            f"{len(self._problems)} problems>"
        )

    @property
    def problems(self) -> tuple[Problem, ...]:
        """What stands against the files as they are now; empty where every one is in use as it is."""
        return self._problems

    @property
    def content_hash(self) -> str:
        """Twelve hexadecimal digits of all webhooks in use, secrets included: the same in pods that agree."""
        return self._current.content_hash

    async def get(self, tenant: TenantKey) -> Webhook | None:
        """The tenant's webhook, None where it has none. Answers from memory, always."""
        return self.get_cached(tenant)

    def get_cached(self, tenant: TenantKey) -> Webhook | None:
        """The same."""
        return self._current.by_tenant.get(tenant)

    def all(self) -> list[Webhook]:
        """Every webhook in use, in order of tenants."""
        return [webhook for _, webhook in sorted(self._current.by_tenant.items())]

    def on_change(self, listener: Callable[[set[TenantKey]], None]) -> None:
        """Tell `listener`, on the loop, whose webhook is new, different or gone, once `find` gives the new one."""
        self._listeners.append(listener)

    async def load(self) -> list[Problem]:
        """Read the directory for the first time; gives the problems of files that could not be used.

        Raises:
            ConfigError: the directory can't be read, or it has files and not one of them can be used.
        """
        await self._scan(confirms=True)
        unusable = self._readings and not any(name in self._current.by_file for name in self._readings)
        if unusable or (self._problems and not self._readings):
            raise ConfigError(self._problems)
        return list(self._problems)

    async def reload(self) -> list[Problem]:
        """Look now; counts as a regular scan. Gives the problems."""
        await self._scan(confirms=True)
        return list(self._problems)

    async def run(self) -> None:
        """Follow the directory until cancelled; never ends by itself, whatever happens to the directory."""
        while True:
            watched = await asyncio.to_thread(self._directories)
            try:
                if watched:
                    await self._follow(watched)
                    continue
            except OSError as error:  # no watches left, a directory gone: comparing contents is enough
                log.warning("webhook directories can't be watched", why=error.strerror or str(error))
            await asyncio.sleep(self._interval_s)
            await self._scan(confirms=True)

    async def _follow(self, watched: Mapping[Path, tuple[int, int]]) -> None:
        """Scan at each change and each interval, until other directories are to be watched."""
        changes_or_time = awatch(
            *watched,
            watch_filter=None,  # a filtered change would restart the interval, and nothing would look
            debounce=_LONGEST_QUIET_MS,
            step=_QUIET_MS,
            rust_timeout=max(1, int(self._interval_s * 1000)),
            yield_on_timeout=True,
            recursive=False,
        )
        async with aclosing(changes_or_time):
            async for changes in changes_or_time:
                await self._scan(confirms=not changes)
                if await asyncio.to_thread(self._directories) != watched:
                    return

    def _directories(self) -> dict[Path, tuple[int, int]]:
        """Directories of webhook files and secret files that exist, with what tells one from its successor."""
        wanted = {self._directory}
        wanted.update(path.parent for reading in self._readings.values() for path in reading.secret_files)
        found: dict[Path, tuple[int, int]] = {}
        for directory in wanted:
            try:
                status = directory.stat()
            except (OSError, ValueError):
                continue
            if directory.is_dir():
                found[directory] = (status.st_dev, status.st_ino)
        return found

    async def _scan(self, *, confirms: bool) -> None:
        async with self._scanning:
            try:
                readings = await asyncio.to_thread(read_directory, self._directory, self._readings, self._check)
            except OSError as error:
                why = error.strerror or str(error)
                problem = Problem(f"can't be read ({why}): what was loaded stays", "", str(self._directory))
                self._tell(self._current, (problem,))
                return
            if (
                self._held_back is None
                and self._problems == _own_problems(readings)
                and _same(readings, self._readings)
            ):
                return
            self._apply(readings, confirms=confirms)

    def _apply(self, readings: Mapping[str, WebhookFileReading], *, confirms: bool) -> None:
        self._readings = readings
        old = self._current
        new, problems = _next_snapshot(readings, old)
        lost = len(old.by_tenant.keys() - new.by_tenant.keys())
        is_mass_removal = len(old.by_tenant) >= GUARDED_FROM and lost * 2 > len(old.by_tenant)
        if is_mass_removal and not (confirms and self._held_back == new.content_hash):
            self._held_back, self._is_settled = new.content_hash, False
            message = (
                f"{lost} of {len(old.by_tenant)} webhooks would be removed: held back; "
                "done where the next scan finds the same"
            )
            self._tell(old, (*problems, Problem(message, file=str(self._directory))))
            return
        self._held_back, self._is_settled = None, True
        tenants = old.by_tenant.keys() | new.by_tenant.keys()
        changed = {tenant for tenant in tenants if old.by_tenant.get(tenant) is not new.by_tenant.get(tenant)}
        self._tell(new, problems)
        for listener in self._listeners if changed else ():
            listener(changed)

    def _tell(self, snapshot: _Snapshot, problems: tuple[Problem, ...]) -> None:
        """Put the result of a scan into use, metrics and log; one that is like the last is not told again."""
        is_first = not self._current.content_hash
        is_news = is_first or problems != self._problems or snapshot.content_hash != self._current.content_hash
        for problem in problems:
            if problem not in self._problems:
                log.warning(
                    "webhook file refused",
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
        metrics.CONFIG_HASH.clear()
        metrics.CONFIG_HASH.labels(snapshot.content_hash).set(1)
        log.info(
            "webhooks loaded",
            webhooks=len(snapshot.by_tenant),
            files=len(self._readings),
            problems=len(problems),
            hash=snapshot.content_hash,
        )


def _same(new: Mapping[str, WebhookFileReading], old: Mapping[str, WebhookFileReading]) -> bool:
    return new.keys() == old.keys() and all(reading is old[name] for name, reading in new.items())


def _own_problems(readings: Mapping[str, WebhookFileReading]) -> tuple[Problem, ...]:
    return tuple(problem for reading in readings.values() for problem in reading.problems)


def _next_snapshot(readings: Mapping[str, WebhookFileReading], old: _Snapshot) -> tuple[_Snapshot, tuple[Problem, ...]]:
    """What is to be in use with these files, and what stands against the files that aren't used as they are."""
    held = {name: tuple(w.tenant for w in old.by_file[name]) for name in readings if name in old.by_file}
    refused = settle({name: reading.tenants for name, reading in readings.items() if reading.is_good}, held)
    problems = list(_own_problems(readings))
    by_file: dict[str, tuple[Webhook, ...]] = {}
    for name, reading in readings.items():
        refusal = refused.get(name)
        if refusal is not None:
            index = reading.tenants.index(refusal.tenant)
            other = readings[refusal.owner].file
            message = f"{refusal.tenant} is in {other} already: one webhook for each organisation and sandbox"
            problems.append(Problem(message, f"webhooks[{index}]", reading.file, reading.lines[index]))
        if refusal is None and reading.is_good:
            by_file[name] = tuple(_kept_if_same(old.by_tenant.get(w.tenant), w) for w in reading.webhooks)
        elif name in old.by_file:
            by_file[name] = old.by_file[name]
    by_tenant = {webhook.tenant: webhook for webhooks in by_file.values() for webhook in webhooks}
    return _Snapshot(by_file, by_tenant, _content_hash(by_tenant)), tuple(problems)


def _kept_if_same(old: Webhook | None, new: Webhook) -> Webhook:
    is_same = old is not None and old.revision == new.revision and old.source == new.source
    return old if old is not None and is_same else new


def _content_hash(by_tenant: Mapping[TenantKey, Webhook]) -> str:
    digest = hashlib.blake2b(digest_size=6)
    for tenant, webhook in sorted(by_tenant.items()):
        digest.update(f"{tenant}\n{webhook.revision}\n".encode())
    return digest.hexdigest()
