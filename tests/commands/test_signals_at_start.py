"""Signals that reach a command before it handles them itself."""

import asyncio
import signal
import sys
from pathlib import Path

import pytest

from tests.commands.running import a_webhook, write_settings, write_webhooks


def _as_the_first_process() -> None:
    """The kernel gives the first process of a container no signal that it doesn't handle."""
    signal.signal(signal.SIGTERM, signal.SIG_IGN)


@pytest.mark.parametrize(("number", "status"), [(signal.SIGTERM, 143), (signal.SIGINT, 130)])
async def test_a_signal_ends_a_command_that_is_still_loading(tmp_path: Path, number: int, status: int) -> None:
    write_webhooks(tmp_path, a_webhook())
    config = write_settings(tmp_path)
    process = await asyncio.create_subprocess_exec(
        sys.executable, "-X", "importtime", "-m", "dispatcher", "run", "-c", config,
        stdout=asyncio.subprocess.PIPE, stderr=asyncio.subprocess.PIPE, preexec_fn=_as_the_first_process,
    )  # fmt: skip
    assert process.stderr is not None
    while b"dispatcher.errors" not in await process.stderr.readline():
        pass
    process.send_signal(number)
    out, err = await process.communicate()
    assert (process.returncode, out) == (status, b"")
    assert b"Traceback" not in err
