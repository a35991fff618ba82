"""TLS as endpoints have it: certificates asked for late, sessions refused, bundles without a root, several ports."""

import asyncio
import contextlib
import ssl
from pathlib import Path

import pytest
import trustme

from dispatcher.contract.outcomes import FailureReason
from dispatcher.transport import Transport, certificate_expiry
from tests.transport.conftest import Opener, Serving, post_to, server_context
from tests.transport.real_servers import PostHandshakeServer, ResumptionRefuser, nginx, node
from tests.transport.servers import OK, NameServer, Peer, answering
from tests.transport.servers import Endpoint as Server
from tests.transport.test_tls import with_tls

CLOSING = b"HTTP/1.1 200 OK\r\nconnection: close\r\ncontent-length: 2\r\n\r\nok"
VERSIONS = [ssl.TLSVersion.TLSv1_2, ssl.TLSVersion.TLSv1_3]


def pem_of(leaf: trustme.LeafCert) -> tuple[bytes, bytes]:
    return b"".join(pem.bytes() for pem in leaf.cert_chain_pems), leaf.private_key_pem.bytes()


def speaking(authority: trustme.CA, version: ssl.TLSVersion) -> ssl.SSLContext:
    context = server_context(authority)
    context.minimum_version = context.maximum_version = version
    return context


# --- client certificates after the handshake


async def test_a_client_certificate_requested_after_the_handshake_is_presented(
    transport: Transport, authority: trustme.CA
) -> None:
    clients = trustme.CA()
    mine = clients.issue_cert("dispatcher.example")
    with PostHandshakeServer(authority, clients).running() as server:
        url = f"https://127.0.0.1:{server.port}/"
        without = await transport.post(post_to(url))
        attempts = [await transport.post(post_to(with_tls(url, None, *pem_of(mine)))) for _ in range(2)]
        asked = server.asked
    # Without a certificate the server can't even ask: it ends the connection (RFC 8446, section 4.6.2).
    assert without.status in (None, 403)
    assert [(one.status, one.reused) for one in attempts] == [(200, False), (200, True)], attempts
    assert asked >= 1


# --- sessions


@pytest.mark.parametrize("version", VERSIONS)
@pytest.mark.parametrize("how", ["alert", "close"])
async def test_a_server_that_refuses_sessions_is_dialled_once_more_without_one(
    transport: Transport, authority: trustme.CA, version: ssl.TLSVersion, how: str
) -> None:
    async with (
        Server(answering(CLOSING), speaking(authority, version)).running() as server,
        ResumptionRefuser(server.port, how).running() as refuser,
    ):
        url = f"https://127.0.0.1:{refuser.port}/"
        attempts = [await transport.post(post_to(url)) for _ in range(4)]
        burst = await asyncio.gather(*(transport.post(post_to(url)) for _ in range(12)))
    assert {(one.status, one.detail) for one in [*attempts, *burst]} == {(200, "")}
    assert refuser.offered == 1, "the refusal is remembered"


@pytest.mark.parametrize("version", VERSIONS)
async def test_a_burst_that_offers_a_refused_session_is_answered(
    transport: Transport, authority: trustme.CA, version: ssl.TLSVersion
) -> None:
    async with (
        Server(answering(CLOSING), speaking(authority, version)).running() as server,
        ResumptionRefuser(server.port, "alert").running() as refuser,
    ):
        url = f"https://127.0.0.1:{refuser.port}/"
        await transport.post(post_to(url))
        burst = await asyncio.gather(*(transport.post(post_to(url)) for _ in range(12)))
    assert {one.status for one in burst} == {200}


async def test_after_a_hang_on_a_session_the_next_request_has_none(transport: Transport, authority: trustme.CA) -> None:
    async with (
        Server(answering(CLOSING), server_context(authority)).running() as server,
        ResumptionRefuser(server.port, "silent").running() as refuser,
    ):
        url = f"https://127.0.0.1:{refuser.port}/"
        first = await transport.post(post_to(url))
        hung = await transport.post(post_to(url, connect_timeout_s=0.5))
        after = await transport.post(post_to(url))
    assert (first.status, hung.failure, after.status) == (200, FailureReason.CONNECT_TIMEOUT, 200)


@pytest.mark.parametrize("version", VERSIONS)
@pytest.mark.parametrize("how", ["reset", "close", "after the request"])
async def test_a_server_that_drops_a_resumed_connection_is_dialled_once_more_without_a_session(
    transport: Transport, authority: trustme.CA, version: ssl.TLSVersion, how: str
) -> None:
    dropped = 0

    async def script(peer: Peer) -> None:
        nonlocal dropped
        if peer.writer.get_extra_info("ssl_object").session_reused:
            dropped += 1
            if how == "after the request":
                await peer.request()
            if how == "reset":
                peer.reset()
            else:
                peer.writer.close()
            return
        await answering(CLOSING)(peer)

    async with Server(script, speaking(authority, version)).running() as server:
        attempts = [await transport.post(post_to(server.url)) for _ in range(4)]
    assert [(one.status, one.detail) for one in attempts] == [(200, "")] * 4
    assert dropped == 1


async def test_a_server_that_fails_without_a_session_too_is_judged(transport: Transport) -> None:
    """No endless redialling: one connection with the session, one without."""
    dials = 0

    async def script(peer: Peer) -> None:
        nonlocal dials
        dials += 1
        await peer.request()
        if dials == 1:
            await peer.send(CLOSING)
        peer.writer.close()

    authority = trustme.CA()
    context = server_context(authority)
    async with Server(script, context).running() as server:
        endpoint = with_tls(server.url, authority.cert_pem.bytes())
        first = await transport.post(post_to(endpoint))
        second = await transport.post(post_to(endpoint))
    assert (first.status, second.failure) == (200, FailureReason.RESET)
    assert dials == 3


@pytest.mark.parametrize("version", ["TLSv1.2", "TLSv1.3"])
async def test_a_node_server_that_drops_resumed_connections_gets_every_event(
    opening: Opener, authority: trustme.CA, tmp_path: Path, version: str
) -> None:
    script = """
      server.on('request', (request, response) => { request.resume(); request.on('end', () => {
        if (request.socket.isSessionReused()) return request.socket.destroy();
        response.setHeader('connection', 'close'); response.end('ok'); }); });
    """
    options = f"maxVersion: '{version}'"
    async with (
        node(tmp_path / "node", authority.issue_cert("127.0.0.1"), script, options) as port,
        opening() as transport,
    ):
        attempts = [await transport.post(post_to(f"https://127.0.0.1:{port}/")) for _ in range(4)]
    assert [(one.status, one.detail) for one in attempts] == [(200, "")] * 4


async def test_sessions_belong_to_host_and_port(transport: Transport, authority: trustme.CA) -> None:
    async with (
        Server(answering(CLOSING), server_context(authority)).running() as one,
        Server(answering(CLOSING), server_context(authority)).running() as other,
    ):
        for _ in range(3):
            assert (await transport.post(post_to(one.url))).status == 200
            assert (await transport.post(post_to(other.url))).status == 200
    assert (one.resumed, other.resumed) == (2, 2), "each port resumes its own session"


async def test_the_expiry_of_certificates_is_kept_by_host_and_port(
    opening: Opener, authority: trustme.CA, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    import datetime

    monkeypatch.setattr(certificate_expiry, "_expiries", {})
    soon = datetime.datetime.now(datetime.UTC) + datetime.timedelta(days=3)
    async with (
        nginx(tmp_path / "a", authority.issue_cert("127.0.0.1", not_after=soon), "return 200;") as short,
        nginx(tmp_path / "b", authority.issue_cert("127.0.0.1"), "return 200;") as long,
        opening() as transport,
    ):
        for port in (short, long):
            assert (await transport.post(post_to(f"https://127.0.0.1:{port}/"))).status == 200
    found = certificate_expiry.certificate_expiries()
    assert set(found) == {("127.0.0.1", short), ("127.0.0.1", long)}
    assert found["127.0.0.1", short] == pytest.approx(soon.timestamp(), abs=2)
    assert found["127.0.0.1", long] > soon.timestamp() + 86_400


async def test_a_certificate_that_has_expired_is_noted_and_its_renewal_too(
    opening: Opener, authority: trustme.CA, monkeypatch: pytest.MonkeyPatch
) -> None:
    """A refused certificate can't be read; that it has expired is known all the same."""
    import datetime

    monkeypatch.setattr(certificate_expiry, "_expiries", {})
    now = datetime.datetime.now(datetime.UTC)
    context = ssl.SSLContext(ssl.PROTOCOL_TLS_SERVER)
    gone_by = {"not_before": now - datetime.timedelta(days=9), "not_after": now - datetime.timedelta(days=1)}
    authority.issue_cert("127.0.0.1", **gone_by).configure_cert(context)
    async with Server(answering(OK), context).running() as server, opening() as transport:
        attempt = await transport.post(post_to(server.url))
        assert (attempt.failure, certificate_expiry.certificate_expiries().keys()) == (
            FailureReason.TLS,
            {("127.0.0.1", server.port)},
        )
        assert (
            certificate_expiry.certificate_expiries()["127.0.0.1", server.port]
            <= datetime.datetime.now(datetime.UTC).timestamp()
        )
        authority.issue_cert("127.0.0.1").configure_cert(context)
        assert (await transport.post(post_to(server.url))).status == 200
        assert certificate_expiry.certificate_expiries()["127.0.0.1", server.port] > now.timestamp() + 86_400


async def test_a_certificate_refused_for_another_reason_has_not_expired(
    opening: Opener, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(certificate_expiry, "_expiries", {})
    async with (
        Server(answering(OK), server_context(trustme.CA())).running() as server,
        opening() as transport,
    ):
        assert (await transport.post(post_to(server.url))).failure is FailureReason.TLS
    assert certificate_expiry.certificate_expiries() == {}


# --- what a CA bundle may hold


@pytest.mark.parametrize("holds", ["root", "intermediate", "leaf"])
async def test_a_bundle_may_hold_any_certificate_of_the_chain(transport: Transport, holds: str) -> None:
    root = trustme.CA()
    intermediate = root.create_child_ca()
    leaf = intermediate.issue_cert("127.0.0.1")
    context = ssl.SSLContext(ssl.PROTOCOL_TLS_SERVER)
    leaf.configure_cert(context)
    bundle = {
        "root": root.cert_pem.bytes(),
        "intermediate": intermediate.cert_pem.bytes(),
        "leaf": leaf.cert_chain_pems[0].bytes(),
    }[holds]
    async with Server(answering(OK), context).running() as server:
        attempt = await transport.post(post_to(with_tls(server.url, bundle)))
        stranger = await transport.post(post_to(with_tls(server.url, trustme.CA().create_child_ca().cert_pem.bytes())))
    assert (attempt.status, attempt.detail) == (200, "")
    assert stranger.failure is FailureReason.TLS


async def test_the_operators_bundle_may_hold_an_intermediate_only(opening: Opener, tmp_path: Path) -> None:
    intermediate = trustme.CA().create_child_ca()
    context = ssl.SSLContext(ssl.PROTOCOL_TLS_SERVER)
    intermediate.issue_cert("127.0.0.1").configure_cert(context)
    intermediate.cert_pem.write_to_path(tmp_path / "ca.pem")
    async with Server(answering(OK), context).running() as server, opening(ca_bundle=tmp_path / "ca.pem") as transport:
        assert (await transport.post(post_to(server.url))).status == 200


async def test_a_leaf_in_the_bundle_vouches_for_its_own_names_only(opening: Opener, serving: Serving) -> None:
    leaf = trustme.CA().issue_cert("hooks.example")
    context = ssl.SSLContext(ssl.PROTOCOL_TLS_SERVER)
    leaf.configure_cert(context)
    async with NameServer().running() as names, Server(answering(OK), context).running() as server:
        names.zone |= {"hooks.example": [["127.0.0.1"]], "wrong.example": [["127.0.0.1"]]}
        async with opening(nameservers=(names.address,)) as transport:
            pem = leaf.cert_chain_pems[0].bytes()
            right = await transport.post(post_to(with_tls(f"https://hooks.example:{server.port}/", pem)))
            wrong = await transport.post(post_to(with_tls(f"https://wrong.example:{server.port}/", pem)))
    assert (right.status, wrong.failure) == (200, FailureReason.TLS)


async def test_cancelling_in_a_second_dial_leaves_nothing(transport: Transport, authority: trustme.CA) -> None:
    async with (
        Server(answering(CLOSING), server_context(authority)).running() as server,
        ResumptionRefuser(server.port, "alert").running() as refuser,
    ):
        url = f"https://127.0.0.1:{refuser.port}/"
        await transport.post(post_to(url))
        task = asyncio.create_task(transport.post(post_to(url)))
        while not refuser.offered:
            await asyncio.sleep(0)
        task.cancel()
        with contextlib.suppress(asyncio.CancelledError):
            await task
        assert (await transport.post(post_to(url))).status == 200
