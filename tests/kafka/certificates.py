"""A certificate authority for one broker, as PEM files: its own certificate, the broker's, and one for a client."""

import ssl
from dataclasses import dataclass
from pathlib import Path

import trustme
from cryptography.hazmat.primitives.serialization import Encoding, NoEncryption, PrivateFormat, load_pem_private_key

from tests.kafka.server_properties import PemFiles


@dataclass(frozen=True, slots=True)
class Certificates:
    """Paths of the files. Nothing is written before `write`."""

    directory: Path

    @property
    def ca(self) -> Path:
        """CA that a client has to trust."""
        return self.directory / "ca.pem"

    @property
    def client_cert(self) -> Path:
        """Client certificate, with its chain, that the broker accepts."""
        return self.directory / "client.pem"

    @property
    def client_key(self) -> Path:
        """Key of `client_cert`, unencrypted PKCS#8."""
        return self.directory / "client.key"

    @property
    def broker(self) -> PemFiles:
        """Key and chain of the broker in one file, as Kafka's PEM keystores require."""
        return PemFiles(keystore=self.directory / "broker.pem", truststore=self.ca)

    def write(self) -> None:
        """Writes a new authority and all files. The broker's certificate is for 127.0.0.1 and localhost."""
        authority = trustme.CA()
        authority.cert_pem.write_to_path(self.ca)
        broker = authority.issue_cert("127.0.0.1", "localhost")
        self.broker.keystore.write_bytes(_pkcs8(broker) + _chain(broker))
        client = authority.issue_cert("client@example.test", common_name="test-client")
        self.client_cert.write_bytes(_chain(client))
        self.client_key.write_bytes(_pkcs8(client))

    def client_context(self, *, with_certificate: bool) -> ssl.SSLContext:
        """Returns a context that trusts the broker, and presents `client_cert` on demand."""
        context = ssl.create_default_context(cafile=self.ca)
        if with_certificate:
            context.load_cert_chain(self.client_cert, self.client_key)
        return context


def _chain(leaf: trustme.LeafCert) -> bytes:
    return b"".join(blob.bytes() for blob in leaf.cert_chain_pems)


def _pkcs8(leaf: trustme.LeafCert) -> bytes:
    """Converts a key to PKCS#8: Kafka reads "BEGIN PRIVATE KEY" only; trustme writes "BEGIN EC PRIVATE KEY"."""
    key = load_pem_private_key(leaf.private_key_pem.bytes(), password=None)
    return key.private_bytes(Encoding.PEM, PrivateFormat.PKCS8, NoEncryption())
