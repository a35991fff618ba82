"""Reads YAML 1.2, which contains JSON, into plain data with the line of every key and item.

PyYAML parses the events, `scalars` interprets the scalars. Duplicate keys, several documents, tags beyond the core
schema, `<<` (not in YAML 1.2) and documents over the limits are refused.
"""

import re
from collections.abc import Iterable, Iterator
from dataclasses import dataclass, field
from pathlib import Path
from typing import Final

import yaml
from pydantic import JsonValue

from dispatcher.config.documents.locations import Loc, key_of
from dispatcher.config.documents.scalars import is_collection_tag, scalar
from dispatcher.errors import ConfigError, Problem, ProblemCode

MAX_BYTES: Final = 1024 * 1024
MAX_DEPTH: Final = 32
"""Maximum depth of nested lists and mappings."""
MAX_VALUES: Final = 200_000
"""Maximum number of values, with repetitions by aliases: 1 MiB of ordinary YAML has fewer."""

_Loader = getattr(yaml, "CSafeLoader", yaml.SafeLoader)  # libyaml, if the wheel has it, is ten times as fast

_PIPES: Final = frozenset({Path("/dev"), Path("/dev/fd"), Path("/proc/self/fd")})
"""Directories of pipes that a shell connects on purpose: `check -c /dev/stdin`, or `check -c <(helm template …)`."""

_NOT_YAML = re.compile("[^\t\n\r\x20-\x7e\x85\xa0-\ud7ff\ue000-\ufffd\U00010000-\U0010ffff]")  # YAML 1.2.2, section 5.1
_JSON_ESCAPE = re.compile(r"\\u([dD][89abAB][0-9a-fA-F]{2})\\u([dD][c-fC-F][0-9a-fA-F]{2})|\\.")


@dataclass(slots=True)
class _Place:
    """The line of a value's key, or of an item itself, and the places inside the value."""

    line: int
    inside: dict[str | int, "_Place"] = field(default_factory=dict)
    written: str = ""
    """The spelling in the file of a scalar that is not text: `2.10`, `00012345`."""


@dataclass(frozen=True, slots=True, eq=False)
class Document:
    """The data of one document, and the line of each part."""

    file: str
    data: JsonValue
    _root: _Place

    def line(self, path: Loc) -> int:
        """Returns the line, from 1, of the key at `path`, or of the nearest part around it if there is no such key."""
        place = self._root
        for step in path:
            inner = place.inside.get(step)
            if inner is None:
                break
            place = inner
        return place.line

    def holds(self, path: Loc) -> bool:
        """Returns True if the document has a value at `path`."""
        return self._place(path) is not None

    def written(self, path: Loc) -> str:
        """Returns a number, boolean or null exactly as the file spells it; empty for anything else."""
        place = self._place(path)
        return place.written if place is not None else ""

    def _place(self, path: Loc) -> _Place | None:
        place: _Place | None = self._root
        for step in path:
            place = place.inside.get(step) if place is not None else None
        return place

    def problem(self, path: Loc, message: str, code: ProblemCode | None = None, subject: str = "") -> Problem:
        """Returns a problem at `path`, with file, line and key."""
        return Problem(message, key_of(path), self.file, self.line(path), code, subject)


@dataclass(frozen=True, slots=True)
class Repetition:
    """A value whose key was given before in the same mapping. It is not part of the document's data."""

    mapping: Loc
    """Path of the mapping."""
    key: str
    value: Document
    """Mistakes in it have paths that begin with that of the mistake that the repetition is."""


@dataclass(frozen=True, slots=True)
class Mistake:
    """A part of a document that can't be read although the rest can."""

    path: Loc
    """For a repeated key: a path that no other value has."""
    problem: Problem
    repetition: Repetition | None = None


def read_document(path: Path, shown_as: str | None = None) -> Document:
    """Reads the document in a file.

    Args:
        shown_as: name of the file in problems; by default its path.

    Raises:
        ConfigError: there is no such file, or its content can't be read. It names every problem found.
    """
    file = shown_as or str(path)
    try:
        if not path.is_file() and path.exists() and not path.is_dir() and path.parent not in _PIPES:
            message = "is not a regular file: name a regular file, because reading others might never end"
            raise ConfigError([Problem(message, file=file)])
        with path.open("rb") as stream:
            content = stream.read(MAX_BYTES + 1)
    except FileNotFoundError:
        raise ConfigError([Problem("no such file: create it, or correct the path", file=file)]) from None
    except IsADirectoryError:
        raise ConfigError([Problem("is a directory: name the file in it", file=file)]) from None
    except (OSError, ValueError) as error:
        why = (error.strerror if isinstance(error, OSError) else None) or str(error)
        raise ConfigError([Problem(f"can't be read ({why})", file=file)]) from None
    return parse_document(content, file)


def parse_document(content: bytes, file: str) -> Document:
    """Reads the document in `content`. JSON's own rules (tabs, \\u pairs) apply if the name ends in `.json`.

    Raises:
        ConfigError: it can't be read. The error names every problem found.
    """
    document, mistakes = parse_leniently(content, file)
    if mistakes:
        raise ConfigError(mistake.problem for mistake in mistakes)
    return document


def parse_leniently(content: bytes, file: str) -> tuple[Document, list[Mistake]]:
    """Reads the document in `content`. Returns it with the mistakes that leave the rest readable.

    Such a mistake is a key that is given twice (the first one is used), a number that can't be used, or a wrong tag
    (the value is then None).

    Raises:
        ConfigError: the document is not YAML, not UTF-8, or over a limit.
    """
    if len(content) > MAX_BYTES:
        raise ConfigError([Problem(f"larger than {MAX_BYTES // 1024} KiB: split it", file=file)])
    try:
        text = content.decode("utf-8-sig")
    except UnicodeDecodeError as error:
        line = content.count(b"\n", 0, error.start) + 1
        raise ConfigError([Problem("not UTF-8 text", file=file, line=line)]) from None
    if file.lower().endswith(".json"):
        text = _JSON_ESCAPE.sub(_joined_pair, text).replace("\t", " ")
    bad = _NOT_YAML.search(text)
    if bad is not None:
        line = text.count("\n", 0, bad.start()) + 1
        message = f"character U+{ord(bad[0]):04X} is not allowed: write it as an escape in double quotes"
        raise ConfigError([Problem(message, file=file, line=line)])
    return _Reader(file, text).document()


def parse_value(text: str) -> JsonValue:
    """Parses the text of an option or variable as one YAML value: `10s`, `true`, `[a, b]`, `{file: x}`.

    Raises:
        ValueError: it is not YAML; the message says what is wrong.
    """
    try:
        return parse_document(text.encode("utf-8", "surrogateescape"), "").data
    except ConfigError as error:
        raise ValueError(error.problems[0].message) from None


def _joined_pair(escape: re.Match[str]) -> str:
    if escape[1] is None:
        return escape[0]
    return chr(0x10000 + ((int(escape[1], 16) & 0x3FF) << 10) + (int(escape[2], 16) & 0x3FF))


class _Unusable(Exception):
    """The document can't be read any further."""

    def __init__(self, line: int, message: str) -> None:
        self.line = line
        super().__init__(message)


@dataclass(slots=True)
class _Node:
    """A value, with its size if an alias repeats it."""

    value: JsonValue
    place: _Place
    values: int = 1
    height: int = 0


class _Reader:
    """Builds data and places from the YAML events of one document, within the limits."""

    def __init__(self, file: str, text: str) -> None:
        self._file = file
        self._text = text
        self._mistakes: list[Mistake] = []
        self._anchors: dict[str, _Node | None] = {}  # None while the anchored value is being read
        self._values = 0

    def document(self) -> tuple[Document, list[Mistake]]:
        try:
            data, root = self._one_document(yaml.parse(self._text, Loader=_Loader))
        except _Unusable as stop:
            raise self._error(Problem(str(stop), file=self._file, line=stop.line)) from None
        except (yaml.YAMLError, ValueError, OverflowError) as error:  # not YAMLError: PyYAML without libyaml
            raise self._error(self._syntax_problem(error)) from None
        return Document(self._file, data, root), self._mistakes

    def _error(self, last: Problem) -> ConfigError:
        return ConfigError([*(mistake.problem for mistake in self._mistakes), last])

    def _one_document(self, events: Iterable[yaml.Event]) -> tuple[JsonValue, _Place]:
        stream: Iterator[yaml.Event] = iter(events)
        data: JsonValue = None
        root: _Place | None = None
        for event in stream:
            if isinstance(event, yaml.DocumentStartEvent):
                if root is not None:
                    raise _Unusable(_line(event), "a second document begins here: one file contains one document")
                root = _Place(1)
                data = self._node(next(stream), stream, root, (), 0).value
        return data, root or _Place(1)

    def _syntax_problem(self, error: Exception) -> Problem:
        mark = getattr(error, "problem_mark", None) or getattr(error, "context_mark", None)
        if mark is None:
            return Problem("not valid YAML", file=self._file)
        lines = self._text.splitlines()
        line = lines[mark.line] if mark.line < len(lines) else ""
        if line[mark.column : mark.column + 1] == "\t" or "\t" in line[: len(line) - len(line.lstrip())]:
            message = "a tab can't indent YAML: use spaces"
        else:
            message = f"not valid YAML: {getattr(error, 'problem', None) or 'it ends too early'}"
        return Problem(message, file=self._file, line=min(mark.line + 1, max(len(lines), 1)))

    def _node(self, event: yaml.Event, events: Iterator[yaml.Event], place: _Place, path: Loc, depth: int) -> _Node:
        if isinstance(event, yaml.AliasEvent):
            return self._alias(event, place, depth)
        if not isinstance(event, yaml.ScalarEvent | yaml.CollectionStartEvent):
            raise _Unusable(_line(event), "not valid YAML: a value was expected")
        self._count(1, event)
        anchor = event.anchor
        if anchor is not None:
            self._anchors[anchor] = None
        node = _Node(None, place)
        if isinstance(event, yaml.ScalarEvent):
            node.value = self._scalar(event, path)
            if not isinstance(node.value, str):
                place.written = str(event.value)
        else:
            if depth >= MAX_DEPTH:
                raise _Unusable(_line(event), f"nested deeper than {MAX_DEPTH} levels")
            is_list = isinstance(event, yaml.SequenceStartEvent)
            if not is_collection_tag(event.tag, "seq" if is_list else "map"):
                self._problem(event, path, "this tag can't be used here: leave it out")
            before = self._values
            if is_list:
                node.value, node.height = self._sequence(events, place, path, depth)
            else:
                node.value, node.height = self._mapping(events, place, path, depth)
            node.values = self._values - before + 1
        if anchor is not None:
            self._anchors[anchor] = node
        return node

    def _sequence(
        self, events: Iterator[yaml.Event], place: _Place, path: Loc, depth: int
    ) -> tuple[list[JsonValue], int]:
        items: list[JsonValue] = []
        height = 0
        for event in events:
            if isinstance(event, yaml.SequenceEndEvent):
                break
            inner = place.inside[len(items)] = _Place(_line(event))
            node = self._node(event, events, inner, (*path, len(items)), depth + 1)
            items.append(node.value)
            height = max(height, node.height)
        return items, height + 1

    def _mapping(
        self, events: Iterator[yaml.Event], place: _Place, path: Loc, depth: int
    ) -> tuple[dict[str, JsonValue], int]:
        entries: dict[str, JsonValue] = {}
        height = 0
        for event in events:
            if isinstance(event, yaml.MappingEndEvent):
                break
            key = self._key(event)
            inner = _Place(_line(event))
            first = place.inside.get(key)
            if key == "<<":
                self._problem(event, (*path, key), "merge keys are not YAML 1.2: write the keys out")
            if first is not None:
                node = self._repetition(events, inner, path, key, depth + 1, first.line)
            else:
                place.inside[key] = inner
                node = self._node(next(events), events, inner, (*path, key), depth + 1)
                entries[key] = node.value
            height = max(height, node.height)
        return entries, height + 1

    def _repetition(
        self, events: Iterator[yaml.Event], place: _Place, mapping: Loc, key: str, depth: int, first: int
    ) -> _Node:
        """Reads the value of a key that was given before, on line `first`."""
        at = (*mapping, f"{key} (line {place.line})")
        number = len(self._mistakes)
        node = self._node(next(events), events, place, at, depth)
        repetition = Repetition(mapping, key, Document(self._file, node.value, place))
        message = f"given twice, first on line {first}: keep one"
        problem = Problem(message, key_of((*mapping, key)), self._file, place.line)
        self._mistakes.insert(number, Mistake(at, problem, repetition))
        return node

    def _key(self, event: yaml.Event) -> str:
        """Returns a key as text, even if it looks like another type: `404:`, `on:`."""
        if not isinstance(event, yaml.ScalarEvent):
            raise _Unusable(_line(event), "a key must be plain text, not a list, mapping or alias")
        if event.anchor is not None:
            self._anchors[event.anchor] = _Node(event.value, _Place(_line(event)))
        return str(event.value)

    def _alias(self, event: yaml.AliasEvent, place: _Place, depth: int) -> _Node:
        name = event.anchor or ""
        node = self._anchors.get(name)
        if node is None:
            # The alias is not quoted: a password that begins with * and lacks its quotes is read as an alias.
            if name in self._anchors:
                raise _Unusable(
                    _line(event), "this alias (*…) is inside the value that it repeats: write the value out"
                )
            raise _Unusable(
                _line(event), "this alias (*…) has no anchor before it: put text that begins with * in quotes"
            )
        if depth + node.height > MAX_DEPTH:
            raise _Unusable(_line(event), f"nested deeper than {MAX_DEPTH} levels, aliases followed")
        self._count(node.values, event)
        place.inside, place.written = node.place.inside, node.place.written
        return node

    def _count(self, values: int, event: yaml.Event) -> None:
        self._values += values
        if self._values > MAX_VALUES:
            raise _Unusable(_line(event), f"more than {MAX_VALUES:,} values, aliases followed: split it")

    def _scalar(self, event: yaml.ScalarEvent, path: Loc) -> JsonValue:
        try:
            return scalar(str(event.value), event.tag, bool(event.implicit[0]))
        except ValueError as error:
            self._problem(event, path, str(error))
            return None

    def _problem(self, event: yaml.Event, path: Loc, message: str) -> None:
        self._mistakes.append(Mistake(path, Problem(message, key_of(path), self._file, _line(event))))


def _line(event: yaml.Event) -> int:
    return event.start_mark.line + 1 if event.start_mark is not None else 1
