"""Which file a webhook belongs to."""

from hypothesis import given
from hypothesis import strategies as st

from dispatcher.contract.tenant import TenantKey
from dispatcher.stores.ownership import owners

A, B, C = (TenantKey(name, "prod") for name in "abc")


def test_files_that_share_nothing_keep_their_own() -> None:
    assert owners({"1": [A], "2": [B, C]}, {}, {A: "2", B: "1"}) == {A: "1", B: "2", C: "2"}


def test_a_new_tenant_belongs_to_the_first_file_by_name() -> None:
    assert owners({"2": [A, B], "1": [A]}, {}, {}) == {A: "1", B: "2"}


def test_a_file_keeps_a_tenant_against_an_earlier_name() -> None:
    assert owners({"2": [A, B], "1": [A]}, {}, {A: "2"}) == {A: "2", B: "2"}


def test_a_webhook_may_move_between_files() -> None:
    assert owners({"1": [], "2": [A, B]}, {}, {A: "1", B: "2"}) == {A: "2", B: "2"}


def test_a_guess_yields_to_a_claim_even_against_the_present_file() -> None:
    assert owners({"2": [B]}, {"1": [A, B]}, {A: "1", B: "1"}) == {A: "1", B: "2"}


_TENANTS = st.sampled_from([TenantKey(name, "prod") for name in "abcdef"])
_FILES = st.sampled_from("12345")


@given(st.dictionaries(_FILES, st.lists(_TENANTS, unique=True), max_size=5), st.dictionaries(_TENANTS, _FILES))
def test_every_claimed_tenant_has_one_owner_that_claims_it(
    claims: dict[str, list[TenantKey]], held: dict[TenantKey, str]
) -> None:
    owner = owners(claims, {}, held)
    assert owner.keys() == {tenant for tenants in claims.values() for tenant in tenants}
    for tenant, name in owner.items():
        assert tenant in claims[name]
        holder = held.get(tenant)
        assert holder not in claims or tenant not in claims[holder] or name == holder
