"""PgBouncer as Debian packages it, in front of a PostgreSQL server, on a free port of the loopback."""

import asyncio
import os
import pwd
import shutil
import subprocess
import tempfile
from pathlib import Path
from types import TracebackType
from typing import Final, Self

import asyncpg  # type: ignore[import-untyped]

from dispatcher.demo.child_process import free_ports
from tests.stores_sql.postgres import PASSWORD, Postgres

PGBOUNCER: Final = shutil.which("pgbouncer", path=f"{os.environ.get('PATH', '')}:/usr/sbin")
"""The program; None if it is not installed."""
_ANSWERS_WITHIN_S: Final = 20.0


class PgBouncer:
    """One pooler with its default settings: `async with PgBouncer(postgres, "session") as pooler`."""

    def __init__(self, postgres: Postgres, pool_mode: str, *, pool_size: int = 20) -> None:
        assert PGBOUNCER is not None
        self._program = PGBOUNCER
        self._postgres = postgres
        self._directory = Path(tempfile.mkdtemp(prefix="dispatcher-pgbouncer-"))
        self._port = free_ports(1)[0]
        self._settings = {
            "listen_addr": "127.0.0.1",
            "listen_port": self._port,
            "unix_socket_dir": "",
            "auth_type": "plain",
            "auth_file": self._directory / "users",
            "pool_mode": pool_mode,
            "default_pool_size": pool_size,
        }

    async def __aenter__(self) -> Self:
        self._process = await asyncio.to_thread(self._start)
        async with asyncio.timeout(_ANSWERS_WITHIN_S):
            while not await self._answers():
                await asyncio.sleep(0.05)
        return self

    async def __aexit__(
        self, kind: type[BaseException] | None, error: BaseException | None, at: TracebackType | None
    ) -> None:
        self._process.kill()
        await asyncio.to_thread(self._process.wait)
        shutil.rmtree(self._directory, ignore_errors=True)

    def url(self, direct: str) -> str:
        """How to reach through the pooler the database that `direct` reaches without it."""
        return direct.replace(f":{self._postgres.port}/", f":{self._port}/")

    def _start(self) -> subprocess.Popen[bytes]:
        (self._directory / "users").write_text(f'"dispatcher" "{PASSWORD}"\n')
        settings = "".join(f"{name} = {value}\n" for name, value in self._settings.items())
        databases = f"[databases]\n* = host=127.0.0.1 port={self._postgres.port}\n"
        file = self._directory / "pgbouncer.ini"
        file.write_text(f"{databases}[pgbouncer]\n{settings}")
        user = "postgres" if os.geteuid() == 0 else None  # it refuses to be root
        if user is not None:
            account = pwd.getpwnam(user)
            for path in (self._directory, *self._directory.iterdir()):
                os.chown(path, account.pw_uid, account.pw_gid)
        return subprocess.Popen([self._program, "-q", str(file)], user=user, stderr=subprocess.DEVNULL)

    async def _answers(self) -> bool:
        try:
            connection = await asyncpg.connect(self.url(self._postgres.url(scheme="postgresql")))
        except OSError:
            return False
        await connection.close()
        return True
