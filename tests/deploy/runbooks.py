"""The runbooks' commands: read from the pages, and run against a dispatcher that is in that trouble."""

import asyncio
import json
import os
import re
import shutil
import sys
from collections.abc import Mapping
from dataclasses import dataclass, field
from pathlib import Path

from tests.deploy.tools import RUNBOOKS, debian_tool
from tests.kafka import maven

STAND_INS = Path(__file__).parent / "fakes.py"
NAMES = ("kubectl", "helm", "curl", "kcat", "openssl", "grep",
         "kafka-topics.sh", "kafka-consumer-groups.sh", "kafka-configs.sh", "kafka-get-offsets.sh")  # fmt: skip
REAL = ("curl", "kcat", "openssl")
NO_SUCH_COMMAND = {2, 126, 127}
"""Exit statuses of a wrong option or a missing program; other failures can belong to the trouble."""


def commands(name: str) -> list[str]:
    """Returns the commands of a runbook in order, one a line."""
    section = (RUNBOOKS / f"{name}.md").read_text().split("## Commands")[1]
    return [line.strip() for line in section.splitlines() if line.startswith("    ")]


def greps(command: str) -> list[str]:
    """Returns the patterns that a command's greps look for."""
    found = re.findall(r"grep (?:-\S+ (?:\d+ )?)*(?:'([^']*)'|([^\s|)]+))", command)
    return [quoted or plain for quoted, plain in found]


@dataclass(frozen=True, slots=True)
class Ran:
    """What one command did."""

    command: str
    status: int
    output: str


@dataclass(frozen=True, slots=True)
class World:
    """Addresses and paths of what runbooks name."""

    directory: Path
    ops_port: int
    settings: Path
    log: Path
    webhooks: Path
    bootstrap_servers: str
    endpoint: str
    """Host and port."""
    names: Mapping[str, str] = field(default_factory=dict)
    """Further words of the pages, and what they are here."""

    async def run(self, name: str, placeholders: Mapping[str, str] | None = None) -> tuple[list[Ran], list[str]]:
        """Runs a runbook's commands in one shell. Returns what they did, and the greps that matched nothing."""
        lines = commands(name)
        for placeholder, value in (placeholders or {}).items():
            lines = [line.replace(placeholder, value) for line in lines]
        script = "".join(f"printf '\\n@begin\\n'\n{line}\nprintf '\\n@end %d\\n' $?\n" for line in lines)
        without_match = self.directory / "without_match"
        without_match.write_text("")
        process = await asyncio.create_subprocess_exec(
            "bash", "-c", script,
            env=os.environ | {"PATH": f"{self._fakes()}:{os.environ['PATH']}", "RUNBOOK_WORLD": str(self._known(without_match))},
            stdin=asyncio.subprocess.DEVNULL, stdout=asyncio.subprocess.PIPE, stderr=asyncio.subprocess.STDOUT,
        )  # fmt: skip
        output, _ = await asyncio.wait_for(process.communicate(), 240)
        found = re.findall(r"@begin\n(.*?)\n@end (\d+)", output.decode(errors="replace"), re.DOTALL)
        assert len(found) == len(lines), f"{name}: the shell stopped early:\n{output.decode(errors='replace')[-2000:]}"
        ran = [Ran(line, int(status), text) for line, (text, status) in zip(lines, found, strict=True)]
        return ran, without_match.read_text().splitlines()

    def _fakes(self) -> Path:
        place = self.directory / "stand-ins"
        if not place.exists():
            place.mkdir()
            for name in NAMES:
                (place / name).write_text(f"#!{sys.executable} -ES\n{STAND_INS.read_text()}")
                (place / name).chmod(0o755)
        return place

    def _known(self, without_match: Path) -> Path:
        host, port = self.endpoint.split(":")
        known = {
            "replaced": {
                "localhost:9090": f"127.0.0.1:{self.ops_port}",
                "127.0.0.1:9090": f"127.0.0.1:{self.ops_port}",
                "kafka:9092": self.bootstrap_servers,
                "hooks.luma.example:443": f"127.0.0.1:{port}",
                "hooks.luma.example": host,
                "/etc/webhooks.d": str(self.webhooks),
                **self.names,
            },
            "log": str(self.log),
            "settings": str(self.settings),
            "python": sys.executable,
            "class_path": maven.class_path(),
            "without_match": str(without_match),
            "real": {name: shutil.which(name) or debian_tool(name) for name in REAL},
        }
        path = self.directory / "world.json"
        path.write_text(json.dumps(known))
        return path
