"""The Dockerfile and the scripts around it. The image itself is built and run by deploy/image/try.sh, not in CI."""

import re

from tests.deploy.tools import DEPLOY, ROOT, python_tool, run

DOCKERFILE = (ROOT / "Dockerfile").read_text()


def test_hadolint_has_nothing_to_say() -> None:
    done = run(python_tool("hadolint"), "--failure-threshold", "style", ROOT / "Dockerfile")
    assert done.returncode == 0, done.stdout


def test_the_last_stage_runs_without_root_and_in_exec_form() -> None:
    last = DOCKERFILE.rpartition("\nFROM ")[2]
    assert re.search(r"^USER 65532:65532$", last, re.MULTILINE), "a number: runAsNonRoot can't judge a name"
    assert 'ENTRYPOINT ["dispatcher"]' in last
    assert "HEALTHCHECK" not in DOCKERFILE, "Kubernetes has its own"
    assert "org.opencontainers.image.licenses" in last


def test_everything_that_is_installed_has_a_hash() -> None:
    for line in re.findall(r"pip[^\n]* install (.*?)(?=\n[A-Z#]|\n    &&)", DOCKERFILE, re.DOTALL):
        assert "--require-hashes" in line or "--no-index" in line, line
    locked = (DEPLOY / "image" / "build.txt").read_text()
    (wanted,) = re.findall(r'requires = \["(hatchling==[^"]+)"\]', (ROOT / "pyproject.toml").read_text())
    assert f"{wanted} \\" in locked
    assert not re.findall(r"^\S+==(?!\S+ \\\n    --hash=sha256:).*$", locked, re.MULTILINE)


def test_only_what_the_image_needs_goes_to_the_builder() -> None:
    lines = [line for line in (ROOT / ".dockerignore").read_text().splitlines() if line and not line.startswith("#")]
    assert lines[0] == "*"
    admitted = {line.removeprefix("!") for line in lines if line.startswith("!")}
    copied = {
        part for line in re.findall(r"^COPY (?!--from)(.*)$", DOCKERFILE, re.MULTILINE) for part in line.split()[:-1]
    }
    assert admitted == copied


def test_shellcheck_has_nothing_to_say() -> None:
    scripts = [ROOT / ".ci" / "run", *DEPLOY.glob("**/*.sh"), *(ROOT / "tests").glob("*.sh")]
    assert len(scripts) >= 6
    done = run(python_tool("shellcheck"), *scripts)
    assert done.returncode == 0, done.stdout
    assert all("\nset -euo pipefail\n" in script.read_text() for script in scripts)
