"""The check of the project's language (`.ci/prose.py`, part of `make lint`) finds what it is for."""

import importlib.util
from pathlib import Path
from types import ModuleType

import pytest

from dispatcher.telemetry.build_form import FORM

SCRIPT = Path(__file__).parents[2] / ".ci" / "prose.py"


@pytest.fixture(scope="module")
def prose() -> ModuleType:
    spec = importlib.util.spec_from_file_location("prose", SCRIPT)
    assert spec is not None
    assert spec.loader is not None
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    return module


@pytest.mark.parametrize(
    "definition",
    [
        "class Flight: ...",
        "def bury(): ...",
        "async def meet(): ...",
        "MISSING = object()",
        "class A:\n    def peek(self): ...",
    ],
)
def test_a_definition_with_an_old_name_is_found(prose: ModuleType, definition: str) -> None:
    assert [name for _, name in prose.old_definitions(definition)]
    assert not list(prose.old_definitions("class FastPath: ...\nNOT_CACHED = object()\ndef dead_letter(): ..."))


@pytest.mark.parametrize(
    "first_line", ["The state of a record.", "Whether it may begin.", "Return it.", "Seconds until then."]
)
def test_a_docstring_that_does_not_begin_with_what_the_function_does_is_found(
    prose: ModuleType, first_line: str
) -> None:
    function = 'def f():\n    """{}"""'
    assert list(prose.verbless_docstrings(function.format(first_line)))
    assert not list(prose.verbless_docstrings(function.format("Returns the state of a record.")))
    assert not list(
        prose.verbless_docstrings("class A:\n    @property\n    " + function.format(first_line).replace("\n", "\n    "))
    )


@pytest.mark.parametrize(
    "sentence", ["None where there is one.", "Whoever asks is told.", "What stands in the way.", "It sees to a record."]
)
def test_words_that_the_style_excludes_are_found_in_docstrings_and_comments(
    prose: ModuleType, sentence: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(prose, "ROOT", tmp_path)
    for name, text in {"a.py": f'"""{sentence}"""\n', "b.py": f"# {sentence}\n", "c.md": f"{sentence}\n"}.items():
        (tmp_path / name).write_text(text)
        assert list(prose.findings(tmp_path / name))


@pytest.mark.parametrize(
    ("name", "text", "line"),
    [
        ("a.py", '"""Returns None\n\nor the value where\n    there is one."""\n', 3),
        ("a.py", "x = 1\n# the value where\n# there is one\n", 2),
        ("a.py", 'x = (\n    "the value where "\n    "there is one"\n)\n', 2),
        ("a.py", 'x = f"{1} where there is {2}"\n', 1),
        ("a.py", 'def f():\n    """Args:\n    a: whoever asks.\n    """\n', 3),
        ("tests/a.py", "\ndef test_whoever_asks_is_refused(): ...\n", 2),
        ("tests/test_who_may.py", "", 1),
        ("a.md", "One.\n\nThe value where\nthere is one.\n", 3),
        ("a.toml", "# the value where\n# there is one\n", 1),
        ("Dockerfile", "FROM x\n\n# whoever asks\n", 3),
        ("Makefile", "a: ## What whoever asks gets.\n", 1),
        ("a.json", '{\n  "description": "Whoever asks",\n  "where": "there is one"\n}\n', 2),
    ],
)
def test_words_are_found_in_every_kind_of_text_and_across_lines(
    prose: ModuleType, name: str, text: str, line: int, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(prose, "ROOT", tmp_path)
    path = tmp_path / name
    path.parent.mkdir(exist_ok=True)
    path.write_text(text)
    found = list(prose.findings(path))
    assert found
    assert all(one.startswith(f"{name}:{line}: ") for one in found)


@pytest.mark.parametrize(
    "sentence",
    [
        "It waits for so long.",
        "A CA that is no PEM.",
        "It is read anew.",
        "What the store knows of it.",
        "Looks whether it exists.",
        "Connects to nothing yet.",
    ],
)
def test_the_projects_old_dialect_is_found(prose: ModuleType, sentence: str) -> None:
    assert [pattern for pattern, _ in prose._PATTERNS if pattern.search(sentence)]


def test_the_docstrings_of_classes_and_of_constructors_are_checked(prose: ModuleType) -> None:
    assert list(prose.verbless_docstrings('class A:\n    """What one attempt needs."""'))
    assert list(prose.verbless_docstrings('class A:\n    def __init__(self):\n        """Args:\n        a: b."""'))
    assert not list(prose.verbless_docstrings('class A:\n    """One attempt."""'))


def test_good_sentences_pass(prose: ModuleType) -> None:
    for sentence in (
        "There is no broker, and it is no longer read.",
        "So many webhooks are missing that their removal waits.",
        "It has read nothing yet.",
    ):
        assert not [pattern for pattern, _ in prose._PATTERNS if pattern.search(sentence)]


@pytest.mark.skipif(FORM == "compiled", reason="the copy that is compiled is not under version control")
def test_the_dockerfile_the_makefile_and_the_dashboards_are_read(prose: ModuleType) -> None:
    names = {str(path.relative_to(prose.ROOT)) for path in prose.tracked()}
    assert names >= {"Dockerfile", "Makefile", "pyproject.toml", f"{prose.DASHBOARDS}overview.json"}
