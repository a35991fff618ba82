"""Scans a directory of webhook files when the test wants it, and uses files that were written just now."""

from collections.abc import Mapping

from dispatcher.errors import Problem
from dispatcher.stores.settling import SettlingFiles
from dispatcher.stores.webhook_file import WebhookFileReading
from dispatcher.stores.yaml_directory import YamlDirectory


class _CompleteAtTheStart(SettlingFiles):
    """Files are complete when the process starts, and change later."""

    def at_start(
        self, found: Mapping[str, WebhookFileReading], now: float, unix_time: float
    ) -> dict[str, WebhookFileReading]:
        return dict(found)


class _AlwaysComplete(_CompleteAtTheStart):
    """Files are complete whenever they are read."""

    def settled(
        self, found: Mapping[str, WebhookFileReading], used: Mapping[str, WebhookFileReading], now: float
    ) -> dict[str, WebhookFileReading]:
        return dict(found)


def load_at_once(directory: YamlDirectory) -> None:
    """Makes `load` use files that were written just now, for which it would wait."""
    directory._settling = _CompleteAtTheStart()


async def rescan(directory: YamlDirectory) -> list[Problem]:
    """Does what `YamlDirectory.run` does at each interval, and waits for no file; returns the problems found."""
    directory._settling = _AlwaysComplete()
    await directory._scan(confirms=True)
    directory._settling = _CompleteAtTheStart()
    return list(directory.problems)
