"""How both transports come to a connection: DNS, several addresses, the guard, the operator's proxy."""

import asyncio
import base64
import os
import socket
import ssl
import threading
from collections.abc import Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
import trustme

from dispatcher.config.secrets import Secret
from dispatcher.contract.outcomes import FailureReason
from dispatcher.transport import Endpoint, Transport, resolver
from dispatcher.transport.dial import Dialer, Dialled
from tests.transport.conftest import IN_TIME_S, Opener, Serving, post_to, server_context
from tests.transport.real_servers import free_port
from tests.transport.servers import OK, ConnectProxy, NameServer, Peer, answering, none_left_of
from tests.transport.servers import Endpoint as Server


async def test_a_closed_port_refuses_the_connection(transport: Transport) -> None:
    attempt = await transport.post(post_to(f"https://127.0.0.1:{free_port()}/"))
    assert (attempt.failure, attempt.detail) == (FailureReason.CONNECT_REFUSED, "Connection refused")


@pytest.mark.parametrize(
    ("url", "failure"),
    [
        ("https://10.0.0.1/", FailureReason.URL_DENIED),
        ("https://[::1]/", FailureReason.URL_DENIED),
        ("https://169.254.169.254/", FailureReason.URL_DENIED),
        ("http://127.0.0.1:8080/", FailureReason.EGRESS_DENIED),
        ("https://127.0.0.1:22/", FailureReason.EGRESS_DENIED),
        ("https://metadata.google.internal.example.internal:22/", FailureReason.EGRESS_DENIED),
    ],
)
async def test_an_address_that_is_denied_is_not_connected_to(
    transport: Transport, url: str, failure: FailureReason
) -> None:
    attempt = await transport.post(post_to(url))
    assert attempt.failure is failure
    assert attempt.detail


async def test_plain_http_is_sent_only_where_the_operator_allows_it(opening: Opener, transport: Transport) -> None:
    async with Server(answering(OK), None).running() as server:
        url = server.url.replace("https", "http")
        denied = await transport.post(post_to(url))
        async with opening(allow_http=True) as lax:
            attempts = [await lax.post(post_to(url)) for _ in range(2)]
    assert denied.failure is FailureReason.EGRESS_DENIED
    assert [(one.status, one.reused) for one in attempts] == [(200, False), (200, True)]


async def test_a_name_is_connected_to_by_the_address_that_was_checked(opening: Opener, serving: Serving) -> None:
    async with NameServer().running() as names, serving(answering(OK)) as server:
        names.zone["hooks.example"] = [["127.0.0.1"]]
        async with opening(nameservers=(names.address,)) as transport:
            attempt = await transport.post(post_to(f"https://hooks.example:{server.port}/", keep_body=1))
    assert (attempt.status, attempt.phases.address) == (200, "127.0.0.1")
    assert b"\r\nhost: hooks.example:%d\r\n" % server.port in server.requests[0]


async def test_a_name_that_changes_its_mind_after_the_check_gains_nothing(opening: Opener, serving: Serving) -> None:
    async with NameServer().running() as names, serving(answering(OK)) as server:
        names.zone["rebind.example"] = [["127.0.0.2"], ["127.0.0.1"]]  # allowed for the check, denied for the connect
        url = f"https://rebind.example:{server.port}/"
        async with opening(nameservers=(names.address,), allow=("127.0.0.2/32",)) as transport:
            attempts = [await transport.post(post_to(url)) for _ in range(3)]
    assert server.connections == 0
    assert {attempt.failure for attempt in attempts} == {
        FailureReason.CONNECT_REFUSED
    }  # no server listens on 127.0.0.2
    assert names.queries == [("rebind.example", "AAAA"), ("rebind.example", "A")]


@pytest.mark.parametrize("answer", [["127.0.0.1", "10.0.0.1"], ["8.8.8.8", "127.0.0.1"], ["127.0.0.1", "fd00::1"]])
async def test_one_denied_address_among_several_refuses_the_name(
    opening: Opener, serving: Serving, answer: list[str]
) -> None:
    async with NameServer().running() as names, serving(answering(OK)) as server:
        names.zone["mixed.example"] = [answer]
        allow = ("127.0.0.0/8",) if answer[0] == "127.0.0.1" else ()
        async with opening(nameservers=(names.address,), allow=allow) as transport:
            attempt = await transport.post(post_to(f"https://mixed.example:{server.port}/"))
    assert (attempt.failure, server.connections) == (FailureReason.EGRESS_DENIED, 0)
    assert attempt.detail.startswith("mixed.example has no public address")


async def test_the_next_address_is_tried_if_the_first_refuses(opening: Opener, serving: Serving) -> None:
    async with NameServer().running() as names, serving(answering(OK)) as server:
        names.zone["many.example"] = [["127.0.0.2", "127.0.0.3", "127.0.0.1", "::1"]]
        own = Server(answering(OK), server_context(trustme.CA())).running()
        async with own, opening(nameservers=(names.address,), allow=("127.0.0.0/8", "::1")) as transport:
            attempt = await transport.post(post_to(f"https://many.example:{server.port}/"))
    # connected to 127.0.0.1, whose certificate does not have this name
    assert (attempt.failure, server.connections) == (FailureReason.TLS, 0)
    assert "not valid for" in attempt.detail


@pytest.mark.parametrize("zone", [{}, {"hooks.example": [[]]}, {"hooks.example": [["loop.example"]]}])
async def test_a_name_without_an_address_is_a_dns_failure(
    opening: Opener, zone: dict[str, list[Sequence[str]]]
) -> None:
    async with NameServer().running() as names:
        names.zone |= zone
        async with opening(nameservers=(names.address,)) as transport:
            attempt = await transport.post(post_to("https://hooks.example/"))
    assert attempt.failure is FailureReason.DNS
    assert attempt.detail.startswith("hooks.example")


async def test_dns_that_never_answers_is_bounded_by_the_deadline_of_the_attempt(opening: Opener) -> None:
    async with NameServer().running() as names:
        names.silent.add("hooks.example")
        async with opening(nameservers=(names.address,)) as transport:
            attempt = await transport.post(post_to("https://hooks.example/", timeout_s=0.3))
    assert attempt.failure is FailureReason.DNS
    assert attempt.detail.startswith("hooks.example: no answer from DNS within 0.")
    assert attempt.elapsed_s < IN_TIME_S


async def test_a_handshake_that_never_ends_is_a_connect_timeout_by_either_deadline(opening: Opener) -> None:
    async with Server(Peer.until_closed, None).running() as server, opening() as transport:
        for timeout_s, connect_timeout_s in ((0.3, 0.3), (0.3, 20.0), (20.0, 0.3)):
            changes = {"timeout_s": timeout_s, "connect_timeout_s": connect_timeout_s}
            attempt = await transport.post(post_to(server.url, **changes))
            assert attempt.failure is FailureReason.CONNECT_TIMEOUT
            assert attempt.detail.startswith("no connection within 0.")


async def test_a_lookup_that_gets_no_thread_in_the_attempts_time_is_our_failure(
    opening: Opener, monkeypatch: pytest.MonkeyPatch
) -> None:
    over = threading.Event()

    def getaddrinfo(host: str, family: socket.AddressFamily) -> list[str]:
        over.wait(60)
        return ["127.0.0.1"]

    monkeypatch.setattr(resolver, "_getaddrinfo", getaddrinfo)
    monkeypatch.setattr(resolver, "_THREADS", 2)
    async with opening() as transport:
        hosts = ("https://dead1.example/", "https://dead2.example/", "https://hooks.example/")
        attempts = await asyncio.gather(*(transport.post(post_to(host, timeout_s=1.0)) for host in hosts))
        over.set()
    assert [one.failure for one in attempts] == [FailureReason.DNS, FailureReason.DNS, FailureReason.LOCAL]
    assert "egress.nameservers" in attempts[2].detail
    assert all(one.elapsed_s < IN_TIME_S for one in attempts)


@pytest.mark.parametrize("is_resumed", [False, True])
async def test_a_connection_lost_before_the_request_is_written_is_a_reset(
    opening: Opener, serving: Serving, monkeypatch: pytest.MonkeyPatch, is_resumed: bool
) -> None:
    """Else only the deadline would end the exchange. After a resumed session the server is dialled once more."""
    dial, dialled = Dialer.dial, 0

    async def dial_and_lose_the_first(*arguments: Any) -> Dialled[asyncio.Protocol]:
        nonlocal dialled
        dialled += 1
        made = await dial(*arguments)
        if dialled > 1:
            return made
        made.transport.abort()
        await asyncio.sleep(0.01)
        return replace(made, is_resumed=is_resumed)

    monkeypatch.setattr(Dialer, "dial", dial_and_lose_the_first)
    async with serving(answering(OK)) as server, opening() as transport:
        attempt = await transport.post(post_to(server.url))
        following = await transport.post(post_to(server.url))
    if is_resumed:
        assert (attempt.status, following.reused, dialled) == (200, True, 2)
    else:
        assert (attempt.failure, attempt.reused) == (FailureReason.RESET, False)
        assert "closed" in attempt.detail
        assert (following.status, dialled) == (200, 2)


# --- the operator's proxy


@pytest.mark.parametrize("scheme", ["http", "https"])
async def test_the_tunnel_leads_to_the_checked_address_and_tls_is_with_the_host(
    opening: Opener, serving: Serving, tls: ssl.SSLContext, scheme: str
) -> None:
    proxy = ConnectProxy()
    async with (
        NameServer().running() as names,
        serving(answering(OK)) as server,
        Server(proxy, tls if scheme == "https" else None).running() as entrance,
    ):
        names.zone |= {
            "hooks.example": [["127.0.0.1"]],
            "wrong.example": [["127.0.0.1"]],
            "proxy.example": [["127.0.0.1"]],
        }
        async with opening(
            nameservers=(names.address,), proxy=f"{scheme}://proxy.example:{entrance.port}"
        ) as transport:
            attempts = [await transport.post(post_to(f"https://hooks.example:{server.port}/")) for _ in range(2)]
            wrong = await transport.post(post_to(f"https://wrong.example:{server.port}/"))
    assert [(one.status, one.reused, one.detail) for one in attempts] == [(200, False, ""), (200, True, "")]
    assert proxy.targets == [f"127.0.0.1:{server.port}"] * 2
    assert wrong.failure is FailureReason.TLS
    assert b"\r\nhost: hooks.example:" in server.requests[0]


async def test_the_egress_guard_is_checked_before_the_proxy(opening: Opener) -> None:
    proxy = ConnectProxy()
    async with NameServer().running() as names, Server(proxy, None).running() as entrance:
        names.zone["inside.example"] = [["10.0.0.1"]]
        async with opening(nameservers=(names.address,), proxy=f"http://127.0.0.1:{entrance.port}") as transport:
            literal = await transport.post(post_to("https://10.0.0.1/"))
            name = await transport.post(post_to("https://inside.example/"))
            assert (literal.failure, name.failure) == (FailureReason.URL_DENIED, FailureReason.EGRESS_DENIED)
            unknown = await transport.post(post_to("https://unknown.example/"))
    assert unknown.failure is FailureReason.DNS
    assert proxy.targets == []


@pytest.mark.parametrize(
    ("answer", "reason"),
    [
        (b"HTTP/1.1 403 Forbidden\r\n\r\n", FailureReason.PROXY),
        (b"HTTP/1.1 407 Proxy Authentication Required\r\ncontent-length: 0\r\n\r\n", FailureReason.PROXY),
        (b"HTTP/1.1 502 Bad Gateway\r\n\r\n", FailureReason.CONNECT),
        (b"HTTP/1.1 504 Gateway Timeout\r\n\r\n", FailureReason.CONNECT),
        (b"HTTP/1.1 503 Busy\r\n\r\n", FailureReason.CONNECT),
        (b"HTTP/1.1 403 Forbidden\r\ncontent-length: 2\r\n\r\nno", FailureReason.PROXY),
        (b"HTTP/1.1 502 Bad Gateway\r\ncontent-length: 4\r\n\r\ndown", FailureReason.CONNECT),
        (b"HTTP/1.1 502 Bad Gateway\r\n\r\none\r\n\r\ntwo\r\n\r\n", FailureReason.CONNECT),
        (b"HTTP/1.1 504 Gateway Timeout\r\n\r\n" + b"x" * 9000, FailureReason.CONNECT),
        (b"HTTP/1.1 502 Bad Gateway\r\n" + b"x: y\r\n" * 2000, FailureReason.PROXY),
        (b"HTTP/1.1 502 Bad Gateway\r\n" + b"x: y\r\n" * 2000 + b"\r\n", FailureReason.PROXY),
        (b"HTTP/1.1 200 OK\r\n\r\n\r\n\r\n", FailureReason.PROXY),
        (b"HTTP/1.1 100 Continue\r\n\r\n", FailureReason.PROXY),
        (b"HTTP/1.1 200 OK\r\n\r\nsurplus", FailureReason.PROXY),
        (b"SSH-2.0-OpenSSH_9.2\r\n\r\n", FailureReason.PROXY),
        (b"HTTP/1.1 200 OK\r\n" + b"x: y\r\n" * 2000, FailureReason.PROXY),
        (b"", FailureReason.PROXY),
    ],
)
async def test_a_proxy_that_fails_is_never_held_against_the_tenant(
    opening: Opener, answer: bytes, reason: FailureReason
) -> None:
    async with (
        Server(ConnectProxy(answer), None).running() as entrance,
        opening(proxy=f"http://127.0.0.1:{entrance.port}") as transport,
    ):
        within = {} if answer else {"connect_timeout_s": 0.3}
        attempt = await transport.post(post_to("https://127.0.0.1:4443/", **within))
    assert attempt.failure is reason
    assert attempt.detail


@pytest.mark.parametrize("timeouts", [(0.3, 0.3), (0.3, 20.0), (20.0, 0.3)])
async def test_a_silent_proxy_is_a_proxy_failure_by_either_deadline(
    opening: Opener, timeouts: tuple[float, float]
) -> None:
    async with (
        Server(ConnectProxy(b""), None).running() as entrance,
        opening(proxy=f"http://127.0.0.1:{entrance.port}") as transport,
    ):
        changes = {"timeout_s": timeouts[0], "connect_timeout_s": timeouts[1]}
        attempt = await transport.post(post_to("https://127.0.0.1:4443/", **changes))
    assert attempt.failure is FailureReason.PROXY
    assert attempt.elapsed_s < IN_TIME_S


@pytest.mark.parametrize("answer", [None, b"HTTP/1.1 200 OK\r\n\r\n"], ids=["a real tunnel", "a tunnel by word only"])
@pytest.mark.parametrize("timeouts", [(20.0, 1.5), (1.5, 20.0)])
async def test_a_silent_endpoint_behind_the_tunnel_does_not_count_as_a_failure_of_the_proxy(
    opening: Opener, answer: bytes | None, timeouts: tuple[float, float]
) -> None:
    async def silent(peer: Peer) -> None:
        await peer.until_closed()

    async with (
        Server(silent, None).running() as endpoint,
        Server(ConnectProxy(answer), None).running() as entrance,
        opening(proxy=f"http://127.0.0.1:{entrance.port}") as transport,
    ):
        changes = {"timeout_s": timeouts[0], "connect_timeout_s": timeouts[1]}
        attempt = await transport.post(post_to(f"https://127.0.0.1:{endpoint.port}/", **changes))
    assert attempt.failure is FailureReason.CONNECT_TIMEOUT
    assert attempt.elapsed_s < IN_TIME_S


async def test_a_proxy_whose_name_gets_no_answer_in_the_attempts_time_is_a_proxy_failure(opening: Opener) -> None:
    async with NameServer().running() as names:
        names.silent.add("proxy.example")
        async with opening(nameservers=(names.address,), proxy="http://proxy.example:3128") as transport:
            attempt = await transport.post(post_to("https://127.0.0.1:4443/", timeout_s=0.3, connect_timeout_s=0.3))
    assert attempt.failure is FailureReason.PROXY


@pytest.mark.parametrize("proxy", ["http://127.0.0.1:{}", "http://nowhere.example:3128"])
async def test_a_proxy_that_is_not_there_is_a_proxy_failure(opening: Opener, proxy: str) -> None:
    async with NameServer().running() as names:
        settings = {"nameservers": (names.address,), "proxy": proxy.format(free_port())}
        async with opening(**settings) as transport:
            attempt = await transport.post(post_to("https://127.0.0.1:4443/"))
    assert attempt.failure is FailureReason.PROXY


async def test_an_https_proxy_with_a_wrong_certificate_is_a_proxy_failure(opening: Opener) -> None:
    context = server_context(trustme.CA())
    async with (
        Server(ConnectProxy(), context).running() as entrance,
        opening(proxy=f"https://127.0.0.1:{entrance.port}") as transport,
    ):
        attempt = await transport.post(post_to("https://127.0.0.1:4443/"))
    assert attempt.failure is FailureReason.PROXY
    assert "certificate" in attempt.detail


async def test_a_tunnel_that_ends_in_the_handshake_is_a_tls_failure(opening: Opener) -> None:
    async def script(peer: Peer) -> None:
        await peer.head()
        await peer.send(b"HTTP/1.1 200 OK\r\n\r\n")
        await peer.reader.read(10)

    async with (
        Server(script, None).running() as entrance,
        opening(proxy=f"http://127.0.0.1:{entrance.port}") as transport,
    ):
        attempt = await transport.post(post_to("https://127.0.0.1:4443/"))
    assert attempt.failure is FailureReason.TLS


async def test_cancelling_while_connecting_leaves_nothing(opening: Opener) -> None:
    asked = asyncio.Event()

    async def silent(peer: Peer) -> None:
        await peer.head()
        asked.set()
        await peer.until_closed()

    async with (
        Server(silent, None).running() as entrance,
        opening(proxy=f"http://127.0.0.1:{entrance.port}") as transport,
    ):
        before = asyncio.all_tasks()
        task = asyncio.create_task(transport.post(post_to("https://127.0.0.1:4443/")))
        await asked.wait()
        task.cancel()
        await asyncio.gather(task, return_exceptions=True)
        await none_left_of(before)


# --- the operator's proxy: credentials, and names that it resolves


class CheckingProxy(ConnectProxy):
    """Wants a user name and password; resolves names by a table of its own."""

    def __init__(self, expected: str | None, hosts: dict[str, str]) -> None:
        super().__init__()
        self.expected = expected
        self.hosts = hosts
        self.refused = 0
        self.page = b""
        """Body of its refusals."""

    async def __call__(self, peer: Peer) -> None:
        asked = (await peer.head()).decode()
        if self.expected is not None and f"\r\nproxy-authorization: {self.expected}\r\n" not in asked:
            self.refused += 1
            head = b"HTTP/1.1 407 Proxy Authentication Required\r\ncontent-length: %d\r\n\r\n" % len(self.page)
            await peer.send(head + self.page)
            await peer.until_closed()
            return
        host, _, port = asked.split()[1].rpartition(":")
        self.targets.append(f"{host}:{port}")
        if host not in self.hosts:
            await peer.send(b"HTTP/1.1 504 Gateway Timeout\r\n\r\n" + self.page)
            await peer.until_closed()
            return
        await self.relay(peer, self.hosts[host], int(port))


BASIC = "Basic dXNlcjpwYTpzcw=="  # user:pa:ss


async def test_a_changed_password_of_the_proxy_is_used_without_a_restart(
    opening: Opener, serving: Serving, tmp_path: Path
) -> None:
    """The first attempt with the old password fails as our own failure; the next one reads the file again."""
    file, new = tmp_path / "password", "Basic " + base64.b64encode(b"user:new").decode()
    file.write_bytes(b"pa:ss\n")
    proxy = CheckingProxy(BASIC, {"127.0.0.1": "127.0.0.1"})
    password = Secret(b"pa:ss", {"file": str(file)}, file)
    ends = []
    once = b"HTTP/1.1 200 OK\r\nconnection: close\r\ncontent-length: 0\r\n\r\n"
    async with serving(answering(once)) as server, Server(proxy, None).running() as entrance:
        settings = {"url": f"http://127.0.0.1:{entrance.port}", "username": "user", "password": password}
        async with opening(proxy=settings) as transport:
            ends.append(await transport.post(post_to(server.url)))
            proxy.expected = new
            file.write_bytes(b"new\n")
            ends += [await transport.post(post_to(server.url)) for _ in range(2)]
            file.unlink()
            os.mkfifo(file)  # reading it would never end: the last good password stays
            proxy.expected = "Basic none"
            ends.append(await transport.post(post_to(server.url)))
            proxy.expected = new
            ends.append(await transport.post(post_to(server.url)))
    assert [one.status or one.failure for one in ends] == [200, FailureReason.PROXY, 200, FailureReason.PROXY, 200]


@pytest.mark.parametrize("scheme", ["http", "https"])
async def test_the_tunnel_of_a_resolving_proxy_leads_to_the_host_name(
    opening: Opener, serving: Serving, tls: ssl.SSLContext, scheme: str
) -> None:
    """No DNS here at all: the name server named does not exist."""
    proxy = CheckingProxy(BASIC, {"hooks.example": "127.0.0.1"})
    settings = {"username": "user", "password": Secret(b"pa:ss"), "resolve": "proxy"}
    async with (
        serving(answering(OK)) as server,
        Server(proxy, tls if scheme == "https" else None).running() as entrance,
        opening(
            nameservers=("127.0.0.1:1",), allow=(), proxy={"url": f"{scheme}://127.0.0.1:{entrance.port}", **settings}
        ) as transport,
    ):
        url = f"https://hooks.example:{server.port}/"
        attempts = [await transport.post(post_to(url)) for _ in range(2)]
        unknown = await transport.post(post_to("https://elsewhere.example/"))
    assert [(one.status, one.reused, one.detail) for one in attempts] == [(200, False, ""), (200, True, "")]
    assert proxy.targets == [f"hooks.example:{server.port}", "elsewhere.example:443"]
    assert unknown.failure is FailureReason.CONNECT
    assert proxy.refused == 0


@pytest.mark.parametrize(
    ("url", "failure"),
    [
        ("https://10.0.0.1/", FailureReason.URL_DENIED),
        ("https://[::1]/", FailureReason.URL_DENIED),
        ("https://169.254.169.254/", FailureReason.URL_DENIED),
        ("https://kubernetes/", FailureReason.EGRESS_DENIED),
        ("https://localhost/", FailureReason.EGRESS_DENIED),
        ("https://a.localhost/", FailureReason.EGRESS_DENIED),
        ("https://kubernetes.default.svc/", FailureReason.EGRESS_DENIED),
        ("https://kubernetes.default.svc.cluster.local/", FailureReason.EGRESS_DENIED),
        ("https://metadata.google.internal/", FailureReason.EGRESS_DENIED),
        ("https://router.home.arpa/", FailureReason.EGRESS_DENIED),
        ("https://denied.example/", FailureReason.EGRESS_DENIED),
        ("https://hooks.example:22/", FailureReason.EGRESS_DENIED),
    ],
)
@pytest.mark.parametrize("allow", [(), ("8.8.8.0/24",)])
async def test_no_tunnel_of_a_resolving_proxy_leads_to_an_internal_name(
    opening: Opener, url: str, failure: FailureReason, allow: tuple[str, ...]
) -> None:
    """An allowed block makes no difference: no address is seen here that could be compared with it."""
    proxy = CheckingProxy(None, {})
    async with (
        Server(proxy, None).running() as entrance,
        opening(
            allow=allow,
            deny=("denied.example",),
            proxy={"url": f"http://127.0.0.1:{entrance.port}", "resolve": "proxy"},
        ) as transport,
    ):
        attempt = await transport.post(post_to(url))
    assert (attempt.failure, proxy.targets) == (failure, [])


async def test_a_name_that_is_allowed_may_be_an_inner_one(opening: Opener, serving: Serving) -> None:
    proxy = CheckingProxy(None, {"hooks.example": "127.0.0.1", "receiver.team.svc": "127.0.0.1"})
    async with (
        serving(answering(OK)) as server,
        Server(proxy, None).running() as entrance,
        opening(
            allow=(".team.svc",), proxy={"url": f"http://127.0.0.1:{entrance.port}", "resolve": "proxy"}
        ) as transport,
    ):
        attempt = await transport.post(post_to(f"https://receiver.team.svc:{server.port}/"))
    assert attempt.failure is FailureReason.TLS, "the tunnel was opened; the certificate is another name's"
    assert proxy.targets == [f"receiver.team.svc:{server.port}"]


@pytest.mark.parametrize("given", [{}, {"username": "user", "password": Secret(b"wrong")}])
@pytest.mark.parametrize("resolve", ["local", "proxy"])
@pytest.mark.parametrize("page", [b"", b"Who are you?\r\n\r\n"])
async def test_a_407_of_our_own_proxy_is_our_failure(
    opening: Opener, given: dict[str, object], resolve: str, page: bytes
) -> None:
    proxy = CheckingProxy(BASIC, {})
    proxy.page = page
    async with (
        Server(proxy, None).running() as entrance,
        opening(proxy={"url": f"http://127.0.0.1:{entrance.port}", "resolve": resolve, **given}) as transport,
    ):
        attempt = await transport.post(post_to("https://127.0.0.1:4443/"))
    assert attempt.failure is FailureReason.PROXY
    assert ("refused" if given else "wants") in attempt.detail
    assert "wrong" not in attempt.detail


@pytest.mark.parametrize("page", [b"", b"unreachable"])
async def test_the_next_address_is_tried_if_the_proxy_can_t_reach_the_first(
    opening: Opener, serving: Serving, page: bytes
) -> None:
    proxy = CheckingProxy(None, {"127.0.0.1": "127.0.0.1"})
    proxy.page = page
    async with NameServer().running() as names, serving(answering(OK)) as server, Server(proxy, None).running() as way:
        names.zone["hooks.example"] = [["127.0.0.9", "127.0.0.1"]]
        async with opening(nameservers=(names.address,), proxy=f"http://127.0.0.1:{way.port}") as transport:
            attempt = await transport.post(post_to(f"https://hooks.example:{server.port}/"))
    assert (attempt.status, attempt.detail) == (200, "")
    assert proxy.targets == [f"127.0.0.9:{server.port}", f"127.0.0.1:{server.port}"]


async def test_a_target_that_hangs_in_the_proxy_leaves_time_for_the_next(opening: Opener, serving: Serving) -> None:
    class Hanging(ConnectProxy):
        async def __call__(self, peer: Peer) -> None:
            head = (await peer.head()).decode()
            self.targets.append(head.split()[1])
            if "127.0.0.9" in head:
                await peer.until_closed()
                return
            await self.relay(peer, "127.0.0.1", int(head.split()[1].rpartition(":")[2]))

    proxy = Hanging()
    async with NameServer().running() as names, serving(answering(OK)) as server, Server(proxy, None).running() as way:
        names.zone["hooks.example"] = [["127.0.0.9", "127.0.0.1"]]
        async with opening(nameservers=(names.address,), proxy=f"http://127.0.0.1:{way.port}") as transport:
            url = f"https://hooks.example:{server.port}/"
            attempt = await transport.post(post_to(url, connect_timeout_s=6.0))
    assert (attempt.status, attempt.detail) == (200, "")
    assert len(proxy.targets) == 2


# --- what goes into the request line


@pytest.mark.parametrize(
    ("path", "target"),
    [
        ("/path?", b"/path?"),
        ("?", b"/?"),
        ("/a?b?", b"/a?b?"),
        ('/a{b}|c^d`e"f<g>[h]', b"/a%7Bb%7D%7Cc%5Ed%60e%22f%3Cg%3E%5Bh%5D"),
        ("/a?b[]={c}", b"/a?b%5B%5D=%7Bc%7D"),
        ("/100%", b"/100%25"),
        ("/%zz/%2F/%e4", b"/%25zz/%2F/%e4"),
        ("/a;b=c,d/e:f@g!$&'()*+~", b"/a;b=c,d/e:f@g!$&'()*+~"),
    ],
)
async def test_a_path_is_sent_as_written_but_for_what_no_uri_may_hold(
    transport: Transport, serving: Serving, path: str, target: bytes
) -> None:
    async with serving(answering(OK)) as server:
        attempt = await transport.post(post_to(f"https://127.0.0.1:{server.port}{path}"))
    assert attempt.status == 200
    assert server.requests[0].startswith(b"POST " + target + b" HTTP/1.1\r\n")


async def test_only_a_webhooks_own_endpoint_can_be_trusted_in_the_webhook(opening: Opener, serving: Serving) -> None:
    untrusted = server_context(trustme.CA())
    async with Server(answering(OK), untrusted).running() as server, serving(answering(OK)) as trusted:
        async with opening() as transport:
            webhook = await transport.post(post_to(replace(Endpoint.at(server.url), is_webhook=True)))
            beside = await transport.post(post_to(server.url))
        async with opening(proxy=f"https://127.0.0.1:{server.port}") as transport:
            proxy = await transport.post(post_to(trusted.url))
    assert webhook.detail.endswith("; trust its CA in egress.ca_bundle, or in the webhook's tls.ca")
    assert beside.detail.endswith("; trust its CA in egress.ca_bundle")
    assert proxy.detail.endswith("; trust its CA in egress.ca_bundle")
