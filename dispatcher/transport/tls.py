"""Makes TLS contexts: version 1.2 or newer, certificate and host name always verified, no setting to disable it."""

import contextlib
import errno
import os
import ssl
import stat
import tempfile
from collections.abc import Callable, Iterator
from pathlib import Path

from dispatcher.config.secret_scope import read_regular_file
from dispatcher.config.webhooks import ClientTls
from dispatcher.errors import Problem
from dispatcher.transport.failures import describe, is_local
from dispatcher.transport.tls_sessions import TlsContext, TLSSessions

MAX_BUNDLE_BYTES = 16 * 1024 * 1024
MAX_PEM_MIB = 4
"""Size of the largest file of the operator's own services: a CA bundle, a certificate chain or a key."""


def new_context(ca: bytes | None = None, certificate: bytes | None = None, key: bytes | None = None) -> TlsContext:
    """Returns a client context from PEM; with the system's CAs if none is given.

    Raises:
        ValueError: one of the three can't be used; the message says which and why.
        OSError: this machine failed: no file descriptor is free. Another try may succeed.
    """
    context = TlsContext(ssl.PROTOCOL_TLS_CLIENT)  # verifies certificate and host name
    context.sessions = TLSSessions()
    context.minimum_version = ssl.TLSVersion.TLSv1_2
    context.hostname_checks_common_name = False  # RFC 9525, section 6.3
    context.options |= ssl.OP_NO_RENEGOTIATION
    context.set_alpn_protocols(["http/1.1"])
    if ca is None:
        _check_descriptors()  # without one OpenSSL loads no CA and reports nothing
        context.load_default_certs()
    else:
        _trust(context, ca)
    if certificate is not None and key is not None:
        _identify(context, certificate, key)
        context.post_handshake_auth = True  # for servers that ask once they know the path (RFC 8446, section 4.6.2)
    return context


def operator_context(ca: Path | None) -> ssl.SSLContext:
    """Returns a context for one of the operator's own services: a broker, a mail server, a sign-in service.

    Args:
        ca: a bundle of authorities in PEM; None: those of the system.

    Raises:
        OSError: the bundle can't be read; ssl.SSLError if it is not PEM.
    """
    context = ssl.create_default_context(cafile=None if ca is None else str(ca))
    context.minimum_version = ssl.TLSVersion.TLSv1_2
    return context


def endpoint_context(ca: Path) -> ssl.SSLContext:
    """Returns a context for endpoints without a CA of their own. Raises the errors of `new_context`."""
    return new_context(read_regular_file(ca, MAX_BUNDLE_BYTES))


def bundle_problems(
    ca: Path | None, key: str, load: Callable[[Path], ssl.SSLContext] = operator_context
) -> list[Problem]:
    """Returns the mistake in a bundle of authorities that the setting `key` names; empty if there is none.

    Args:
        load: makes the context as the bundle's user does.
    """
    if ca is None:
        return []
    try:
        if not stat.S_ISREG(ca.stat().st_mode):
            return [Problem(f"{ca} can't be read (it is not a regular file)", key)]
        load(ca)
    except (ssl.SSLError, ValueError) as error:
        return [Problem(f"{ca} is not a bundle of certificates in PEM ({describe(error)})", key)]
    except OSError as error:
        return [Problem(f"{ca} can't be read ({error.strerror or error})", key)]
    return []


def read_pem(path: Path) -> bytes:
    """Returns the content of a PEM file of one of the operator's own services.

    Raises:
        OSError: it can't be read, or it is something other than a regular file. The error has the file's name.
        ValueError: it is larger than 4 MiB.
    """
    try:
        content = read_regular_file(path, MAX_PEM_MIB * 1024 * 1024 + 1)
    except OSError as error:
        raise OSError(error.errno or errno.EINVAL, error.strerror or str(error), str(path)) from error
    if len(content) > MAX_PEM_MIB * 1024 * 1024:
        raise ValueError(f"{path} has over {MAX_PEM_MIB} MiB: check that it is the right file")
    return content


def file_problem(error: OSError | ValueError) -> str:
    """Returns why `read_pem`, or making a context of what it read, has failed. Names a file that can't be read."""
    if isinstance(error, OSError) and error.filename:
        return f"{error.filename} can't be read ({error.strerror})"
    return str(error)


def problems_of_pem(tls: ClientTls) -> Iterator[tuple[str, str]]:
    """Yields the mistakes in an endpoint's CA and client certificate, by key: `tls.ca`. Skips unresolved secrets.

    Opens no connection and loads none of the system's CAs, because it runs for every webhook that is read.
    """
    context = ssl.SSLContext(ssl.PROTOCOL_TLS_CLIENT)
    if tls.ca is not None and tls.ca.reveal():
        try:
            _trust(context, tls.ca.reveal())
        except ValueError as error:
            yield "tls.ca", f"{error}: give the issuer's certificate, in PEM"
    certificate, key = (b"" if secret is None else secret.reveal() for secret in (tls.certificate, tls.key))
    if certificate and key:
        try:
            _identify(context, certificate, key)
        except (ValueError, OSError) as error:
            yield "tls.certificate", f"{error}: give both in PEM, the certificate of this very key first in its chain"


def _trust(context: ssl.SSLContext, ca: bytes) -> None:
    context.verify_flags |= ssl.VERIFY_X509_PARTIAL_CHAIN  # an intermediate or the leaf alone is enough, as for curl
    try:
        text = ca.decode("ascii", "replace").replace("\ufffd", "?")  # comments may be in any language
        context.load_verify_locations(cadata=text)
    except (ValueError, ssl.SSLError) as error:
        raise ValueError(f"the CA is not a bundle of certificates in PEM ({describe(error)})") from None


def _identify(context: ssl.SSLContext, certificate: bytes, key: bytes) -> None:
    try:
        with as_file(certificate + b"\n" + key) as path:
            context.load_cert_chain(path, password=refuse_passphrase)
    except (ValueError, OSError) as error:
        if is_local(error):
            raise
        raise ValueError(f"the client certificate and its key can't be used ({describe(error)})") from None


def _check_descriptors() -> None:
    for descriptor in [os.open(os.devnull, os.O_RDONLY) for _ in range(2)]:
        os.close(descriptor)


def refuse_passphrase() -> str:
    """Refuses an encrypted key: `load_cert_chain` calls it for the passphrase."""
    raise ValueError("the key is encrypted: give it without a passphrase")  # else OpenSSL would prompt on the terminal


@contextlib.contextmanager
def as_file(data: bytes) -> Iterator[str]:
    """Yields a path with these bytes for `load_cert_chain`, which accepts paths only: in memory on Linux."""
    if hasattr(os, "memfd_create"):
        descriptor = os.memfd_create("client-certificate", os.MFD_CLOEXEC)
        path = f"/proc/self/fd/{descriptor}"
    else:
        descriptor, path = tempfile.mkstemp()  # mode 0600
    try:
        os.write(descriptor, data)
        yield path
    finally:
        os.close(descriptor)
        if not hasattr(os, "memfd_create"):
            os.unlink(path)
