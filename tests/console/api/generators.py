"""The public tools that take the API's document: fetched once, each in the version that is pinned.

In CI, a test fails if its tool is missing or can't be fetched. On other machines it is skipped, with the reason.
"""

import asyncio
import hashlib
import json
import os
import shutil
from pathlib import Path

from tests.deploy.tools import missing

ROOT = Path(__file__).parents[3]
DOCUMENT = ROOT / "config" / "schema" / "openapi.json"
CLIENTS = Path(__file__).parent / "clients"
"""Programs that use generated clients, and the packages of npm that compile and check."""

_FETCHED = ROOT / ".tools"
_PYTHON = ROOT / ".venv" / "openapi" / "bin"
_GENERATOR = "openapi-generator-cli-7.25.0.jar"
_GENERATOR_HASH = "41ce4f6b07f196676439d710759fa1ced7a08066d06ff1bf314681470289efae"


async def run(*command: str | Path, cwd: Path, **environment: str) -> tuple[int, str]:
    """Runs a program. Returns its status and what it printed."""
    path = f"{_PYTHON}{os.pathsep}{os.environ.get('PATH', '')}"
    process = await asyncio.create_subprocess_exec(
        *command, cwd=cwd, env=os.environ | {"PATH": path} | environment,
        stdout=asyncio.subprocess.PIPE, stderr=asyncio.subprocess.STDOUT,
    )  # fmt: skip
    out, _ = await process.communicate()
    return process.returncode or 0, out.decode()


def python_tool(name: str) -> Path:
    """Returns the path of a command of `requirements/openapi.txt`."""
    path = _PYTHON / name
    if not path.exists():
        missing(name, "make .venv/openapi/bin/openapi-python-client")
    return path


async def npm_tool(name: str) -> Path:
    """Returns the path of a command of `clients/package-lock.json`."""
    for needed in ("node", "npm"):
        if shutil.which(needed) is None:
            missing(needed, "tests/system_packages.sh installs it")
    digest = hashlib.sha256((CLIENTS / "package-lock.json").read_bytes()).hexdigest()[:16]
    folder = _FETCHED / f"npm-{digest}"
    if not (folder / "complete").exists():
        folder.mkdir(parents=True, exist_ok=True)
        for file in ("package.json", "package-lock.json", ".npmrc"):
            shutil.copy(CLIENTS / file, folder)
        status, out = await run("npm", "ci", cwd=folder)
        if status:
            missing(name, f"npm ci failed: {out[-500:]}")
        (folder / "complete").touch()
    return folder / "node_modules" / ".bin" / name


async def openapi_generator() -> Path:
    """Returns the path of OpenAPI Generator's jar, from Maven's central repository."""
    for needed in ("java", "mvn"):
        if shutil.which(needed) is None:
            missing(needed, "tests/system_packages.sh installs it")
    jar = _FETCHED / _GENERATOR
    if not jar.exists():
        artifact = "org.openapitools:" + _GENERATOR.removesuffix(".jar").replace("-7", ":7")
        copy = "org.apache.maven.plugins:maven-dependency-plugin:3.8.1:copy"
        options = (f"-Dartifact={artifact}", f"-DoutputDirectory={jar.parent}")
        status, out = await run("mvn", "-q", "-B", copy, *options, cwd=ROOT)
        if status:
            missing("OpenAPI Generator", f"Maven can't fetch it: {out[-500:]}")
    assert hashlib.sha256(jar.read_bytes()).hexdigest() == _GENERATOR_HASH
    return jar


async def generate(*generators: str, out: Path) -> None:
    """Makes a client with each of OpenAPI Generator's generators, in one run."""
    jar = await openapi_generator()
    orders = []
    for name in generators:
        order = {"generatorName": name, "inputSpec": str(DOCUMENT), "outputDir": str(out / name)}
        orders.append(out / f"{name}.json")
        orders[-1].write_text(json.dumps(order | {"globalProperties": {"modelTests": "false", "apiTests": "false"}}))
    java = ("java", "-XX:TieredStopAtLevel=1", "-XX:+UseSerialGC", "-jar", jar)
    status, printed = await run(*java, "batch", "--fail-fast", "--threads", "1", *orders, cwd=out)
    assert status == 0, printed[-4000:]
