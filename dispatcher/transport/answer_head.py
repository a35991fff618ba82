"""Reads the head of an answer leniently: its status and the headers that decide the verdict. Pure.

The strict parsers of both HTTP clients refuse an answer whose framing is unsafe on a shared connection: two
Content-Length headers, chunked coding and a length, folded headers, bare line feeds. The status is known
all the same, and the endpoint has acted on the request; repeating it would only deliver the event again. So when a
parser refuses an answer, its head is read here. The connection is never reused after that.
"""

import re
from typing import Final, NamedTuple

MAX_RESPONSE_HEADERS: Final = 100
MAX_RESPONSE_HEAD: Final = 32 * 1024
"""Bytes of header names and values, together."""
MAX_RESPONSE_BODY: Final = 64 * 1024
"""Bytes of an answer's body that are read; with more, the connection is closed."""
MAX_RESPONSE: Final = 1024 * 1024
"""Bytes of one answer in all, with chunk sizes and extensions, which the count of body bytes does not see."""
MAX_INTERIM: Final = 16
"""1xx answers before the final one."""
MAX_KEPT_VALUE: Final = 256
"""Characters of a response header that an attempt keeps."""

BODYLESS: Final = frozenset({204, 304})
"""Final statuses whose answers have no body, whatever their headers say (RFC 9112, section 6.3)."""

_MAX_READS: Final = MAX_INTERIM + 4
"""Parses of one answer's head: its beginning, 16 interim heads, the final one, and a few empty lines before them."""
_START: Final = b"HTTP/"
_STATUS_LINE: Final = re.compile(rb"HTTP/(1\.\d|2\.0|0\.9) (\d{3})(?: [^\n]*)?\r?\n")
"""Versions besides 1.x are those that llhttp accepts; some servers write them over HTTP/1.1."""
_FRAMING: Final = frozenset({b"content-length", b"transfer-encoding"})
_FRAMING_WORD: Final = re.compile(rb"length|encoding", re.IGNORECASE)
_LENGTH: Final = re.compile(rb"[0-9]{1,18}")
_NAME: Final = re.compile(rb"[!#$%&'*+\-.^_`|~0-9A-Za-z]+")  # RFC 9110, section 5.6.2


class AnswerHead(NamedTuple):
    """Status and kept headers of a final answer."""

    status: int
    retry_after: str | None
    webhook_delivery: str | None
    www_authenticate: str | None
    end: int
    """Offset of the body."""
    is_odd: bool
    """Its lines or the framing of its body can be read in two ways: another reader may see another answer.

    So it is if an interim answer, a 204 or a 304 announces a body, which it can't have.
    """
    length: int | None
    """Bytes of the body; None if no single Content-Length gives them."""
    has_clear_end: bool
    """The body ends after its length, or with the connection if no header frames it. Any other is not waited for."""

    def limit(self, keep: int) -> int:
        """Returns how many bytes of the body are kept at most if `keep` are wanted."""
        return keep if self.length is None else min(keep, self.length)


class HeadReader:
    """Reads the head of one answer as its packets come.

    The whole head is parsed again each time, so this is done only if the packet may complete a head, and at most 20
    times: an endpoint that sends its head in single bytes would otherwise keep the event loop busy.
    """

    __slots__ = ("_reads", "begun")

    def __init__(self) -> None:
        self.begun = b""
        """All bytes received."""
        self._reads = 0

    def feed(self, data: bytes) -> AnswerHead | None:
        """Returns the head of the final answer once it is complete.

        Raises:
            ValueError: as `read_answer_head`, or too many empty lines.
        """
        has_empty_line = b"\n\n" in self.begun[-1:] + data or b"\n\r\n" in self.begun[-2:] + data
        self.begun += data
        if self._reads and not has_empty_line:
            return None  # a head ends with an empty line
        self._reads += 1
        if self._reads > _MAX_READS:
            raise ValueError("too many empty lines")
        return read_answer_head(self.begun)


def read_answer_head(data: bytes) -> AnswerHead | None:
    """Returns the head of the final answer at the start of `data`, or None while it is incomplete.

    Interim answers (1xx) before it are skipped. Line ends may be bare line feeds, values may be folded (RFC 9112,
    sections 2.2 and 5.2), a name may have spaces before its colon. Lines that aren't headers are skipped.

    Raises:
        ValueError: `data` is not the start of an HTTP/1 answer to a POST, or passes the limits on headers.
    """
    at, is_odd = 0, False
    for _ in range(MAX_INTERIM + 1):
        while data[at : at + 1] in (b"\r", b"\n") and data[at : at + 1]:
            at += 1  # empty lines before a status line (RFC 9112, section 2.2)
        begin = data[at : at + len(_START)]
        if begin != _START[: len(begin)]:
            raise ValueError("no status line")
        line = _STATUS_LINE.match(data, at)
        if line is None:
            if b"\n" in data[at:]:
                raise ValueError("no status line")
            return None
        status = int(line[2])
        if status == 101 or not 100 <= status <= 599:
            raise ValueError(f"status {status} isn't an answer to a POST")
        fields = _read_fields(data, line.end())
        if fields is None:
            return None
        found, end, is_doubtful, length, is_framed = fields
        is_odd |= is_doubtful or ((status < 200 or status in BODYLESS) and _announces_body(found))
        if status >= 200:
            length = 0 if status in BODYLESS else length
            is_odd |= not line[0].endswith(b"\r\n") or not line[1].startswith(b"1.")
            return AnswerHead(
                status, found.get(b"retry-after"), found.get(b"webhook-delivery"), found.get(b"www-authenticate"),
                end, is_odd, length, length is not None or not is_framed,
            )  # fmt: skip
        at = end
    raise ValueError(f"over {MAX_INTERIM} interim answers")


def _announces_body(fields: dict[bytes, str]) -> bool:
    return b"transfer-encoding" in fields or fields.get(b"content-length", "0") != "0"


def _body_length(framing: list[tuple[bytes, bytes]]) -> int | None:
    """Returns the value of Content-Length if that alone frames the body, however often it is repeated."""
    values = {value for _, value in framing}
    if len(values) != 1 or any(name != b"content-length" for name, _ in framing):
        return None
    value = values.pop()
    return int(value) if _LENGTH.fullmatch(value) else None


class _Fields(NamedTuple):
    """The header lines of one head."""

    first: dict[bytes, str]
    """The first value of each header."""
    end: int
    """Offset behind the empty line."""
    is_odd: bool
    length: int | None
    """Bytes of the body; None if no single Content-Length gives them."""
    is_framed: bool
    """A line is about the framing of the body, or may be meant to be."""


def _read_fields(data: bytes, at: int) -> _Fields | None:
    """Returns the header lines that begin at `at`; None while they are incomplete."""
    fields: list[tuple[bytes, bytes]] = []
    size, is_odd, is_unclear, is_skipped = 0, False, False, True
    while (end := data.find(b"\n", at)) >= 0:
        line, at = data[at:end], end + 1
        is_odd |= line[-1:] != b"\r"
        line = line.removesuffix(b"\r")
        if not line:
            framing = [field for field in fields if field[0] in _FRAMING]
            first = {name: kept_value(value) for name, value in reversed(fields)}
            length = None if is_unclear else _body_length(framing)
            return _Fields(first, at, is_odd or len(framing) > 1, length, is_unclear or bool(framing))
        size += len(line)
        if len(fields) >= MAX_RESPONSE_HEADERS or size > MAX_RESPONSE_HEAD + 4 * len(fields):
            raise ValueError("over 100 headers, or over 32 KiB of them")
        name, colon, value = line.partition(b":")
        is_folded = line[:1] in (b" ", b"\t")
        is_odd |= is_folded or name[-1:] in (b" ", b"\t")
        name = name.rstrip(b" \t").lower()
        if is_folded and not is_skipped:
            name, value = fields.pop()
            fields.append((name, b"%b %b" % (value, line.strip())))
        elif not is_folded and colon and _NAME.fullmatch(name) and b"\0" not in value:
            is_skipped = False
            fields.append((name, value.strip()))
        elif not line.strip() or line.startswith(_START):
            raise ValueError("a line that may end the headers")  # what follows may be of another answer
        else:
            is_skipped = is_odd = True
            is_unclear |= _FRAMING_WORD.search(line) is not None
    if size + len(data) - at > MAX_RESPONSE_HEAD + 4 * len(fields):
        raise ValueError("over 100 headers, or over 32 KiB of them")
    return None


def kept_value(value: bytes) -> str:
    """Returns a header's value as one printable line of at most 256 characters."""
    text = value[:MAX_KEPT_VALUE].decode("latin-1")
    return text if text.isprintable() else "".join(char if char.isprintable() else " " for char in text)
