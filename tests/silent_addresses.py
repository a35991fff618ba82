"""Addresses of this machine that take connections without an answer, as those of a lost machine."""

import socket
from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any

import pytest

SILENT = "127.0.0.2"


@contextmanager
def silent(port: int) -> Iterator[None]:
    """Keeps a port of `SILENT` from answering: its queue of connections is full."""
    with socket.socket() as listener:
        listener.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
        listener.bind((SILENT, port))
        listener.listen(0)
        waiting = [socket.socket() for _ in range(4)]  # more than its queue takes
        for one in waiting:
            one.setblocking(False)
            one.connect_ex((SILENT, port))
        yield
        for one in waiting:
            one.close()


def resolve(monkeypatch: pytest.MonkeyPatch, name: str, *addresses: str) -> None:
    """Answers for a name, in place of a DNS server, what asyncio's loops ask for."""
    getaddrinfo = socket.getaddrinfo

    def answer(host: Any, *arguments: Any, **options: Any) -> list[Any]:
        hosts = addresses if host == name else [host]
        return [found for one in hosts for found in getaddrinfo(one, *arguments, **options)]

    monkeypatch.setattr(socket, "getaddrinfo", answer)
