"""Commands that are started without standard input, output or error, as `dispatcher run <&- >&- 2>&-` does."""

import asyncio
import os
import signal
import sys
import urllib.request
from pathlib import Path

import pytest

from dispatcher.demo.child_process import free_ports
from tests.commands.running import Ran, a_webhook, ended, write_settings, write_webhooks


async def _start(closed: int, *arguments: str | Path) -> asyncio.subprocess.Process:
    """Starts `dispatcher …` with one standard descriptor closed."""
    pipe = asyncio.subprocess.PIPE
    return await asyncio.create_subprocess_exec(
        sys.executable, "-m", "dispatcher", *map(str, arguments), env={**os.environ, "COLUMNS": "200"},
        stdin=pipe, stdout=pipe, stderr=pipe, preexec_fn=lambda: os.close(closed),
    )  # fmt: skip


async def _ran(closed: int, *arguments: str | Path) -> Ran:
    return await ended(await _start(closed, *arguments))


async def answers(port: int, process: asyncio.subprocess.Process) -> None:
    """Waits until the port answers."""

    def get() -> bool:
        try:
            with urllib.request.urlopen(f"http://127.0.0.1:{port}/livez", timeout=5):
                return True
        except OSError:
            return False

    while not await asyncio.to_thread(get):
        assert process.returncode is None
        await asyncio.sleep(0.1)


@pytest.mark.parametrize(("command", "closed"), [("run", 0), ("run", 1), ("run", 2), ("console", 0)])
async def test_a_process_without_a_standard_stream_stops_cleanly(tmp_path: Path, command: str, closed: int) -> None:
    write_webhooks(tmp_path, a_webhook())
    (tmp_path / "url").write_text(f"sqlite+aiosqlite:///{tmp_path}/store")
    webhooks = {"store": "sql", "url": {"file": "url"}} if command == "console" else {"path": "webhooks.d"}
    port = free_ports(1)[0]
    listener = {"host": "127.0.0.1", "port": port}
    config = write_settings(tmp_path, log={"format": "console"}, webhooks=webhooks, ops=listener, console=listener)
    if command == "console":
        assert (await _ran(closed, "webhooks", "migrate", "-c", config)).status == 0
    process = await _start(closed, command, "-c", config)
    await answers(port, process)
    process.send_signal(signal.SIGTERM)
    ran = await ended(process)
    assert ran.status == 0, ran
    assert "Traceback" not in ran.err


@pytest.mark.parametrize("closed", [0, 1, 2])
async def test_a_command_without_a_standard_stream_works(tmp_path: Path, closed: int) -> None:
    write_webhooks(tmp_path, a_webhook())
    ran = await _ran(closed, "check", "-c", write_settings(tmp_path))
    assert (ran.status, ran.err) == (0, "")
    assert bool(ran.out) == (closed != 1)


async def test_closed_input_is_empty_input(tmp_path: Path) -> None:
    write_webhooks(tmp_path, a_webhook())
    ran = await _ran(0, "explain", "-", "-c", write_settings(tmp_path))
    assert "Traceback" not in ran.err
    assert "unreadable" in ran.out
