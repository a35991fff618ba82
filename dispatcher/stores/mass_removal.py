"""Recognises a loss of so many webhooks at once that it is probably an accident. Pure."""

from typing import Final

GUARDED_FROM: Final = 10
"""Number of webhooks from which the loss of more than half of them needs a confirmation.
The loss of all of them always needs one."""
REMOVAL_AFTER_S: Final = 600.0
"""Time after which webhooks are removed that have disappeared without a trace: rows, or every file of a directory.
Restoring a backup and mounting a volume take less."""


def is_mass_removal(lost: int, known: int) -> bool:
    """Returns True if the loss of `lost` of `known` webhooks, where some are left, needs a confirmation."""
    return known >= GUARDED_FROM and lost * 2 > known
