"""Checks by the syntax tree what the package's source never does, however a linter is configured."""

import ast
import re
import tomllib
from collections.abc import Iterator
from pathlib import Path

import pytest

ROOT = Path(__file__).parents[2]
MODULES = sorted(ROOT.joinpath("dispatcher").rglob("*.py"))

FORBIDDEN_MODULES = frozenset(
    {
        "pickle",
        "cPickle",
        "dill",
        "marshal",
        "shelve",
        "xml",
        "telnetlib",
        "ftplib",
        "commands",
        "pty",
        "code",
        "jsonpickle",
    }
)
FORBIDDEN_CALLS = frozenset(
    {
        "eval", "exec", "compile", "__import__", "os.system", "os.popen", "os.spawnl", "os.spawnv", "os.spawnlp",
        "os.spawnvp", "subprocess.getoutput", "subprocess.getstatusoutput", "asyncio.create_subprocess_shell",
        "yaml.load", "yaml.load_all", "yaml.unsafe_load", "yaml.full_load", "tempfile.mktemp", "pickle.loads",
        "ssl._create_unverified_context", "ssl.wrap_socket", "hashlib.md5", "hashlib.sha1", "random.seed",
    }
)  # fmt: skip
LOADERS = frozenset({"dispatcher/config/documents/yaml_reader.py"})
"""Where YAML is read, by a loader of our own that constructs text, numbers, lists and mappings only."""
DIAGNOSES = frozenset({"dispatcher/kafka/port_diagnosis.py"})
"""Asks an untrusted port which protocol it speaks, after a connection failed. It sends no secret, so it verifies nothing."""


def dotted(node: ast.AST) -> str:
    """`a.b.c` of a name or an attribute, else nothing."""
    if isinstance(node, ast.Name):
        return node.id
    if isinstance(node, ast.Attribute):
        before = dotted(node.value)
        return f"{before}.{node.attr}" if before else node.attr
    return ""


def objections(tree: ast.AST) -> Iterator[tuple[int, str]]:
    """What a module does that none may: line and what."""
    for node in ast.walk(tree):
        line = getattr(node, "lineno", 0)
        match node:
            case ast.Assert():
                yield line, "assert: gone under -O"
            case ast.Import(names=names):
                yield from (
                    (line, f"imports {one.name}") for one in names if one.name.split(".")[0] in FORBIDDEN_MODULES
                )
            case ast.ImportFrom(module=str(module)) if module.split(".")[0] in FORBIDDEN_MODULES:
                yield line, f"imports from {module}"
            case ast.ImportFrom(module=str(module), names=names):
                yield from (
                    (line, f"imports {module}.{one.name}") for one in names if f"{module}.{one.name}" in FORBIDDEN_CALLS
                )
            case ast.Call(func=func) if dotted(func) in FORBIDDEN_CALLS:
                yield line, f"calls {dotted(func)}"
            case ast.Call(keywords=keywords):
                for keyword in keywords:
                    yield from _in_keyword(line, keyword)
            case ast.Attribute(attr="CERT_NONE" | "CERT_OPTIONAL" | "_create_unverified_context"):
                yield line, f"certificates are not verified: {dotted(node)}"
            case ast.Assign(targets=targets, value=ast.Constant(value=False)):
                yield from (
                    (line, "host names are not checked") for one in targets if dotted(one).endswith("check_hostname")
                )


def _in_keyword(line: int, keyword: ast.keyword) -> Iterator[tuple[int, str]]:
    value = keyword.value.value if isinstance(keyword.value, ast.Constant) else None
    unsafe = {"shell": True, "verify": False, "ssl": False, "verify_ssl": False, "allow_redirects": True}
    if keyword.arg in unsafe and value is unsafe[keyword.arg]:
        yield line, f"{keyword.arg}={value}"
    if keyword.arg in {"auto_decompress", "trust_env", "show_locals", "autoescape"}:
        wanted = keyword.arg == "autoescape"
        if isinstance(value, bool) and value is not wanted:
            yield line, f"{keyword.arg}={value}"


@pytest.mark.parametrize("path", MODULES, ids=[str(path.relative_to(ROOT)) for path in MODULES])
def test_a_module_does_nothing_that_none_may(path: Path) -> None:
    tree = ast.parse(path.read_text(), str(path))
    name, spared = str(path.relative_to(ROOT)), set[str]()
    if name in LOADERS:
        spared = {"calls yaml.load", "calls yaml.load_all"}
    if name in DIAGNOSES:
        spared = {"host names are not checked", "certificates are not verified: ssl.CERT_NONE"}
    assert [found for found in objections(tree) if found[1] not in spared] == []


@pytest.mark.parametrize(
    "source",
    [
        "assert x", "eval('1')", "exec(x)", "import pickle", "from pickle import loads", "import xml.etree.ElementTree",
        "import os\nos.system('ls')", "import subprocess\nsubprocess.run('ls', shell=True)", "from os import system",
        "asyncio.create_subprocess_shell('ls')", "yaml.load(x)", "ssl.create_default_context().verify_mode = ssl.CERT_NONE",
        "context.check_hostname = False", "session.get(url, ssl=False)", "session.post(url, allow_redirects=True)",
        "aiohttp.ClientSession(trust_env=True)", "ExceptionDictTransformer(show_locals=True)",
        "jinja2.Environment(autoescape=False)", "hashlib.md5(x)", "compile(x, 'a', 'exec')",
    ],
)  # fmt: skip
def test_each_of_these_would_be_found(source: str) -> None:
    assert list(objections(ast.parse(source)))


def test_the_linter_s_security_rules_are_on_for_the_package() -> None:
    ruff = tomllib.loads(ROOT.joinpath("pyproject.toml").read_text())["tool"]["ruff"]["lint"]
    assert "S" in ruff["select"]
    assert [rule for rule in ruff["ignore"] if rule.startswith("S")] == ["S105"]
    excused = {
        pattern: sorted(rule for rule in rules if rule.startswith("S") and rule not in ("SIM105", "SIM300", "SLF"))
        for pattern, rules in ruff["per-file-ignores"].items()
        if pattern.startswith("dispatcher")
    }
    assert {pattern: rules for pattern, rules in excused.items() if rules} == {"dispatcher/demo/**": ["S311", "S603"]}


_NOQA = re.compile(r"# noqa: S\d+(?!.*\()")


def test_each_exception_to_them_carries_its_reason() -> None:
    bare = [
        f"{path.relative_to(ROOT)}:{number}"
        for path in MODULES
        for number, line in enumerate(path.read_text().splitlines(), 1)
        if _NOQA.search(line)
    ]
    assert bare == []
