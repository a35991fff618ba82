"""What the runbooks' commands look for exists: log lines, metrics and fields of the program, and its own commands."""

import re
from functools import cache

import pytest

from tests.deploy.metric_names import known_metrics
from tests.deploy.runbooks import commands, greps
from tests.deploy.test_rules import ALERTS
from tests.deploy.tools import ROOT

OF_OTHERS = {"Traceback", "Last State", "retention", "delivery-events/3/"}
"""Printed by Python, kubectl and Kafka; a place in a topic."""
GENERAL = {'"level": ?"', " 0.0$", "dead", "token"}


@cache
def _program() -> str:
    return "\n".join(path.read_text() for path in (ROOT / "dispatcher").rglob("*.py"))


def _looked_for() -> list[tuple[str, str]]:
    return [(name, one) for name in sorted(ALERTS) for command in commands(name) for one in greps(command)]


@pytest.mark.parametrize(("name", "pattern"), _looked_for())
def test_what_a_runbook_looks_for_is_something_the_program_says(name: str, pattern: str) -> None:
    """The drill and test_runbooks_in_trouble.py prove it with real output; this is quick."""
    for one in pattern.split("|"):
        plain = re.sub(r"\\(.)", r"\1", one).strip("^$(){}'\" ")
        words = [word for word in re.split(r'["{}():,?]+', plain) if word.strip()]
        for word in words:
            is_metric = any(word.strip() in metric for metric in known_metrics())
            known = is_metric or word.strip() in OF_OTHERS or word.strip().lower() in _program().lower()
            assert known or word.strip() in GENERAL or re.fullmatch(r"[ \d.$-]+", word), f"{name}: {word!r}"


def test_there_are_greps_to_check() -> None:
    assert len(_looked_for()) > 20
