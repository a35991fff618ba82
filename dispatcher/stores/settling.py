"""Waits until a webhook file is written completely.

A copy over a network may pause in the middle of a file, whose beginning is often valid: webhooks are missing, and a URL
names another host; half a secret file is a wrong secret. So a change of a plain file is used only after it has been the
same for a while; at the start of the process, the time since it was last written counts. A generation of Kubernetes is
complete when it appears.
"""

from collections.abc import Mapping
from typing import Final

from dispatcher.errors import Problem
from dispatcher.stores.webhook_file import WebhookFileReading, unreadable

SETTLE_S: Final = 2.0
"""Time for which a new, changed or removed file must stay as it is before that is used."""
_UNSETTLED: Final = f"is being written: it is used once it has been the same for {SETTLE_S:.0f} seconds"


class SettlingFiles:
    """The files that have changed lately."""

    def __init__(self) -> None:
        self._since: dict[str, tuple[bytes | None, float]] = {}
        """The fingerprint of each, None for a removed one, and when it was first read."""

    def __bool__(self) -> bool:
        return bool(self._since)

    def at_start(
        self, found: Mapping[str, WebhookFileReading], now: float, unix_time: float
    ) -> dict[str, WebhookFileReading]:
        """Returns the first readings to use. A file that was written just now counts as one that can't be read.

        Its tenants are unknown then, so that their events are held.
        """
        age_s = {name: max(0.0, unix_time - one.written_at) for name, one in found.items() if one.plain_fingerprint}
        self._since = {name: (found[name].fingerprint, now - age) for name, age in age_s.items() if age < SETTLE_S}
        return {
            name: one if name not in self._since else unreadable(one.file, b"", [Problem(_UNSETTLED, file=one.file)])
            for name, one in found.items()
        }

    def settled(
        self, found: Mapping[str, WebhookFileReading], used: Mapping[str, WebhookFileReading], now: float
    ) -> dict[str, WebhookFileReading]:
        """Returns the readings to use: those found, and for files that may be in the middle of a change those used."""
        before, self._since = self._since, {}
        readings: dict[str, WebhookFileReading] = {}
        for name in sorted(found.keys() | used.keys()):
            new, old = found.get(name), used.get(name)
            fingerprint = None if new is None else new.fingerprint
            if new is not None and old is not None and new.fingerprint == old.fingerprint:
                readings[name] = old
                continue
            known, since = before.get(name, (b"", now))
            since = since if known == fingerprint else now
            before_it, after_it = (b"" if one is None else one.plain_fingerprint for one in (old, new))
            if before_it == after_it or now - since >= SETTLE_S:  # else a plain file has changed
                chosen = new
            else:
                chosen, self._since[name] = old, (fingerprint, since)
            if chosen is not None:
                readings[name] = chosen
        return readings
