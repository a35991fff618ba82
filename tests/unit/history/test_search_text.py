"""What people type to find a message: the readings of it, and a recipient's hashes however the address is written."""

import pytest
from hypothesis import example, given
from hypothesis import strategies as st

from dispatcher.contract.recipient import recipient_hash, recipient_hashes
from dispatcher.contract.search_text import MAX_READINGS, readings, recipient_hash_in

KEY = b"k" * 32
UUID = "16f24a15-0b7c-4d3e-9a52-7d0e2a9bc001"
PLAIN = ("16f24a150b7c4d3e9a527d0e2a9bc001", "16F24A150B7C4D3E9A527D0E2A9BC001")


@pytest.mark.parametrize(
    ("typed", "expected"),
    [
        ("<x@y.example>", ["<x@y.example>", "x@y.example"]),
        ("Jane <x@y.example>", ["Jane <x@y.example>", "x@y.example"]),
        ("(name@host.example)", ["(name@host.example)", "name@host.example"]),
        ("name@host.example.", ["name@host.example.", "name@host.example"]),
        ("goran%40mail.example", ["goran%40mail.example", "goran@mail.example"]),
        ("goran%2B1%40mail.example.", ["goran%2B1%40mail.example.", "goran+1@mail.example.", "goran+1@mail.example"]),
        ("mailto:goran%40mail.example?subject=x", ["mailto:goran%40mail.example?subject=x", "goran@mail.example"]),
        ("urn:uuid:4711", ["urn:uuid:4711", "uuid:4711"]),
        ("a.b.", ["a.b.", "a.b"]),
        ("r-1:", ["r-1:", "r-1"]),
        (" evt;77; ", ["evt;77;", "evt;77"]),
        ("[mail-42]", ["[mail-42]", "mail-42"]),
        ("'q-1'", ["'q-1'", "q-1"]),
        ("(r-1)", ["(r-1)", "r-1"]),
        ("**`r-1`**", ["**`r-1`**", "r-1"]),
        ('"requestId": "r-1",', ['"requestId": "r-1",', 'requestId": "r-1', "r-1"]),
        (r"{\"requestId\":\"r-1\"}", [r"{\"requestId\":\"r-1\"}", r"requestId\":\"r-1", "r-1"]),
        ("YWJjZGVmZh==", ["YWJjZGVmZh=="]),
        ("https://x/y", ["https://x/y"]),
        ("%7Bmail%2042%7D", ["%7Bmail%2042%7D", "mail 42"]),
        ("\u200br-1", ["\u200br-1", "r-1"]),
        ("a\x00b", ["a\x00b"]),
        ("x" * 300, ["x" * 300]),
        (UUID, [UUID, UUID.upper(), *PLAIN]),
        (UUID.upper(), [UUID.upper(), UUID, *PLAIN]),
        (PLAIN[1], [PLAIN[1], PLAIN[0], UUID, UUID.upper()]),
        (f"{{{UUID}}}", [f"{{{UUID}}}", UUID, f"{{{UUID.upper()}}}", UUID.upper(), *PLAIN]),
        (f"requestId={UUID}", [f"requestId={UUID}", UUID, UUID.upper(), *PLAIN]),
        ("MSG_3D2E", ["MSG_3D2E", "msg_3d2e"]),
        ("msg_3d2e", ["msg_3d2e"]),
        ("MSG_3D2G", ["MSG_3D2G"]),
        (" ", []),
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


@example("\f")
@example('"\u2003"')
@given(st.text(st.sampled_from("aA0-{}[]<>()\"'`:=.,;%4@ \\\u200b\x00") | st.characters(), max_size=60))
def test_the_readings_of_any_text_are_few_and_begin_with_the_text(typed: str) -> None:
    found = readings(typed)
    assert len(found) <= MAX_READINGS
    assert len(set(found)) == len(found)
    assert found[:1] == ([typed.strip()] if typed.strip() else [])


@pytest.mark.parametrize("around", ["{}", " {} ", '"{}"', "recipient_hash: {}", "`{}`,"])
def test_a_recipients_hash_is_recognised(around: str) -> None:
    hashed = recipient_hash(KEY, "name@host.example")
    for typed in (around.format(hashed), around.format(hashed.upper())):
        assert recipient_hash_in(typed) == hashed
    for other in (hashed[:-1], hashed + "0", UUID, "r-1", ""):
        assert recipient_hash_in(around.format(other)) is None
