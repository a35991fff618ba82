"""What of an event's `traceparent` is passed on to an endpoint (W3C Trace Context, section 3.2)."""

import pytest

from dispatcher.delivery.pending_delivery import is_traceparent

TRACE, SPAN = "4bf92f3577b34da6a3ce929d0e0e4736", "00f067aa0ba902b7"


@pytest.mark.parametrize(
    "text",
    [f"00-{TRACE}-{SPAN}-01", f"00-{TRACE}-{SPAN}-00", f"cc-{TRACE}-{SPAN}-01", f"01-{TRACE}-{SPAN}-01-more.to-come"],
)
def test_a_valid_traceparent_is_passed_on(text: str) -> None:
    assert is_traceparent(text)


@pytest.mark.parametrize(
    "text",
    [
        "", "00", "hello", f"00-{TRACE}-{SPAN}", f"00-{TRACE}-{SPAN}-1", f"00-{TRACE}-{SPAN}-01-more",
        f"ff-{TRACE}-{SPAN}-01", f"00-{TRACE.upper()}-{SPAN}-01", f"00-{'0' * 32}-{SPAN}-01", f"00-{TRACE}-{'0' * 16}-01",
        f"00-{TRACE[:-1]}-{SPAN}-01", f"00-{TRACE}-{SPAN}x-01", f"00-{TRACE}-{SPAN}-0g", f" 00-{TRACE}-{SPAN}-01",
        f"00-{TRACE}-{SPAN}-01\n", f"00_{TRACE}_{SPAN}_01", f"01-{TRACE}-{SPAN}-01.x", f"01-{TRACE}-{SPAN}-01-" + "x" * 300,
    ],
)  # fmt: skip
def test_an_invalid_one_is_not(text: str) -> None:
    assert not is_traceparent(text)
