"""Signals that reach a command before it handles them itself."""

import fcntl
import os
import signal
import subprocess
import sys
from pathlib import Path

import pytest

from tests.commands.running import a_webhook, write_settings, write_webhooks


def _as_the_first_process() -> None:
    """The kernel gives the first process of a container no signal that it doesn't handle.

    Processes in the background of a shell ignore Ctrl-C, and so would this one if the tests run there.
    """
    signal.signal(signal.SIGTERM, signal.SIG_IGN)
    signal.signal(signal.SIGINT, signal.SIG_DFL)


@pytest.mark.parametrize(("number", "status"), [(signal.SIGTERM, 143), (signal.SIGINT, 130)])
def test_a_signal_ends_a_command_that_is_still_loading(tmp_path: Path, number: int, status: int) -> None:
    write_webhooks(tmp_path, a_webhook())
    config = write_settings(tmp_path)
    ours, theirs = os.pipe()
    fcntl.fcntl(theirs, fcntl.F_SETPIPE_SZ, 4096)  # however late we read, it is at most a few dozen modules ahead
    command = [sys.executable, "-X", "importtime", "-m", "dispatcher", "run", "-c", config]
    with (
        open(ours, "rb", buffering=0) as reader,
        subprocess.Popen(command, stdout=subprocess.PIPE, stderr=theirs, preexec_fn=_as_the_first_process) as process,
    ):
        os.close(theirs)
        while b"dispatcher.errors" not in reader.readline():
            assert process.poll() is None
        process.send_signal(number)
        rest = reader.read()
        assert (process.wait(), process.communicate()[0]) == (status, b"")
    assert b"Traceback" not in (rest or b"")
