"""What viewers don't see."""

import pytest

from dispatcher.console import masking
from dispatcher.contract import redaction
from dispatcher.stores.sql.documents import extract_secrets
from tests.stores_sql.examples import CANARY, secretive


@pytest.mark.parametrize(
    ("text", "expected"),
    [
        ("jana.novak@luma.com", "j•••@luma.com"),
        ("+4915112345678", "+4•••78"),
        ("anonymous", "a•••"),
        (f"{'x' * 100}@luma.com", "x•••@luma.com"),
        ("", "•••"),
        ("not an@address with spaces", "n•••"),
    ],
)
def test_recipients_are_masked(text: str, expected: str) -> None:
    assert redaction.recipient(text) == expected


@pytest.mark.parametrize(
    ("text", "expected"),
    [
        (f"to {'x' * 100}@luma.com", "to x•••@luma.com"),
        ("a@b@luma.com..", "a@b•••@luma.com.."),
        ("a@luma,b@luma.com,c@x.", "a@luma,b•••@luma.com,c@x."),
    ],
)
def test_addresses_in_text_are_masked_whole(text: str, expected: str) -> None:
    assert redaction.in_text(text) == expected


def test_a_text_without_an_address_is_read_once() -> None:
    # 4 MiB: with a pattern that starts again at each character, this takes minutes and reaches the limit of the suite
    long = "x" * 64 + "@" + "." * (4 * 1024 * 1024)
    assert redaction.in_text(long) == long


def test_a_payload_masks_texts_about_people() -> None:
    masked = masking.payload(
        {
            "imsOrg": "9E10@AdobeOrg",
            "requestId": "r1",
            "channelContext": {"profileAddress": "17", "profileNumber": "+4915112345678"},
            "messageFailure": {"reason": "550 <jana@luma.com> unknown, call +49 151 12345678", "code": 25},
            "identityMap": {"Email": [{"id": "jana@luma.com", "primary": True}], "ECID": [{"id": "4711"}]},
        }
    )
    assert masked == {
        "imsOrg": "9E10@AdobeOrg",
        "requestId": "r1",
        "channelContext": {"profileAddress": "1•••", "profileNumber": "+4•••78"},
        "messageFailure": {"reason": "550 <j•••@luma.com> unknown, call +4•••78", "code": 25},
        "identityMap": {"Email": [{"id": "j•••@luma.com", "primary": True}], "ECID": [{"id": "4•••"}]},
    }


@pytest.mark.parametrize(
    ("url", "expected"),
    [
        ("https://hooks.luma.example/services/T0/B1/key?token=x#f", "https://hooks.luma.example/•••"),
        ("https://hooks.luma.example:8443", "https://hooks.luma.example:8443"),
        ("https://hooks.luma.example/?token=x", "https://hooks.luma.example/•••"),
    ],
)
def test_of_a_url_only_its_origin_is_shown(url: str, expected: str) -> None:
    assert masking.url(url) == expected


def test_a_configuration_is_masked_where_tenants_put_secrets() -> None:
    masked = masking.document(
        {
            "name": "Luma",
            "url": "https://hooks.luma.example/in/key",
            "channels": ["email"],
            "notify": {"emails": ["ops@luma.example", "jane@agency.example"]},
            "headers": {"X-Environment": "prod", "X-Api-Key": "canary", "url": "https://a.example/b"},
            "auth": {
                "sign": {"kid": "k1", "claims": {"tenant": "luma", "client_secret": ["canary"], "in": {"password": 7}}},
                "fetch": {"token_url": "https://login.luma.example/t?key=canary", "scope": "a b"},
            },
        }
    )
    assert masked == {
        "name": "Luma",
        "url": "https://hooks.luma.example/•••",
        "channels": ["email"],
        "notify": {"emails": ["o•••@luma.example", "j•••@agency.example"]},
        "headers": {"X-Environment": "prod", "X-Api-Key": "•••", "url": "https://a.example/b"},
        "auth": {
            "sign": {"kid": "k1", "claims": {"tenant": "luma", "client_secret": "•••", "in": {"password": "•••"}}},
            "fetch": {"token_url": "https://login.luma.example/•••", "scope": "a b"},
        },
    }


def test_of_a_webhook_with_a_secret_in_every_place_a_viewer_sees_none() -> None:
    document, _ = extract_secrets(secretive())
    assert CANARY in repr(document)  # admins, who edit headers, claims and URLs, see them
    assert CANARY not in repr(masking.document(document))
