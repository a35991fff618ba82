"""PostgreSQL as Debian packages it: a private cluster in a directory of its own, on a free port of the loopback."""

import asyncio
import itertools
import os
import pwd
import shutil
import subprocess
import tempfile
from pathlib import Path
from types import TracebackType
from typing import Self

import asyncpg  # type: ignore[import-untyped]

from dispatcher.demo.child_process import free_ports

PASSWORD = "canary-database-password"
_INSTALLED = Path("/usr/lib/postgresql")
_COMMAND_WITHIN_S = 60.0
_OPTIONS = {
    "listen_addresses": "127.0.0.1",
    "fsync": "off",  # no test loses power
    "full_page_writes": "off",
    "shared_buffers": "16MB",
    "log_min_messages": "fatal",
}


def bin_directory() -> Path | None:
    """Returns the directory of `initdb` and `pg_ctl` of the newest installed version; None if there is none."""
    found = sorted(_INSTALLED.glob("*/bin/pg_ctl"), key=lambda path: int(path.parts[-3]))
    if found:
        return found[-1].parent
    on_path = shutil.which("pg_ctl")
    return Path(on_path).resolve().parent if on_path else None


def install() -> Path | None:
    """Installs PostgreSQL from Debian's package if it is missing and we are root; None if that fails."""
    if bin_directory() is None and os.geteuid() == 0 and shutil.which("apt-get"):
        environ = os.environ | {"DEBIAN_FRONTEND": "noninteractive"}
        command = ["apt-get", "install", "-y", "--no-install-recommends", "postgresql"]
        subprocess.run(command, check=False, capture_output=True, timeout=600, env=environ)
    return bin_directory()


class Postgres:
    """One server: `with Postgres() as postgres`. Its port and data outlast `stop`, `start` and `restart`."""

    def __init__(self, max_connections: int = 60) -> None:
        binaries = install()
        if binaries is None:
            raise FileNotFoundError("PostgreSQL is not installed: apt-get install postgresql")
        self._binaries = binaries
        self._user = "postgres" if os.geteuid() == 0 else None  # PostgreSQL refuses to be root
        self._directory = Path(tempfile.mkdtemp(prefix="dispatcher-postgres-"))
        self._numbers = itertools.count(1)
        self._max_connections = max_connections
        self.port = free_ports(1)[0]

    def __enter__(self) -> Self:
        password = self._directory / "password"
        password.write_text(PASSWORD)
        if self._user is not None:
            account = pwd.getpwnam(self._user)
            for path in (self._directory, password):
                os.chown(path, account.pw_uid, account.pw_gid)
        data = str(self._directory / "data")
        self._run(
            "initdb", "-D", data, "-U", "dispatcher", "-E", "UTF8", "--auth=scram-sha-256", f"--pwfile={password}", "-N"
        )
        self.start()
        return self

    def __exit__(self, kind: type[BaseException] | None, error: BaseException | None, at: TracebackType | None) -> None:
        self.stop()
        shutil.rmtree(self._directory, ignore_errors=True)

    def start(self) -> None:
        """Start it; returns when it answers."""
        options = _OPTIONS | {
            "port": str(self.port),
            "unix_socket_directories": str(self._directory),
            "max_connections": str(self._max_connections),
        }
        flags = " ".join(f"-c {name}={value}" for name, value in options.items())
        log = str(self._directory / "log")
        self._run("pg_ctl", "-D", str(self._directory / "data"), "-w", "-l", log, "-o", flags, "start")

    def stop(self) -> None:
        """Cut every connection and stop it; one that is stopped already stays so."""
        self._run("pg_ctl", "-D", str(self._directory / "data"), "-w", "-m", "fast", "stop", check=False)

    async def restart(self) -> None:
        """Stop and start it, while the loop goes on."""
        await asyncio.to_thread(self.stop)
        await asyncio.to_thread(self.start)

    def url(self, database: str = "postgres", scheme: str = "postgresql+asyncpg") -> str:
        """How to reach a database, password and all."""
        return f"{scheme}://dispatcher:{PASSWORD}@127.0.0.1:{self.port}/{database}"

    async def fresh_database(self) -> str:
        """The URL of a new, empty database."""
        name = f"test_{next(self._numbers)}"
        await self.execute(f"CREATE DATABASE {name} STRATEGY file_copy")
        return self.url(name)

    async def execute(self, statement: str, database: str = "postgres") -> None:
        """Run a statement in a connection of its own."""
        connection = await asyncpg.connect(self.url(database, "postgresql"))
        try:
            await connection.execute(statement)
        finally:
            await connection.close()

    def _run(self, program: str, *arguments: str, check: bool = True) -> None:
        done = subprocess.run(
            [str(self._binaries / program), *arguments],
            check=False,
            stdin=subprocess.DEVNULL,
            stdout=subprocess.PIPE if program == "initdb" else subprocess.DEVNULL,
            stderr=subprocess.STDOUT if program == "initdb" else subprocess.DEVNULL,
            cwd=self._directory,
            user=self._user,
            timeout=_COMMAND_WITHIN_S,
        )
        if check and done.returncode != 0:
            log = self._directory / "log"
            said = done.stdout or (log.read_bytes() if log.exists() else b"")
            raise RuntimeError(f"{program} failed: {said.decode(errors='replace')[-2000:]}")
