"""The transports' fixtures, for the tests of this folder that talk to hostile servers."""

from tests.transport.conftest import authority, ca_bundle, opening, serving, tls, transport

__all__ = ["authority", "ca_bundle", "opening", "serving", "tls", "transport"]
