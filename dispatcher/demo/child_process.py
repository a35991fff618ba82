"""Server processes of the demo and of the test-suite: they never outlive us.

Starts a program, says when it is ready, ends it; finds free ports. Knows nothing of Kafka. Called by `demo.broker` and
by `tests/kafka`.
"""

import asyncio
import os
import random
import signal
import socket
import subprocess
import sys
import time
from collections.abc import Mapping, Sequence
from pathlib import Path

# The kernel hands out ports from 32768 up. A client that keeps dialling a closed port of that range is sooner or later
# given the same port as its own source, and is then connected to itself. Below it this cannot happen, and the port is
# still free after a restart.
_PORTS = range(20_000, 32_000)

# Asks the kernel (PR_SET_PDEATHSIG = 1) for SIGKILL when the parent dies, then becomes the program: the request
# survives exec. A `preexec_fn` would do the same, but is unsafe where threads run.
_DIE_WITH_PARENT = """
import ctypes, os, signal, sys
if sys.platform == "linux":
    ctypes.CDLL(None, use_errno=True).prctl(1, signal.SIGKILL)
    if os.getppid() != int(sys.argv[1]):
        sys.exit("the parent is gone already")
try:
    os.execv(sys.argv[2], sys.argv[2:])
except OSError as error:  # a binary for another platform, say
    sys.exit(f"{sys.argv[2]} can't be run on this machine: {error.strerror}")
"""


class ChildFailedError(RuntimeError):
    """The process ended, or stayed silent, before it was ready. The message has the end of its log."""


def free_ports(count: int) -> list[int]:
    """Returns different TCP ports of 127.0.0.1 without a listener, outside the range of outgoing connections."""
    found: list[int] = []
    for port in random.sample(_PORTS, len(_PORTS)):
        if len(found) == count:
            break
        with socket.socket() as probe:
            probe.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
            try:
                probe.bind(("127.0.0.1", port))
            except OSError:
                continue
        found.append(port)
    return found


class ChildProcess:
    """One run of a program whose output goes to a file. It ends at the latest with the thread that started it.

    The kernel watches the *thread* that calls `start`, so that must be one which lives as long as the program should:
    the main thread, never a worker of a pool.
    """

    def __init__(self, command: Sequence[str], *, log: Path, env: Mapping[str, str] | None = None) -> None:
        self._command = command
        self._log = log
        self._env = env
        self._process: subprocess.Popen[bytes] | None = None

    def __repr__(self) -> str:
        state = f"pid {self._process.pid}" if self._process and self.running else "not running"
        return f"<ChildProcess {Path(self._command[0]).name} {state}>"

    @property
    def running(self) -> bool:
        """True if the process exists, paused or not."""
        return self._process is not None and self._process.poll() is None

    @property
    def pid(self) -> int:
        """Process id of the present run, or of the last."""
        if self._process is None:
            raise ChildFailedError(f"{self!r} was never started")
        return self._process.pid

    def start(self) -> None:
        """Starts the program with an empty log. Returns at once; `wait_for` waits until it is ready."""
        if self.running:
            raise ChildFailedError(f"{self!r} was started twice")
        with self._log.open("wb") as output:
            self._process = subprocess.Popen(
                [sys.executable, "-S", "-E", "-c", _DIE_WITH_PARENT, str(os.getpid()), *self._command],
                stdin=subprocess.DEVNULL,
                stdout=output,
                stderr=subprocess.STDOUT,
                env=None if self._env is None else dict(self._env),
                start_new_session=True,  # Ctrl-C is for us; we end it in our own order
            )

    async def wait_for(self, line: bytes, *, timeout_s: float) -> None:
        """Waits until the log contains `line`; raises `ChildFailedError` if the process ends first or is late."""
        give_up_at = time.monotonic() + timeout_s
        while line not in self._log.read_bytes():
            if not self.running:
                raise ChildFailedError(f"{self!r} ended before it was ready:\n{self.log_tail()}")
            if time.monotonic() > give_up_at:
                raise ChildFailedError(f"{self!r} was not ready within {timeout_s} s:\n{self.log_tail()}")
            await asyncio.sleep(0.02)

    def log_tail(self, limit: int = 4_000) -> str:
        """Returns the last `limit` bytes that the present run printed."""
        return self._log.read_bytes()[-limit:].decode(errors="replace") if self._log.exists() else ""

    async def stop(self, *, timeout_s: float) -> None:
        """Sends SIGTERM, and SIGKILL after `timeout_s`. Resumes a paused process first. Does nothing if none runs."""
        if self._process is None or not self.running:
            return
        self.resume()
        self._signal(signal.SIGTERM)
        try:
            await asyncio.to_thread(self._process.wait, timeout_s)
        except subprocess.TimeoutExpired:
            pass  # it had its time
        finally:
            self.kill()

    def kill(self) -> None:
        """Sends SIGKILL and waits until the process is gone. Does nothing if it isn't running."""
        if self._process is not None and self.running:
            self._process.kill()
            self._process.wait()

    def pause(self) -> None:
        """Sends SIGSTOP and waits until every thread stands still.

        From then on no answer comes; connections stay open, and the kernel goes on accepting bytes.
        """
        self._signal(signal.SIGSTOP)
        if self.running:  # a busy process goes on for milliseconds after the signal: enough for another answer
            os.waitid(os.P_PID, self.pid, os.WSTOPPED | os.WEXITED | os.WNOWAIT)

    def resume(self) -> None:
        """Sends SIGCONT: the paused process continues."""
        self._signal(signal.SIGCONT)

    def _signal(self, number: signal.Signals) -> None:
        if self._process is not None and self.running:
            self._process.send_signal(number)
