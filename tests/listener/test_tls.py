"""TLS on a port: slow and foreign peers, limits that count handshakes, and a certificate that is replaced."""

import asyncio
import inspect
import os
import ssl
import warnings
from collections.abc import AsyncIterator, Callable, Coroutine
from contextlib import asynccontextmanager
from pathlib import Path

import aiohttp
import pytest
import trustme
import uvloop
from aiohttp import web
from prometheus_client import REGISTRY
from structlog.testing import capture_logs

from dispatcher import server_certificate
from dispatcher.config.ops_tls import OpsTls
from dispatcher.errors import ConfigError
from dispatcher.listener import Listener, connection
from dispatcher.listener import port as port_module
from dispatcher.server_certificate import ServerCertificate, certificate_problems
from tests.listener.waiting import read_to_the_end, until

HEAD = b"GET / HTTP/1.1\r\nHost: x\r\n\r\n"


class Files:
    """Certificate and key in a directory, replaced as Kubernetes does it: by a link that is swapped."""

    def __init__(self, directory: Path) -> None:
        self.authority = trustme.CA()
        self._directory = directory
        self._generation = 0
        self.issue("localhost")
        self.settings = OpsTls(certificate=directory / "now/tls.crt", key=directory / "now/tls.key")

    def issue(self, *names: str) -> None:
        leaf = self.authority.issue_cert(*names)
        chain = b"".join(one.bytes() for one in leaf.cert_chain_pems)
        self.write(chain, leaf.private_key_pem.bytes())

    def write(self, certificate: bytes, key: bytes) -> None:
        self._generation += 1
        target = self._directory / str(self._generation)
        target.mkdir()
        (target / "tls.crt").write_bytes(certificate)
        (target / "tls.key").write_bytes(key)
        (self._directory / "next").symlink_to(target)
        os.replace(self._directory / "next", self._directory / "now")

    def client(self) -> ssl.SSLContext:
        context = ssl.create_default_context()
        self.authority.configure_trust(context)
        return context


@pytest.fixture
def files(tmp_path: Path) -> Files:
    return Files(tmp_path)


def on_both_loops(test: Callable[..., Coroutine[object, object, None]]) -> Callable[..., None]:
    """Runs a test on uvloop, which the product uses, and on asyncio's loop: they have different TLS code."""

    def run(loop: Callable[[], asyncio.AbstractEventLoop], **arguments: object) -> None:
        with asyncio.Runner(loop_factory=loop) as runner:
            runner.run(test(**arguments))

    names = ["loop", *inspect.signature(test).parameters]
    run.__signature__ = inspect.Signature(  # type: ignore[attr-defined]
        [inspect.Parameter(name, inspect.Parameter.KEYWORD_ONLY) for name in names]
    )
    run.__name__, run.__doc__ = test.__name__, test.__doc__
    loops = [pytest.param(asyncio.SelectorEventLoop, id="asyncio"), pytest.param(uvloop.new_event_loop, id="uvloop")]
    parametrized: Callable[..., None] = pytest.mark.parametrize("loop", loops)(run)
    return parametrized


@asynccontextmanager
async def running(files: Files, *, limit_of_peer: int = 0) -> AsyncIterator[Listener]:
    async def answer(request: web.Request) -> web.Response:
        body = await request.read()
        return web.Response(text=f"{request.scheme} {request.remote} {len(body)}")

    app = web.Application(client_max_size=1 << 24)
    app.add_routes([web.get("/", answer), web.post("/", answer)])
    certificate = ServerCertificate(files.settings)
    one = Listener(app, setting="ops", host="127.0.0.1", port=0, shutdown_s=0.1, certificate=certificate)
    one.limit_of_peer = limit_of_peer or one.limit_of_peer
    async with one:
        yield one


def failed() -> float:
    return REGISTRY.get_sample_value(
        "dispatcher_http_connections_closed_total", {"port": "ops", "reason": "tls_failed"}
    ) or 0.0  # fmt: skip


@pytest.mark.parametrize("version", [ssl.TLSVersion.TLSv1_2, ssl.TLSVersion.TLSv1_3])
@on_both_loops
async def test_requests_are_answered(files: Files, version: ssl.TLSVersion) -> None:
    context = files.client()
    context.minimum_version = context.maximum_version = version
    async with running(files) as port, aiohttp.ClientSession() as session:
        for _ in range(3):
            async with session.get(f"https://localhost:{port.port}/", ssl=context) as answer:
                assert await answer.text() == "https 127.0.0.1 0"
        async with session.post(f"https://localhost:{port.port}/", data=bytes(1 << 20), ssl=context) as answer:
            assert await answer.text() == "https 127.0.0.1 1048576"
        assert port.connections == 1


@on_both_loops
async def test_many_connections_at_once_are_answered(files: Files) -> None:
    """The first bytes of a request come together with the end of the handshake."""
    context = files.client()

    async def ask(port: int) -> bytes:
        reader, writer = await asyncio.open_connection("127.0.0.1", port, ssl=context, server_hostname="localhost")
        writer.write(HEAD.replace(b"\r\n\r\n", b"\r\nConnection: close\r\n\r\n"))
        received = await read_to_the_end(reader)
        writer.close()
        return received

    async with running(files, limit_of_peer=100) as port:
        answers = await asyncio.gather(*(ask(port.port) for _ in range(24)))
        assert all(answer.startswith(b"HTTP/1.1 200 ") for answer in answers)
        await until(lambda: port.connections == 0)


@on_both_loops
async def test_tls_1_1_is_refused(files: Files) -> None:
    context = files.client()
    with warnings.catch_warnings():
        warnings.simplefilter("ignore", DeprecationWarning)
        context.minimum_version = ssl.TLSVersion.MINIMUM_SUPPORTED
        context.maximum_version = ssl.TLSVersion.TLSv1_1
    context.set_ciphers("ALL:@SECLEVEL=0")
    before = failed()
    async with running(files) as port:
        with pytest.raises((ssl.SSLError, ConnectionError)):
            await asyncio.open_connection("127.0.0.1", port.port, ssl=context, server_hostname="localhost")
        await until(lambda: failed() == before + 1)
        assert port.connections == 0


@pytest.mark.parametrize("sent", [HEAD, b"\x00" * 100, b"\x16\x03\x01\xff\xff" + b"\x00" * 70])
@on_both_loops
async def test_a_client_without_tls_is_refused_and_counted(files: Files, sent: bytes) -> None:
    before = failed()
    async with running(files) as port:
        reader, writer = await asyncio.open_connection("127.0.0.1", port.port)
        writer.write(sent)
        assert b"HTTP/1.1 200" not in await read_to_the_end(reader)
        writer.close()
        await until(lambda: port.connections == 0)
        assert failed() == before + 1


@on_both_loops
async def test_a_peer_that_only_connects_is_not_counted_as_a_failure(files: Files) -> None:
    before = failed()
    async with running(files) as port:
        for _ in range(3):
            _, writer = await asyncio.open_connection("127.0.0.1", port.port)
            await until(lambda: port.connections == 1)
            writer.close()
            await until(lambda: port.connections == 0)
    assert failed() == before


@pytest.mark.parametrize("sent", [b"", b"\x16", b"\x16\x03\x01\x02\x00\x01\x00\x01\xfc\x03\x03"])
@on_both_loops
async def test_a_handshake_that_never_ends_ends_the_connection(
    files: Files, sent: bytes, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(connection, "HEAD_S", 0.5)
    async with running(files) as port:
        reader, writer = await asyncio.open_connection("127.0.0.1", port.port)
        writer.write(sent)
        assert b"HTTP" not in await read_to_the_end(reader)
        writer.close()
        await until(lambda: port.connections == 0)
        await until(lambda: not [task for task in asyncio.all_tasks() if task.get_name() == "ops handshake"])


@pytest.mark.parametrize("sent", [b"", b"GET / HTTP/1.1\r\nX-Slow: "])
@on_both_loops
async def test_a_head_that_never_ends_ends_the_connection(
    files: Files, sent: bytes, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(port_module, "_SWEEP_S", 0.02)
    async with running(files) as port:
        reader, writer = await asyncio.open_connection(
            "127.0.0.1", port.port, ssl=files.client(), server_hostname="localhost"
        )
        writer.write(sent)
        monkeypatch.setattr(connection, "HEAD_S", 0.5)
        assert (await read_to_the_end(reader)).startswith(b"HTTP/1.1 408 ")
        writer.close()
        await until(lambda: port.connections == 0)


@on_both_loops
async def test_handshakes_count_against_the_limit_of_a_peer(files: Files) -> None:
    async with running(files, limit_of_peer=3) as port, aiohttp.ClientSession() as session:
        silent = [await asyncio.open_connection("127.0.0.1", port.port) for _ in range(30)]
        await until(lambda: port.connections == 3)
        async with session.get(f"https://localhost:{port.port}/", ssl=files.client()) as answer:
            assert answer.status == 200
        assert port.connections <= 3
        for _, writer in silent:
            writer.close()


@on_both_loops
async def test_leaving_ends_handshakes_under_way(files: Files) -> None:
    async with running(files) as port:
        reader, writer = await asyncio.open_connection("127.0.0.1", port.port)
        await until(lambda: port.connections == 1)
    assert await read_to_the_end(reader) == b""
    writer.close()


@on_both_loops
async def test_a_new_certificate_is_used_without_a_restart(files: Files, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(server_certificate, "CHECK_S", 0.05)
    context = files.client()

    async def names(port: int) -> set[str]:
        _, writer = await asyncio.open_connection("127.0.0.1", port, ssl=context, server_hostname="localhost")
        found = {value for _, value in writer.get_extra_info("peercert")["subjectAltName"]}
        writer.close()
        return found

    async with running(files) as port, aiohttp.ClientSession() as session:
        async with session.get(f"https://localhost:{port.port}/", ssl=context) as answer:
            assert answer.status == 200
        assert await names(port.port) == {"localhost"}
        files.issue("localhost", "new.example")
        async with asyncio.timeout(60):
            while await names(port.port) != {"localhost", "new.example"}:
                await asyncio.sleep(0.05)
        async with session.get(f"https://localhost:{port.port}/", ssl=context) as answer:
            assert answer.status == 200  # on the connection that was open before


@pytest.mark.parametrize("broken", ["text", "pair", "empty", "missing"])
@on_both_loops
async def test_a_broken_certificate_keeps_the_last_good_one(
    files: Files, broken: str, monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    monkeypatch.setattr(server_certificate, "CHECK_S", 0.02)

    def reloaded() -> float | None:
        return REGISTRY.get_sample_value("dispatcher_ops_certificate_last_reload_successful")

    async with (
        running(files) as port,
        aiohttp.ClientSession(connector=aiohttp.TCPConnector(force_close=True)) as session,
    ):
        with capture_logs() as lines:
            if broken == "text":
                files.write(b"no certificate", b"no key")
            elif broken == "pair":
                leaf, other = (files.authority.issue_cert("localhost") for _ in range(2))
                files.write(leaf.cert_chain_pems[0].bytes(), other.private_key_pem.bytes())
            elif broken == "empty":
                files.write(b"", b"")
            else:
                (tmp_path / "now").unlink()
            await until(lambda: reloaded() == 0)
            async with session.get(f"https://localhost:{port.port}/", ssl=files.client()) as answer:
                assert answer.status == 200
            await asyncio.sleep(0.1)
            warnings = [line for line in lines if line["log_level"] == "warning"]
            assert len(warnings) == 1
            assert warnings[0]["why"]
            if broken == "missing":
                (tmp_path / "now").symlink_to(tmp_path / "1")
            else:
                files.issue("localhost")
            await until(lambda: reloaded() == 1)


def test_files_that_cannot_be_used_name_the_setting_and_the_cure(files: Files, tmp_path: Path) -> None:
    assert certificate_problems(None) == []
    assert certificate_problems(files.settings) == []
    leaf, other = (files.authority.issue_cert("localhost") for _ in range(2))
    files.write(leaf.cert_chain_pems[0].bytes(), other.private_key_pem.bytes())
    [problem] = certificate_problems(files.settings)
    assert problem.key == "ops.tls.certificate"
    assert "give both in PEM" in str(problem)
    os.mkfifo(tmp_path / "fifo")
    [problem] = certificate_problems(files.settings.model_copy(update={"key": tmp_path / "fifo"}))
    assert "not a regular file" in str(problem)
    with pytest.raises(ConfigError, match="can't be read"):
        ServerCertificate(files.settings.model_copy(update={"key": tmp_path / "absent"}))
    files.issue("localhost")
    problems = certificate_problems(files.settings.model_copy(update={"ca": files.settings.key}))
    assert [problem.key for problem in problems] == ["ops.tls.ca"]
