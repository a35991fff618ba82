"""The commands of runbooks and guide, as far as they are ours: each is one that the program has, by the right names."""

import re
import shlex
from pathlib import Path

import pytest
import typer
from typer.main import get_command

from dispatcher.cli.commands import app
from dispatcher.health import LANE_STATES
from tests.deploy.tools import ROOT, RUNBOOKS

PAGES = [*sorted(RUNBOOKS.glob("*.md")), ROOT / "docs" / "operating.md"]
OURS = [
    (path.stem, line.strip())
    for path in PAGES
    for line in re.findall(r"^    .*-- dispatcher (.+)$", path.read_text(), re.MULTILINE)
]
PLACEHOLDERS = {"<org>/<sandbox>": "a/b", "<offset>": "1"}


@pytest.mark.parametrize(("page", "line"), OURS)
def test_a_command_of_ours_is_one_that_there_is(page: str, line: str) -> None:
    for placeholder, value in PLACEHOLDERS.items():
        line = line.replace(placeholder, value)
    words = shlex.split(re.split(r"  #|[|]", line)[0])
    command = get_command(app)
    with typer.Context(command) as context:
        while isinstance(command, typer.core.TyperGroup):
            name, found, words = command.resolve_command(context, words)
            assert found is not None, f"{page}: {name}"
            command = found
        # the settings file has the pod's path
        command.make_context("dispatcher", ["--config", str(ROOT / "config" / "dispatcher.yaml"), *words])


@pytest.mark.parametrize("page", PAGES, ids=lambda page: page.stem)
def test_the_ops_endpoint_serves_every_path_of_the_runbooks(page: Path) -> None:
    served = (ROOT / "dispatcher" / "health.py").read_text()
    for path, state in re.findall(r":9090(/[a-z][^\s?'\"|]*)(?:\?state=(\w+))?", page.read_text()):
        route = path.replace("<", "{").replace(">", "}")
        assert f'"{route}"' in served, path
        assert not state or state in LANE_STATES, state
