"""A stub resolver: A and AAAA of a name, asked of the DNS servers the operator named (RFC 1035, RFC 3596).

Only what a stub needs: recursion is the server's work. An answer counts when it comes from the server that was asked
(a connected socket), with the id (random) and the question of the query; the source port is the kernel's random
choice. CNAME chains are followed to 8 links. A truncated answer is asked for again by TCP (RFC 7766). Nothing is
cached here.
"""

import asyncio
import ipaddress
import secrets
import struct
from collections.abc import Sequence
from dataclasses import dataclass, field

_A, _CNAME, _AAAA, _IN = 1, 5, 28, 1
_TRY_S = 1.5
"""Time for one server to answer one question."""
_ROUNDS = 2
_MAX_CNAMES = 8
_MAX_ANSWER = 16 * 1024


class DnsError(Exception):
    """The name has no address that could be found; the message says why."""


class _Malformed(Exception):
    """What came is no answer to the question."""


@dataclass(slots=True)
class _Answer:
    truncated: bool
    rcode: int
    addresses: list[str] = field(default_factory=list)
    alias: str | None = None
    """Where the chain of CNAMEs in this answer ends, when it has no address there."""


async def query(host: str, servers: Sequence[tuple[str, int]]) -> list[str]:
    """All IPv4 and IPv6 addresses of a name, IPv6 first.

    Raises:
        DnsError: no server gave one.
    """
    six, four = await asyncio.gather(
        _addresses(host, _AAAA, servers), _addresses(host, _A, servers), return_exceptions=True
    )
    found = [address for result in (six, four) if not isinstance(result, BaseException) for address in result]
    if found:  # one half is enough: only what was found, and checked, is ever connected to
        return found
    for result in (six, four):
        if isinstance(result, BaseException):
            raise result
    raise DnsError("the name has no address")


async def _addresses(host: str, kind: int, servers: Sequence[tuple[str, int]]) -> list[str]:
    name = host.lower()
    for _ in range(_MAX_CNAMES + 1):
        answer = await _ask_in_turn(name, kind, servers)
        if answer.rcode == 3:
            raise DnsError("the name does not exist")
        if answer.addresses or answer.alias is None:
            return answer.addresses
        name = answer.alias
    raise DnsError(f"more than {_MAX_CNAMES} CNAMEs one after the other")


async def _ask_in_turn(name: str, kind: int, servers: Sequence[tuple[str, int]]) -> _Answer:
    problem = "no DNS server answered"
    for server in [*servers] * _ROUNDS:
        try:
            async with asyncio.timeout(_TRY_S):
                answer = await _ask(name, kind, server)
        except TimeoutError:
            continue
        except (OSError, _Malformed, EOFError) as error:
            problem = f"the DNS server failed ({error or type(error).__name__})"
            continue
        if answer.rcode in (0, 3):
            return answer
        problem = f"the DNS server answered with error {answer.rcode}"
    raise DnsError(problem)


async def _ask(name: str, kind: int, server: tuple[str, int]) -> _Answer:
    ident = secrets.randbits(16)
    question = _encode_name(name) + struct.pack("!HH", kind, _IN)
    packet = struct.pack("!HHHHHH", ident, 0x0100, 1, 0, 0, 0) + question
    answer = await _by_udp(packet, ident, name, kind, server)
    return await _by_tcp(packet, ident, name, kind, server) if answer.truncated else answer


class _Datagrams(asyncio.DatagramProtocol):
    """Waits for the first datagram that answers the question; others are somebody else's, or forged."""

    def __init__(self, ident: int, name: str, kind: int) -> None:
        self.answer: asyncio.Future[_Answer] = asyncio.get_running_loop().create_future()
        self._question = (ident, name, kind)

    def datagram_received(self, data: bytes, _addr: tuple[str | object, int]) -> None:
        try:
            answer = _parse(data, *self._question)
        except (_Malformed, struct.error, IndexError, UnicodeError):
            return
        except DnsError as error:
            self.error_received(error)
            return
        if not self.answer.done():
            self.answer.set_result(answer)

    def error_received(self, exc: Exception) -> None:
        if not self.answer.done():
            self.answer.set_exception(exc)


async def _by_udp(packet: bytes, ident: int, name: str, kind: int, server: tuple[str, int]) -> _Answer:
    loop = asyncio.get_running_loop()
    transport, protocol = await loop.create_datagram_endpoint(lambda: _Datagrams(ident, name, kind), remote_addr=server)
    try:
        transport.sendto(packet)
        return await protocol.answer
    finally:
        transport.close()


async def _by_tcp(packet: bytes, ident: int, name: str, kind: int, server: tuple[str, int]) -> _Answer:
    reader, writer = await asyncio.open_connection(*server)
    try:
        writer.write(struct.pack("!H", len(packet)) + packet)
        (size,) = struct.unpack("!H", await reader.readexactly(2))
        return _parse(await reader.readexactly(min(size, _MAX_ANSWER)), ident, name, kind)
    except (struct.error, IndexError, UnicodeError) as error:
        raise _Malformed("not an answer") from error
    finally:
        writer.close()


def _encode_name(name: str) -> bytes:
    labels = [label.encode("ascii") for label in name.rstrip(".").split(".")]
    if any(not 1 <= len(label) <= 63 for label in labels) or sum(map(len, labels)) + len(labels) > 254:
        raise DnsError("not a host name")
    return b"".join(bytes([len(label)]) + label for label in labels) + b"\0"


def _read_name(data: bytes, at: int) -> tuple[str, int]:
    """A name, perhaps compressed, and the offset behind it."""
    labels: list[str] = []
    end = -1
    while (size := data[at]) != 0:
        if size >= 0xC0:  # a pointer: only backwards, so that it ends
            target = (size & 0x3F) << 8 | data[at + 1]
            if target >= at:
                raise _Malformed("a compression loop")
            end, at = (at + 2 if end < 0 else end), target
            continue
        if size > 63 or len(labels) > 127:
            raise _Malformed("not a name")
        labels.append(data[at + 1 : at + 1 + size].decode("ascii").lower())
        at += 1 + size
    return ".".join(labels), at + 1 if end < 0 else end


def _parse(data: bytes, ident: int, name: str, kind: int) -> _Answer:
    """The answer in a message, when it is one to this question.

    Raises:
        _Malformed: it is not; also `struct.error`, `IndexError`, `UnicodeError` where the message ends too soon.
    """
    got, flags, questions, answers = struct.unpack_from("!HHHH", data)
    if got != ident or not flags & 0x8000 or questions != 1:
        raise _Malformed("another question's answer")
    asked, at = _read_name(data, 12)
    if asked != name or struct.unpack_from("!HH", data, at) != (kind, _IN):
        raise _Malformed("another question's answer")
    answer = _Answer(truncated=bool(flags & 0x0200), rcode=flags & 0x000F)
    if answer.truncated:
        return answer
    aliases, addresses = _read_records(data, at + 4, answers, kind)
    owner = name
    for _ in range(_MAX_CNAMES):
        if owner not in aliases:
            break
        owner = aliases[owner]
    else:
        raise DnsError(f"more than {_MAX_CNAMES} CNAMEs one after the other")
    answer.addresses = addresses.get(owner, [])
    answer.alias = owner if owner != name and not answer.addresses else None
    return answer


def _read_records(data: bytes, at: int, count: int, kind: int) -> tuple[dict[str, str], dict[str, list[str]]]:
    """CNAMEs, and addresses, each by their owner."""
    aliases: dict[str, str] = {}
    addresses: dict[str, list[str]] = {}
    for _ in range(count):
        owner, at = _read_name(data, at)
        rtype, rclass, _ttl, size = struct.unpack_from("!HHIH", data, at)
        at += 10
        if at + size > len(data):
            raise _Malformed("a record beyond the end")
        if rclass == _IN and rtype == _CNAME:
            aliases[owner], _end = _read_name(data, at)
        elif rclass == _IN and rtype == kind and size == (16 if kind == _AAAA else 4):
            addresses.setdefault(owner, []).append(str(ipaddress.ip_address(data[at : at + size])))
        at += size
    return aliases, addresses
