"""The trial of the README works as written: its commands are taken from the page and run."""

import asyncio
import os
import re
import shutil
import signal
import subprocess
import sys
from pathlib import Path

import pytest

from dispatcher.contract.events import DeliveryEvent, read_event
from dispatcher.contract.records import Origin
from dispatcher.demo.child_process import free_ports
from tests.unit.examples import ARecord

ROOT = Path(__file__).parents[2]


def commands() -> str:
    block = re.search(r"<!-- trial: .*? -->\n(.*?)<!-- /trial -->", (ROOT / "README.md").read_text(), re.DOTALL)
    assert block is not None
    return "\n".join(line.strip() for line in block[1].splitlines())


@pytest.mark.timeout(300)
async def test_the_commands_of_the_readme_lead_to_a_verified_event(tmp_path: Path) -> None:
    shutil.copytree(ROOT / "examples" / "trial", tmp_path / "examples" / "trial")
    (tmp_path / ".venv").symlink_to(Path(sys.executable).parents[1])
    broker, receiver, ops = map(str, free_ports(3))
    script = commands().replace("9092", broker).replace("dispatcher receive", f"dispatcher receive --port {receiver}")
    for path in (tmp_path / "examples" / "trial").rglob("*.yaml"):
        path.write_text(path.read_text().replace("9092", broker).replace("8443", receiver).replace("9090", ops))
    process = await asyncio.create_subprocess_exec(
        "bash", "-eu", "-c", script, cwd=tmp_path, stdout=subprocess.PIPE, stderr=subprocess.STDOUT,
        start_new_session=True,
    )  # fmt: skip
    assert process.stdout is not None
    output = ""
    try:
        async with asyncio.timeout(240):
            async for line in process.stdout:
                output += line.decode()
                if re.search(r"^}$", output, re.MULTILINE):  # the payload's last line
                    break
    except TimeoutError:
        pytest.fail(output)
    finally:
        os.killpg(process.pid, signal.SIGKILL)
        await process.wait()
    assert re.search(r"attempt 1 signature verified, token not checked, answered 204", output), output
    assert '"value": "bounce"' in output


@pytest.mark.parametrize("path", sorted((ROOT / "examples" / "events").glob("*.json")), ids=lambda path: path.stem)
def test_the_sample_events_are_events(path: Path) -> None:
    event = read_event(ARecord(path.read_bytes().strip()), Origin("events", 0, 0))
    assert isinstance(event, DeliveryEvent)
    assert f"{event.channel}-{event.status}" == path.stem
