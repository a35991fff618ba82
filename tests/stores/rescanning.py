"""Scans a directory of webhook files when the test wants it, not when its interval is over."""

from dispatcher.errors import Problem
from dispatcher.stores.yaml_directory import YamlDirectory


async def rescan(directory: YamlDirectory) -> list[Problem]:
    """Does what `YamlDirectory.run` does at each interval; returns the problems found."""
    await directory._scan(confirms=True, settles=False)
    return list(directory.problems)
