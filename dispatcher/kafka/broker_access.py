"""Prepares every connection to a broker, and names why one failed.

aiokafka's clients keep the credentials they were made with. Here the files are read again before each connection, so
that a rotated password, certificate or CA needs no restart (patched in by `aiokafka_patches`). While a file can't be
used, the last good version stays in use.
"""

import asyncio
import ssl
import time
from dataclasses import dataclass
from typing import Final, Protocol

from aiokafka.abc import AbstractTokenProvider
from aiokafka.errors import KafkaConnectionError

from dispatcher.config.kafka_settings import KafkaSettings
from dispatcher.contract.kafka_problems import CONNECTING, KafkaReason
from dispatcher.errors import TokenUnavailable
from dispatcher.kafka.connection_errors import ExplainedError, Explanation, Peer, explain_error
from dispatcher.kafka.credentials import Credentials, CurrentCredentials
from dispatcher.kafka.port_diagnosis import diagnose
from dispatcher.kafka.problems import KafkaProblems
from dispatcher.transport.tls import file_problem

CONNECT_S: Final = 10.0
"""Time for one connection: TCP, TLS and authentication."""
REFUSED_PAUSE_S: Final = 5.0
"""Pause before unchanged credentials that were refused are tried again: repeated failures lock accounts."""
MOST_FAILURES: Final = 1000
"""Addresses whose failures are remembered: brokers are few."""
_LASTS_S: Final = 90.0
"""Time without a new attempt after which a broker's problem is forgotten: the broker may be gone."""


class BrokerConnection(Protocol):
    """The part of aiokafka's connection that is used here. aiokafka has no types."""

    host: str
    port: int
    _ssl_context: ssl.SSLContext | None
    _sasl_plain_username: str | None
    _sasl_plain_password: str | None


@dataclass(frozen=True, slots=True)
class _Refused:
    credentials: CurrentCredentials
    until: float
    error: BaseException


class BrokerAccess(AbstractTokenProvider):  # type: ignore[misc]  # aiokafka has no types
    """The credentials of one client, read again for each of its connections."""

    def __init__(self, settings: KafkaSettings, problems: KafkaProblems | None = None) -> None:
        """Prepares access without reading credentials. `problems` receives the reports of failed connections."""
        self._settings = settings
        self.problems = problems
        self._credentials = Credentials(settings.security)
        self._refused: dict[str, _Refused] = {}
        self.last_error: BaseException | None = None
        """Why the newest connection failed; None if it succeeded."""
        self.failures: dict[str, Explanation] = {}
        """Why the newest connection to each address failed, if it did."""

    def first_context(self) -> ssl.SSLContext | None:
        """Returns the TLS context that a client is created with. Blocks for some milliseconds.

        Raises:
            KafkaConnectionError: a file can't be used.
        """
        return self._read().context

    async def current(self) -> CurrentCredentials:
        """Returns the credentials as they are now.

        Raises:
            KafkaConnectionError: they can't be read, and never could.
        """
        found = await asyncio.to_thread(self._read)
        if self.problems is not None:
            problems = {KafkaReason.CREDENTIALS_UNREADABLE: found.problem} if found.problem else {}
            self.problems.replace("credentials", problems)
        return found

    def _read(self) -> CurrentCredentials:
        try:
            return self._credentials.read()
        except (OSError, ValueError) as error:  # another kind of error would pass the handlers of Kafka's
            raise ExplainedError(KafkaReason.CREDENTIALS_UNREADABLE, file_problem(error)) from error

    async def prepare(self, connection: BrokerConnection) -> CurrentCredentials:
        """Sets the current credentials on a connection before it is opened. Returns them.

        Raises:
            KafkaConnectionError: there are none, or the broker has just refused them.
        """
        found = await self.current()
        refused = self._refused.get(_address(connection))
        if refused is not None and refused.credentials == found and time.monotonic() < refused.until:
            raise KafkaConnectionError("the broker has just refused these credentials") from refused.error
        if found.context is not None:
            connection._ssl_context = found.context  # noqa: SLF001
        connection._sasl_plain_username = found.username  # noqa: SLF001
        connection._sasl_plain_password = found.password  # noqa: SLF001
        return found

    async def failed(
        self, connection: BrokerConnection, error: BaseException, credentials: CurrentCredentials | None
    ) -> None:
        """Reports a connection that could not be opened, or whose first request was not answered."""
        self.last_error = error
        address = _address(connection)
        peer = self.peer(address, credentials)
        reason, detail = explain_error(error, peer)
        if reason == KafkaReason.UNREACHABLE:
            reason, detail = await diagnose(connection.host, connection.port, peer, error) or (reason, detail)
            if reason in CONNECTING:
                self.last_error = ExplainedError(reason, detail)
        if len(self.failures) < MOST_FAILURES:
            self.failures[address] = reason, detail
        if reason == KafkaReason.AUTHENTICATION_REFUSED and credentials is not None:
            self._refused[address] = _Refused(credentials, time.monotonic() + REFUSED_PAUSE_S, error)
        if self.problems is not None and reason in CONNECTING:
            self.problems.report(reason, f"kafka at {address}: {detail}", source=address, lasts_s=_LASTS_S)

    async def not_answered(self, host: str, port: int, error: BaseException) -> None:
        """Reports a broker that accepted the connection but didn't answer the first request."""
        peer = self.peer(f"{host}:{port}")
        explained = await diagnose(host, port, peer, error)
        if explained is None:
            self.last_error = ExplainedError(KafkaReason.UNREACHABLE, "the broker does not answer requests")
            return
        reason, detail = explained
        self.last_error = ExplainedError(reason, detail)
        if self.problems is not None:
            self.problems.report(reason, f"kafka at {peer.address}: {detail}", source=peer.address, lasts_s=_LASTS_S)

    def connected(self, connection: BrokerConnection) -> None:
        """Clears the problems of this broker: a connection was opened and authenticated."""
        address = _address(connection)
        self.last_error = None
        self._refused.pop(address, None)
        self.failures.pop(address, None)
        if self.problems is not None:
            self.problems.clear_all(address)

    def peer(self, address: str, credentials: CurrentCredentials | None = None) -> Peer:
        """Returns the names that messages about a broker contain."""
        return peer_of(self._settings, address, "" if credentials is None else credentials.username)

    async def token(self) -> str:
        """Returns a token for SASL OAUTHBEARER. aiokafka calls it for each connection.

        Raises:
            KafkaConnectionError: there is no token. aiokafka's callers handle no other error of a connection.
        """
        try:
            return await self._credentials.token()
        except TokenUnavailable as error:
            raise KafkaConnectionError(f"no token: {error}") from error

    def extensions(self) -> dict[str, str]:
        """Returns the SASL extensions of OAUTHBEARER (RFC 7628, section 3.1)."""
        return self._credentials.extensions


def peer_of(settings: KafkaSettings, address: str, username: str = "", group_id: str = "") -> Peer:
    """Returns the names that messages about a broker contain; `address` is `host:port`."""
    security = settings.security
    known = None if security.username is None else security.username.reveal_text()
    return Peer(
        address=address,
        protocol=security.protocol,
        mechanism=security.mechanism,
        username=username or known,
        group_id=group_id or settings.group_id,
        has_certificate=security.certificate is not None,
    )


def _address(connection: BrokerConnection) -> str:
    return address_of(connection.host, connection.port)


def address_of(host: str, port: int) -> str:
    """Returns `host:port`, with an IPv6 address in brackets."""
    return f"[{host}]:{port}" if ":" in host else f"{host}:{port}"
