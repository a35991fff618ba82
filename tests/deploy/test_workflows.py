"""The GitHub workflows pass the public linters; they are not run here."""

import shutil
import sys
from pathlib import Path

import yaml

from tests.deploy.tools import ROOT, missing, run

WORKFLOWS = sorted((ROOT / ".github" / "workflows").glob("*.yml"))
ACTIONLINT = "github.com/rhysd/actionlint/cmd/actionlint@v1.7.8"


def test_zizmor_finds_no_weakness() -> None:
    zizmor = Path(sys.executable).parents[1] / "zizmor" / "bin" / "zizmor"
    if not zizmor.exists():
        missing("zizmor", "`make test` installs it")
    done = run(zizmor, "--offline", "--config", ROOT / ".github" / "zizmor.yml", *WORKFLOWS)
    assert done.returncode == 0, done.stdout


def test_actionlint_finds_no_mistake() -> None:
    if shutil.which("go") is None:
        missing("go", "actionlint is built by it")
    done = run("go", "run", ACTIONLINT, *WORKFLOWS, timeout_s=110)
    assert done.returncode == 0, done.stdout + done.stderr


def test_every_job_has_its_least_permissions_and_a_deadline() -> None:
    for path in WORKFLOWS:
        workflow = yaml.safe_load(path.read_text())
        assert workflow["permissions"] == {}
        assert all({"permissions", "timeout-minutes"} <= job.keys() for job in workflow["jobs"].values())
