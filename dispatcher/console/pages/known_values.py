"""Refuses values that a filter doesn't know, and more of them than it takes.

What is left out of a filter would match more, and could be sent again.
"""

from collections.abc import Iterable, Sequence

from dispatcher.console.api_errors import ApiError
from dispatcher.console.request_body import MAX_WORDS, split_words


def unknown_value(filter_: str, values: Iterable[str], known: Sequence[str]) -> str:
    """Returns a sentence about the first value that is not known, with those that are; empty if all are known."""
    wrong = next((value for value in values if value and value not in known), None)
    if wrong is None:
        return ""
    return f"There is no {filter_} “{wrong[:64]}”: choose {', '.join(known[:-1])} or {known[-1]}."


def too_many_words(**filters: str) -> str:
    """Returns a sentence about the first filter that has more words than a search takes; empty if none has."""
    for name, text in filters.items():
        if (count := len(split_words(text))) > MAX_WORDS:
            return f"The filter “{name}” has {count} words: write {MAX_WORDS} at most."
    return ""


def raise_if_unknown(filter_: str, value: str, known: Sequence[str]) -> None:
    """Raises ApiError with status 422 if the filter has another value than the known ones."""
    if problem := unknown_value(filter_, [value], known):
        raise ApiError(422, "invalid", problem)
