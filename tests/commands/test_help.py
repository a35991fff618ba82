"""What the commands say about themselves, and how they word numbers and what can't be read."""

import re
from collections.abc import Iterator
from pathlib import Path

import pytest
import typer
from typer.main import get_command

from dispatcher.cli import EX_CONFIG, sample
from dispatcher.cli.commands import app
from dispatcher.cli.options import counted
from dispatcher.service import CUT_OFF, FENCED
from tests.commands.running import a_webhook, called, write_settings, write_webhooks


def _commands(command: typer.core.TyperCommand | typer.core.TyperGroup) -> Iterator[typer.core.TyperCommand]:
    if isinstance(command, typer.core.TyperGroup):
        for one in command.commands.values():
            yield from _commands(one)  # type: ignore[arg-type]
    else:
        yield command


COMMANDS = list(_commands(get_command(app)))  # type: ignore[arg-type]


@pytest.mark.parametrize("command", COMMANDS, ids=lambda command: command.name)
def test_the_help_of_a_command_is_whole_paragraphs(command: typer.core.TyperCommand) -> None:
    assert command.help
    assert "\n" not in command.help.replace("\n\n", ""), "the terminal breaks the lines"
    for parameter in command.params:
        assert getattr(parameter, "help", None), parameter.name


def test_the_documentation_lists_every_exit_status() -> None:
    page = (Path(__file__).parents[2] / "docs" / "troubleshooting.md").read_text()
    listed = [int(status) for status in re.findall(r"^\| (\d+) \|", page, re.MULTILINE)]
    assert listed == [0, 1, 2, CUT_OFF, FENCED, EX_CONFIG]


def test_the_readme_lists_every_command() -> None:
    readme = (Path(__file__).parents[2] / "README.md").read_text()
    named = set(re.findall(r"^\| `dispatcher ([a-z]+)", readme, re.MULTILINE))
    assert named == set(get_command(app).commands)  # type: ignore[attr-defined]


async def test_an_argument_that_can_be_left_out_has_one_pair_of_brackets() -> None:
    ran = await called("trace", "--help")
    assert "dispatcher trace [OPTIONS] [ID]" in " ".join(ran.out.split())


@pytest.mark.parametrize(
    ("count", "thing", "text"), [(1, "webhook", "1 webhook"), (0, "webhook", "0 webhooks"), (2, "entry", "2 entries")]
)
def test_a_noun_agrees_with_its_number(count: int, thing: str, text: str) -> None:
    assert counted(count, thing) == text


async def test_check_counts_one_webhook_as_one(tmp_path: Path) -> None:
    config = write_settings(tmp_path)
    write_webhooks(tmp_path, a_webhook())
    ran = await called("check", "-c", config)
    assert ran.out.endswith("\n1 webhook, no problems\n"), ran


@pytest.mark.parametrize(("content", "why"), [(None, "No such file or directory"), (b"\xff", "not UTF-8 text")])
async def test_a_secret_of_the_receiver_that_can_not_be_read_is_named_once(
    tmp_path: Path, content: bytes | None, why: str
) -> None:
    path = tmp_path / "secret"
    if content is not None:
        path.write_bytes(content)
    ran = await called("receive", "--secret", path)
    assert (ran.status, ran.err) == (1, f"dispatcher: {path}: can't be read ({why})\n")


async def test_events_that_no_broker_takes_are_reported_with_the_reason(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(sample, "PRODUCE_WITHIN_S", 3.0)
    ran = await called("sample", "--org", "a@AdobeOrg", "--produce", "-c", write_settings(tmp_path))
    assert ran.status == 1
    assert ran.err.endswith("dispatcher: kafka at 127.0.0.1:1: nothing listens there (connection refused)\n"), ran.err
