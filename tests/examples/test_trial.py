"""The trial of the README works as written: its commands are taken from the page and run."""

import asyncio
import os
import re
import shutil
import signal
import socket
import subprocess
import sys
from pathlib import Path

import pytest
from typer.testing import CliRunner

from dispatcher.cli.commands import app
from dispatcher.contract.events import DeliveryEvent, read_event
from dispatcher.contract.records import Origin
from dispatcher.demo.child_process import free_ports
from tests.unit.examples import a_record

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
    assert "warning" not in output, output


@pytest.mark.parametrize("path", sorted((ROOT / "examples" / "events").glob("*.json")), ids=lambda path: path.stem)
def test_the_sample_events_are_events(path: Path) -> None:
    event = read_event(a_record(path.read_bytes().strip()), Origin("events", 0, 0))
    assert isinstance(event, DeliveryEvent)
    assert f"{event.channel}-{event.status}" == path.stem


@pytest.mark.parametrize(
    ("command", "named"),
    [
        (("receive", "--port", "{port}"), "--host 127.0.0.1, --port {port}"),
        (("demo", "--broker", "{port}"), "127.0.0.1, --broker {port}"),
    ],
)
def test_a_port_in_use_is_one_line(command: tuple[str, ...], named: str, tmp_path: Path) -> None:
    with socket.create_server(("127.0.0.1", 0)) as taken:
        port = str(taken.getsockname()[1])
        done = _dispatcher(*(word.format(port=port) for word in command), cwd=tmp_path)
    assert done.returncode == 1
    assert done.stdout == ""
    assert done.stderr.count("\n") == 1, done.stderr
    assert f"can't listen on {named.format(port=port)}: another process has the port; end it, or" in done.stderr


def test_an_address_of_another_host_is_one_line(tmp_path: Path) -> None:
    done = _dispatcher("receive", "--host", "192.0.2.1", "--port", "0", cwd=tmp_path)
    assert done.returncode == 1
    assert done.stderr.count("\n") == 1, done.stderr
    assert "choose an address of this host" in done.stderr


async def test_the_receiver_names_an_ipv6_address_as_a_url_does(tmp_path: Path) -> None:
    process = await asyncio.create_subprocess_exec(
        sys.executable, "-m", "dispatcher", "receive", "--host", "::1", "--port", "0", cwd=tmp_path,
        stdout=subprocess.PIPE, stderr=subprocess.STDOUT,
    )  # fmt: skip
    assert process.stdout is not None
    try:
        line = (await asyncio.wait_for(process.stdout.readline(), 60)).decode()
    finally:
        process.kill()
        await process.wait()
    assert re.search(r"https://\[::1\]:\d+/ ", line), line


@pytest.mark.parametrize("name", ["", "  ", "x" * 201])
@pytest.mark.parametrize("option", ["--org", "--sandbox"])
def test_a_sample_of_a_tenant_that_no_webhook_can_have_is_refused(option: str, name: str) -> None:
    done = CliRunner(env={"COLUMNS": "200"}).invoke(app, ["sample", "--org", "x", option, name])
    assert done.exit_code == 2
    assert f"{option}: must have 1 to 200 characters" in done.output


@pytest.mark.parametrize("name", ["luma@AdobeOrg", 'a"b', "a\\b", "ü@x", "*", "x" * 200, "a/b", "a b"])
def test_a_sample_of_an_odd_tenant_is_an_event_of_it(name: str) -> None:
    done = CliRunner().invoke(app, ["sample", "--org", name, "--sandbox", name])
    event = read_event(a_record(done.output.encode().strip()), Origin("events", 0, 0))
    assert isinstance(event, DeliveryEvent)
    assert event.tenant == (name, name)


def _dispatcher(*arguments: str, cwd: Path) -> "subprocess.CompletedProcess[str]":
    command = [sys.executable, "-m", "dispatcher", *arguments]
    return subprocess.run(command, cwd=cwd, capture_output=True, text=True, timeout=60, check=False)
