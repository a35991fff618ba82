"""The locked dependencies, as far as a machine without a network can check them; and that the audit does not lie."""

import json
import tomllib

import pytest

from tests.security.audit import LOCKS, ROOT, Pin, lock, pins_in, problems_of_locks, strangers, verdict_of

PINS = {name: Pin(name, "1.0", 2) for name in ("aiohttp", "pyyaml")}
PROJECT = {
    "dependencies": ["aiohttp>=1", "PyYAML"],
    "optional-dependencies": {"demo": [], "msk-iam": [], "otel": [], "test": []},
}


@pytest.mark.parametrize("name", LOCKS)
def test_every_requirement_is_pinned_with_hashes(name: str) -> None:
    text = (ROOT / "requirements" / f"{name}.txt").read_text()
    lines = [line for line in text.splitlines() if line and not line.startswith((" ", "#"))]
    pins = pins_in(text)
    assert len(pins) == len(lines) >= 5
    assert all(pin.hashes for pin in pins)
    for option in ("--index-url", "--extra-index-url", "--find-links", "--trusted-host", "git+", "://"):
        assert option not in text


def test_the_locks_have_what_the_project_asks_for_and_agree() -> None:
    project = tomllib.loads((ROOT / "pyproject.toml").read_text())["project"]
    assert list(problems_of_locks({name: lock(name) for name in LOCKS}, project)) == []


def test_the_installed_versions_are_the_locked_ones() -> None:
    assert list(strangers(lock("test"))) == []


def test_a_wrong_lock_is_reported() -> None:
    other = {**PINS, "pyyaml": Pin("pyyaml", "2.0", 1)}
    bare = {"aiohttp": Pin("aiohttp", "1.0", 0)}
    locks = {"run": PINS, "demo": other, "image": PINS, "image-msk-iam": PINS, "test": bare}
    reported = "\n".join(problems_of_locks(locks, PROJECT))
    for said in ("aiohttp 1.0 has no hash", "test.txt lacks pyyaml", "run.txt has pyyaml 1.0, demo.txt has 2.0"):
        assert said in reported
    assert [*strangers({"pytest": Pin("pytest", "0.1", 1), "no-such": Pin("no-such", "1", 1)})] != []


def report(**vulns: object) -> str:
    return json.dumps(
        {"dependencies": [{"name": name, "version": "1.0", **reported} for name, reported in vulns.items()]}
    )  # type: ignore[dict-item]


def test_a_clean_audit_is_clean() -> None:
    found = verdict_of(report(aiohttp={"vulns": []}, PyYAML={"vulns": []}), PINS)
    assert (found.audited, found.skipped, found.advisories) == (2, (), ())


@pytest.mark.parametrize(
    "text",
    [
        "", "nonsense", "{}", '{"dependencies": []}', "null", '{"dependencies": [{"name": "x"}]}',
        report(aiohttp={"skip_reason": "Dependency not found"}, PyYAML={"skip_reason": "Dependency not found"}),
    ],
)  # fmt: skip
def test_an_audit_without_an_answer_does_not_count_as_clean(text: str) -> None:
    found = verdict_of(text, PINS)
    assert (found.audited, found.skipped) == (0, ("aiohttp", "pyyaml"))


def test_an_advisory_is_reported_with_the_fixed_version() -> None:
    advisory = {"id": "PYSEC-2026-1", "fix_versions": ["1.1"]}
    found = verdict_of(report(aiohttp={"vulns": [advisory]}, PyYAML={"vulns": [{"id": "CVE-1"}]}), PINS)
    assert found.advisories == (
        "aiohttp 1.0: PYSEC-2026-1, fixed in 1.1",
        "pyyaml 1.0: CVE-1, fixed in no version yet",
    )
