"""Programs in Go that do the dispatcher's job, in `references/`: built here, and measured like the dispatcher.

Each is started as `program BOOTSTRAP TOPIC WEBHOOKS CA`; WEBHOOKS is a JSON file of URL and headers by organisation and sandbox.
"""

import asyncio
import json
import shutil
import subprocess
from collections.abc import Mapping
from pathlib import Path
from typing import Any, Final

from benchmarks.events import tenants
from benchmarks.rig import Rig, Subject
from benchmarks.throughput import Rate, drained

FOLDER: Final = Path(__file__).parent / "references"
EVENTS: Final[Mapping[str, int]] = {"go": 150_000, "benthos": 60_000}
"""Of one run, by folder: at least four seconds between warm-up and the end."""


class CannotBuildError(Exception):
    """The program can't be built on this machine; says why."""


def build(name: str, into: Path) -> Path:
    """Builds `references/<name>` into a folder. The first build takes up to two minutes, a later one seconds.

    Raises:
        CannotBuildError: there is no Go, or the modules can't be downloaded.
        RuntimeError: Go and the modules are there, and the program can't be built.
    """
    go = shutil.which("go")
    if go is None:
        raise CannotBuildError("there is no Go")
    if problem := _failed([go, "mod", "download"], name):
        raise CannotBuildError(f"its modules can't be downloaded: {problem}")
    program = into / f"{name}-reference"
    if problem := _failed([go, "build", "-trimpath", "-o", str(program), "."], name):
        raise RuntimeError(f"the reference {name} can't be built:\n{problem}")
    return program


def _failed(command: list[str], name: str) -> str:
    done = subprocess.run(command, cwd=FOLDER / name, capture_output=True, text=True, timeout=600)
    return (done.stderr.strip()[-2000:] or f"status {done.returncode}") if done.returncode else ""


def command(program: Path, bootstrap_servers: str, topic: str, webhooks: Mapping[str, Any], ca: Path) -> list[str]:
    """Returns how to start the program. Its webhooks are written beside it."""
    written = program.with_suffix(".json")
    written.write_text(json.dumps(webhooks))
    return [str(program), bootstrap_servers, topic, str(written), str(ca)]


async def measure(rig: Rig, program: Path, count: int, of: int = 1) -> Rate:
    """The program over a backlog of `count` events of `of` tenants, with as many endpoints as the dispatcher."""
    everyone = tenants(of)
    topic = await rig.topic()
    await rig.preload(topic, everyone, count)
    webhooks = {f"{tenant.org}/{tenant.sandbox}": {"url": rig.receiver.url(f"/{tenant.org}")} for tenant in everyone}
    started = await asyncio.to_thread(command, program, rig.bootstrap_servers, topic, webhooks, rig.receiver.ca)
    rate = await drained(rig, Subject(program.name, started, rig), count)
    await rig.delete_topics()
    return rate
