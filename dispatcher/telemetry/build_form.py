"""Reports whether the hot modules run compiled by mypyc or interpreted (see docs/decisions)."""

from typing import Final

from dispatcher.contract import events

FORM: Final = "interpreted" if (events.__file__ or "").endswith(".py") else "compiled"
"""compiled or interpreted."""
