"""`make audit`: checks the locked dependencies, and says plainly what could not be checked.

Offline: every requirement is pinned with hashes, the lock has all that pyproject.toml asks for, what is installed is what
is locked. With an index: which pins are not the newest. With a vulnerability service: whether any pin has an advisory.
pip-audit says "No known vulnerabilities found", with status 0, when the service knew none of the packages; here a
package that was not audited is a failure, unless OFFLINE=1 says that it is known.
"""

import json
import os
import re
import subprocess
import sys
import tomllib
from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from importlib.metadata import PackageNotFoundError, version
from pathlib import Path
from typing import Any

ROOT = Path(__file__).parents[2]
LOCKS = ("run", "demo", "image", "image-msk-iam", "test", "audit")
SERVICES = ("pypi", "osv")
_PIN = re.compile(r"^([A-Za-z0-9._-]+)(?:\[[^]]*\])?==([^ ;\\]+)([^\\\n]*)", re.MULTILINE)
_HASH = re.compile(r"--hash=sha256:[0-9a-f]{64}\b")
_WANTED = re.compile(r"^([A-Za-z0-9._-]+)")


@dataclass(frozen=True)
class Pin:
    """One line of a lock."""

    name: str
    version: str
    hashes: int
    marker: str = ""


def name_of(requirement: str) -> str:
    """The normalised name of a requirement (PEP 503)."""
    found = _WANTED.match(requirement)
    return re.sub(r"[-_.]+", "-", found[1] if found else "").lower()


def pins_in(text: str) -> list[Pin]:
    """The pins of a requirements file."""
    starts = [*_PIN.finditer(text)]
    ends = [*(match.start() for match in starts[1:]), len(text)]
    return [
        Pin(name_of(match[1]), match[2], len(_HASH.findall(text, match.start(), end)), match[3].strip(" ;"))
        for match, end in zip(starts, ends, strict=True)
    ]


def lock(name: str) -> dict[str, Pin]:
    """The pins of `requirements/<name>.txt`, by name."""
    return {pin.name: pin for pin in pins_in((ROOT / "requirements" / f"{name}.txt").read_text())}


def problems_of_locks(locks: Mapping[str, Mapping[str, Pin]], project: Mapping[str, Any]) -> Iterator[str]:
    """What is wrong with the locks, as far as it shows without a network."""
    for name, pins in locks.items():
        yield from (f"{name}.txt: {pin.name} {pin.version} has no hash" for pin in pins.values() if not pin.hashes)
    extras = project["optional-dependencies"]
    wanted = {
        "run": project["dependencies"],
        "demo": [*project["dependencies"], *extras["demo"]],
        "image": [*project["dependencies"], *extras["otel"]],
        "image-msk-iam": [*project["dependencies"], *extras["otel"], *extras["msk-iam"]],
        "test": [*project["dependencies"], *extras["demo"], *extras["test"]],
    }
    for name, requirements in wanted.items():
        own = {name_of(requirement) for requirement in requirements} - {"feedback-dispatcher"}
        yield from (f"{name}.txt lacks {missing}: make lock" for missing in sorted(own - locks[name].keys()))
    for inner, outer in (("run", "demo"), ("run", "image"), ("image", "image-msk-iam"), ("demo", "test")):
        for pin in locks[inner].values():
            other = locks[outer].get(pin.name)
            if other is None or other.version != pin.version:
                reported = "lacks it" if other is None else f"has {other.version}"
                yield f"{inner}.txt has {pin.name} {pin.version}, {outer}.txt {reported}: make lock"


def strangers(pins: Mapping[str, Pin]) -> Iterator[str]:
    """What is installed in another version than the locked one."""
    for pin in pins.values():
        try:
            found = version(pin.name)
        except PackageNotFoundError:
            continue  # for another platform, or an extra that is not installed
        if found != pin.version:
            yield f"{pin.name} {found} is installed, {pin.version} is locked"


@dataclass(frozen=True)
class Verdict:
    """The answer of a vulnerability service about the pins."""

    audited: int
    skipped: tuple[str, ...]
    advisories: tuple[str, ...]


def verdict_of(report: str, pins: Mapping[str, Pin]) -> Verdict:
    """What pip-audit's JSON means. A pin that it does not name was not audited."""
    try:
        reported = {name_of(one["name"]): one for one in json.loads(report)["dependencies"]}
    except (ValueError, KeyError, TypeError):
        reported = {}
    audited = [name for name in pins if "vulns" in reported.get(name, {}) and "skip_reason" not in reported[name]]
    advisories = [
        f"{name} {pins[name].version}: {found['id']}, fixed in {', '.join(found.get('fix_versions') or ['no version yet'])}"
        for name in audited
        for found in reported[name]["vulns"]
    ]
    return Verdict(len(audited), tuple(sorted(pins.keys() - set(audited))), tuple(advisories))


def _ran(*command: str | Path) -> str:
    done = subprocess.run([*map(str, command)], capture_output=True, text=True, check=False, timeout=300)
    return done.stdout


def main() -> int:
    """Prints all findings and returns the exit status."""
    locks = {name: lock(name) for name in LOCKS}
    project = tomllib.loads((ROOT / "pyproject.toml").read_text())["project"]
    wrong = [*problems_of_locks(locks, project), *strangers(locks["test"])]
    print(f"locks: {', '.join(f'{len(pins)} pins in {name}.txt' for name, pins in locks.items())}; all with hashes")
    for problem in wrong:
        print(f"  WRONG: {problem}")
    _tell_age(locks["test"])
    pip_audit = Path(sys.argv[1]) if len(sys.argv) > 1 else None
    best = Verdict(0, tuple(locks["image"]), ())
    for service in SERVICES if pip_audit is not None and pip_audit.exists() else ():
        file = ROOT / "requirements" / "image.txt"
        report = _ran(pip_audit, "--disable-pip", "--require-hashes", "-r", file, "-f", "json", "-s", service)  # type: ignore[arg-type]
        found = verdict_of(report, locks["image"])
        print(
            f"vulnerabilities, by {service}: {found.audited} of {len(locks['image'])} pins of image.txt could be audited"
        )
        best = max(best, found, key=lambda one: one.audited)
        if not found.skipped:
            break
    for advisory in best.advisories:
        print(f"  VULNERABLE: {advisory}")
    if best.skipped:
        print(f"  NOT CHECKED for vulnerabilities: {', '.join(best.skipped)}")
        if not os.environ.get("OFFLINE"):
            print("  run it with access to a service, or say OFFLINE=1")
    return 1 if wrong or best.advisories or (best.skipped and not os.environ.get("OFFLINE")) else 0


def _tell_age(pins: Mapping[str, Pin]) -> None:
    report = _ran(sys.executable, "-m", "pip", "list", "--outdated", "--format=json", "--disable-pip-version-check")
    try:
        behind = {name_of(one["name"]): one["latest_version"] for one in json.loads(report)}
    except (ValueError, KeyError, TypeError):
        print("newest versions: NOT CHECKED, no index answered")
        return
    old = [f"{name} {pin.version} (newest: {behind[name]})" for name, pin in pins.items() if name in behind]
    print(f"newest versions: all but {len(old)} of {len(pins)} pins" + "".join(f"\n  older: {one}" for one in old))


if __name__ == "__main__":
    sys.exit(main())
