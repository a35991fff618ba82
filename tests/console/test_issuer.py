"""The client of an OIDC issuer that speaks TLS."""

import asyncio
from contextlib import suppress
from pathlib import Path

import pytest
import trustme

from dispatcher.config.console_settings import OidcSettings
from dispatcher.console.issuer import Issuer
from dispatcher.errors import IssuerUnavailable
from dispatcher.transport import tls_contexts
from tests.console.api.issuer import AUDIENCE, SmallIssuer


async def test_a_new_authority_of_the_issuer_is_trusted_without_a_restart(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(tls_contexts, "BUNDLE_CHECK_S", 0.0)
    monkeypatch.setattr(tls_contexts, "_KNOWN_BUNDLE_WITHIN_S", 60.0)
    ca, authority = tmp_path / "ca.pem", trustme.CA()
    trustme.CA().cert_pem.write_to_path(ca)
    async with SmallIssuer(authority) as issuer:
        settings = OidcSettings.model_validate({"issuer": issuer.url, "audience": AUDIENCE, "ca": str(ca)})
        async with Issuer(settings) as client:
            with pytest.raises(IssuerUnavailable, match="ClientConnectorCertificateError"):
                await client.endpoint("token_endpoint")
            authority.cert_pem.write_to_path(ca)
            found = ""
            async with asyncio.timeout(60):
                while not found:  # the file may just have been read
                    with suppress(IssuerUnavailable):
                        found = await client.endpoint("token_endpoint")
            assert found == f"{issuer.url}/token"
