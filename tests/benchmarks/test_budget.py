"""The path of an event must not become longer unnoticed: instructions an event, counted, against a budget in the repository."""

import json
import subprocess
import sys

import pytest

from benchmarks.instructions import BUDGET, machine
from dispatcher.telemetry.build_form import FORM

STAGES = ("read", "encode", "deliver", "pipeline", "post_null")
"""Those without a socket, whose count is the same each time to a tenth of a per cent. The compiled form has a budget too."""


def test_no_stage_takes_more_instructions_than_its_budget() -> None:
    budget = json.loads(BUDGET.read_text())
    if budget["machine"] != machine():
        pytest.skip(f"the budget is for {budget['machine']}, this is {machine()}")
    command = [sys.executable, "-m", "benchmarks.instructions", "--check", *STAGES]
    done = subprocess.run(command, capture_output=True, text=True, timeout=110)
    assert done.returncode == 0, done.stdout + done.stderr
    assert [line.split()[0] for line in done.stdout.splitlines()] == list(STAGES)


@pytest.mark.parametrize("stage", ["read", "pipeline"])
def test_a_longer_path_is_reported_with_its_number(stage: str) -> None:
    from benchmarks.instructions import Counted, over_budget

    allowed = json.loads(BUDGET.read_text())["instructions"][FORM][stage]
    longer = Counted(stage, int(allowed * 1.05), BUDGET)
    findings = over_budget([longer])
    if json.loads(BUDGET.read_text())["machine"] == machine():
        assert findings == [
            f"{stage}: {longer.instructions:,} instructions an event, 5.0% over the budget of {allowed:,}"
        ]
