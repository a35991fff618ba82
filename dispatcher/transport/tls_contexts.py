"""Keeps the TLS contexts in use, and makes them off the event loop: each loads all CAs, which takes some 50 ms.

A context belongs to an identity (CA and client certificate), not to a webhook: ten thousand tenants without either
share one. It lives as long as an endpoint or a connection that uses it.
"""

import asyncio
import hashlib
import time
from pathlib import Path
from typing import Final
from weakref import WeakKeyDictionary, WeakValueDictionary

import structlog

from dispatcher.config.secret_scope import read_regular_file
from dispatcher.contract.outcomes import FailureReason
from dispatcher.tasks import SingleFlight
from dispatcher.transport.endpoint import Endpoint
from dispatcher.transport.failures import TransportError, describe, local_failure
from dispatcher.transport.tls import MAX_BUNDLE_BYTES, new_context
from dispatcher.transport.tls_sessions import TlsContext

FIRST_BUNDLE_CHECK_S = 1.0
"""Seconds to the next try while the operator's CA bundle was never read."""
BUNDLE_CHECK_S = 10.0
"""Seconds between two checks of the operator's CA bundle for a change."""
_KNOWN_BUNDLE_WITHIN_S: Final = 1.0
"""Time for which a connection waits for the check of a bundle that was read before: its volume may hang."""
_BUNDLE: Final = b""
"""Key of the task that checks the bundle, beside the identities of those that make contexts."""

log = structlog.get_logger(__name__)

_Pem = tuple[bytes | None, bytes | None, bytes | None]
"""CA, client certificate and its key."""


def _identity_of(pem: _Pem) -> bytes:
    # Not `Secret.fingerprint`, which is short: no tenant may be able to make a file that collides with another's.
    return hashlib.sha256(b"".join(hashlib.sha256(part or b"").digest() for part in pem)).digest()


class CaBundle:
    """The file of the operator's CA bundle."""

    def __init__(self, path: Path) -> None:
        self._path = path
        self._seen: tuple[int, int, int] | None = None
        self._check_at = 0.0

    @property
    def is_due(self) -> bool:
        """True if the file was not looked at for `BUNDLE_CHECK_S`."""
        return time.monotonic() >= self._check_at

    def read_if_changed(self) -> tuple[bytes, TlsContext] | None:
        """Returns the bundle and a context that trusts it; None if it is unchanged or can't be used. Blocks."""
        self._check_at = time.monotonic() + BUNDLE_CHECK_S
        try:
            status = self._path.stat()
            seen = (status.st_ino, status.st_mtime_ns, status.st_size)
            if seen == self._seen:
                return None
            content = read_regular_file(self._path, MAX_BUNDLE_BYTES)
            context = new_context(content)
        except (OSError, ValueError) as error:
            log.warning("CA bundle can't be used, the last good one stays", why=describe(error))
            if self._seen is None:
                self._check_at = time.monotonic() + FIRST_BUNDLE_CHECK_S
            return None
        self._seen = seen
        return content, context


class TlsContexts:
    """The contexts in use. Endpoints of the same identity share one.

    Args:
        ca_bundle: the CAs of endpoints that have none of their own, and of the operator's proxy; None: the system's.
    """

    def __init__(self, ca_bundle: Path | None) -> None:
        self._bundle = None if ca_bundle is None else CaBundle(ca_bundle)
        self._authorities: bytes | None = None
        """Content of the bundle; None before it was read."""
        self._of_identity: WeakValueDictionary[bytes, TlsContext] = WeakValueDictionary()
        self._common: TlsContext | TransportError | None = None
        """For the operator's proxy, and for endpoints that have no CA or certificate of their own: nearly all."""
        self._of_endpoint: WeakKeyDictionary[Endpoint, TlsContext | TransportError] = WeakKeyDictionary()
        self._making = asyncio.Lock()
        self._tasks = SingleFlight[bytes, TlsContext | TransportError | None]("TLS context")

    def __len__(self) -> int:
        return len(self._of_identity)

    def is_made(self, endpoint: Endpoint | None) -> bool:
        """Returns whether the endpoint's context is ready; None: the operator's. Used on the event loop.

        Begins a check of the bundle if one is due: a connection that was made with another bundle isn't used for long.
        """
        if self._bundle is not None and self._bundle.is_due:
            self._start_check(self._bundle)
        return self._known(endpoint) is not None

    async def prepare(self, endpoint: Endpoint | None, within_s: float) -> None:
        """Makes the endpoint's context in a thread, if it is new, so that `of` finds it; None: the operator's.

        Call it for each new connection, so that the bundle is used as it is now. One context is made at a time: after a
        change of the bundle all of them are new.

        Raises:
            TransportError: LOCAL, if it takes too long, or if this machine or the operator's bundle fails.
        """
        try:
            async with asyncio.timeout(within_s):
                if self._bundle is not None and (self._bundle.is_due or _BUNDLE in self._tasks):
                    most_s = None if self._is_bundle_missing else _KNOWN_BUNDLE_WITHIN_S
                    await asyncio.wait({self._start_check(self._bundle)}, timeout=most_s)
                while not self.is_made(endpoint):
                    await self._make_next(endpoint)
        except TimeoutError:
            message = f"the dispatcher's own machine failed: no TLS context within {within_s:.2g} s"
            raise TransportError(FailureReason.LOCAL, message) from None
        except OSError as error:
            raise local_failure(error) from error

    async def close(self) -> None:
        """Cancels what `prepare` and `is_made` have begun."""
        await self._tasks.close()

    def of(self, endpoint: Endpoint) -> TlsContext:
        """Returns the context for an endpoint's connections. Blocks if it is new; see `prepare`.

        Raises:
            TransportError: TLS, if the endpoint's CA or client certificate can't be used. LOCAL, if this machine or the
                operator's bundle fails; that is not remembered.
        """
        context = self._known(endpoint) or self._made_now(endpoint)
        if isinstance(context, TransportError):
            raise TransportError(context.reason, context.detail)
        return context

    def of_operator(self) -> TlsContext:
        """Returns the context for the operator's own proxy: the bundle and no client certificate. Blocks like `of`.

        Raises:
            TransportError: PROXY, if the system's CAs can't be used. LOCAL, as `of`.
        """
        context = self._known(None) or self._made_now(None)
        if isinstance(context, TransportError):
            raise TransportError(FailureReason.PROXY, context.detail)
        return context

    @property
    def _is_bundle_missing(self) -> bool:
        return self._bundle is not None and self._authorities is None

    def _known(self, endpoint: Endpoint | None) -> TlsContext | TransportError | None:
        if endpoint is None or not _has_own(endpoint):
            return self._common
        known = self._of_endpoint.get(endpoint)
        if known is None and not self._is_bundle_missing:
            known = self._of_identity.get(_identity_of(self._pem_of(endpoint)))
            if known is not None:
                self._of_endpoint[endpoint] = known
        return known

    def _remember(self, endpoint: Endpoint | None, context: TlsContext | TransportError) -> None:
        if endpoint is not None and _has_own(endpoint):
            self._of_endpoint[endpoint] = context
        else:
            self._common = context

    def _start_check(self, bundle: CaBundle) -> "asyncio.Task[TlsContext | TransportError | None]":
        return self._tasks.start(_BUNDLE, lambda: self._check(bundle))

    async def _check(self, bundle: CaBundle) -> None:
        found = await asyncio.to_thread(bundle.read_if_changed)
        if found is not None:
            self._use(*found)

    def _use(self, authorities: bytes, context: TlsContext) -> None:
        """Uses another bundle. Contexts with a client certificate or CA are made again when they are needed."""
        if authorities == self._authorities:
            return
        self._authorities, self._common = authorities, context
        self._of_identity.clear()
        self._of_endpoint.clear()
        self._of_identity[_identity_of((authorities, None, None))] = context

    async def _make_next(self, endpoint: Endpoint | None) -> None:
        """Makes the endpoint's context, unless the bundle changes meanwhile."""
        pem = self._pem_of(endpoint)
        identity = _identity_of(pem)
        task = self._tasks.start(identity, lambda: self._make(identity, pem))
        await asyncio.wait({task})
        if task.cancelled():
            raise TransportError(FailureReason.LOCAL, "the dispatcher is stopping")
        context = task.result()
        if context is not None and pem == self._pem_of(endpoint):
            self._remember(endpoint, context)

    async def _make(self, identity: bytes, pem: _Pem) -> TlsContext | TransportError:
        async with self._making:
            return self._of_identity.get(identity) or self._keep(identity, await asyncio.to_thread(_new, pem))

    def _made_now(self, endpoint: Endpoint | None) -> TlsContext | TransportError:
        if self._bundle is not None and self._is_bundle_missing and self._bundle.is_due:
            found = self._bundle.read_if_changed()
            if found is not None:
                self._use(*found)
        pem = self._pem_of(endpoint)
        identity = _identity_of(pem)
        try:
            context = self._of_identity.get(identity) or self._keep(identity, _new(pem))
        except OSError as error:
            raise local_failure(error) from error
        self._remember(endpoint, context)
        return context

    def _keep(self, identity: bytes, context: TlsContext | TransportError) -> TlsContext | TransportError:
        if isinstance(context, TlsContext):
            self._of_identity[identity] = context
        return context

    def _pem_of(self, endpoint: Endpoint | None) -> _Pem:
        own = (None, None, None) if endpoint is None else (endpoint.ca, endpoint.certificate, endpoint.key)
        ca, certificate, key = (None if secret is None else secret.reveal() for secret in own)
        authorities = self._authorities if ca is None else ca
        if authorities is None and self._bundle is not None:
            # Never fall back to the system's CAs.
            raise TransportError(FailureReason.LOCAL, "the operator's CA bundle can't be read")
        return authorities, certificate, key


def _has_own(endpoint: Endpoint) -> bool:
    return endpoint.ca is not None or endpoint.certificate is not None or endpoint.key is not None


def _new(pem: _Pem) -> TlsContext | TransportError:
    """Makes a context, and blocks meanwhile. Returns the reason if the endpoint's part can't be used.

    Raises:
        OSError: as `new_context`.
    """
    try:
        return new_context(*pem)
    except ValueError as error:
        return TransportError(FailureReason.TLS, str(error))
