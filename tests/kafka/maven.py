"""The class path of Apache Kafka: asks Maven for what pom.xml names, once, and keeps the answer in target/.

It runs again when the pom changes or a jar has gone. Called by `apache_kafka`, and by conftest for the version.
"""

import hashlib
import os
import re
import shutil
import subprocess
from pathlib import Path

_HERE = Path(__file__).parent
_POM = _HERE / "pom.xml"
_MAVEN_TIMEOUT_S = 600  # the first time on a machine it downloads about 75 MB, Maven's own parts included


class KafkaUnavailableError(RuntimeError):
    """Apache Kafka cannot run here: no Java, no Maven, or Maven could not fetch the jars."""


def kafka_version() -> str:
    """Returns the version of the broker that pom.xml names, such as `4.4.0`."""
    found = re.search(r"<artifactId>kafka_2\.13</artifactId>\s*<version>(.+?)</version>", _POM.read_text())
    if found is None:
        raise KafkaUnavailableError(f"{_POM.name} names no kafka_2.13")
    return found.group(1)


def missing_tools() -> list[str]:
    """Returns the programs that the broker needs and that are not on the PATH."""
    return [name for name in ("java", "mvn") if shutil.which(name) is None]


def class_path() -> str:
    """Returns every jar of the broker, as Java's `-cp` takes them. May run Maven: 10 s, minutes on a new machine."""
    if missing := missing_tools():
        raise KafkaUnavailableError(f"not installed: {', '.join(missing)}")
    answer = _HERE / "target" / f"classpath-{hashlib.sha256(_POM.read_bytes()).hexdigest()[:16]}.txt"
    if not answer.exists() or not _all_exist(answer.read_text()):
        _resolve(answer)
    return answer.read_text()


def _all_exist(jars: str) -> bool:
    return all(Path(jar).exists() for jar in jars.split(os.pathsep))


def _resolve(answer: Path) -> None:
    answer.parent.mkdir(exist_ok=True)
    draft = answer.with_suffix(f".{os.getpid()}")  # two test runs at once must not read half an answer
    command = ["mvn", "-q", "-B", "-f", str(_POM), "dependency:build-classpath", f"-Dmdep.outputFile={draft}"]
    run = subprocess.run(command, capture_output=True, text=True, timeout=_MAVEN_TIMEOUT_S, check=False)
    if run.returncode != 0 or not draft.exists():
        raise KafkaUnavailableError(f"Maven could not resolve {_POM.name}:\n{run.stdout[-2000:]}{run.stderr[-2000:]}")
    draft.replace(answer)
