"""A log that is not read, as while a container runtime hangs, stops neither deliveries nor the process."""

import asyncio
import contextlib
import fcntl
import os
import signal
import sys
from pathlib import Path

from dispatcher.demo.child_process import free_ports
from tests.commands.running import a_webhook, write_settings, write_webhooks
from tests.commands.test_closed_streams import answers

PIPE_HOLDS = 4096


def _fill(pipe: int) -> None:
    """Writes to a pipe until it takes no more, through a file description of its own, which doesn't block."""
    end = os.open(f"/proc/self/fd/{pipe}", os.O_WRONLY | os.O_NONBLOCK)
    with contextlib.suppress(BlockingIOError):
        while True:
            os.write(end, b"\n")
    os.close(end)


async def test_a_process_whose_log_is_not_read_answers_and_stops_cleanly(tmp_path: Path) -> None:
    write_webhooks(tmp_path, a_webhook())
    port = free_ports(1)[0]
    config = write_settings(
        tmp_path, log={"level": "debug"}, webhooks={"path": "webhooks.d"}, ops={"host": "127.0.0.1", "port": port}
    )
    reads, writes = os.pipe()
    fcntl.fcntl(writes, fcntl.F_SETPIPE_SZ, PIPE_HOLDS)
    _fill(writes)
    process = await asyncio.create_subprocess_exec(
        sys.executable, "-m", "dispatcher", "run", "-c", str(config), stderr=writes
    )
    os.close(writes)
    try:
        async with asyncio.timeout(60):
            await answers(port, process)
            process.send_signal(signal.SIGTERM)
            assert await process.wait() == 0
    finally:
        with contextlib.suppress(ProcessLookupError):
            process.kill()
        await process.wait()
        os.close(reads)
