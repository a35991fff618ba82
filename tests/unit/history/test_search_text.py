"""What people type to find a message: the readings of it, and a recipient's hashes however the address is written."""

import pytest

from dispatcher.contract.recipient import recipient_hash, recipient_hashes
from dispatcher.contract.search_text import readings

KEY = b"k" * 32


@pytest.mark.parametrize(
    ("typed", "expected"),
    [
        ("<x@y.example>", ["<x@y.example>", "x@y.example"]),
        ("Jane <x@y.example>", ["x@y.example"]),
        ("(name@host.example)", ["(name@host.example)", "name@host.example"]),
        ("name@host.example.", ["name@host.example.", "name@host.example"]),
        ("goran%40mail.example", ["goran%40mail.example", "goran@mail.example"]),
        ("goran%2B1%40mail.example.", ["goran%2B1%40mail.example.", "goran+1@mail.example.", "goran+1@mail.example"]),
        ("mailto:goran%40mail.example?subject=x", ["mailto:goran%40mail.example?subject=x", "goran@mail.example"]),
        ("urn:uuid:4711", ["urn:uuid:4711", "uuid:4711"]),
        ("a.b.", ["a.b."]),
    ],
)
def test_the_most_literal_reading_comes_first_and_the_plain_address_last(typed: str, expected: list[str]) -> None:
    assert readings(typed) == expected


@pytest.mark.parametrize(
    ("stored", "typed"),
    [
        ("+15554423257", "15554423257"), ("15554423257", "+1 555 442 3257"), ("+15554423257", "001 555 4423257"),
        ("name@host.example", "(name@host.example)"), ("name@host.example", "Name@Host.example."),
        ("name@host.example", "Jane <name@host.example>"), ("name@host.example", "name%40host.example"),
        ("Jane <name@host.example>", "Jane <name@host.example>"),
    ],
)  # fmt: skip
def test_a_recipient_is_found_however_the_address_is_written(stored: str, typed: str) -> None:
    assert recipient_hash(KEY, stored) in recipient_hashes(KEY, typed)
    assert len(recipient_hashes(KEY, typed)) <= 6, "they fit into a URL"
