"""Which file a webhook belongs to."""

from hypothesis import given
from hypothesis import strategies as st

from dispatcher.contract.tenant import TenantKey
from dispatcher.stores.ownership import OwnershipRefusal, settle

A, B, C = (TenantKey(name, "prod") for name in "abc")


def test_files_that_share_nothing_are_all_used() -> None:
    assert settle({"1": [A], "2": [B, C]}, {"1": [B], "2": [A]}) == {}


def test_at_first_the_first_by_name_has_it() -> None:
    assert settle({"2": [A, B], "1": [A]}, {}) == {"2": OwnershipRefusal(A, "1")}


def test_later_the_one_that_had_it_has_it() -> None:
    assert settle({"2": [A, B], "1": [A]}, {"2": [A]}) == {"1": OwnershipRefusal(A, "2")}


def test_a_webhook_may_move_between_files() -> None:
    assert settle({"1": [], "2": [A, B]}, {"1": [A], "2": [B]}) == {}


def test_a_bad_file_keeps_its_own_against_a_good_one() -> None:
    assert settle({"2": [A]}, {"1": [A]}) == {"2": OwnershipRefusal(A, "1")}


def test_a_refused_file_keeps_what_it_holds_against_others() -> None:
    # 3 gives C to 4 and takes A from 1, which is refused: so C stays in 3, and 4 is refused too.
    new = {"1": [A], "3": [A, B], "4": [C]}
    assert settle(new, {"1": [A], "3": [C]}) == {"3": OwnershipRefusal(A, "1"), "4": OwnershipRefusal(C, "3")}


_TENANTS = st.sampled_from([TenantKey(name, "prod") for name in "abcdef"])
_FILES = st.dictionaries(st.sampled_from("12345"), st.sets(_TENANTS), max_size=5)


@given(_FILES, st.dictionaries(_TENANTS, st.sampled_from("12345")))
def test_in_the_end_no_tenant_is_in_two_files(new: dict[str, set[TenantKey]], holders: dict[TenantKey, str]) -> None:
    held: dict[str, set[TenantKey]] = {}
    for tenant, name in holders.items():
        held.setdefault(name, set()).add(tenant)
    refused = settle(new, held)
    used = {
        name: held.get(name, set()) if name in refused or name not in new else new[name]
        for name in new.keys() | held.keys()
    }
    everything = [tenant for tenants in used.values() for tenant in tenants]
    assert len(everything) == len(set(everything))
    assert refused.keys() <= new.keys()
    for name, (tenant, owner) in refused.items():
        assert tenant in new[name]
        assert owner != name
