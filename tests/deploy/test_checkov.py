"""Checkov's policies on all that the chart makes and on the Dockerfile: what fails is listed here with its reason."""

import json
from pathlib import Path
from typing import Any

import pytest

from tests.deploy.rendering import NAMES, rendered_text
from tests.deploy.tools import ROOT, missing, run
from tests.security.audit import pins_in

OURS = [name for name in NAMES if name not in ("extras", "openshift")]
"""`extras` is full of other people's containers, and OpenShift chooses user ids itself."""

ACCEPTED = {
    "CKV_K8S_8": "the pod of `helm test` ends by itself: no liveness",
    "CKV_K8S_9": "nor readiness",
    "CKV_K8S_11": "no CPU limit: throttling stalls the event loop, and with it every tenant",
    "CKV_K8S_15": "a version's image does not change, so that a node need not ask for it again",
    "CKV_K8S_43": "image.digest pins it, the example `secured` does; the default is the version's tag",
    "CKV2_K8S_6": "networkPolicy.enabled is for clusters that enforce it; hooks and tests run before and beside it",
    "CKV_DOCKER_2": "no HEALTHCHECK: Kubernetes has probes",
    "CKV_DOCKER_7": "the base is an argument, pinned by digest for a release",
}


@pytest.fixture(scope="module")
def reports(tmp_path_factory: pytest.TempPathFactory) -> dict[str, list[dict[str, Any]]]:
    """Checks that fail on what is rendered of our values, and on the Dockerfile, by framework: one run for both."""
    checkov = ROOT / ".venv" / "checkov" / "bin" / "checkov"
    if not checkov.exists():
        missing("checkov", f"make {checkov.relative_to(ROOT)}")
    directory = tmp_path_factory.mktemp("rendered")
    for name in OURS:
        (directory / f"{name}.yaml").write_text(rendered_text("helm4", name))
    (directory / "Dockerfile").write_text((ROOT / "Dockerfile").read_text())
    # --skip-download: else it asks its maker for explanations
    options = ("--framework", "kubernetes", "dockerfile", "--directory", str(directory))
    done = run(checkov, *options, "--skip-download", "--quiet", "--output", "json", timeout_s=100)
    found: dict[str, list[dict[str, Any]]] = {}
    for report in json.loads(done.stdout):
        assert report["summary"]["parsing_errors"] == 0
        assert report["summary"]["passed"] > 50
        found[report["check_type"]] = report["results"]["failed_checks"]
    return found


@pytest.fixture
def failed(reports: dict[str, list[dict[str, Any]]]) -> list[dict[str, Any]]:
    return reports["kubernetes"]


def test_the_chart_fails_only_the_checks_that_are_accepted(failed: list[dict[str, Any]]) -> None:
    assert {one["check_id"] for one in failed} == {check for check in ACCEPTED if not check.startswith("CKV_DOCKER")}


def test_long_running_pods_have_probes_and_a_closed_network_is_closed(failed: list[dict[str, Any]]) -> None:
    """What is accepted is accepted there only, not everywhere."""
    for one in failed:
        if one["check_id"] in ("CKV_K8S_8", "CKV_K8S_9"):
            assert one["resource"].startswith("Pod."), one["resource"]
        if one["check_id"] == "CKV2_K8S_6" and Path(one["file_path"]).stem in ("secured", "console-ingress"):
            assert any(part in one["resource"] for part in ("-test", "-migration")), one["resource"]
        assert (one["check_id"], Path(one["file_path"]).stem) != ("CKV_K8S_43", "secured"), "it pins a digest"


def test_the_dockerfile_fails_only_the_checks_that_are_accepted(reports: dict[str, list[dict[str, Any]]]) -> None:
    assert {one["check_id"] for one in reports["dockerfile"]} == {
        check for check in ACCEPTED if check.startswith("CKV_DOCKER")
    }


def test_it_and_all_that_it_needs_is_locked_with_hashes() -> None:
    text = (ROOT / "requirements" / "checkov.txt").read_text()
    pins = pins_in(text)
    assert len(pins) > 50
    assert all(pin.hashes for pin in pins)
    assert "://" not in text
