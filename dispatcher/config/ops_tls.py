"""Settings of TLS on the ops port: `ops.tls`."""

from pathlib import Path

from dispatcher.config.names import Name
from dispatcher.config.settings_group import SettingsGroup


class OpsTls(SettingsGroup):
    """Certificate of the ops port, and how the console and the commands verify it."""

    certificate: Path
    """Certificate chain, PEM, the server's own first. The port then takes TLS 1.2 and 1.3 only, from every client. The
    files are read again when they change."""
    key: Path
    """The certificate's private key, PEM, without a passphrase."""
    ca: Path | None = None
    """PEM bundle with which the console, `check --ops` and `explain --ops` verify the certificate; the system's by
    default."""
    server_name: Name | None = None
    """Name that they expect in the certificate, in place of the URL's host: for `localhost` and for pods' addresses."""
