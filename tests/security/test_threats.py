"""SECURITY.md names a test for each threat, and each of them exists."""

import ast
import re
from functools import cache
from pathlib import Path

import pytest

ROOT = Path(__file__).parents[2]
TEXT = (ROOT / "SECURITY.md").read_text()
ROWS = [
    [cell.strip() for cell in line.strip("|").split("|")]
    for line in TEXT.splitlines()
    if line.startswith("| ") and not line.startswith("| asset ")
]
_TEST = re.compile(r"`(tests/[\w/]+\.py)::(\w+)`")


@cache
def names_in(path: str) -> frozenset[str]:
    """Returns the names of the tests in a file; none if there is no such file."""
    file = ROOT / path
    tree = ast.parse(file.read_text()) if file.exists() else ast.Module([], [])
    kinds = (ast.FunctionDef, ast.AsyncFunctionDef)
    return frozenset(one.name for one in ast.walk(tree) if isinstance(one, kinds) and one.name.startswith("test_"))


def test_the_table_is_there() -> None:
    assert len(ROWS) >= 20
    assert all(len(row) == 5 and all(row) for row in ROWS)


@pytest.mark.parametrize("row", ROWS, ids=[f"{row[0]}-{row[2][:40]}" for row in ROWS])
def test_each_threat_names_tests_that_exist_and_nothing_else(row: list[str]) -> None:
    named = _TEST.findall(row[4])
    assert named
    assert not _TEST.sub("", row[4]).strip(), "a test is named as `tests/file.py::test_name`"
    assert [f"{path}::{name}" for path, name in named if name not in names_in(path)] == []


def test_every_file_that_is_named_exists() -> None:
    named = re.findall(r"`((?:tests|transport|dispatcher)/[\w/]+\.py)", TEXT)
    missing = [path for path in named if not (ROOT / path).exists() and not (ROOT / "dispatcher" / path).exists()]
    assert missing == []


def test_every_file_of_this_folder_proves_something_that_is_named() -> None:
    files = {path.name for path in Path(__file__).parent.glob("test_*.py")} - {Path(__file__).name}
    assert files == {name for name in files if f"tests/security/{name}" in TEXT}
