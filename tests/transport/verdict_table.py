"""Reads docs/verdicts.md, the table of verdicts that users read and that the tests run."""

import re
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path

TEXT = (Path(__file__).parents[2] / "docs" / "verdicts.md").read_text()


@dataclass(frozen=True)
class AnswerRow:
    """What a server does, and what both HTTP clients make of it."""

    name: str
    data: bytes
    then: str
    expected: str
    """A status, or a failure reason."""
    is_kept: bool
    """The next POST uses the same connection."""


def rows_of(heading: str) -> Iterator[list[str]]:
    """The cells of the table under a heading, without its head."""
    section = TEXT.split(f"\n## {heading}\n")[1].split("\n## ")[0]
    lines = [line for line in section.splitlines() if line.startswith("|")]
    for line in lines[2:]:
        yield [cell.strip() for cell in line.strip("|").split("|")]


def statuses() -> dict[int, tuple[str, bool]]:
    """Verdict and evidence of every status from 100 to 699, by the table's order: what is named wins over *other*."""
    table: dict[int, tuple[str, bool]] = {}
    others: list[tuple[range, tuple[str, bool]]] = []
    for text, verdict, evidence in rows_of("By status"):
        meaning = (verdict, evidence == "yes")
        if text.startswith("every other"):
            hundred = int(text[-3]) * 100
            others.append((range(hundred, hundred + 100), meaning))
        elif text.startswith("any other"):
            others.append((range(100, 700), meaning))
        else:
            for part in text.split(", "):
                first, _, last = part.partition("–")
                table |= dict.fromkeys(range(int(first), int(last or first) + 1), meaning)
    for numbers, meaning in others:
        for number in numbers:
            table.setdefault(number, meaning)
    return table


def failures() -> dict[str, tuple[str, bool]]:
    """Verdict and evidence of every failure reason."""
    return {
        reason.strip("`"): (verdict, evidence == "yes") for reason, _, verdict, evidence in rows_of("Without an answer")
    }


def answers() -> list[AnswerRow]:
    """Every answer that is given as bytes."""
    return [
        AnswerRow(name, _bytes(data), then, expected.strip("`"), connection == "kept")
        for name, data, then, expected, connection in rows_of("Answers as bytes")
    ]


def _bytes(cell: str) -> bytes:
    if cell == "nothing":
        return b""
    text = re.fullmatch(r"`(.*)`", cell)
    assert text is not None, cell
    return text[1].encode("ascii").decode("unicode_escape").encode("latin-1")
