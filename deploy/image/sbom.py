"""Writes what the image is made of as CycloneDX 1.6: the Python packages of the lock file with their hashes, licences
and what needs what; Debian's packages of the base. Run in the image's build, and by `make sbom`.

    python sbom.py --lock requirements/image.txt --environment /opt/dispatcher --system / --out sbom.cdx.json

The same input gives the same file, byte for byte. Needs `packaging`, nothing else, and no network.
"""

import argparse
import hashlib
import json
import re
import uuid
from collections.abc import Iterator
from importlib.metadata import Distribution, distributions
from pathlib import Path
from typing import Any, NamedTuple
from urllib.parse import quote

from packaging.markers import default_environment
from packaging.requirements import Requirement
from packaging.utils import canonicalize_name

ROOT = "feedback-dispatcher"
EXTRAS = frozenset({"otel"})
"""Of the program, as the lock file has them."""

_LOCKED = re.compile(r"^([A-Za-z0-9._-]+)(?:\[[^\]]*\])?==([^ ;\\]+)", re.MULTILINE)
_HASH = re.compile(r"--hash=sha256:([0-9a-f]{64})")

Json = dict[str, Any]


class Locked(NamedTuple):
    """A pin of the lock file."""

    version: str
    hashes: list[str]


def locked(text: str) -> dict[str, Locked]:
    """The pins, by name."""
    pins = list(_LOCKED.finditer(text))
    ends = [pin.start() for pin in pins[1:]] + [len(text)]
    return {
        str(canonicalize_name(pin[1])): Locked(pin[2], sorted(_HASH.findall(text, pin.end(), end)))
        for pin, end in zip(pins, ends, strict=True)
    }


def licences(distribution: Distribution) -> list[Json]:
    """Returns the licence that the package declares: an SPDX expression if it has one."""
    fields = distribution.metadata
    expression = fields.get("License-Expression")
    if expression:
        return [{"expression": expression}]
    named = [
        line.rpartition(" :: ")[2] for line in fields.get_all("Classifier") or () if line.startswith("License :: OSI")
    ]
    free = (fields.get("License") or "").strip()
    if not named and free:
        named = [free.partition("\n")[0][:100]]
    return [{"license": {"name": name}} for name in named]


def component(name: str, distribution: Distribution, pin: Locked) -> Json:
    """A Python package."""
    purl = f"pkg:pypi/{name}@{pin.version}"
    made: Json = {
        "type": "library",
        "bom-ref": purl,
        "name": name,
        "version": pin.version,
        "purl": purl,
        "licenses": licences(distribution),
        "externalReferences": [
            {
                "type": "distribution",
                "url": purl,
                "comment": "any of these files may be what was installed",
                "hashes": [{"alg": "SHA-256", "content": one} for one in pin.hashes],
            }
        ],
    }
    if distribution.metadata.get("Summary"):
        made["description"] = distribution.metadata["Summary"]
    return made


def needs(installed: dict[str, Distribution]) -> dict[str, set[str]]:
    """Returns which package needs which, with the requested extras."""
    found: dict[str, set[str]] = {}
    todo = [(ROOT, EXTRAS)]
    seen: set[tuple[str, frozenset[str]]] = set()
    while todo:
        name, extras = todo.pop()
        if (name, extras) in seen or name not in installed:
            continue
        seen.add((name, extras))
        own = found.setdefault(name, set())
        for text in installed[name].requires or ():
            wanted = Requirement(text)
            of = str(canonicalize_name(wanted.name))
            environments = [{**default_environment(), "extra": extra} for extra in extras or {""}]
            if of == ROOT or (wanted.marker and not any(wanted.marker.evaluate(one) for one in environments)):
                continue
            if of in installed:
                own.add(of)
                todo.append((of, frozenset(wanted.extras)))
    return found


def debian(root: Path) -> Iterator[Json]:
    """Debian's packages below `root`, of a whole system or of a distroless one."""
    files = [root / "var/lib/dpkg/status", *sorted((root / "var/lib/dpkg/status.d").glob("*"))]
    texts = [path.read_text(errors="replace") for path in files if path.is_file() and path.suffix != ".md5sums"]
    release = root / "etc/os-release"
    distribution = (
        dict(re.findall(r'^(\w+)="?([^"\n]*)"?$', release.read_text(), re.MULTILINE)) if release.exists() else {}
    )
    distro = (
        f"&distro={distribution['ID']}-{distribution['VERSION_ID']}"
        if {"ID", "VERSION_ID"} <= distribution.keys()
        else ""
    )
    for stanza in "\n\n".join(texts).split("\n\n"):
        fields = dict(re.findall(r"^([A-Za-z-]+): (.*)$", stanza, re.MULTILINE))
        if "Package" not in fields or fields.get("Status", "installed").split()[-1] != "installed":
            continue
        name, version, architecture = fields["Package"], fields["Version"], fields.get("Architecture", "all")
        purl = f"pkg:deb/{distribution.get('ID', 'debian')}/{quote(name)}@{quote(version)}?arch={architecture}{distro}"
        yield {"type": "library", "bom-ref": purl, "name": name, "version": version, "purl": purl}


def bom(lock: Path, site: list[str], system: Path | None) -> Json:
    """The whole document."""
    pins = locked(lock.read_text())
    installed = {str(canonicalize_name(one.metadata["Name"])): one for one in distributions(path=site)}
    other = {
        name: pins[name].version
        for name in pins.keys() & installed.keys()
        if installed[name].version != pins[name].version
    }
    if other:
        raise SystemExit(f"installed in another version than locked: {sorted(other)}")
    root = installed[ROOT]
    packages = {name: installed[name] for name in sorted(pins.keys() & installed.keys())}
    components = [component(name, one, pins[name]) for name, one in packages.items()]
    components += () if system is None else sorted(debian(system), key=lambda one: str(one["purl"]))
    reference = f"pkg:pypi/{ROOT}@{root.version}"
    references = {name: f"pkg:pypi/{name}@{pins[name].version}" for name in packages} | {ROOT: reference}
    graph = needs({ROOT: root} | packages)
    document: Json = {
        "bomFormat": "CycloneDX",
        "specVersion": "1.6",
        "version": 1,
        "metadata": {
            "component": {
                "type": "application",
                "bom-ref": reference,
                "name": ROOT,
                "version": root.version,
                "purl": reference,
                "licenses": licences(root),
            }
        },
        "components": components,
        "dependencies": [
            {"ref": references[name], "dependsOn": sorted(references[one] for one in graph.get(name, ()))}
            for name in sorted(references)
        ],
    }
    content = hashlib.sha256(json.dumps(document, sort_keys=True).encode()).hexdigest()
    return {"serialNumber": uuid.uuid5(uuid.NAMESPACE_OID, content).urn} | document


def main() -> None:
    """Write it."""
    parser = argparse.ArgumentParser(description=(__doc__ or "").partition("\n\n")[0])
    parser.add_argument("--lock", type=Path, required=True)
    parser.add_argument("--environment", type=Path, required=True, help="the virtual environment to look into")
    parser.add_argument("--system", type=Path, help="root of the Debian system whose packages belong to it")
    parser.add_argument("--out", type=Path, required=True)
    options = parser.parse_args()
    site = [str(path) for path in sorted(options.environment.glob("lib/python3*/site-packages"))]
    made = bom(options.lock, site, options.system)
    options.out.parent.mkdir(parents=True, exist_ok=True)
    options.out.write_text(json.dumps(made, indent=1, ensure_ascii=False) + "\n")


if __name__ == "__main__":
    main()
