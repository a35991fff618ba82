"""Reads what a connection to a broker authenticates with, again for each connection."""

import ssl
import time
from dataclasses import dataclass, field
from typing import TYPE_CHECKING

from dispatcher.config.kafka_security import KafkaSecurity
from dispatcher.config.secrets import Secret, reread
from dispatcher.errors import Problem, TokenUnavailable
from dispatcher.transport.tls import bundle_problems, file_problem, operator_context, read_pem, refuse_passphrase

if TYPE_CHECKING:
    from dispatcher.kafka.oauth import TokenSource


@dataclass(frozen=True, slots=True)
class CurrentCredentials:
    """The credentials at one moment."""

    username: str = ""
    password: str = field(default="", repr=False)
    context: ssl.SSLContext | None = None
    """For TLS protocols; the same object until a file changes."""
    problem: str = ""
    """Why older values than the files' are used; empty if the newest are."""


class UnusableSetting(ValueError):
    """A file of `kafka.security` isn't what it should be."""

    def __init__(self, key: str, message: str) -> None:
        super().__init__(f"{key}: {message}")
        self.problem = Problem(message, key)


def _token_source(security: KafkaSecurity) -> "TokenSource | None":
    if security.oauth is None:
        return None
    from dispatcher.kafka.oauth import token_source  # it imports the HTTP client and the signers of tokens

    return token_source(security)


class Credentials:
    """Reads the credentials of `kafka.security`."""

    def __init__(self, security: KafkaSecurity) -> None:
        self._security = security
        self._tls = TlsFiles(security) if security.protocol.endswith("SSL") else None
        self._last: dict[str, str] = {}
        self._tokens = _token_source(security)

    def read(self) -> CurrentCredentials:
        """Returns the newest credentials that can be used. Blocks for some milliseconds: reads small files.

        Raises:
            OSError, ValueError: a file can't be used, and no older version of it is known.
        """
        problems: list[str] = []
        username = self._read_text("username", self._security.username, problems)
        password = self._read_text("password", self._security.password, problems)
        context = None if self._tls is None else self._tls.context(problems)
        return CurrentCredentials(username, password, context, "; ".join(problems))

    async def token(self) -> str:
        """Returns a token for SASL OAUTHBEARER.

        Raises:
            TokenUnavailable: there is none.
        """
        if self._tokens is None:
            raise TokenUnavailable("kafka.security.oauth is not set")
        return await self._tokens.token(time.time())

    @property
    def extensions(self) -> dict[str, str]:
        """SASL extensions of OAUTHBEARER."""
        return {} if self._security.oauth is None else dict(self._security.oauth.extensions)

    def _read_text(self, name: str, value: Secret | None, problems: list[str]) -> str:
        if value is None:
            return ""
        try:
            self._last[name] = reread(value).reveal_text()
        except (OSError, ValueError) as error:
            if name not in self._last:
                self._last[name] = value.reveal_text()
            problems.append(f"kafka.security.{name}: {file_problem(error)}; the last good one is used")
        return self._last[name]


class TlsFiles:
    """Keeps a TLS context that is as new as the files of `kafka.security`."""

    def __init__(self, security: KafkaSecurity) -> None:
        self._security = security
        self._content: tuple[bytes, ...] | None = None
        self._context: ssl.SSLContext | None = None

    def context(self, problems: list[str]) -> ssl.SSLContext:
        """Returns the context for the files as they are now; appends to `problems` if it returns an older one.

        Raises:
            OSError, ValueError: a file can't be used, and no context was made before.
        """
        try:
            content = self._read()
            if self._context is None or content != self._content:
                context = make_context(self._security)
                # A key that is replaced while it is loaded would be remembered as the new one: read it again.
                self._content = content if self._read() == content else None
                self._context = context
        except (OSError, ValueError) as error:
            if self._context is None:
                raise
            problems.append(f"{file_problem(error)}; the last good one is used")
        return self._context

    def _read(self) -> tuple[bytes, ...]:
        paths = (self._security.ca, self._security.certificate, self._security.key)
        return tuple(b"" if path is None else read_pem(path) for path in paths)


def make_context(security: KafkaSecurity) -> ssl.SSLContext:
    """Returns a TLS context made from the files of `kafka.security`.

    Raises:
        OSError: a file can't be read.
        UnusableSetting: a file isn't what it should be; the message names the setting and the cure.
    """
    try:
        context = operator_context(security.ca)
    except (ssl.SSLError, ValueError) as error:
        why = getattr(error, "reason", None) or error
        raise UnusableSetting(
            "kafka.security.ca",
            f"{security.ca} is not a bundle of certificates in PEM ({why}): "
            "give the certificate of the brokers' authority",
        ) from error
    if security.certificate is not None and security.key is not None:
        try:
            context.load_cert_chain(str(security.certificate), str(security.key), refuse_passphrase)
        except (ssl.SSLError, ValueError) as error:
            why = getattr(error, "reason", None) or error
            raise UnusableSetting(
                "kafka.security.certificate",
                f"{security.certificate} and {security.key} can't be used together ({why}): "
                "give both in PEM, the certificate of this very key first in its chain, the key unencrypted",
            ) from error
    return context


def security_problems(security: KafkaSecurity) -> list[Problem]:
    """Returns mistakes in the files that `kafka.security` names: a CA that isn't PEM, a key of another certificate."""
    found = []
    if security.protocol.endswith("SSL"):
        try:
            make_context(security)
        except UnusableSetting as error:
            found.append(error.problem)
        except OSError as error:
            found.append(Problem(file_problem(error), "kafka.security"))
    if security.oauth is not None:
        found += bundle_problems(security.oauth.ca, "kafka.security.oauth.ca")
    return found
