"""`examples/compose.yaml` without containers: its services' commands, in their order, lead to a verified event and a console.

Ten processes: runs with `make faults` only.
"""

import asyncio
import os
import re
import shutil
import subprocess
import sys
from collections.abc import AsyncIterator
from contextlib import AsyncExitStack, asynccontextmanager
from graphlib import TopologicalSorter
from pathlib import Path
from typing import Any

import aiohttp
import pytest
import yaml

from dispatcher.demo.child_process import free_ports
from tests.conftest import Broker
from tests.integration.harness import until
from tests.kafka import topics

ROOT = Path(__file__).parents[2]
COMPOSE: dict[str, Any] = yaml.safe_load((ROOT / "examples" / "compose.yaml").read_text())
OURS = {name: one for name, one in COMPOSE["services"].items() if name != "kafka"}
ONCE = {
    needed
    for one in OURS.values()
    for needed, how in one.get("depends_on", {}).items()
    if "completed" in how["condition"]
}
"""Services that end; the others run until they are stopped."""


def in_order() -> list[str]:
    return [
        name
        for name in TopologicalSorter({name: one.get("depends_on", {}) for name, one in OURS.items()}).static_order()
        if name in OURS
    ]


@pytest.fixture
async def place(kafka: Broker, tmp_path: Path) -> Path:
    """The folder that is mounted at /trial, with local addresses in place of the containers'."""
    receiver, ops, console = map(str, free_ports(3))
    shutil.copytree(ROOT / "examples" / "compose", tmp_path / "trial")
    (tmp_path / "shared").mkdir()
    replaced = {
        "kafka:9092": kafka.bootstrap_servers, "delivery-events": "compose-events", "group_id: trial": "group_id: compose",
        "host: null": f"host: 127.0.0.1, port: {console}", "receiver.example.com:8443": f"localhost:{receiver}",
        "/shared": str(tmp_path / "shared"),
    }  # fmt: skip
    for path in (tmp_path / "trial").rglob("*"):
        if path.is_file():
            path.write_text(_replaced(path.read_text(), replaced))
    (tmp_path / "ports").write_text(f"{receiver} {ops} {console}")
    return tmp_path


def _replaced(text: str, by: dict[str, str]) -> str:
    for old, new in by.items():
        text = text.replace(old, new)
    return text


@asynccontextmanager
async def running(name: str, place: Path, log: Path) -> AsyncIterator[None]:
    """One service; one that ends has ended when this is entered."""
    receiver, ops, _ = (place / "ports").read_text().split()
    local = {"/trial": str(place / "trial"), "/shared": str(place / "shared"), "receiver.example.com": "localhost"}
    words = [_replaced(str(word), local) for word in OURS[name]["command"]]
    words += ["--port", receiver] if words[0] == "receive" else []
    environment = {key: _replaced(str(value), local) for key, value in COMPOSE["x-dispatcher"]["environment"].items()}
    del environment["DISPATCHER_KAFKA__BOOTSTRAP_SERVERS"]
    environment |= {
        "DISPATCHER_EGRESS__ALLOW": '["127.0.0.0/8", "localhost"]', "DISPATCHER_OPS__HOST": "127.0.0.1",
        "DISPATCHER_OPS__PORT": ops,
    }  # fmt: skip
    with log.open("w") as output:
        process = await asyncio.create_subprocess_exec(
            sys.executable, "-m", "dispatcher", *words, env=os.environ | environment, stdout=output, stderr=output
        )
    try:
        if name in ONCE:
            status = await asyncio.wait_for(process.wait(), 60)
            assert status == 0, await asyncio.to_thread(log.read_text)
        yield
    finally:
        if process.returncode is None:
            process.kill()
            await process.wait()


@pytest.mark.all_faults
@pytest.mark.timeout(300)
async def test_its_services_deliver_a_verified_event_and_show_the_webhook(kafka: Broker, place: Path) -> None:
    await topics.create_topic(kafka.bootstrap_servers, "compose-events", partitions=2)
    logs = {name: place / f"{name}.log" for name in OURS}
    console = (place / "ports").read_text().split()[2]
    async with AsyncExitStack() as stack:
        for name in in_order():
            await stack.enter_async_context(running(name, place, logs[name]))
            if name == "receiver":
                await until((place / "shared" / "receiver-ca.pem").exists, "the receiver's CA")
        sample = await asyncio.create_subprocess_exec(
            sys.executable, "-m", "dispatcher", "sample", "--org", "luma@AdobeOrg", "--produce",
            "-c", str(place / "trial" / "dispatcher.yaml"), stdout=subprocess.PIPE, stderr=subprocess.STDOUT,
            env=os.environ | {"DISPATCHER_EGRESS__CA_BUNDLE": str(place / "shared" / "receiver-ca.pem")},
        )  # fmt: skip
        said, _ = await sample.communicate()
        assert sample.returncode == 0, said.decode()
        await until(lambda: "signature verified" in logs["receiver"].read_text(), "a verified event", 60)
        await until(lambda: "http://localhost:8080/" in logs["console"].read_text(), "the link", 60)
        async with (
            aiohttp.ClientSession() as session,
            session.get(f"http://127.0.0.1:{console}/") as answer,
        ):
            assert answer.status == 200, await answer.text()
    assert not re.search(r"kafka problem .*topic_missing", logs["dispatcher"].read_text())
