"""Keeps the TLS context of a port up to date with the files of its certificate."""

import asyncio
import ssl
from typing import Final

import structlog

from dispatcher.config.ops_tls import OpsTls
from dispatcher.errors import ConfigError, Problem
from dispatcher.telemetry import metrics
from dispatcher.transport.tls import as_file, bundle_problems, file_problem, read_pem, refuse_passphrase

CHECK_S: Final = 10.0
"""Seconds between two looks at the files."""

log = structlog.get_logger(__name__)


class ServerCertificate:
    """A certificate and its key. Connections that are open when the files change keep the old certificate."""

    def __init__(self, tls: OpsTls) -> None:
        """Reads the files.

        Raises:
            ConfigError: they can't be used; the message names the setting.
        """
        self._tls = tls
        self._reported = ""
        try:
            self._content = self._read()
            self.context = server_context(*self._content)
            """The context for new connections."""
        except (OSError, ValueError) as error:
            raise ConfigError([Problem(file_problem(error), "ops.tls.certificate")]) from error
        metrics.OPS_CERTIFICATE_OK.set(1)

    async def follow(self) -> None:
        """Reads the files every `CHECK_S` until cancelled. If they can't be used, the last good ones stay in use."""
        while True:
            await asyncio.sleep(CHECK_S)
            try:
                await asyncio.to_thread(self._refresh)
            except (OSError, ValueError) as error:
                metrics.OPS_CERTIFICATE_OK.set(0)
                text = file_problem(error)
                if text != self._reported:
                    log.warning("the new certificate of ops.tls can't be used: the last good one stays", why=text)
                self._reported = text
            else:
                metrics.OPS_CERTIFICATE_OK.set(1)
                self._reported = ""

    def _refresh(self) -> None:
        content = self._read()
        if content != self._content:
            self.context = server_context(*content)
            self._content = content
            log.info("the certificate of ops.tls was read again")

    def _read(self) -> tuple[bytes, bytes]:
        return read_pem(self._tls.certificate), read_pem(self._tls.key)


def server_context(certificate: bytes, key: bytes) -> ssl.SSLContext:
    """Returns a context for a server with this certificate chain and key in PEM: TLS 1.2 and 1.3.

    Raises:
        ValueError: they can't be used together.
        OSError: this machine failed: no file descriptor is free.
    """
    context = ssl.SSLContext(ssl.PROTOCOL_TLS_SERVER)
    context.minimum_version = ssl.TLSVersion.TLSv1_2
    context.options |= ssl.OP_NO_RENEGOTIATION
    context.set_alpn_protocols(["http/1.1"])
    try:
        with as_file(certificate + b"\n" + key) as path:
            context.load_cert_chain(path, password=refuse_passphrase)
    except (ssl.SSLError, ValueError) as error:
        why = getattr(error, "reason", None) or str(error)
        raise ValueError(
            f"certificate and key can't be used together ({why}): give both in PEM, the certificate of this very key "
            "first in its chain, the key without a passphrase"
        ) from error
    return context


def certificate_problems(tls: OpsTls | None) -> list[Problem]:
    """Returns the mistakes in the files of `ops.tls`."""
    if tls is None:
        return []
    found: list[Problem] = []
    try:
        ServerCertificate(tls)
    except ConfigError as error:
        found += error.problems
    return [*found, *bundle_problems(tls.ca, "ops.tls.ca")]
