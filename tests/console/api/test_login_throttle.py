"""The throttle of failed sign-ins: time is an argument."""

from hypothesis import given, settings
from hypothesis import strategies as st

from dispatcher.console.login_throttle import (
    FORGOTTEN_AFTER_S,
    FREE,
    FREE_IN_ALL,
    LONGEST_IN_ALL_S,
    LONGEST_S,
    MAX_ADDRESSES,
    LoginThrottle,
    _Failures,
    client_address,
)
from dispatcher.listener import peer_of


def test_waits_double_up_to_a_quarter_of_an_hour() -> None:
    throttle, now, waits = LoginThrottle(), 0.0, []
    for _ in range(30):
        throttle.failed("192.0.2.1", now)
        wait = throttle.wait_s("192.0.2.1", now)
        waits.append(wait)
        now += wait
    assert waits[: FREE - 1] == [0.0] * (FREE - 1)
    assert waits[FREE - 1 : FREE + 3] == [1.0, 2.0, 4.0, 8.0]
    assert waits[-1] == LONGEST_S
    assert throttle.wait_s("192.0.2.2", now) == 0
    assert throttle.wait_s("192.0.2.1", now + FORGOTTEN_AFTER_S) == 0


def test_a_success_forgives() -> None:
    throttle = LoginThrottle()
    for _ in range(FREE + 3):
        throttle.failed("192.0.2.1", 0)
    throttle.succeeded("192.0.2.1")
    assert throttle.wait_s("192.0.2.1", 0) == 0


def test_many_addresses_together_make_everybody_wait_but_not_for_long() -> None:
    throttle = LoginThrottle()
    for number in range(FREE_IN_ALL + 50):
        throttle.failed(f"192.0.{number}.1", 0)
    assert throttle.wait_s("198.51.100.7", 0) == LONGEST_IN_ALL_S
    assert throttle.wait_s("198.51.100.7", 60) == 0


@settings(max_examples=20)  # each of them fills the memory
@given(st.lists(st.tuples(st.integers(0, 40_000), st.floats(0, 10)), max_size=200))
def test_its_memory_is_bounded_and_its_waits_are_too(failures: list[tuple[int, float]]) -> None:
    throttle, now = LoginThrottle(), 0.0
    throttle._by_address.update({str(n): throttle._by_address.get("", _Failures()) for n in range(MAX_ADDRESSES - 50)})
    for number, passed in failures:
        now += passed
        address = f"10.{number // 65536}.{number // 256 % 256}.{number % 256}"
        throttle.failed(address, now)
        assert 0 <= throttle.wait_s(address, now) <= LONGEST_S
    assert len(throttle._by_address) <= MAX_ADDRESSES


def test_one_household_is_one_address() -> None:
    assert peer_of("2001:db8::1") == peer_of("2001:db8::ffff:1") == "2001:db8::/64"
    assert peer_of("2001:db8:0:1::1") != peer_of("2001:db8::1")
    assert peer_of("::ffff:192.0.2.1") == peer_of("192.0.2.1") == "192.0.2.1"
    assert peer_of("nonsense") == ""


def test_the_client_is_the_last_address_that_is_none_of_our_proxies() -> None:
    proxies = ("10.0.0.0/8", "2001:db8::/32")
    assert client_address("192.0.2.1", ["198.51.100.1"], proxies) == "192.0.2.1"
    assert client_address("10.0.0.1", ["198.51.100.1, 203.0.113.1"], proxies) == "203.0.113.1"
    assert client_address("10.0.0.1", ["198.51.100.1", "203.0.113.1, 10.0.0.2"], proxies) == "203.0.113.1"
    assert client_address("10.0.0.1", ["evil"], proxies) == "10.0.0.1"
    assert client_address("10.0.0.1", [], proxies) == "10.0.0.1"
    assert client_address("10.0.0.1", ["203.0.113.1"], ()) == "10.0.0.1"
    assert client_address(None, [], ()) == ""
    assert client_address("::ffff:10.0.0.1", ["203.0.113.1"], proxies) == "203.0.113.1"
    assert client_address("10.0.0.1", [", ".join(["10.0.0.2"] * 100_000)], proxies) == "10.0.0.2"
