"""The pages that lead a reader through the code name files that exist."""

import re
from pathlib import Path

import pytest

ROOT = Path(__file__).parents[2]
PAGES = ["docs/architecture.md", "docs/testing.md", "CONTRIBUTING.md", "SECURITY.md", "UPGRADING.md", *sorted(
    str(path.relative_to(ROOT)) for path in (ROOT / "docs" / "decisions").glob("*.md")
)]  # fmt: skip
FILE = re.compile(r"`((?:[\w.-]+/)+[\w.-]*|[\w-]+\.(?:py|md|toml))`")
BASES = ["", "dispatcher", "dispatcher/console", "dispatcher/transport", "dispatcher/stores", "tests", "tests/unit"]
LINK = re.compile(r"\]\(([^)#:]+)\)")


@pytest.mark.parametrize("page", PAGES)
def test_every_file_that_a_page_names_exists(page: str) -> None:
    text = (ROOT / page).read_text()
    bases = [ROOT / base for base in BASES]
    named = {name for name in FILE.findall(text) if not name.startswith((".venv", "dist", ".hypothesis"))}
    absent = {
        name for name in named if not any((base / name).exists() or (base / f"{name}.py").exists() for base in bases)
    }
    assert not absent
    assert not {link for link in LINK.findall(text) if not (ROOT / page).parent.joinpath(link).exists()}


def test_every_package_is_in_the_table_of_the_architecture() -> None:
    text = (ROOT / "docs/architecture.md").read_text()
    packages = {
        path.name for path in (ROOT / "dispatcher").iterdir() if path.is_dir() and (path / "__init__.py").exists()
    }
    assert packages == set(re.findall(r"^\| `(\w+)/`", text, re.MULTILINE))


def test_every_decision_is_listed() -> None:
    pages = {path.name for path in (ROOT / "docs/decisions").glob("0*.md")}
    assert pages == set(LINK.findall((ROOT / "docs/decisions/README.md").read_text()))
