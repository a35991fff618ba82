"""TLS contexts are made in a thread, one at a time: each loads all CAs, which takes too long for the event loop."""

import asyncio
import threading
import time
from pathlib import Path

import pytest
import trustme

from dispatcher.config.secrets import Secret
from dispatcher.contract.outcomes import FailureReason
from dispatcher.transport import Endpoint, Transport, tls_contexts
from dispatcher.transport.tls_contexts import TlsContexts
from dispatcher.transport.tls_sessions import TlsContext
from tests.transport.conftest import Opener, Serving, post_to
from tests.transport.servers import OK, answering


def with_identity(url: str, authority: trustme.CA, number: int) -> Endpoint:
    """Returns an endpoint with a client certificate of its own."""
    plain, own = Endpoint.at(url), authority.issue_cert(f"client{number}.example")
    certificate, key = own.cert_chain_pems[0].bytes(), own.private_key_pem.bytes()
    return Endpoint(
        plain.scheme, plain.host, plain.port, plain.target, plain.authority,
        certificate=Secret(certificate), key=Secret(key),
    )  # fmt: skip


class Making:
    """Records where contexts are made; with `of_bundle` also those without a client certificate."""

    def __init__(self, monkeypatch: pytest.MonkeyPatch, *, of_bundle: bool = False) -> None:
        self._of_bundle = of_bundle
        self.threads: list[int] = []
        self.most = 0
        self._now = 0
        self._original = tls_contexts.new_context
        monkeypatch.setattr(tls_contexts, "new_context", self.new_context)

    def new_context(
        self, ca: bytes | None = None, certificate: bytes | None = None, key: bytes | None = None
    ) -> TlsContext:
        if certificate is None and not self._of_bundle:
            return self._original(ca)
        self.threads.append(threading.get_ident())
        self._now += 1
        self.most = max(self.most, self._now)
        time.sleep(0.01)
        self._now -= 1
        return self._original(ca, certificate, key)


async def test_contexts_are_made_in_a_thread_one_at_a_time(
    transport: Transport, serving: Serving, authority: trustme.CA, monkeypatch: pytest.MonkeyPatch
) -> None:
    making = Making(monkeypatch)
    async with serving(answering(OK)) as server:
        endpoints = [with_identity(server.url, authority, number) for number in range(5)]
        attempts = await asyncio.gather(*(transport.post(post_to(one)) for one in [*endpoints, *endpoints]))
        assert [one.status for one in attempts] == [200] * 10
        again = await asyncio.gather(*(transport.post(post_to(one)) for one in endpoints))
        assert [(one.status, one.reused) for one in again] == [(200, True)] * 5
    assert len(making.threads) == 5
    assert threading.get_ident() not in making.threads
    assert making.most == 1


async def test_after_a_change_of_the_bundle_they_are_made_in_a_thread_again(
    opening: Opener, serving: Serving, authority: trustme.CA, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    bundle = tmp_path / "bundle.pem"
    authority.cert_pem.write_to_path(bundle)
    monkeypatch.setattr(tls_contexts, "BUNDLE_CHECK_S", 0.0)
    making = Making(monkeypatch)
    async with serving(answering(OK)) as server, opening(ca_bundle=bundle) as transport:
        endpoint = with_identity(server.url, authority, 1)
        assert (await transport.post(post_to(endpoint))).status == 200
        bundle.write_bytes(authority.cert_pem.bytes() + trustme.CA().cert_pem.bytes())
        async with asyncio.timeout(60):
            while len(making.threads) < 2:
                assert (await transport.post(post_to(endpoint))).status == 200
        assert (await transport.post(post_to(endpoint))).status == 200
    assert len(making.threads) == 2
    assert threading.get_ident() not in making.threads


async def test_a_bundle_is_read_in_a_thread_at_the_start_and_after_each_change(
    opening: Opener, serving: Serving, authority: trustme.CA, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    bundle = tmp_path / "bundle.pem"
    authority.cert_pem.write_to_path(bundle)
    monkeypatch.setattr(tls_contexts, "BUNDLE_CHECK_S", 0.0)
    making = Making(monkeypatch, of_bundle=True)
    closing = b"HTTP/1.1 200 OK\r\nconnection: close\r\ncontent-length: 0\r\n\r\n"
    async with serving(answering(closing)) as server, opening(ca_bundle=bundle) as transport:
        endpoint = Endpoint.at(server.url)
        for text in (authority.cert_pem.bytes(), trustme.CA().cert_pem.bytes()):
            bundle.write_bytes(authority.cert_pem.bytes() + text)
            read = len(making.threads)
            async with asyncio.timeout(60):
                while len(making.threads) == read:
                    assert (await transport.post(post_to(endpoint))).status == 200
    assert threading.get_ident() not in making.threads
    assert making.most == 1


async def test_a_bundle_whose_volume_hangs_is_used_as_it_was(
    opening: Opener, serving: Serving, authority: trustme.CA, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    bundle = tmp_path / "bundle.pem"
    authority.cert_pem.write_to_path(bundle)
    monkeypatch.setattr(tls_contexts, "BUNDLE_CHECK_S", 0.0)
    monkeypatch.setattr(tls_contexts, "_KNOWN_BUNDLE_WITHIN_S", 0.1)
    is_back = threading.Event()
    async with serving(answering(OK)) as server, opening(ca_bundle=bundle) as transport:
        assert (await transport.post(post_to(server.url))).status == 200
        monkeypatch.setattr(tls_contexts.CaBundle, "read_if_changed", lambda _: is_back.wait(60) and None)
        endpoints = [Endpoint.at(server.url), with_identity(server.url, authority, 1)]
        attempts = [await transport.post(post_to(endpoint)) for endpoint in endpoints]
        is_back.set()
    assert [attempt.status for attempt in attempts] == [200, 200]


async def test_the_context_of_an_egress_proxy_is_made_in_a_thread(
    opening: Opener, serving: Serving, authority: trustme.CA, monkeypatch: pytest.MonkeyPatch
) -> None:
    making = Making(monkeypatch, of_bundle=True)
    async with serving(answering(OK)) as server, opening(proxy=f"https://127.0.0.1:{server.port}") as transport:
        attempt = await transport.post(post_to(with_identity(server.url, authority, 1)))
    assert attempt.failure is FailureReason.PROXY
    assert making.threads
    assert threading.get_ident() not in making.threads


async def test_a_client_certificate_that_can_t_be_used_is_still_named(
    transport: Transport, serving: Serving, authority: trustme.CA
) -> None:
    async with serving(answering(OK)) as server:
        endpoint = with_identity(server.url, authority, 1)
        endpoint = Endpoint(
            endpoint.scheme, endpoint.host, endpoint.port, endpoint.target, endpoint.authority,
            certificate=endpoint.certificate, key=Secret(b"none"),
        )  # fmt: skip
        for _ in range(2):
            attempt = await transport.post(post_to(endpoint))
            assert attempt.failure is FailureReason.TLS
            assert "the client certificate and its key can't be used" in attempt.detail


async def test_a_context_that_is_not_made_in_time_is_our_own_failure(
    transport: Transport, serving: Serving, authority: trustme.CA, monkeypatch: pytest.MonkeyPatch
) -> None:
    original, over = tls_contexts.new_context, threading.Event()

    def slow(*pem: bytes | None) -> TlsContext:
        if len(pem) == 3 and pem[1] is not None:
            over.wait(60)
        return original(*pem)

    monkeypatch.setattr(tls_contexts, "new_context", slow)
    async with serving(answering(OK)) as server:
        endpoint = with_identity(server.url, authority, 1)
        attempt = await transport.post(post_to(endpoint, timeout_s=0.4))
        over.set()
    assert attempt.failure is FailureReason.LOCAL


def test_contexts_are_made_without_a_loop_too(ca_bundle: Path) -> None:
    assert TlsContexts(ca_bundle).of(Endpoint.at("https://a.example/")) is not None
