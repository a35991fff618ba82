"""Each process that serves many clients at once prepares interpreter and file descriptors before its loop starts."""

import gc
import resource
import sys
from collections.abc import Iterator
from pathlib import Path

import pytest
from typer.testing import CliRunner

from dispatcher.cli.commands import app
from dispatcher.cli.console_process import ConsoleProcess
from dispatcher.cli.interpreter import SWITCH_INTERVAL_S
from dispatcher.history.process import HistoryProcess
from dispatcher.service import Service

SETTINGS = """
apiVersion: dispatcher/v1
kafka: {bootstrap_servers: "127.0.0.1:1"}
webhooks: {store: sql, url: {file: url}}
"""


@pytest.fixture
def as_before() -> Iterator[None]:
    threshold, interval = gc.get_threshold(), sys.getswitchinterval()
    soft, hard = resource.getrlimit(resource.RLIMIT_NOFILE)
    resource.setrlimit(resource.RLIMIT_NOFILE, (min(soft, hard - 1), hard))
    yield
    resource.setrlimit(resource.RLIMIT_NOFILE, (soft, hard))
    gc.unfreeze()
    gc.set_threshold(*threshold)
    sys.setswitchinterval(interval)


@pytest.mark.usefixtures("as_before")
@pytest.mark.parametrize(
    ("command", "process"), [("run", Service), ("console", ConsoleProcess), ("history", HistoryProcess)]
)
def test_the_collector_and_the_threads_leave_the_loop_its_time(
    command: str, process: type, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    found: list[tuple[bool, int, float]] = []
    limits: list[tuple[int, int]] = []

    async def run(_: object) -> int:
        found.append((gc.get_freeze_count() > 0, gc.get_threshold()[0], sys.getswitchinterval()))
        limits.append(resource.getrlimit(resource.RLIMIT_NOFILE))
        return 0

    monkeypatch.setattr(process, "run", run)
    (tmp_path / "url").write_text("sqlite+aiosqlite:///webhooks.sqlite")
    (tmp_path / "dispatcher.yaml").write_text(SETTINGS)
    result = CliRunner().invoke(app, [command, "-c", str(tmp_path / "dispatcher.yaml")])
    assert result.exit_code == 0, result.output
    assert [soft == hard for soft, hard in limits] == [True], "as many connections as the system lets it have"
    assert found == [(True, 50_000, pytest.approx(SWITCH_INTERVAL_S))]
