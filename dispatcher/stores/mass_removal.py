"""Recognises a loss of so many webhooks at once that it is probably an accident. Pure."""

from typing import Final

GUARDED_FROM: Final = 10
"""Number of webhooks from which the loss of more than half of them needs a confirmation."""


def is_mass_removal(lost: int, known: int) -> bool:
    """Returns True if the loss of `lost` of `known` webhooks needs a confirmation."""
    return known >= GUARDED_FROM and lost * 2 > known
