"""The documentation as a site: it builds without network, every page is in it, and it agrees with the program."""

import json
import os
import re
import subprocess
import sys
from pathlib import Path

import pytest

from tests.deploy.test_rules import ALERTS
from tests.deploy.tools import ROOT, RUNBOOKS

DOCS = ROOT / "docs"


@pytest.fixture(scope="module")
def site(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Built with every proxy leading nowhere: what needs the network would fail. A dead link is an error."""
    target = tmp_path_factory.mktemp("site")
    nowhere = dict.fromkeys(("http_proxy", "https_proxy", "HTTP_PROXY", "HTTPS_PROXY"), "http://127.0.0.1:9")
    command = [
        sys.executable,
        "-m",
        "mkdocs",
        "build",
        "--strict",
        "--site-dir",
        str(target),
        "-f",
        str(ROOT / "mkdocs.yml"),
    ]
    done = subprocess.run(command, capture_output=True, text=True, timeout=100, env=os.environ | nowhere)
    assert done.returncode == 0, done.stdout + done.stderr
    return target


def test_every_page_is_in_the_site(site: Path) -> None:
    for page in DOCS.rglob("*.md"):
        name = page.relative_to(DOCS).with_suffix(".html").as_posix().replace("README.html", "index.html")
        assert (site / name).exists(), name


def test_a_page_loads_nothing_from_elsewhere(site: Path) -> None:
    for page in site.rglob("*.html"):
        loaded = re.findall(r'<(?:script|link|img)[^>]+(?:src|href)="((?:https?:)?//[^"]+)"', page.read_text())
        assert [one for one in loaded if "feedback-dispatcher" not in one] == [], page.name


def test_a_link_out_of_the_documentation_leads_to_the_repository(site: Path) -> None:
    text = (site / "operating.html").read_text()
    assert "/blob/main/deploy/alertmanager/example.yaml" in text
    assert 'href="../' not in re.sub(r'href="\.\./?(?:css|js|search|img)[^"]*"', "", text)


def test_the_api_page_has_every_request() -> None:
    paths = json.loads((ROOT / "config/schema/openapi.json").read_text())["paths"]
    wanted = {
        f"| `{method.upper()} {path}` | {operation['summary']} |"
        for path, operations in paths.items()
        for method, operation in operations.items()
        if method in ("get", "post", "put", "patch", "delete")
    }
    assert set(re.findall(r"^\| `[A-Z]+ /.*$", (DOCS / "api.md").read_text(), re.MULTILINE)) == wanted


def test_the_list_of_runbooks_has_every_alert() -> None:
    rows = re.findall(
        r"^\| \[(\w+)\]\((\w+)\.md\) \| (\w+) \| (.+) \|$", (RUNBOOKS / "README.md").read_text(), re.MULTILINE
    )
    assert {name: (severity, summary) for name, _, severity, summary in rows} == {
        name: (rule["labels"]["severity"], rule["annotations"]["summary"]) for name, rule in ALERTS.items()
    }


def test_the_events_page_has_every_reason_to_skip() -> None:
    from dispatcher.contract.outcomes import SkipReason

    text = (DOCS / "events.md").read_text()
    found = re.findall(r"^\| `(\w+)` \| ", text.split("Which events are sent")[1], re.MULTILINE)
    assert found == [reason.value for reason in SkipReason]
