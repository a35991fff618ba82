"""Finds the tenants that a broken part of a webhook file may be intended for.

A forgotten dash joins two webhooks to one mapping whose keys are given twice, and a wrong indentation puts a webhook
inside another one. Every organisation and sandbox in such a part counts, so that the events of none of them are
skipped.
"""

from collections.abc import Iterable, Iterator
from itertools import islice, product
from typing import Final

from pydantic import JsonValue

from dispatcher.config.documents import Document, Loc, Mistake, is_null
from dispatcher.config.names import problem_of_tenant_name, stripped
from dispatcher.contract.tenant import TenantKey

MAX_CLAIMS: Final = 100
"""Tenants of one mapping. If more are possible, they count as unknown."""
_REQUIRED_KEYS: Final = ("name", "org", "sandbox", "url")
"""Keys of every webhook."""
_FREE_KEYS: Final = frozenset({"claims", "headers", "parameters"})
"""Mappings whose keys the tenant chooses: `org` in one of them isn't an organisation."""


def text_at(value: JsonValue, document: Document, at: Loc) -> str:
    """Returns a name or URL as it was probably intended; empty if it is null, or isn't a text or number."""
    if isinstance(value, str):
        return stripped(value)
    written = document.written(at)  # of a number beyond 64 bits, too, whose value is None
    return "" if is_null(written) else stripped(written)


def tenant_text_at(value: JsonValue, document: Document, at: Loc) -> str:
    """Returns an organisation or sandbox as it was probably intended; empty if it can't be read."""
    as_given = value.strip() if isinstance(value, str) else ""
    text = text_at(value, document, at)
    return "" if problem_of_tenant_name(as_given) or problem_of_tenant_name(text) else text


class ClaimedTenants:
    """The tenants named in the parts of one document, repeated keys included."""

    def __init__(self, document: Document, mistakes: Iterable[Mistake]) -> None:
        self._document = document
        self._repeated: dict[Loc, list[tuple[str, Loc, Document]]] = {}
        for mistake in mistakes:
            again = mistake.repetition
            if again is not None:
                self._repeated.setdefault(again.mapping, []).append((again.key, mistake.path, again.value))

    def within(self, value: JsonValue, at: Loc) -> Iterator[TenantKey | None]:
        """Yields the tenants named in a part of the document, its own first; None for one that can't be read."""
        yield from self._within(value, self._document, at, at)

    def in_repeated(self, mapping: Loc, key: str) -> Iterator[TenantKey | None]:
        """Yields the tenants of the list items in the repeated values of a key; None for an item that names none."""
        for repeated, at, document in self._repeated.get(mapping, ()):
            items = document.data if isinstance(document.data, list) else [document.data]
            for index, item in enumerate(items) if repeated == key else ():
                place: Loc = (index,) if isinstance(document.data, list) else ()
                yield from list(self._within(item, document, place, (*at, *place))) or [None]

    def of_mapping(self, value: JsonValue, at: Loc) -> Iterator[TenantKey | None]:
        """Yields the tenants that a mapping names itself: each combination if a key is repeated."""
        if isinstance(value, dict):
            yield from self._named(value, self._document, at, at)

    def _within(self, value: JsonValue, document: Document, here: Loc, at: Loc) -> Iterator[TenantKey | None]:
        """Yields the tenants in a value. `here`: its place in its document; `at`: its place in the file."""
        if isinstance(value, list):
            for index, item in enumerate(value):
                yield from self._within(item, document, (*here, index), (*at, index))
        if isinstance(value, dict):
            yield from self._named(value, document, here, at)
            for key, inner in value.items():
                if key not in _FREE_KEYS:
                    yield from self._within(inner, document, (*here, key), (*at, key))
            for key, where, again in self._repeated.get(at, ()):
                if key not in _FREE_KEYS:
                    yield from self._within(again.data, again, (), where)

    def _named(self, value: dict[str, JsonValue], document: Document, here: Loc, at: Loc) -> Iterator[TenantKey | None]:
        again = self._repeated.get(at, ())

        def texts(key: str) -> list[str]:
            first = [tenant_text_at(value[key], document, (*here, key))] if key in value else []
            return first + [tenant_text_at(one.data, one, ()) for name, _, one in again if name == key]

        orgs, sandboxes = texts("org"), texts("sandbox")
        if not orgs and not sandboxes:
            return
        pairs = product(orgs or [""], sandboxes or [""])
        found = dict.fromkeys(TenantKey(*pair) if all(pair) else None for pair in islice(pairs, MAX_CLAIMS))
        yield from found
        # One repeated key is a line too many, several are another webhook whose organisation or sandbox may be missing.
        is_joined = len({name for name, _, _ in again if name in _REQUIRED_KEYS}) > 1
        is_incomplete = is_joined and min(len(orgs), len(sandboxes)) < 2
        if (next(pairs, None) is not None or is_incomplete) and None not in found:
            yield None
