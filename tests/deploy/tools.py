"""The tools that judge what is in deploy/: paths, and what happens if one is missing.

In CI a missing tool fails the test that needs it. On other machines the test is skipped and says what to install.
"""

import os
import shutil
import subprocess
import sys
from functools import cache
from pathlib import Path
from typing import NoReturn

import pytest

ROOT = Path(__file__).parents[2]
DEPLOY = ROOT / "deploy"
CHART = DEPLOY / "helm" / "feedback-dispatcher"
RULES = CHART / "files" / "rules"
DASHBOARDS = CHART / "files" / "dashboards"
RUNBOOKS = ROOT / "docs" / "runbooks"


def missing(what: str, how: str) -> NoReturn:
    """End the test: failed in CI, skipped elsewhere."""
    reason = f"{what} is not here: {how}"
    if os.environ.get("CI") == "true":
        pytest.fail(reason)
    pytest.skip(reason)


@cache
def _fetched() -> str:
    done = subprocess.run(
        [str(DEPLOY / "tools.sh")],
        capture_output=True,
        text=True,
        timeout=240,
        env=os.environ | {"PYTHON": sys.executable},
    )
    return "" if done.returncode == 0 else done.stderr.strip()[-500:] or f"exit code {done.returncode}"


def tool(name: str) -> str:
    """Path of helm3, helm4, promtool or prometheus, fetched on first use."""
    path = ROOT / ".tools" / name
    if not path.exists() and (why := _fetched()):
        missing(name, f"deploy/tools.sh could not fetch it ({why})")
    return str(path)


def python_tool(name: str) -> str:
    """Path of a command that a package of the `test` extra brings."""
    path = Path(sys.executable).parent / name
    found = str(path) if path.exists() else shutil.which(name)
    if found is None:
        missing(name, "pip install -e .[test]")
    return found


def debian_tool(name: str) -> str:
    """Path of a command of a Debian package that is to be installed."""
    found = shutil.which(name)
    if found is None:
        missing(name, "tests/system_packages.sh installs it")
    return found


def run(*command: str | Path, timeout_s: float = 60, stdin: str | None = None) -> subprocess.CompletedProcess[str]:
    """What a command printed and gave back; the test decides what that means."""
    return subprocess.run(
        [str(part) for part in command], capture_output=True, text=True, timeout=timeout_s, input=stdin
    )
