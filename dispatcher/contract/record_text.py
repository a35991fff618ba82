"""Turns a record's bytes into the UTF-8 text of a JSON document, or says which other format they have. Pure.

Producers' libraries write more than plain JSON: a byte order mark, the Confluent wire format for JSON Schema (a zero
byte and four bytes of schema id before the JSON), and lone surrogates, as escapes or as three bytes of invalid UTF-8.
"""

import re
from typing import Final

from dispatcher.errors import UnreadableEvent, unchained

_BYTE_ORDER_MARK: Final = b"\xef\xbb\xbf"
_FRAME: Final = 5
"""Bytes of the Confluent wire format before the content."""
_WHITE: Final = b" \t\r\n"
_SURROGATE: Final = re.compile(rb"\\u[dD][89a-fA-F]")
_ESCAPE: Final = re.compile(
    rb"\\(?:u[dD][89abAB][0-9a-fA-F]{2}\\u[dD][c-fC-F][0-9a-fA-F]{2}|(?P<lone>u[dD][89a-fA-F][0-9a-fA-F]{2})|.)",
    re.DOTALL,
)
_ZERO_BYTES: Final = re.compile(rb"[\x00-\x08\x0e-\x1f]")
_MOST_EXAMINED: Final = 4096
"""Bytes of a value that isn't JSON, to find out its format."""
_AVRO_FILE: Final = b"Obj\x01"
_AVRO_MESSAGE: Final = b"\xc3\x01"
"""Avro 1.12, section "Single object encoding"."""


def unframed(value: bytes) -> bytes:
    """Returns the JSON in a record's value, without byte order mark and schema registry frame.

    Raises:
        UnreadableEvent: the value is empty, or in another format, which is named.
    """
    content = value.lstrip(_WHITE)
    if content.startswith(_BYTE_ORDER_MARK):
        content = content[len(_BYTE_ORDER_MARK) :].lstrip(_WHITE)
    elif value[:1] == b"\0" and len(value) > _FRAME:
        framed = value[_FRAME:].removeprefix(_BYTE_ORDER_MARK).lstrip(_WHITE)
        if framed[:1] != b"{":
            schema = int.from_bytes(value[1:_FRAME])
            raise UnreadableEvent(
                f"not JSON: Avro or Protobuf in a schema registry's wire format (schema id {schema}); "
                "the producer has to write JSON or JSON Schema"
            )
        return framed
    if not content:
        raise UnreadableEvent("not JSON: the value is empty")
    if content[:1] != b"{" and (other := _other_format(value)):
        raise UnreadableEvent(f"not JSON: {other}; the producer has to write JSON or JSON Schema")
    return content


def _other_format(value: bytes) -> str | None:
    if value.startswith(_AVRO_FILE):
        return "an Avro object container file"
    if value.startswith(_AVRO_MESSAGE):
        return "Avro in single-object encoding"
    if _is_protobuf(value):
        return "this looks like Protobuf"
    return "binary data, perhaps Avro or Protobuf" if _ZERO_BYTES.search(value, 0, _MOST_EXAMINED) else None


def _is_protobuf(value: bytes) -> bool:
    """Returns True if the bytes are complete Protobuf fields, of which one holds bytes or a message.

    Looks at the fields that begin in the first 4 kB: a large value must not hold up the event loop.
    """
    at, has_bytes = 0, False
    while at < min(len(value), _MOST_EXAMINED):
        tag, at = _varint(value, at)
        kind = tag & 7
        if at < 0 or not 0 < tag >> 3 < 2**29 or kind not in (0, 1, 2, 5):
            return False
        length = {0: 0, 1: 8, 5: 4}.get(kind, 0)
        if kind in (0, 2):
            number, at = _varint(value, at)
            if at < 0:
                return False
            length = number if kind == 2 else 0
            has_bytes |= kind == 2
        at += length
    return has_bytes and (at == len(value) or _MOST_EXAMINED <= at < len(value))


def _varint(value: bytes, at: int) -> tuple[int, int]:
    """Returns a varint's value and the offset after it; the offset is -1 if there is no complete varint."""
    number = 0
    for shift, byte in enumerate(value[at : at + 10]):
        number |= (byte & 0x7F) << 7 * shift
        if byte < 0x80:
            return number, at + shift + 1
    return 0, -1


def needs_repair(value: bytes) -> bool:
    """Returns True if JSON may hold a lone surrogate or is not UTF-8."""
    if not value.isascii():
        try:
            value.decode()
        except UnicodeDecodeError:
            return True
    # Not `in`, which raises and drops an exception.
    return value.find(b"\\") >= 0 and _SURROGATE.search(value) is not None


def repaired(value: bytes) -> bytes:
    """Returns the JSON with each lone surrogate, written as an escape or as bytes, replaced by U+FFFD.

    Raises:
        UnreadableEvent: it is not UTF-8, with the place of the first wrong byte.
    """
    try:
        value.decode()
    except UnicodeDecodeError as error:
        place = error.start
        try:
            text = value.decode(errors="surrogatepass")
        except UnicodeDecodeError:
            raise unchained(UnreadableEvent(f"not JSON: not UTF-8 (byte {place})")) from None
        value = text.encode("utf-16-le", "surrogatepass").decode("utf-16-le", "replace").encode()
    return _ESCAPE.sub(lambda match: rb"\ufffd" if match["lone"] else match[0], value)
