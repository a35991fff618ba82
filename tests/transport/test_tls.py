"""TLS for both transports: client certificates, rotation, resumption. Wrong set-ups are in tests/security/test_tls_setups."""

import asyncio
import gc
import json
import os
import ssl
from dataclasses import replace
from pathlib import Path

import pytest
import trustme
from cryptography.x509 import load_pem_x509_certificate

from dispatcher.config.secret_scope import SecretScope
from dispatcher.config.secrets import Secret
from dispatcher.contract.outcomes import FailureReason
from dispatcher.stores.webhook_file import Rules
from dispatcher.stores.webhook_files import read_directory
from dispatcher.transport import Endpoint, Transport, tls_contexts
from dispatcher.transport.tls import new_context
from dispatcher.transport.tls_contexts import TlsContexts
from tests.stores.kubelet import MountedVolume
from tests.transport.conftest import Opener, Serving, post_to, server_context
from tests.transport.servers import OK, NameServer, Peer, answering
from tests.transport.servers import Endpoint as Server


def with_tls(url: str, ca: bytes | None = None, certificate: bytes | None = None, key: bytes | None = None) -> Endpoint:
    plain = Endpoint.at(url)
    secrets = [None if pem is None else Secret(pem) for pem in (ca, certificate, key)]
    return Endpoint(plain.scheme, plain.host, plain.port, plain.target, plain.authority, (), *secrets)


async def test_a_server_that_speaks_no_tls_is_refused(transport: Transport) -> None:
    async def plain_http(peer: Peer) -> None:
        await peer.send(b"HTTP/1.1 400 Bad Request\r\n\r\n")

    async with Server(plain_http, None).running() as server:
        attempt = await transport.post(post_to(server.url))
    assert attempt.failure is FailureReason.TLS


async def test_a_server_that_closes_in_the_handshake_is_a_tls_failure(transport: Transport) -> None:
    async def close(peer: Peer) -> None:
        await peer.reader.read(10)

    async with Server(close, None).running() as server:
        attempt = await transport.post(post_to(server.url))
    assert attempt.failure is FailureReason.TLS
    assert "handshake" in attempt.detail


@pytest.mark.parametrize("version", [ssl.TLSVersion.TLSv1_2, ssl.TLSVersion.TLSv1_3])
async def test_a_client_certificate_is_presented_if_it_is_configured(
    transport: Transport, authority: trustme.CA, version: ssl.TLSVersion
) -> None:
    clients = trustme.CA()
    context = server_context(authority)
    context.minimum_version = context.maximum_version = version
    context.verify_mode = ssl.CERT_REQUIRED
    clients.configure_trust(context)
    mine = clients.issue_cert("dispatcher.example")
    chain, key = b"".join(pem.bytes() for pem in mine.cert_chain_pems), mine.private_key_pem.bytes()
    stranger = trustme.CA().issue_cert("dispatcher.example")
    async with Server(answering(OK), context).running() as server:
        without = await transport.post(post_to(server.url))
        attempt = await transport.post(post_to(with_tls(server.url, None, chain, key)))
        wrong = await transport.post(
            post_to(with_tls(server.url, None, stranger.cert_chain_pems[0].bytes(), stranger.private_key_pem.bytes()))
        )
        again = await transport.post(post_to(server.url))
    assert attempt.status == 200
    # With TLS 1.3 the refusal comes after the handshake, as an alert or as a reset, whichever arrives first.
    for other in (without, wrong, again):
        assert other.status is None
        assert other.failure in (FailureReason.TLS, FailureReason.RESET)
    assert len(server.requests) == 1


async def test_client_certificate_and_ca_are_rotated_by_their_files_alone(transport: Transport, tmp_path: Path) -> None:
    """From the mounted files to the handshake: what a webhook's files hold now is shown, and verified with, now."""
    clients, shown = trustme.CA(), []

    async def script(peer: Peer) -> None:
        shown.append(peer.writer.get_extra_info("peercert")["serialNumber"])
        await answering(OK)(peer)

    volume, known, serials = MountedVolume(tmp_path / "webhooks.d"), {}, []
    for generation in range(3):
        own = trustme.CA()
        context = server_context(own)
        context.verify_mode = ssl.CERT_REQUIRED
        clients.configure_trust(context)
        mine = clients.issue_cert(f"dispatcher-{generation}.example")
        chain = b"".join(pem.bytes() for pem in mine.cert_chain_pems).decode()
        serials.append(f"{load_pem_x509_certificate(chain.encode()).serial_number:X}")
        async with Server(script, context).running() as server:
            webhook = {
                "name": "n", "org": "o", "sandbox": "s", "url": "https://127.0.0.1:8443/",
                "tls": {name: {"file": f"{name}.pem"} for name in ("ca", "certificate", "key")},
            }  # fmt: skip
            pems = {"ca": own.cert_pem.bytes(), "certificate": chain.encode(), "key": mine.private_key_pem.bytes()}
            files = {f"{name}.pem": pem.decode() for name, pem in pems.items()}
            volume.update({"a.yaml": json.dumps({"apiVersion": "dispatcher/v1", "webhooks": [webhook]}), **files})
            known = read_directory(volume.path, known, Rules(lambda _: [], SecretScope((volume.path,), ())))
            (found,) = known["a.yaml"].webhooks
            endpoint = replace(Endpoint.of(found.config), port=server.port, authority=f"127.0.0.1:{server.port}")
            attempts = [await transport.post(post_to(endpoint)) for _ in range(2)]
        assert [(one.status, one.failure) for one in attempts] == [(200, None)] * 2
    assert [f"{int(serial, 16):X}" for serial in shown] == serials


async def test_a_rotated_client_certificate_is_shown_while_connections_of_the_old_one_are_kept(
    transport: Transport, tls: ssl.SSLContext, authority: trustme.CA
) -> None:
    clients, shown = trustme.CA(), []

    async def script(peer: Peer) -> None:
        shown.append(peer.writer.get_extra_info("peercert")["subjectAltName"][0][1])
        await answering(OK)(peer)

    context = server_context(authority)
    context.verify_mode = ssl.CERT_REQUIRED
    clients.configure_trust(context)
    attempts = []
    async with Server(script, context).running() as server:
        for name in ("first.example", "second.example"):
            mine = clients.issue_cert(name)
            chain = b"".join(pem.bytes() for pem in mine.cert_chain_pems)
            target = with_tls(server.url, None, chain, mine.private_key_pem.bytes())
            attempts += [await transport.post(post_to(target)) for _ in range(2)]
    assert [one.status for one in attempts] == [200] * 4
    assert [one.reused for one in attempts] == [False, True, False, True]
    assert shown == ["first.example", "second.example"]


async def test_a_server_that_asks_for_another_group_is_answered(transport: Transport, authority: trustme.CA) -> None:
    """TLS 1.3: such a server sends HelloRetryRequest; with a session offered, too."""
    context = server_context(authority)
    context.minimum_version = ssl.TLSVersion.TLSv1_3
    context.set_ecdh_curve("secp521r1")
    last = b"HTTP/1.1 200 OK\r\ncontent-length: 0\r\nconnection: close\r\n\r\n"
    async with Server(answering(last, close=True), context).running() as server:
        attempts = [await transport.post(post_to(server.url)) for _ in range(3)]
    assert [(one.status, one.failure, one.reused) for one in attempts] == [(200, None, False)] * 3


async def test_a_server_that_knows_no_such_name_is_refused(opening: Opener, authority: trustme.CA) -> None:
    asked: list[str | None] = []

    def unknown(_: object, name: str | None, __: object) -> int:
        asked.append(name)
        return ssl.ALERT_DESCRIPTION_UNRECOGNIZED_NAME

    context = server_context(authority, "hooks.example")
    context.sni_callback = unknown
    async with NameServer().running() as names, Server(answering(OK), context).running() as server:
        names.zone["hooks.example"] = [["127.0.0.1"]]
        async with opening(nameservers=(names.address,)) as transport:
            attempt = await transport.post(post_to(f"https://hooks.example:{server.port}/"))
    assert (attempt.status, attempt.failure) == (None, FailureReason.TLS)
    assert "TLS" in attempt.detail
    assert set(asked) == {"hooks.example"}
    assert server.requests == []


async def test_an_endpoint_s_own_ca_replaces_the_operator_s(transport: Transport) -> None:
    own = trustme.CA()
    async with Server(answering(OK), server_context(own)).running() as server:
        with_ca = await transport.post(post_to(with_tls(server.url, own.cert_pem.bytes())))
        without = await transport.post(post_to(server.url))
    assert (with_ca.status, without.failure) == (200, FailureReason.TLS)


async def test_a_connection_is_not_shared_between_tls_identities(transport: Transport, serving: Serving) -> None:
    mine = trustme.CA().issue_cert("dispatcher.example")
    chain, key = mine.cert_chain_pems[0].bytes(), mine.private_key_pem.bytes()
    async with serving(answering(OK)) as server:
        await transport.post(post_to(server.url))
        other = await transport.post(post_to(with_tls(server.url, None, chain, key)))
        same = await transport.post(post_to(with_tls(server.url, None, chain, key)))
    assert [other.reused, same.reused] == [False, True]


@pytest.mark.parametrize(
    ("pem", "says"),
    [
        ((b"nonsense", None, None), "CA is not a bundle"),
        ((b"\xff\xfe", None, None), "CA is not a bundle"),
        ((None, b"nonsense", b"nonsense"), "client certificate"),
    ],
)
async def test_pem_that_can_t_be_used_is_a_tls_failure_with_a_reason(
    transport: Transport, serving: Serving, pem: tuple[bytes | None, bytes | None, bytes | None], says: str
) -> None:
    async with serving(answering(OK)) as server:
        endpoint = with_tls(server.url, *pem)
        attempts = [await transport.post(post_to(endpoint)) for _ in range(2)]
    assert {attempt.failure for attempt in attempts} == {FailureReason.TLS}
    assert all(says in attempt.detail for attempt in attempts)


def test_an_encrypted_key_is_refused_and_never_asks_the_terminal() -> None:
    from cryptography.hazmat.primitives import serialization as s

    leaf = trustme.CA().issue_cert("a.example")
    key = s.load_pem_private_key(leaf.private_key_pem.bytes(), None)
    locked = key.private_bytes(s.Encoding.PEM, s.PrivateFormat.PKCS8, s.BestAvailableEncryption(b"secret"))
    with pytest.raises(ValueError, match="without a passphrase"):
        new_context(None, leaf.cert_chain_pems[0].bytes(), locked)


@pytest.mark.parametrize("version", [ssl.TLSVersion.TLSv1_2, ssl.TLSVersion.TLSv1_3])
async def test_a_new_connection_resumes_the_session_of_the_last(
    transport: Transport, authority: trustme.CA, version: ssl.TLSVersion
) -> None:
    context = server_context(authority)
    context.minimum_version = context.maximum_version = version
    reply = b"HTTP/1.1 200 OK\r\nconnection: close\r\ncontent-length: 0\r\n\r\n"
    async with Server(answering(reply), context).running() as server:
        for _ in range(3):
            assert (await transport.post(post_to(server.url))).status == 200
    assert (server.connections, server.resumed) == (3, 2)


async def test_a_session_is_not_offered_under_another_name(opening: Opener, serving: Serving) -> None:
    async with NameServer().running() as names, serving(answering(OK)) as server:
        names.zone |= {"hooks.example": [["127.0.0.1"]], "wrong.example": [["127.0.0.1"]]}
        async with opening(nameservers=(names.address,)) as transport:
            right = await transport.post(post_to(f"https://hooks.example:{server.port}/"))
            wrong = await transport.post(post_to(f"https://wrong.example:{server.port}/"))
    assert (right.status, wrong.failure) == (200, FailureReason.TLS)


async def test_a_new_ca_bundle_is_used_without_a_restart_and_a_bad_one_is_not(
    opening: Opener, serving: Serving, authority: trustme.CA, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(tls_contexts, "BUNDLE_CHECK_S", 0.0)
    monkeypatch.setattr(tls_contexts, "_KNOWN_BUNDLE_WITHIN_S", 60.0)
    bundle = tmp_path / "ca.pem"
    trustme.CA().cert_pem.write_to_path(bundle)
    reply = b"HTTP/1.1 200 OK\r\nconnection: close\r\ncontent-length: 0\r\n\r\n"
    async with serving(answering(reply)) as server, opening(ca_bundle=bundle) as transport:
        endpoint = Endpoint.at(server.url)
        before = await transport.post(post_to(endpoint))
        new = tmp_path / "new"
        authority.cert_pem.write_to_path(new)
        os.replace(new, bundle)
        async with asyncio.timeout(60):
            while (after := await transport.post(post_to(endpoint))).failure is not None:
                assert after.failure is FailureReason.TLS, "the file may just have been read"
        bundle.write_text("nonsense")
        kept = await transport.post(post_to(endpoint))
        bundle.unlink()
        gone = await transport.post(post_to(endpoint))
    assert [before.failure, after.status, kept.status, gone.status] == [FailureReason.TLS, 200, 200, 200]


async def test_a_ca_bundle_that_was_never_there_does_not_fall_back_to_the_system_s(
    opening: Opener, serving: Serving, tmp_path: Path
) -> None:
    async with serving(answering(OK)) as server, opening(ca_bundle=tmp_path / "none.pem") as transport:
        attempt = await transport.post(post_to(server.url))
    assert attempt.failure is FailureReason.LOCAL
    assert "operator's CA bundle" in attempt.detail


def test_endpoints_of_the_same_identity_share_a_context(ca_bundle: Path) -> None:
    contexts = TlsContexts(ca_bundle)
    mine = trustme.CA().issue_cert("a.example")
    pair = (mine.cert_chain_pems[0].bytes(), mine.private_key_pem.bytes())
    urls = [f"https://tenant{i}.example/" for i in range(3)]
    assert len({id(contexts.of(Endpoint.at(url))) for url in urls}) == 1
    assert len({id(contexts.of(with_tls(url, None, *pair))) for url in urls}) == 1
    assert contexts.of(Endpoint.at(urls[0])) is not contexts.of(with_tls(urls[0], None, *pair))


def test_a_context_is_kept_for_as_long_as_an_endpoint_uses_it() -> None:
    contexts = TlsContexts(None)
    endpoints = [with_tls(f"https://a{i}.example/", trustme.CA().cert_pem.bytes()) for i in range(4)]
    made = {id(contexts.of(endpoint)) for endpoint in endpoints}
    assert {id(contexts.of(endpoint)) for endpoint in endpoints} == made
    assert len(contexts) == 4
    del endpoints[1:]
    gc.collect()
    assert len(contexts) == 1
