"""Mounts a directory as the kubelet does (pkg/volume/util/atomic_writer.go), step by step."""

import os
import shutil
from collections.abc import Callable, Mapping
from pathlib import Path


class MountedVolume:
    """A ConfigMap or Secret volume: files are links through `..data`, which is swapped in one step."""

    def __init__(self, path: Path) -> None:
        self.path = path
        self._generation = 0
        path.mkdir()

    def update(self, files: Mapping[str, str], between: Callable[[str], None] = lambda step: None) -> None:
        """Put `files` in the place of all that was there. `between` is called after each step, with its name."""
        self._generation += 1
        data, old = (
            self.path / "..data",
            self.path / os.readlink(self.path / "..data") if self._generation > 1 else None,
        )
        new = self.path / f"..2024_01_01_00_00_00.{self._generation:010}"
        new.mkdir()
        for name, content in files.items():
            (new / name).write_text(content)
        between("written")
        link = self.path / "..data_tmp"
        link.symlink_to(new.name)
        link.rename(data)
        between("swapped")
        for name in files:
            if not (self.path / name).is_symlink():
                (self.path / name).symlink_to(f"..data/{name}")
        between("linked")
        for entry in self.path.iterdir():
            if not entry.name.startswith("..") and entry.name not in files:
                entry.unlink()
        if old is not None:
            shutil.rmtree(old)
        between("cleaned")
