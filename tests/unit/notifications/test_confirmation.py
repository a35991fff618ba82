"""Links in e-mails: signed, for one purpose and address, and over in time."""

import pytest
from hypothesis import given
from hypothesis import strategies as st

from dispatcher.contract.redaction import contact_of
from dispatcher.contract.tenant import TenantKey
from dispatcher.errors import BadLink
from dispatcher.notifications.confirmation import CONFIRM_WITHIN_S, STOP_WITHIN_S, Link, LinkSigner, Purpose

NOW = 1_790_000_000.0
SIGNER = LinkSigner(b"k" * 32)
LINK = Link(Purpose.CONFIRM, TenantKey("luma@AdobeOrg", "prod"), contact_of("Ops@Luma.example"))


@given(st.sampled_from(list(Purpose)), st.text(max_size=100), st.text(max_size=50), st.text(max_size=50))
def test_a_link_says_what_was_signed(purpose: Purpose, org: str, sandbox: str, address: str) -> None:
    link = Link(purpose, TenantKey(org, sandbox), contact_of(address))
    assert SIGNER.link(SIGNER.token(link, NOW), NOW + 60) == link


def test_a_link_ends() -> None:
    token = SIGNER.token(LINK, NOW)
    assert SIGNER.link(token, NOW + CONFIRM_WITHIN_S - 1) == LINK
    with pytest.raises(BadLink, match="expired"):
        SIGNER.link(token, NOW + CONFIRM_WITHIN_S)
    stop = SIGNER.token(Link(Purpose.STOP, LINK.tenant, LINK.contact), NOW)
    assert SIGNER.link(stop, NOW + STOP_WITHIN_S - 1).purpose is Purpose.STOP


@given(st.data())
def test_nothing_else_is_a_link(data: st.DataObject) -> None:
    token = SIGNER.token(LINK, NOW)
    at = data.draw(st.integers(0, len(token) - 1))
    other = data.draw(st.characters(max_codepoint=0x2FF).filter(lambda char: char != token[at]))
    changed = token[:at] + other + token[at + 1 :]
    try:
        assert SIGNER.link(changed, NOW) == LINK  # spare bits of base64
    except BadLink:
        pass
    for text in ("", ".", "x", token[:-3], token + "A" * 3000, token.partition(".")[0], "é.é"):
        with pytest.raises(BadLink):
            SIGNER.link(text, NOW)
    with pytest.raises(BadLink):
        LinkSigner(b"x" * 32).link(token, NOW)


def test_no_token_shows_an_address() -> None:
    token = SIGNER.token(LINK, NOW)
    assert "Ops" not in token
    assert contact_of("OPS@luma.EXAMPLE") == LINK.contact
