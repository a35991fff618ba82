"""Endpoints that move by DNS, have many addresses or half-dead ones, and DNS servers that answer by halves."""

import asyncio
import gc
import socket
import threading
import time
from collections.abc import Sequence

import pytest
import trustme

from dispatcher.config.settings import DeliverySettings, EgressSettings
from dispatcher.contract.outcomes import FailureReason
from dispatcher.transport import EgressGuard, open_transport, resolver
from dispatcher.transport.dns import DnsError, query
from dispatcher.transport.failures import TransportError
from dispatcher.transport.happy_eyeballs import connect_first
from dispatcher.transport.http1 import client
from dispatcher.transport.resolver import Resolver
from tests.transport.conftest import Opener, post_to, server_context
from tests.transport.servers import OK, NameServer, answering
from tests.transport.servers import Endpoint as Server

HOST = "hooks.example"


@pytest.fixture
def quick_dns(monkeypatch: pytest.MonkeyPatch) -> None:
    """Answers are old at once, so that every request looks again."""
    monkeypatch.setattr(resolver, "TTL_S", 0.0)
    monkeypatch.setattr(resolver, "REFRESHES_PER_S", 1e6)
    monkeypatch.setattr(client, "DNS_CHECK_S", 0.0)


def two_servers(authority: trustme.CA) -> tuple[Server, Server]:
    return tuple(Server(answering(OK), server_context(authority, HOST)) for _ in range(2))  # type: ignore[return-value]


async def at(server: Server, address: str, port: int) -> asyncio.Server:
    """The server at another loopback address, on a given port."""

    async def serve(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        await server._serve(reader, writer)

    return await asyncio.start_server(serve, address, port, ssl=server._context)


@pytest.mark.usefixtures("quick_dns")
async def test_busy_connections_follow_an_endpoint_that_moves(opening: Opener, authority: trustme.CA) -> None:
    """Both servers are up, requests never pause: without a look at DNS the old one would get them for ever."""
    old, new = two_servers(authority)
    async with NameServer().running() as names, old.running():
        names.zone[HOST] = [["127.0.0.1"]]
        moved = await at(new, "127.0.0.2", old.port)
        url = f"https://{HOST}:{old.port}/"
        async with opening(nameservers=(names.address,)) as transport:
            await asyncio.gather(*(transport.post(post_to(url)) for _ in range(4)))
            assert old.connections == 4
            names.zone[HOST] = [["127.0.0.2"]]
            deadline = time.monotonic() + 60
            while not new.requests and time.monotonic() < deadline:
                assert {
                    one.status for one in await asyncio.gather(*(transport.post(post_to(url)) for _ in range(4)))
                } == {200}
            before = len(old.requests)
            for _ in range(3):
                await asyncio.gather(*(transport.post(post_to(url)) for _ in range(4)))
        moved.close()
    assert new.requests
    assert len(old.requests) == before, "connections to the old address are not used again"
    assert old.connections == 4


@pytest.mark.usefixtures("quick_dns")
@pytest.mark.parametrize("answer", [["127.0.0.1", "127.0.0.2"], ["0.0.0.0"], [], None])
async def test_connections_stay_while_their_address_is_named_or_dns_fails(
    opening: Opener, authority: trustme.CA, answer: Sequence[str] | None
) -> None:
    """A resolver that lies or is away doesn't end connections that work."""
    server, _ = two_servers(authority)
    async with NameServer().running() as names, server.running():
        names.zone[HOST] = [["127.0.0.1"]]
        async with opening(nameservers=(names.address,)) as transport:
            url = f"https://{HOST}:{server.port}/"
            await transport.post(post_to(url))
            if answer is None:
                del names.zone[HOST]
            else:
                names.zone[HOST] = [answer]
            asked = len(names.queries)
            attempts = []
            while len(names.queries) < asked + 6:
                attempts.append(await transport.post(post_to(url)))
    assert {(one.status, one.reused) for one in attempts} == {(200, True)}
    assert server.connections == 1


@pytest.mark.parametrize("transport", ["aiohttp", "lean"])
async def test_a_connection_is_not_used_again_past_its_age(
    transport: str, authority: trustme.CA, monkeypatch: pytest.MonkeyPatch
) -> None:
    server = Server(answering(OK), server_context(authority))
    settings = DeliverySettings.model_validate({"transport": transport, "connection_max_age": "100s"})
    egress = EgressSettings.model_validate({"allow": ["127.0.0.0/8"]})
    monkeypatch.setattr("dispatcher.transport.tls_contexts.new_context", _trusting(authority))
    now = time.monotonic
    async with server.running(), open_transport(settings, egress) as sender:
        for skipped_s, connections in ((0, 1), (50, 1), (79, 1), (101, 2), (102, 2), (203, 3)):
            monkeypatch.setattr(time, "monotonic", lambda skipped_s=skipped_s: now() + skipped_s)
            assert (await sender.post(post_to(server.url, timeout_s=1000.0))).status == 200
            assert server.connections == connections, skipped_s


def _trusting(authority: trustme.CA) -> object:
    from dispatcher.transport import tls

    original = tls.new_context
    return lambda ca=None, *rest: original(ca or authority.cert_pem.bytes(), *rest)


def test_ages_differ_so_that_connections_do_not_end_together() -> None:
    from dispatcher.transport.dial import Dialer
    from dispatcher.transport.tls_contexts import TlsContexts

    egress = EgressSettings()
    dialer = Dialer(egress, Resolver(egress, EgressGuard(egress)), TlsContexts(None), 300.0)
    ages = {dialer.retirement(1000.0) - 1000.0 for _ in range(200)}

    assert len(ages) == 200
    assert min(ages) >= 240
    assert max(ages) <= 300
    assert DeliverySettings().connection_max_age == 300


async def test_background_questions_are_bounded(monkeypatch: pytest.MonkeyPatch) -> None:
    now = 1000.0
    egress = EgressSettings()
    async with Resolver(egress, EgressGuard(egress), clock=lambda: now) as one:
        asked: list[str] = []

        async def look_up(host: str) -> tuple[str, ...]:
            asked.append(host)
            return ("8.8.8.8",)

        monkeypatch.setattr(one, "_look_up", look_up)
        hosts = [f"h{number}.example" for number in range(500)]
        for host in hosts:
            await one.lookup(host)
        asked.clear()
        assert one.watch("unknown.example") is None
        for seconds in range(100):
            now = 1011.0 + seconds / 10
            for host in hosts:
                one.watch(host)
            await asyncio.sleep(0)
            await asyncio.sleep(0)
        assert 500 <= len(asked) <= 11 * resolver.REFRESHES_PER_S


# --- many addresses, dead ones


async def test_of_many_addresses_32_are_used_and_all_are_checked(opening: Opener, authority: trustme.CA) -> None:
    server, _ = two_servers(authority)
    async with NameServer().running() as names, server.running():
        names.zone["many.example"] = [["127.0.0.1", *(f"127.0.1.{number}" for number in range(60))]]
        names.zone["evil.example"] = [["127.0.0.1", *(f"127.0.1.{number}" for number in range(60)), "10.0.0.1"]]
        async with opening(nameservers=(names.address,)) as transport:
            many = await transport.post(post_to(f"https://many.example:{server.port}/"))
            evil = await transport.post(post_to(f"https://evil.example:{server.port}/"))
    assert many.failure is FailureReason.TLS, "connected; the certificate is another name's"
    assert evil.failure is FailureReason.EGRESS_DENIED


async def test_a_good_address_behind_many_dead_ones_is_reached_in_time(monkeypatch: pytest.MonkeyPatch) -> None:
    listener = socket.create_server(("127.0.0.1", 0))
    started: list[str] = []

    async def connect(address: str, port: int) -> socket.socket:
        started.append(address)
        if address != "127.0.0.1":
            await asyncio.sleep(60)
        return socket.create_connection((address, port))

    monkeypatch.setattr("dispatcher.transport.happy_eyeballs._connect", connect)
    dead = [f"192.0.2.{number}" for number in range(31)]
    async with asyncio.timeout(60):
        sock, address = await connect_first([*dead, "127.0.0.1"], listener.getsockname()[1], 3.0)
    sock.close()
    listener.close()
    assert address == "127.0.0.1"
    assert started == [*dead, "127.0.0.1"]


async def test_addresses_start_within_half_of_the_time(monkeypatch: pytest.MonkeyPatch) -> None:
    started: list[float] = []
    loop = asyncio.get_running_loop()

    async def connect(address: str, port: int) -> socket.socket:
        started.append(loop.time())
        await asyncio.sleep(60)
        raise AssertionError

    monkeypatch.setattr("dispatcher.transport.happy_eyeballs._connect", connect)
    waited: list[float | None] = []
    original = asyncio.wait

    async def wait(*args: object, timeout: float | None = None, **rest: object) -> object:
        waited.append(timeout)
        return await original(*args, timeout=timeout, **rest)  # type: ignore[call-overload]

    monkeypatch.setattr("dispatcher.transport.happy_eyeballs.asyncio.wait", wait)
    connecting = asyncio.create_task(connect_first([f"192.0.2.{number}" for number in range(10)], 443, 1.0))
    async with asyncio.timeout(60):
        while len(started) < 10:
            await asyncio.sleep(0.01)
    connecting.cancel()
    await original([connecting])
    assert sum(seconds for seconds in waited if seconds is not None) <= 0.5 + 1e-9
    assert len([seconds for seconds in waited if seconds is not None]) == 9


async def test_an_error_of_the_endpoint_goes_before_one_of_this_machine(monkeypatch: pytest.MonkeyPatch) -> None:
    async def connect(address: str, port: int) -> socket.socket:
        if ":" in address:
            raise OSError(101, "Network is unreachable")
        raise ConnectionRefusedError(111, "Connection refused")

    monkeypatch.setattr("dispatcher.transport.happy_eyeballs._connect", connect)
    with pytest.raises(ConnectionRefusedError):
        await connect_first(["2001:db8::1", "192.0.2.1"], 443, 3.0)


# --- DNS servers that answer by halves


async def resolved(names: Sequence[str], host: str = HOST) -> Sequence[str] | FailureReason:
    egress = EgressSettings.model_validate({"nameservers": names})
    async with Resolver(egress, EgressGuard(egress)) as one:
        try:
            return await one.resolve("https", host, 443)
        except TransportError as error:
            return error.reason


@pytest.mark.parametrize(("silent", "expected"), [("AAAA", "8.8.8.8"), ("A", "2606:4700:4700::1111")])
@pytest.mark.parametrize("servers", [1, 2])
async def test_an_unanswered_half_does_not_hold_back_the_other(silent: str, expected: str, servers: int) -> None:
    """With two servers the unanswered half alone takes longer than the whole lookup may."""
    async with NameServer().running() as one, NameServer().running() as other:
        for names in (one, other):
            names.zone[HOST] = [["8.8.8.8", "2606:4700:4700::1111"]]
            names.silent_kinds.add(silent)
        assert await resolved([one.address, other.address][:servers]) == (expected,)


@pytest.mark.parametrize("failing", ["AAAA", "A"])
@pytest.mark.parametrize("code", [1, 2, 3, 4, 5])  # NXDOMAIN (3) for AAAA only is what some load balancers answer
@pytest.mark.parametrize("is_alias", [False, True])
async def test_a_half_that_fails_does_not_spoil_the_other(failing: str, code: int, is_alias: bool) -> None:
    async with NameServer().running() as names:
        names.zone[HOST] = [["elsewhere.example"]] if is_alias else [["8.8.8.8", "2606:4700:4700::1111"]]
        names.zone["elsewhere.example"] = [["8.8.8.8", "2606:4700:4700::1111"]]
        names.truncate.add("elsewhere.example")
        names.failing_kinds[failing] = code
        assert await resolved([names.address]) == (("8.8.8.8",) if failing == "AAAA" else ("2606:4700:4700::1111",))


@pytest.mark.parametrize("code", [1, 2, 4, 5])
async def test_a_server_s_error_without_the_question_is_an_answer(code: int) -> None:
    async with NameServer().running() as names:
        names.failing_kinds |= {"A": code, "AAAA": code}
        names.forge = lambda reply: [reply[:4] + bytes(8)]
        names.delays |= {"A": 60.0, "AAAA": 60.0}  # the whole answer never comes
        host, _, port = names.address.rpartition(":")
        with pytest.raises(DnsError, match=f"answered with error {code}"):
            await query(HOST, [(host, int(port))])


async def test_an_answer_without_the_question_gives_no_address() -> None:
    async with NameServer().running() as names:
        names.zone[HOST] = [["8.8.8.8"]]
        names.forge = lambda reply: [reply[:4] + bytes(8), reply[:4] + bytes(2) + reply[6:]]
        assert await resolved([names.address]) == ("8.8.8.8",)


async def test_a_slow_half_that_is_needed_is_waited_for() -> None:
    """There is no A record: the answer to AAAA counts, however late it comes."""
    async with NameServer().running() as names:
        names.zone[HOST] = [["2606:4700:4700::1111"]]
        names.delays["AAAA"] = 0.4
        assert await resolved([names.address]) == ("2606:4700:4700::1111",)


async def test_a_dead_first_server_is_passed_over() -> None:
    async with NameServer().running() as dead, NameServer().running() as alive:
        dead.silent.add(HOST)
        alive.zone[HOST] = [["8.8.8.8"]]
        assert await resolved([dead.address, alive.address]) == ("8.8.8.8",)


async def test_a_dns_server_that_is_not_there_is_our_failure() -> None:
    with socket.socket(socket.AF_INET, socket.SOCK_DGRAM) as sock:
        sock.bind(("127.0.0.1", 0))
        port = sock.getsockname()[1]
    assert await resolved([f"127.0.0.1:{port}"]) is FailureReason.LOCAL


async def test_a_system_resolver_that_hangs_on_aaaa_is_queried_for_a_alone(monkeypatch: pytest.MonkeyPatch) -> None:
    """glibc answers AF_UNSPEC only once both questions were answered or given up."""

    def getaddrinfo(host: str, family: socket.AddressFamily) -> list[str]:
        if family == socket.AF_UNSPEC:
            time.sleep(3)
            return []
        return ["8.8.8.8"]

    monkeypatch.setattr(resolver, "_getaddrinfo", getaddrinfo)
    monkeypatch.setattr(resolver, "_SLOW_ANSWER_S", 0.05)
    assert await resolved([]) == ("8.8.8.8",)


async def test_names_whose_servers_do_not_answer_do_not_affect_others(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    """They hold the threads far longer than the deadline. A lookup that waits for a thread meanwhile never begins."""
    over = threading.Event()

    asked: list[str] = []

    def getaddrinfo(host: str, family: socket.AddressFamily) -> list[str]:
        asked.append(host)
        if host.startswith("dead"):
            over.wait(60)
            raise socket.gaierror(socket.EAI_AGAIN, "try again")
        return ["8.8.8.8"]

    monkeypatch.setattr(resolver, "_getaddrinfo", getaddrinfo)
    monkeypatch.setattr(resolver, "_THREADS", 2)
    monkeypatch.setattr(resolver, "TIMEOUT_S", 0.3)
    egress = EgressSettings()
    async with Resolver(egress, EgressGuard(egress)) as made:
        dead = await asyncio.gather(*(reason(made, f"dead{number}.example") for number in range(2)))
        assert dead == [FailureReason.DNS] * 2
        waiting = await asyncio.gather(*(reason(made, f"{number}.{HOST}") for number in range(20)))
        assert waiting == [FailureReason.LOCAL] * 20
        logged: list[object] = []
        asyncio.get_running_loop().set_exception_handler(lambda _, context: logged.append(context))
        over.set()
        monkeypatch.setattr(resolver, "TIMEOUT_S", 60.0)
        assert await reason(made, HOST) is None
    assert not [host for host in asked if host.endswith(f".{HOST}")], "their time was over before a thread was free"
    gc.collect()
    assert logged == [], "an answer that comes too late isn't our error"


async def reason(made: Resolver, host: str) -> FailureReason | None:
    try:
        await made.resolve("https", host, 443)
    except TransportError as error:
        return error.reason
    return None


# --- our own machine


@pytest.mark.parametrize("target", ["https://127.0.0.1:{port}/", "https://hooks.example:{port}/"])
async def test_running_out_of_file_descriptors_is_our_failure(
    opening: Opener, authority: trustme.CA, monkeypatch: pytest.MonkeyPatch, target: str
) -> None:
    server, _ = two_servers(authority)
    async with NameServer().running() as names, server.running():
        names.zone[HOST] = [["127.0.0.1"]]
        async with opening(nameservers=(names.address,)) as transport:

            def no_socket(*_: object, **__: object) -> socket.socket:
                raise OSError(24, "Too many open files")

            monkeypatch.setattr(socket, "socket", no_socket)
            attempt = await transport.post(post_to(target.format(port=server.port)))
    assert attempt.failure is FailureReason.LOCAL
    assert "Too many open files" in attempt.detail


async def test_no_network_is_our_failure(opening: Opener, monkeypatch: pytest.MonkeyPatch) -> None:
    async def connect(address: str, port: int) -> socket.socket:
        raise OSError(101, "Network is unreachable")

    monkeypatch.setattr("dispatcher.transport.happy_eyeballs._connect", connect)
    async with opening() as transport:
        attempt = await transport.post(post_to("https://127.0.0.1:4443/"))
    assert attempt.failure is FailureReason.LOCAL
