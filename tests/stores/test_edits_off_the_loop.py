"""What an edit costs the event loop: the webhooks of all files are combined in a thread."""

import threading
from pathlib import Path

import pytest

from dispatcher.stores import yaml_directory
from dispatcher.stores.directory_snapshot import next_snapshot
from tests.stores.test_yaml_directory import content, directory_at, entry


async def test_files_are_combined_in_a_thread(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    threads: list[int] = []

    def combined(*args: object) -> object:
        threads.append(threading.get_ident())
        return next_snapshot(*args)  # type: ignore[arg-type]

    monkeypatch.setattr(yaml_directory, "next_snapshot", combined)
    (tmp_path / "a.yaml").write_text(content(entry("org1")))
    directory, _ = directory_at(tmp_path)
    await directory.load()
    assert threads
    assert threading.get_ident() not in threads
    assert len(directory.all()) == 1
