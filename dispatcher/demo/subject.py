"""The program that the demo is about: the real `dispatcher run`, as a process of its own, watched from outside."""

import asyncio
import os
import shutil
import sys
import tempfile
from collections import Counter
from dataclasses import dataclass, field
from pathlib import Path

import aiohttp
from prometheus_client.parser import text_string_to_metric_families

from dispatcher.demo.child_process import ChildFailedError, ChildProcess

_READY_WITHIN_S = 25.0
_LOOK_TIMEOUT = aiohttp.ClientTimeout(total=2)


@dataclass(frozen=True, slots=True)
class Counts:
    """Values of the dispatcher's metrics."""

    skipped: Counter[str] = field(default_factory=Counter)
    """By reason."""
    tenants: Counter[tuple[str, str]] = field(default_factory=Counter)
    """By organisation and outcome: delivered, skipped, parked, dead_lettered."""


class Subject(ChildProcess):
    """Runs `dispatcher run` in a child process, and reads its metrics."""

    def __init__(self, config: Path, ops_port: int) -> None:
        # The demo's file says it all: what the environment holds for another dispatcher is not for this one.
        env = {name: value for name, value in os.environ.items() if not name.upper().startswith("DISPATCHER_")}
        command = (sys.executable, "-m", "dispatcher", "run", "-c", str(config))
        super().__init__(command, log=config.parent / "dispatcher.log", env=env)
        self._ops = f"http://127.0.0.1:{ops_port}"

    @property
    def exit_status(self) -> int | None:
        """Exit status; None while it runs or if it never did; negative: the signal that ended it."""
        return None if self._process is None else self._process.poll()

    async def ready(self, session: aiohttp.ClientSession) -> None:
        """Waits until `/readyz` answers 200.

        Raises:
            ChildFailedError: it ended, or took too long.
        """
        try:
            async with asyncio.timeout(_READY_WITHIN_S):
                while not await self._is_ready(session):
                    if not self.running:
                        raise ChildFailedError(f"the dispatcher ended with status {self.exit_status} at its start")
                    await asyncio.sleep(0.1)
        except TimeoutError:
            raise ChildFailedError(f"the dispatcher was not ready within {_READY_WITHIN_S:.0f} s") from None

    async def _is_ready(self, session: aiohttp.ClientSession) -> bool:
        try:
            async with session.get(f"{self._ops}/readyz", timeout=_LOOK_TIMEOUT) as answer:
                return answer.status == 200
        except (aiohttp.ClientError, TimeoutError):
            return False

    async def counts(self, session: aiohttp.ClientSession) -> Counts | None:
        """Returns the counts of `/metrics`; None if it doesn't answer."""
        try:
            async with session.get(f"{self._ops}/metrics", timeout=_LOOK_TIMEOUT) as answer:
                answer.raise_for_status()
                return parse_counts(await answer.text())
        except (aiohttp.ClientError, TimeoutError):
            return None

    def log_end(self, lines: int = 15) -> str:
        """Returns the last lines of its log."""
        return "\n".join(self.log_tail(20_000).splitlines()[-lines:])

    def keep_log(self) -> Path:
        """Copies its log to a file that outlives the demo's directory. Returns its path."""
        handle, kept = tempfile.mkstemp(prefix="dispatcher-demo-", suffix=".log")
        os.close(handle)
        shutil.copyfile(self._log, kept)
        return Path(kept)


def parse_counts(text: str) -> Counts:
    """Returns the counts in a page of metrics."""
    skipped: Counter[str] = Counter()
    tenants: Counter[tuple[str, str]] = Counter()
    for family in text_string_to_metric_families(text):
        for sample in family.samples:
            value = int(sample.value) if sample.name.endswith("_total") else 0
            if sample.name == "dispatcher_events_skipped_total" and value:
                skipped[sample.labels["reason"]] += value
            elif sample.name == "dispatcher_tenant_events_total":
                tenants[sample.labels["org"], sample.labels["outcome"]] += value
    return Counts(skipped, tenants)
