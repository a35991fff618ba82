"""Durations, sizes and rates as people write them."""

from typing import Annotated

import pytest
from hypothesis import given
from hypothesis import strategies as st
from pydantic import TypeAdapter, ValidationError

from dispatcher.config.units import (
    NO_SWITCH,
    Bytes,
    PerSecond,
    Seconds,
    format_duration,
    parse_duration,
    parse_rate,
    parse_size,
)


@pytest.mark.parametrize(
    ("text", "seconds"),
    [("10s", 10), ("5m", 300), ("24h", 86_400), ("1d", 86_400), ("250ms", 0.25), ("1h30m", 5400), ("1.5s", 1.5),
     ("0s", 0), (7, 7), (0.5, 0.5)],
)  # fmt: skip
def test_durations(text: object, seconds: float) -> None:
    assert parse_duration(text) == pytest.approx(seconds)


@pytest.mark.parametrize(
    "text", ["", "10", "s", "10 s", " 10s", "10s ", "-1s", "1e3s", "10S", "1w", "10sm", "1h,30m", "١s"]
)
def test_an_invalid_duration_is_refused(text: str) -> None:
    with pytest.raises(ValueError, match="write a duration as"):
        parse_duration(text)


@pytest.mark.parametrize(
    ("text", "size"),
    [("1", 1), ("1B", 1), ("20kB", 20_000), ("64KiB", 65_536), ("128 MiB", 134_217_728), ("1GB", 10**9), (17, 17)],
)
def test_sizes(text: object, size: int) -> None:
    assert parse_size(text) == size


@pytest.mark.parametrize("text", ["", "kB", "1.5MB", "1kb", "1 k B", "-1B", "1e3", "١kB"])
def test_an_invalid_size_is_refused(text: str) -> None:
    with pytest.raises(ValueError, match="write a size as"):
        parse_size(text)


@pytest.mark.parametrize(("text", "rate"), [("100/s", 100), ("600/m", 10), ("1800/h", 0.5), ("0.5/s", 0.5), (3, 3)])
def test_rates(text: object, rate: float) -> None:
    assert parse_rate(text) == rate


@pytest.mark.parametrize("text", ["", "100", "/s", "100/d", "100 /s", "-1/s"])
def test_an_invalid_rate_is_refused(text: str) -> None:
    with pytest.raises(ValueError, match="write a rate as"):
        parse_rate(text)


@pytest.mark.parametrize(("kind", "value"), [(Seconds, 0), (Seconds, "0s"), (Seconds, -1), (Seconds, float("inf")),
                                             (Seconds, float("nan")), (Seconds, None), (Seconds, []), (Bytes, 0),
                                             (Bytes, "0kB"), (Bytes, -1), (Bytes, 1.5), (PerSecond, "0/s"),
                                             (PerSecond, float("inf"))])  # fmt: skip
def test_none_of_them_is_zero_negative_or_endless(kind: object, value: object) -> None:
    with pytest.raises(ValidationError):
        TypeAdapter(kind).validate_python(value)


@given(st.integers(1, 10**7) | st.integers(1, 10**7).map(lambda milliseconds: milliseconds / 1000))
def test_a_formatted_duration_reads_back(seconds: float) -> None:
    assert parse_duration(format_duration(seconds)) == pytest.approx(seconds, abs=0.0005)


@pytest.mark.parametrize(
    ("seconds", "text"),
    [
        (30, "30s"),
        (120, "2m"),
        (900, "15m"),
        (5400, "1h30m"),
        (86_400, "24h"),
        (0.25, "250ms"),
        (0, "0s"),
        (1.5, "1500ms"),
    ],
)
def test_the_names_of_tiers(seconds: float, text: str) -> None:
    """They are in the names of topics: a change would leave records behind in the old ones."""
    assert format_duration(seconds) == text


@given(st.text())
def test_any_text_is_read_or_refused(text: str) -> None:
    for parse in (parse_duration, parse_size, parse_rate):
        try:
            assert isinstance(parse(text), float | int)
        except ValueError as error:
            assert "write a" in str(error)


@pytest.mark.parametrize("kind", [Annotated[int, NO_SWITCH], Annotated[float, NO_SWITCH], Seconds, Bytes, PerSecond])
@pytest.mark.parametrize("value", [True, False])
def test_true_and_false_are_refused_as_numbers(kind: object, value: bool) -> None:
    with pytest.raises(ValidationError, match="must be a number, not true or false"):
        TypeAdapter(kind).validate_python(value)
