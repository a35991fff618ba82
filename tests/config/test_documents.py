"""Reading documents: YAML 1.2 meanings, positions, and refusals that name the place."""

import json
from pathlib import Path

import pytest
from hypothesis import example, given
from hypothesis import strategies as st

from dispatcher.config.documents import (
    MAX_BYTES,
    MAX_DEPTH,
    key_of,
    parse_document,
    parse_value,
    path_of,
    read_document,
)
from dispatcher.errors import ConfigError, Problem


def problems_of(text: str, file: str = "x.yaml") -> list[str]:
    with pytest.raises(ConfigError) as caught:
        parse_document(text.encode(), file)
    return [str(problem) for problem in caught.value.problems]


@pytest.mark.parametrize(
    ("text", "value"),
    [
        ("no", "no"),
        ("on", "on"),
        ("Yes", "Yes"),
        ("y", "y"),
        ("true", True),
        ("FALSE", False),
        ("null", None),
        ("~", None),
        ("", None),
        ("017", 17),
        ("0o17", 15),
        ("0x1F", 31),
        ("-3", -3),
        ("1_000", "1_000"),
        ("0b1", "0b1"),
        ("12:30:45", "12:30:45"),
        ("2024-01-02", "2024-01-02"),
        ("1.5", 1.5),
        (".5", 0.5),
        ("1e3", 1000.0),
        ("1.", 1.0),
        ('"12"', "12"),
        ("'true'", "true"),
        ("!!str 12", "12"),
        ("! 12", "12"),
        ("!!int 12", 12),
        ("!!float 12", 12),
        ("!!null ''", None),
        ("=", "="),
        ("[30s, 2m]", ["30s", "2m"]),
        ("{file: a b}", {"file": "a b"}),
    ],
)
def test_scalars_mean_what_yaml_1_2_says(text: str, value: object) -> None:
    read = parse_value(text)
    assert read == value
    assert type(read) is type(value)


def test_keys_are_text_whatever_they_look_like() -> None:
    assert parse_document(b"404: a\non: b\nnull: c\n", "x").data == {"404": "a", "on": "b", "null": "c"}


def test_json_is_read_with_its_own_liberties() -> None:
    content = b'{\n\t"name": "\\ud83d\\ude00 \\\\ud83d\\/",\n\t"list":[1, true, null]\n}\n'
    document = parse_document(content, "x.json")
    assert document.data == {"name": "\N{GRINNING FACE} \\ud83d/", "list": [1, True, None]}
    assert document.line(("list", 1)) == 3


def test_every_part_knows_its_line() -> None:
    document = parse_document(b"# comment\na:\n  b: 1\n  c:\n    - x\n    - y: {z: 2,\n        q: 3}\n", "x")
    assert [
        document.line(path)
        for path in (
            (),
            ("a",),
            ("a", "b"),
            ("a", "c"),
            ("a", "c", 0),
            ("a", "c", 1, "y", "z"),
            ("a", "c", 1, "y", "q"),
        )
    ] == [1, 2, 3, 4, 5, 6, 7]


def test_a_missing_value_has_the_line_of_its_parent() -> None:
    document = parse_document(b"a:\n  b: 1\n", "x")
    assert document.line(("a", "missing")) == 1
    assert document.line(("a", "b", "deeper", 3)) == 2
    assert not document.holds(("a", "missing"))
    assert document.holds(("a", "b"))


def test_an_alias_has_the_value_of_its_anchor() -> None:
    document = parse_document(b"a: &x {k: [1]}\nb: *x\n", "x")
    assert document.data == {"a": {"k": [1]}, "b": {"k": [1]}}
    assert document.line(("b",)) == 2
    assert document.line(("b", "k", 0)) == 1


@pytest.mark.parametrize(
    ("text", "lines"),
    [
        ("a: 1\nb: 2\na: 3\n", ["x.yaml:3: a: given twice, first on line 1: keep one"]),
        (
            "a: {b: 1,\n  b: 2}\nc: 1\nc: 2\n",
            [
                "x.yaml:2: a.b: given twice, first on line 1: keep one",
                "x.yaml:4: c: given twice, first on line 3: keep one",
            ],
        ),
        ("a: &x {b: 1}\nc:\n  <<: *x\n", ["x.yaml:3: c.<<: merge keys are not YAML 1.2: write the keys out"]),
        ("a: 1\n---\nb: 2\n", ["x.yaml:2: a second document begins here: one file contains one document"]),
        ("a:\n\t- b\n", ["x.yaml:2: a tab can't indent YAML: use spaces"]),
        ("a: b: c\n", ["x.yaml:1: not valid YAML: mapping values are not allowed in this context"]),
        ("a: [1\nb: 2\n", ["x.yaml:2: not valid YAML: did not find expected ',' or ']'"]),
        ("a: *nothing\n", ["x.yaml:1: this alias (*…) has no anchor before it: put text that begins with * in quotes"]),
        ("a: &x\n  - *x\n", ["x.yaml:2: this alias (*…) is inside the value that it repeats: write the value out"]),
        ("a: !!python/object/apply:os.system [id]\n", ["x.yaml:1: a: this tag can't be used here: leave it out"]),
        ("a: !secret x\n", ["x.yaml:1: a: this tag can't be used here: leave it out"]),
        ("a: !!int true\n", ["x.yaml:1: a: this tag can't be used here: leave it out"]),
        ("? [a]\n: b\n", ["x.yaml:1: a key must be plain text, not a list, mapping or alias"]),
        ("a: .inf\nb: 1e999\n", [f"x.yaml:{n}: {k}: must be a finite number: put it in quotes if it is text"
                                 for n, k in ((1, "a"), (2, "b"))]),
        ("a: 99999999999999999999\n",
         ["x.yaml:1: a: this number has more than 64 bits: put it in quotes if it is text"]),
        ("a: 1\nb: \0\n", ["x.yaml:2: character U+0000 is not allowed: write it as an escape in double quotes"]),
        ("a: " + "[" * 33 + "]" * 33, [f"x.yaml:1: nested deeper than {MAX_DEPTH} levels"]),
    ],
)  # fmt: skip
def test_a_refusal_names_line_and_key(text: str, lines: list[str]) -> None:
    assert problems_of(text) == lines


def test_aliases_that_multiply_are_refused_before_they_cost_anything() -> None:
    bomb = "a0: &a0 [x, x, x, x, x, x, x, x, x]\n" + "".join(
        f"a{n}: &a{n} [{', '.join([f'*a{n - 1}'] * 9)}]\n" for n in range(1, 12)
    )
    assert problems_of(bomb) == ["x.yaml:6: more than 200,000 values, aliases followed: split it"]


def test_aliases_that_nest_are_refused() -> None:
    tower = "a0: &a0 [x]\n" + "".join(f"a{n}: &a{n} [*a{n - 1}]\n" for n in range(1, 40))
    assert problems_of(tower) == [f"x.yaml:{MAX_DEPTH}: nested deeper than {MAX_DEPTH} levels, aliases followed"]


def test_a_document_has_at_most_a_mebibyte() -> None:
    assert problems_of("#" * (MAX_BYTES + 1)) == ["x.yaml: larger than 1024 KiB: split it"]
    assert parse_document(b"#" * MAX_BYTES, "x").data is None


def test_undecodable_bytes_are_reported_with_their_line() -> None:
    with pytest.raises(ConfigError, match=r"^x:2: not UTF-8 text$"):
        parse_document(b"a: 1\nb: \xff\n", "x")


def test_a_file_that_cannot_be_opened_is_a_problem(tmp_path: Path) -> None:
    for path, message in ((tmp_path / "no", "no such file: create it, or correct the path"),
                          (tmp_path, "is a directory: name the file in it"),
                          (Path("a\0b"), "can't be read (embedded null byte)")):  # fmt: skip
        with pytest.raises(ConfigError) as caught:
            read_document(path)
        assert str(caught.value) == f"{path}: {message}"


@pytest.mark.parametrize("path", [(), ("a",), ("webhooks", 2, "auth", "sign", "key"), (0, "x"), ("headers", "a b", 1)])
def test_a_key_is_read_back_as_the_path_it_was_written_from(path: tuple[str | int, ...]) -> None:
    assert path_of(key_of(path)) == path


_YAMLISH = st.text(alphabet="ab01:-?,[]{}&*!|>'\"%#@` \t\n\\.~<=xu/\x85\u2028\ud7ff\0\ufeff", max_size=80)


@given(st.one_of(_YAMLISH.map(lambda text: text.encode()), st.binary(max_size=80), st.text(max_size=60).map(
    lambda text: text.encode("utf-8", "surrogatepass"))), st.sampled_from(["x.yaml", "x.json"]))  # fmt: skip
@example(b"%YAML 9.9\n---\na", "x.yaml")
@example(b"%TAG ! x\n---\n!a b", "x.yaml")
@example(b'"\\ud83d"', "x.json")
@example(b"&a : *a", "x.yaml")
@example(b"[" * 5000, "x.yaml")
@example(b"? " * 3000, "x.yaml")
@example(b"- " * 3000, "x.yaml")
@example(b"x: " + b"9" * 5000, "x.yaml")
def test_any_bytes_are_a_document_or_problems_never_a_traceback(content: bytes, file: str) -> None:
    breaks = sum(content.count(mark.encode()) for mark in ("\n", "\r", "\x85", "\u2028", "\u2029"))
    problems: tuple[Problem, ...] = ()
    try:
        line = parse_document(content, file).line(("nothing", 0))
    except ConfigError as error:
        problems = error.problems
        line = problems[0].line or 1
    assert all(problem.file == file and problem.message for problem in problems)
    assert 1 <= line <= breaks + 1


_TEXT = st.text(st.characters(codec="utf-8"), max_size=12)
_LEAVES = (
    st.none() | st.booleans() | st.integers(-(2**63), 2**64 - 1) | st.floats(allow_nan=False, allow_infinity=False)
)
_JSON = st.recursive(
    _LEAVES | _TEXT,
    lambda inner: (
        st.lists(inner, max_size=4) | st.dictionaries(_TEXT.filter(lambda key: key != "<<"), inner, max_size=4)
    ),
    max_leaves=12,
)


@given(_JSON, st.sampled_from([None, "\t", 2]))
def test_every_json_document_is_read_as_it_was_meant(data: object, indent: str | int | None) -> None:
    assert parse_document(json.dumps(data, indent=indent).encode(), "x.json").data == data
