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
def test_the_program_logs_every_line_that_a_runbook_looks_for(name: str, pattern: str) -> None:
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


def _quoted() -> list[str]:
    """What the tables of the troubleshooting page quote as seen: their first column."""
    rows = re.findall(r"^\| (.+?) \|", (ROOT / "docs" / "troubleshooting.md").read_text(), re.MULTILINE)
    found = [quoted for row in rows for quoted in re.findall(r"`([^`]+)`", row)]
    return [part.strip(": ") for one in found for part in one.split("…") if len(part.strip(": ")) > 4]


@pytest.mark.parametrize("text", _quoted())
def test_the_program_logs_every_line_that_the_troubleshooting_page_quotes(text: str) -> None:
    of_others = ("unable to get local issuer certificate", "certificate has expired", "file:line: key")
    key = text.rpartition(".")[2]  # of a setting
    assert text in of_others or text in _program() or (text.count(".") == 1 and key in _program())
