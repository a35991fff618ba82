"""The list of what the image is made of: valid CycloneDX, complete, and the same each time."""

import json
import re
import sys
from pathlib import Path
from typing import Any

import pytest
from cyclonedx.schema import SchemaVersion
from cyclonedx.validation.json import JsonStrictValidator

from tests.deploy.tools import DEPLOY, ROOT, run

LOCK = ROOT / "requirements" / "image.txt"
SYSTEM = """\
Package: libssl3
Status: install ok installed
Architecture: amd64
Version: 3.0.19-1~deb12u2

Package: gone
Status: deinstall ok config-files
Architecture: amd64
Version: 1
"""


@pytest.fixture(scope="module")
def written(tmp_path_factory: pytest.TempPathFactory) -> list[str]:
    """The file, made twice."""
    directory = tmp_path_factory.mktemp("sbom")
    (directory / "var/lib/dpkg").mkdir(parents=True)
    (directory / "var/lib/dpkg/status").write_text(SYSTEM)
    (directory / "etc").mkdir()
    (directory / "etc/os-release").write_text('ID=debian\nVERSION_ID="12"\n')
    texts = []
    for number in (1, 2):
        out = directory / f"{number}.json"
        done = run(
            sys.executable, DEPLOY / "image/sbom.py", "--lock", LOCK, "--environment", sys.prefix,
            "--system", directory, "--out", out,
        )  # fmt: skip
        assert done.returncode == 0, done.stderr
        texts.append(out.read_text())
    return texts


@pytest.fixture(scope="module")
def document(written: list[str]) -> dict[str, Any]:
    made: dict[str, Any] = json.loads(written[0])
    return made


def test_it_is_valid_cyclonedx(written: list[str]) -> None:
    assert JsonStrictValidator(SchemaVersion.V1_6).validate_str(written[0]) is None


def test_the_same_input_gives_the_same_file(written: list[str]) -> None:
    assert written[0] == written[1]


def test_every_locked_package_is_there_with_its_hashes_and_a_licence(document: dict[str, Any]) -> None:
    pins = dict(re.findall(r"^([a-z0-9-]+)(?:\[[^\]]*\])?==([^ ;\\]+)", LOCK.read_text(), re.MULTILINE))
    of_python = {one["name"]: one for one in document["components"] if one["purl"].startswith("pkg:pypi/")}
    # what a marker leaves out on the machine that runs the test is not in its environment
    marked = set(re.findall(r"^([a-z0-9-]+)==[^ ;]+ ;", LOCK.read_text(), re.MULTILINE))
    assert pins.keys() - marked <= of_python.keys() <= pins.keys()
    for name, one in of_python.items():
        assert one["version"] == pins[name]
        assert one["licenses"], f"{name} has no licence"
        (distribution,) = one["externalReferences"]
        assert distribution["hashes"]
        for hash_ in distribution["hashes"]:
            assert f"--hash=sha256:{hash_['content']}" in LOCK.read_text()


def test_nothing_is_listed_that_the_program_does_not_need(document: dict[str, Any]) -> None:
    graph = {one["ref"]: set(one["dependsOn"]) for one in document["dependencies"]}
    reached, todo = set(), [document["metadata"]["component"]["bom-ref"]]
    while todo:
        one = todo.pop()
        if one not in reached:
            reached.add(one)
            todo += graph[one]
    assert reached == graph.keys()


def test_debians_installed_packages_are_there(document: dict[str, Any]) -> None:
    (one,) = [one for one in document["components"] if one["purl"].startswith("pkg:deb/")]
    assert one["purl"] == "pkg:deb/debian/libssl3@3.0.19-1~deb12u2?arch=amd64&distro=debian-12"


def test_an_environment_that_is_not_the_locked_one_is_refused(tmp_path: Path) -> None:
    lock = tmp_path / "lock.txt"
    lock.write_text(re.sub(r"^aiohttp==\S+", "aiohttp==0.0.1", LOCK.read_text(), flags=re.MULTILINE))
    done = run(
        sys.executable, DEPLOY / "image/sbom.py", "--lock", lock, "--environment", sys.prefix,
        "--out", tmp_path / "x.json",
    )  # fmt: skip
    assert done.returncode != 0
    assert "aiohttp" in done.stderr
