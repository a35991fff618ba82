"""A SQLite file that can't be used: the message names the cause and what to do."""

import os
import shutil
import sqlite3
import subprocess
import sys
from contextlib import closing
from pathlib import Path

import pytest
from sqlalchemy import text

from dispatcher.config.secrets import Secret
from dispatcher.errors import StoreUnavailable
from dispatcher.stores.sql.database import Database

SCRIPT = """
import asyncio, sys
from dispatcher.config.secrets import Secret
from dispatcher.stores.sql.database import Database
from dispatcher.errors import StoreUnavailable
from sqlalchemy import text
async def main():
    try:
        async with Database(Secret(f"sqlite+aiosqlite:///{sys.argv[1]}".encode()), setting="history.url").write() as one:
            await one.execute(text("INSERT INTO a VALUES (randomblob(3000000))"))
    except StoreUnavailable as error:
        print(error)
asyncio.run(main())
"""


async def _problem(file: Path, setting: str = "history.url") -> str:
    database = Database(Secret(f"sqlite+aiosqlite:///{file}".encode()), setting=setting)
    try:
        with pytest.raises(StoreUnavailable) as caught:
            async with database.write() as connection:
                await connection.execute(text("CREATE TABLE a (b)"))
        return str(caught.value).removeprefix(f"SQLite at {file}: ")
    finally:
        await database.close()


async def test_the_cause_is_named_with_its_cure(tmp_path: Path) -> None:
    (tmp_path / "directory.db").mkdir()
    (tmp_path / "text.db").write_text("This is a text, and no database; it is long enough to look like one." * 20)
    assert await _problem(tmp_path / "none.db") == "there is no such file: run `dispatcher history`"
    assert await _problem(tmp_path / "none.db", "webhooks.url") == (
        "there is no such file: run `dispatcher webhooks migrate`"
    )
    assert await _problem(tmp_path / "directory.db") == "it is a directory: name a file in history.url"
    assert await _problem(tmp_path / "text.db") == (
        "the file is not a SQLite database: restore a backup, or correct history.url"
    )
    assert await _problem(tmp_path / "missing" / "a.db") == (
        f"there is no directory {tmp_path}/missing: create it, or correct history.url"
    )


@pytest.mark.parametrize("denied", ["a.db", "."])
async def test_a_file_of_another_user_is_named_as_such(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, denied: str
) -> None:
    """Root may read everything, so that the answers of the system are simulated."""
    monkeypatch.setattr(os, "access", lambda path, _mode: Path(path) != tmp_path / denied)
    (tmp_path / "a.db").symlink_to("/proc/version")  # a file that SQLite opens for reading only
    assert await _problem(tmp_path / "a.db") == (
        f"user {os.geteuid()} can't read and write {tmp_path / denied}: change its owner or its permissions"
    )


@pytest.mark.parametrize(
    ("mount", "expected"),
    [
        (
            "mount --bind {0} {0} && mount -o remount,ro,bind {0}",
            "{0} is on a read-only file system: mount it for writing, or correct history.url",
        ),
        ("cp {0}/a.db {1}; mount -t tmpfs -o size=1m none {0}; cp {1} {0}/a.db", "the disk is full: free space in {0}"),
    ],
    ids=["read-only", "full"],
)
def test_a_mount_that_takes_no_writes_is_named(tmp_path: Path, mount: str, expected: str) -> None:
    own = ["unshare", "--map-root-user", "--mount"]
    if shutil.which("unshare") is None or subprocess.run([*own, "true"], capture_output=True).returncode:
        pytest.skip("this system lets no process have mounts of its own")
    volume, file = tmp_path / "volume", tmp_path / "volume" / "a.db"
    volume.mkdir()
    with closing(sqlite3.connect(file)) as connection:
        connection.execute("CREATE TABLE a (b)")
    (tmp_path / "script.py").write_text(SCRIPT)
    command = f"({mount.format(volume, tmp_path / 'copy')}) && {sys.executable} {tmp_path}/script.py {file}"
    ran = subprocess.run([*own, "sh", "-c", command], capture_output=True, text=True, check=False)
    assert ran.stdout.strip() == f"SQLite at {file}: {expected.format(volume)}", ran.stderr
