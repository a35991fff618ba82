"""The path of an event must not become longer unnoticed: instructions an event, counted, against a budget in the repository."""

import json
import subprocess
import sys

import pytest

from benchmarks import instructions
from benchmarks.instructions import BUDGET, Counted, budget, interpreter, over_budget
from dispatcher.telemetry.build_form import FORM

STAGES = ("read", "encode", "deliver", "pipeline", "post_null")
"""Those without a socket, whose count is the same each time to a tenth of a per cent. The compiled form has a budget too."""


def test_no_stage_takes_more_instructions_than_its_budget() -> None:
    if not budget():
        pytest.skip(f"no budget is set for {interpreter()}, {FORM}: python -m benchmarks.instructions --set-budget")
    command = [sys.executable, "-m", "benchmarks.instructions", "--check", *STAGES]
    done = subprocess.run(command, capture_output=True, text=True, timeout=110)
    assert done.returncode == 0, done.stdout + done.stderr
    assert [line.split()[0] for line in done.stdout.splitlines()] == list(STAGES)


@pytest.mark.parametrize("form", ["interpreted", "compiled"])
def test_the_images_python_has_a_budget_too(form: str) -> None:
    versions = {
        name.split(", ")[0].rpartition(".")[0] for name, one in json.loads(BUDGET.read_text()).items() if form in one
    }
    assert versions >= {"CPython 3.11", "CPython 3.14"}


@pytest.mark.parametrize("stage", ["read", "pipeline"])
def test_a_longer_path_is_reported_with_its_number(stage: str, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(instructions, "budget", lambda: {stage: 100_000})
    assert over_budget([Counted(stage, 104_000, BUDGET)]) == []
    assert over_budget([Counted(stage, 105_000, BUDGET)]) == [
        f"{stage}: 105,000 instructions an event, 5.0% over the budget of 100,000"
    ]
