"""What `--ops URL` says if no dispatcher answers: the cause and the cure, never the name of a class alone."""

import asyncio
import socket

import pytest

from dispatcher.cli import ops_client
from dispatcher.cli.ops_client import ask
from dispatcher.errors import DispatcherError


async def refused(url: str) -> str:
    with pytest.raises(DispatcherError) as caught:
        await ask(url, "/readyz")
    return str(caught.value)


@pytest.mark.parametrize(
    "url",
    ["localhost:9090", "ftp://localhost", "http://", "", "http://::1:9090", "http://localhost:x"],
)
async def test_a_malformed_ops_address_is_refused(url: str) -> None:
    assert "that isn't an address: write http://127.0.0.1:9090" in await refused(url)


async def test_a_port_without_a_listener_is_named_so() -> None:
    with socket.create_server(("127.0.0.1", 0)) as taken:
        port = taken.getsockname()[1]
    message = await refused(f"http://127.0.0.1:{port}")
    assert "can't connect (Connect call failed" in message or "can't connect (Connection refused)" in message, message


async def test_a_name_that_does_not_resolve_is_named_so() -> None:
    assert "the name can't be resolved" in await refused("http://nowhere.invalid:9090")


@pytest.mark.parametrize(
    ("scheme", "answer", "why"),
    [
        ("https", b"HTTP/1.1 400 Bad Request\r\n\r\n", "is it https with ops.tls, and http without?"),
        ("http", b"\x15\x03\x03\x00\x02\x02\x46", "is it https with ops.tls, and http without?"),
        ("http", b"HTTP/1.1 200 OK\r\ncontent-length: 2\r\n\r\nok", "it isn't a dispatcher"),
        ("http", b"HTTP/1.1 200 OK\r\ncontent-length: 2\r\n\r\n[]", "it isn't a dispatcher"),
        ("http", b"HTTP/1.1 302 Found\r\nlocation: /\r\n\r\n", "answers /readyz with HTTP 302"),
        ("http", None, "no answer within 1 s"),
    ],
)
async def test_another_server_is_distinguished_from_a_silent_dispatcher(
    scheme: str, answer: bytes | None, why: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    if answer is None:
        monkeypatch.setattr(ops_client, "WITHIN_S", 1.0)

    async def serve(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        await reader.read(1000)
        if answer is None:
            await reader.read()
        else:
            writer.write(answer)
        writer.close()

    async with await asyncio.start_server(serve, "127.0.0.1", 0) as server:
        assert why in await refused(f"{scheme}://127.0.0.1:{server.sockets[0].getsockname()[1]}")
