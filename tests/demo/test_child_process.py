"""Server processes that are paused, resumed and ended, as the fault tests do it with the broker."""

import sys
from pathlib import Path

import pytest

from dispatcher.demo.child_process import ChildProcess

STOPPED = "T"
BUSY = """
import os, threading
def work():
    while True:
        os.stat("/")
for _ in range(40):
    threading.Thread(target=work, daemon=True).start()
print("ready", flush=True)
threading.Event().wait()
"""


def thread_states(pid: int) -> set[str]:
    """Returns the letter of each thread's state (proc_pid_stat(5), field 3)."""
    return {stat.read_text().rpartition(")")[2].split()[0] for stat in Path(f"/proc/{pid}/task").glob("*/stat")}


@pytest.mark.skipif(sys.platform != "linux", reason="threads are seen in /proc")
async def test_no_thread_of_a_paused_process_goes_on(tmp_path: Path) -> None:
    """However busy it was; and pausing twice is the same as once."""
    child = ChildProcess([sys.executable, "-c", BUSY], log=tmp_path / "log")
    child.start()
    try:
        await child.wait_for(b"ready", timeout_s=60)
        for _ in range(8):
            child.pause()
            child.pause()
            assert thread_states(child.pid) == {STOPPED}
            child.resume()
    finally:
        await child.stop(timeout_s=60)
    assert not child.running


async def test_pausing_a_process_that_has_ended_does_nothing(tmp_path: Path) -> None:
    """Also if its end has not been noticed yet."""
    child = ChildProcess([sys.executable, "-c", ""], log=tmp_path / "log")
    child.pause()
    child.start()
    child.pause()
    child.resume()
    await child.stop(timeout_s=60)
    child.pause()
    assert not child.running
