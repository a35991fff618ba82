"""The program as people run it: a process, its exit status and what it prints."""

import asyncio
import contextlib
import io
import json
import os
import sys
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any
from unittest import mock

from dispatcher.cli import main

CANARY = "canary-never-to-be-seen"


@dataclass(frozen=True)
class Ran:
    """How a command ended."""

    status: int
    out: str
    err: str


async def start(*arguments: str | Path, env: Mapping[str, str] | None = None) -> asyncio.subprocess.Process:
    """Start `dispatcher …`; the caller waits for it."""
    return await asyncio.create_subprocess_exec(
        sys.executable, "-m", "dispatcher", *map(str, arguments), env={**os.environ, "COLUMNS": "200", **(env or {})},
        stdin=asyncio.subprocess.PIPE, stdout=asyncio.subprocess.PIPE, stderr=asyncio.subprocess.PIPE,
    )  # fmt: skip


async def ended(process: asyncio.subprocess.Process, stdin: bytes = b"") -> Ran:
    """Wait for its end."""
    out, err = await process.communicate(stdin)
    assert process.returncode is not None
    return Ran(process.returncode, out.decode(), err.decode())


async def dispatcher(*arguments: str | Path, env: Mapping[str, str] | None = None, stdin: bytes = b"") -> Ran:
    """Run `dispatcher …` to its end."""
    return await ended(await start(*arguments, env=env), stdin)


async def called(*arguments: str | Path, env: Mapping[str, str] | None = None) -> Ran:
    """The same in a thread of this process, which spares its start: for commands that set up no signal handlers."""
    return await asyncio.to_thread(_call, [str(argument) for argument in arguments], env or {})


def _call(arguments: list[str], env: Mapping[str, str]) -> Ran:
    out, err = io.StringIO(), io.StringIO()
    with (
        mock.patch.dict(os.environ, {"COLUMNS": "200", **env}),
        mock.patch.object(sys, "argv", ["dispatcher", *arguments]),
        contextlib.redirect_stdout(out),
        contextlib.redirect_stderr(err),
    ):
        try:
            main()
        except SystemExit as end:
            status = end.code if isinstance(end.code, int) else 0
    return Ran(status, out.getvalue(), err.getvalue())


def write_settings(directory: Path, bootstrap: str = "127.0.0.1:1", **groups: dict[str, Any]) -> Path:
    """A settings file; webhooks are read from `webhooks.d` beside it."""
    (directory / "webhooks.d").mkdir(exist_ok=True)
    kafka = {"bootstrap_servers": bootstrap, "topic": "delivery-events"} | groups.pop("kafka", {})
    document = {"apiVersion": "dispatcher/v1", "kafka": kafka, "webhooks": {"path": "webhooks.d"}} | groups
    path = directory / "dispatcher.yaml"
    path.write_text(json.dumps(document))
    return path


def write_webhooks(directory: Path, *webhooks: dict[str, Any], name: str = "webhooks.yaml") -> Path:
    """A file of webhooks in `webhooks.d`."""
    path = directory / "webhooks.d" / name
    path.parent.mkdir(exist_ok=True)
    path.write_text(json.dumps({"apiVersion": "dispatcher/v1", "webhooks": webhooks}, indent=1))
    return path


def a_webhook(org: str = "myImsOrg", sandbox: str = "prod", **others: Any) -> dict[str, Any]:
    """A webhook without authentication."""
    return {"name": "Luma", "org": org, "sandbox": sandbox, "url": "https://hooks.luma.example/f", **others}


def write_secret(directory: Path, name: str, value: str) -> dict[str, str]:
    """A secret in a file, and the reference to it from `webhooks.d`."""
    (directory / "webhooks.d" / name).write_text(value)
    return {"file": name}
