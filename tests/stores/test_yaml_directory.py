"""The mounted directory: loading, last good versions, moves, and Kubernetes' way of swapping files."""

# ruff: noqa: ASYNC240  (a test may block)

import asyncio
import os
from collections.abc import AsyncGenerator, AsyncIterator, Callable
from contextlib import asynccontextmanager, suppress
from pathlib import Path
from typing import Any

import pytest
from watchfiles._rust_notify import WatchfilesRustInternalError

from dispatcher.config.secret_scope import SecretScope
from dispatcher.config.settings import WebhookSettings
from dispatcher.config.webhook_lookup import CheckWebhook
from dispatcher.config.webhooks import WebhookConfig
from dispatcher.contract.tenant import TenantKey
from dispatcher.errors import ConfigError, WebhookUndecided, WebhookUnusable
from dispatcher.stores import open_source, settling, yaml_directory
from dispatcher.stores.cache import NOT_CACHED
from dispatcher.stores.webhook_file import Rules
from dispatcher.stores.yaml_directory import YamlDirectory
from dispatcher.telemetry import metrics
from tests.stores.kubelet import MountedVolume
from tests.stores.rescanning import load_at_once, rescan


def entry(org: str, sandbox: str = "prod", url: str = "https://hooks.example/x", more: str = "") -> str:
    return f"  - {{name: {org}, org: {org}, sandbox: {sandbox}, url: '{url}'{more}}}\n"


def content(*entries: str) -> str:
    return "apiVersion: dispatcher/v1\nwebhooks:\n" + ("".join(entries) or "  []\n")


BAD = "apiVersion: dispatcher/v1\nwebhooks: {}\n"


def key(org: str, sandbox: str = "prod") -> TenantKey:
    return TenantKey(org, sandbox)


class Notifications:
    """Remembers whose webhook changed."""

    def __init__(self) -> None:
        self.changes: list[set[str]] = []
        self.news = asyncio.Event()

    def __call__(self, tenants: set[TenantKey]) -> None:
        self.changes.append({str(tenant).removesuffix("/prod") for tenant in tenants})
        self.news.set()


def no_check(config: WebhookConfig) -> list[tuple[str, str]]:
    return []


def scope_of(path: Path) -> SecretScope:
    return SecretScope(roots=(path, path.parent / "secrets"), prefixes=("WEBHOOK_",))


def directory_at(
    path: Path, check: CheckWebhook = no_check, interval: float = 60
) -> tuple[YamlDirectory, Notifications]:
    directory = YamlDirectory(WebhookSettings(path=path, reload_interval=interval), Rules(check, scope_of(path)))
    load_at_once(directory)
    notified = Notifications()
    directory.on_change(notified)
    return directory, notified


def orgs(directory: YamlDirectory) -> list[str]:
    return [webhook.config.org for webhook in directory.all()]


def texts(directory: YamlDirectory, path: Path) -> list[str]:
    return [str(problem).replace(f"{path}/", "").replace(str(path), "DIR") for problem in directory.problems]


@pytest.fixture
def path(tmp_path: Path) -> Path:
    path = tmp_path / "webhooks.d"
    path.mkdir()
    return path


async def test_every_webhook_file_is_read_and_nothing_else(path: Path) -> None:
    (path / "a.yaml").write_text(content(entry("a"), entry("a", "stage")))
    (path / "b.YML").write_text(content(entry("b")))
    (path / "c.Json").write_text(
        '{"apiVersion": "dispatcher/v1",\n\t"webhooks": [{"name": "c", "org": "c", "sandbox": "prod", '
        '"url": "https://hooks.example/\\u00e4"}]}'.replace("\\u00e4", "x")
    )
    (path / ".hidden.yaml").write_text("{")
    (path / "README.md").write_text("{")
    (path / "b.yaml.swp").write_text("{")
    (path / "deeper").mkdir()
    os.mkfifo(path / "pipe.txt")
    directory, notified = directory_at(path)
    assert await directory.load() == []
    assert orgs(directory) == ["a", "a", "b", "c"]
    stage = await directory.get(key("a", "stage"))
    assert stage is not None
    assert stage.source == f"{path}/a.yaml:4"
    assert await directory.get(key("nobody")) is None
    assert notified.changes == [{"a", "a/stage", "b", "c"}]
    assert repr(directory) == f"<YamlDirectory {path}: 4 webhooks in 3 files, 0 problems>"


async def test_an_empty_directory_is_accepted(path: Path) -> None:
    directory, notified = directory_at(path)
    assert await directory.load() == []
    assert directory.all() == []
    assert notified.changes == []


async def test_a_directory_that_is_not_there_stops_the_start(path: Path) -> None:
    directory, _ = directory_at(path / "no")
    with pytest.raises(ConfigError, match=r"no: can't be read \(No such file or directory\): what was loaded stays"):
        await directory.load()


async def test_at_the_start_good_files_load_beside_bad_ones(path: Path) -> None:
    (path / "a.yaml").write_text(content(entry("a")))
    (path / "b.yaml").write_text(BAD)
    directory, _ = directory_at(path)
    problems = await directory.load()
    assert [str(problem) for problem in problems] == [
        f"{path}/b.yaml:2: webhooks: must be a list, not a mapping",
    ]
    assert orgs(directory) == ["a"]


async def test_a_start_with_no_usable_file_is_refused_with_every_mistake(path: Path) -> None:
    (path / "a.yaml").write_text("")
    (path / "b.yaml").write_text(BAD)
    (path / "c.yaml").symlink_to("gone")
    directory, _ = directory_at(path)
    with pytest.raises(ConfigError) as caught:
        await directory.load()
    assert str(caught.value).replace(f"{path}/", "").split("\n") == [
        "a.yaml: empty: write apiVersion: dispatcher/v1 and webhooks",
        "b.yaml:2: webhooks: must be a list, not a mapping",
        "c.yaml: can't be read (No such file or directory): correct the file or its permissions",
    ]


async def test_a_mistake_costs_the_webhook_it_is_in_which_keeps_its_last_good_version(path: Path) -> None:
    (path / "a.yaml").write_text(content(entry("a"), entry("b")))
    (path / "c.yaml").write_text(content(entry("c")))
    directory, notified = directory_at(path)
    await directory.load()
    before = {webhook.config.org: webhook for webhook in directory.all()}
    (path / "a.yaml").write_text(content(entry("a", url="https://new.example/"), entry("b", url="ftp://x"), entry("d")))
    (path / "c.yaml").write_text(content(entry("c", url="https://new.example/")))
    await rescan(directory)
    assert texts(directory, path) == ["a.yaml:4: webhooks[1].url: must begin with https://"]
    assert orgs(directory) == ["a", "b", "c", "d"]
    assert await directory.get(key("b")) is before["b"]
    assert notified.changes[1:] == [{"a", "c", "d"}]
    (path / "a.yaml").write_text(content(entry("a", url="https://new.example/")))
    assert await rescan(directory) == []
    assert orgs(directory) == ["a", "c"]
    assert notified.changes[2:] == [{"b", "d"}]


async def test_a_mistake_without_a_last_good_version_makes_the_webhook_unusable_until_it_is_repaired(
    path: Path,
) -> None:
    (path / "a.yaml").write_text(content(entry("t0"), entry("t1"), entry("t2", url="ftp://x")))
    directory, notified = directory_at(path)
    await directory.load()
    assert orgs(directory) == ["t0", "t1"]
    assert directory.get_cached(key("t2")) is NOT_CACHED
    assert directory.is_held(key("t2"))
    with pytest.raises(WebhookUnusable, match="t2/prod: its webhook can't be used: url: must begin with https://"):
        await directory.get(key("t2"))
    assert await directory.get(key("nobody")) is None
    assert (metrics.CONFIG_UNUSABLE._value.get(), metrics.CONFIG_INCOMPLETE._value.get()) == (1, 0)
    (path / "a.yaml").write_text(content(entry("t0"), entry("t1"), entry("t2")))
    assert await rescan(directory) == []
    assert orgs(directory) == ["t0", "t1", "t2"]
    assert not directory.is_held(key("t2"))
    assert notified.changes[1:] == [{"t2"}]


TENANT_OF_BROKEN = [
    ("{name: x, org: x, sandbox: prod}", "x/prod"),
    ("{org: x, sandbox: prod, url: 'https://x.example/'}", "x/prod"),
    ("{name: x, org: 007, sandbox: 1.50, url: 'https://x.example/'}", "007/1.50"),
    ("{name: x, org: x, sandbox: prod, url: 'https://x.example/', url: 'https://y.example/'}", "x/prod"),
    ("{name: x, org: x, sandbox: prod, url: 'https://x.example/', zzz: 1}", "x/prod"),
    ("{name: x, org: x, sandbox: prod, url: 'https://x.example/', timeout: 99999999999999999999}", "x/prod"),
    ("{name: x, org: x, sandbox: prod, url: 'https://x.example/', auth: {type: jwt}}", "x/prod"),
    ("{name: x, org: x, sandbox: prod, url: 'https://x.example/', headers: {Host: x}}", "x/prod"),
    (f"{{name: x, org: x, sandbox: prod, url: 'https://x.example/'{', signing: {secrets: [{file: no}]}'}}}", "x/prod"),
]


@pytest.mark.parametrize(("broken", "tenant"), TENANT_OF_BROKEN)
async def test_the_tenant_of_a_broken_webhook_is_known(path: Path, broken: str, tenant: str) -> None:
    (path / "a.yaml").write_text(content(entry("a"), f"  - {broken}\n", entry("b")))
    directory, _ = directory_at(path)
    assert len(await directory.load()) >= 1
    assert orgs(directory) == ["a", "b"]
    org, _, sandbox = tenant.partition("/")
    with pytest.raises(WebhookUnusable):
        await directory.get(key(org, sandbox))
    assert await directory.get(key("nobody")) is None, "the store is complete"


def luma(org: str = "luma", sandbox: str = "prod") -> str:
    return f"  - name: luma\n    org: {org}\n    sandbox: {sandbox}\n    url: https://luma.example/x\n"


JOINED = content(entry("a"), "  - {name: b, org: b, sandbox: prod, url: 'https://b.example/', %s}\n")

UNKNOWN_TENANTS = {
    "not YAML": "webhooks: [",
    "a tab": content(entry("x")) + "\t- x\n",
    "empty": "",
    "a list": "[]",
    "no list of webhooks": BAD,
    "misspelt": content(entry("x")).replace("webhooks", "webhoks"),
    "another list beside": content(entry("x")) + "webhook:\n" + entry("y"),
    "no organisation": content(entry("x"), "  - {name: y, sandbox: prod, url: 'https://y.example/'}\n"),
    "no sandbox": content("  - {name: y, org: y, url: 'https://y.example/'}\n"),
    "text": content("  - y\n"),
    "a name's list": content("  - {name: y, org: [y], sandbox: prod, url: 'https://y.example/'}\n"),
    "not UTF-8": "\udcff",
    "two documents": content(entry("x")) + "---\n" + content(entry("y")),
    "no webhooks": "apiVersion: dispatcher/v1\n",
    "webhooks again, without tenants": content(entry("x")) + "webhooks:\n  - {name: y}\n",
    "no sandbox inside another webhook": content("  - {name: x, org: x, sandbox: prod, next: {org: y}}\n"),
    "a forgotten dash and no second organisation": JOINED % "name: c, sandbox: prod, url: 'https://c.example/'",
    "a forgotten dash and no second sandbox": JOINED % "name: c, org: c, url: 'https://c.example/'",
    "a forgotten dash and no second tenant": JOINED % "name: c, url: 'https://c.example/'",
    "a sandbox that goes on in the next line": content(entry("x"), luma(sandbox="prod\n      https://luma.example/y")),
    "too many organisations": content("  - {" + ", ".join(f"org: o{n}" for n in range(101)) + ", sandbox: prod}\n"),
}
WHOLE_FILES = ("not YAML", "a tab", "empty", "a list", "no list of webhooks", "misspelt", "not UTF-8", "two documents",
               "no webhooks")  # fmt: skip


@pytest.mark.parametrize("text", UNKNOWN_TENANTS.values(), ids=UNKNOWN_TENANTS)
async def test_a_file_with_unknown_tenants_makes_the_store_incomplete_until_it_is_repaired(
    path: Path, text: str
) -> None:
    (path / "a.yaml").write_text(content(entry("a")))
    (path / "b.yaml").write_bytes(text.encode(errors="surrogateescape"))
    directory, notified = directory_at(path)
    assert len(await directory.load()) >= 1
    assert (await directory.get(key("a"))) is not None
    assert directory.get_cached(key("nobody")) is NOT_CACHED
    assert directory.is_held(key("nobody"))
    with pytest.raises(WebhookUndecided):
        await directory.get(key("nobody"))
    assert metrics.CONFIG_INCOMPLETE._value.get() == 1
    (path / "b.yaml").write_text(content(entry("b")))
    assert await rescan(directory) == []
    assert await directory.get(key("nobody")) is None
    assert not directory.is_held(key("nobody"))
    assert metrics.CONFIG_INCOMPLETE._value.get() == 0
    assert "b" in notified.changes[-1]


NO_TENANTS = ["null", "Null", "NULL", "~", "", "[]", "{}", "<no value>", "'${SANDBOX}'", "'{{ x }}'", "None", "!x null",
              "'lu\\tma'", '"lu\\tma"', '"lu\\n\\nma"', "lu`ma", "luma]", "luma;", "'[luma'", "'*luma'", "lu\\ma",
              "luma https://luma.example/x"]  # fmt: skip
"""What templates, forgotten values, and slips of the keyboard and of YAML leave in place of an organisation or sandbox."""


@pytest.mark.parametrize("spelt", NO_TENANTS)
@pytest.mark.parametrize("field", ["org", "sandbox"])
async def test_a_missing_organisation_or_sandbox_is_not_another_tenant(path: Path, field: str, spelt: str) -> None:
    (path / "a.yaml").write_text(content(entry("other"), luma(**{field: spelt})))
    directory, _ = directory_at(path)
    assert len(await directory.load()) >= 1
    with pytest.raises(WebhookUndecided):
        await directory.get(key("luma"))
    assert orgs(directory) == ["other"]


@pytest.mark.parametrize("spelt", NO_TENANTS)
@pytest.mark.parametrize("field", ["org", "sandbox"])
async def test_a_webhook_stays_in_use_when_its_organisation_or_sandbox_goes_missing(
    path: Path, field: str, spelt: str
) -> None:
    (path / "a.yaml").write_text(content(entry("other"), luma()))
    directory, _ = directory_at(path)
    await directory.load()
    (path / "a.yaml").write_text(content(entry("other"), luma(**{field: spelt})))
    assert len(await rescan(directory)) >= 1
    assert orgs(directory) == ["luma", "other"]
    assert await directory.get(key("nobody")) is None, "the store is complete"


async def test_a_null_inside_a_broken_webhook_names_no_tenant(path: Path) -> None:
    (path / "a.yaml").write_text(content(entry("other", more=", next: {org: luma, sandbox: ~}")))
    directory, _ = directory_at(path)
    await directory.load()
    with pytest.raises(WebhookUndecided):
        await directory.get(key("luma"))


async def test_a_quoted_null_is_text(path: Path) -> None:
    (path / "a.yaml").write_text(content(luma(sandbox="'null'")))
    directory, _ = directory_at(path)
    assert await directory.load() == []
    assert await directory.get(key("luma", "null")) is not None


async def test_the_problem_of_a_placeholder_says_what_to_write(path: Path) -> None:
    (path / "a.yaml").write_text(content(entry("other"), luma(sandbox="<no value>")))
    directory, _ = directory_at(path)
    await directory.load()
    assert texts(directory, path) == [
        "a.yaml:6: webhooks[1].sandbox: looks like a placeholder that a template didn't replace: write the value itself"
    ]


@pytest.mark.parametrize("text", [UNKNOWN_TENANTS[name] for name in WHOLE_FILES], ids=WHOLE_FILES)
async def test_a_file_that_was_read_before_keeps_its_tenants_when_it_breaks(path: Path, text: str) -> None:
    (path / "a.yaml").write_text(content(entry("a"), entry("b", url="ftp://x")))
    directory, _ = directory_at(path)
    await directory.load()
    (path / "a.yaml").write_bytes(text.encode(errors="surrogateescape"))
    assert len(await rescan(directory)) >= 1
    assert directory.get_cached(key("a")) is not NOT_CACHED
    with pytest.raises(WebhookUnusable):
        await directory.get(key("b"))
    assert metrics.CONFIG_INCOMPLETE._value.get() == 0


@pytest.mark.parametrize("name", ["directory", "pipe"])
async def test_a_webhook_file_that_is_not_a_file_may_hide_any_tenant(path: Path, name: str) -> None:
    (path / "a.yaml").write_text(content(entry("a")))
    (path / "b.yaml").mkdir() if name == "directory" else os.mkfifo(path / "b.yaml")
    directory, _ = directory_at(path)
    (problem,) = await directory.load()
    assert "b.yaml: can't be read (" in str(problem)
    with pytest.raises(WebhookUndecided):
        await directory.get(key("b"))


SECOND = "name: c, org: c, sandbox: prod, url: 'https://c.example/'"
TWO_IN_ONE = {
    "a forgotten dash": JOINED % SECOND,
    "a forgotten dash and no first name": JOINED.replace("name: b, ", "") % SECOND,
    "a second organisation": JOINED % "org: c",
    "a second list": JOINED.replace(", %s", "") + "webhooks:\n  - {" + SECOND + "}\n",
    "a second list of one mapping": JOINED.replace(", %s", "") + "webhooks: {" + SECOND + "}\n",
    "a webhook beside the list": JOINED.replace(", %s", "") + SECOND.replace(", ", "\n") + "\n",
    "a webhook in another": JOINED % ("next: {" + SECOND + "}"),
    "a webhook in a list in another": JOINED % ("next: [{" + SECOND + "}]"),
    "a webhook in a known key of another": JOINED % ("notify: {" + SECOND + "}"),
    "a webhook in a repeated key of another": JOINED % ("next: 1, next: {" + SECOND + "}"),
    "an organisation with a blank": content(entry("a"), entry("b"), entry("c").replace("org: c", "org: 'c '")),
    "an organisation with a new line": content(entry("a"), entry("b"), entry("c").replace("org: c", 'org: "c\\n"')),
    "an organisation with an invisible blank": content(
        entry("a"), entry("b"), entry("c").replace("org: c", "org: c\u200b")
    ),
}


@pytest.mark.parametrize("text", TWO_IN_ONE.values(), ids=TWO_IN_ONE)
async def test_every_tenant_that_a_mistake_may_concern_is_held(path: Path, text: str) -> None:
    (path / "a.yaml").write_text(text)
    directory, _ = directory_at(path)
    assert len(await directory.load()) >= 1
    assert "a" in orgs(directory)
    with pytest.raises(WebhookUnusable):
        await directory.get(key("c"))
    assert directory.get_cached(key("b")) is not None
    assert await directory.get(key("nobody")) is None, "the store is complete"


@pytest.mark.parametrize("text", TWO_IN_ONE.values(), ids=TWO_IN_ONE)
async def test_every_tenant_that_a_mistake_may_concern_keeps_its_webhook(path: Path, text: str) -> None:
    (path / "a.yaml").write_text(content(entry("a"), entry("b"), entry("c")))
    directory, _ = directory_at(path)
    await directory.load()
    (path / "a.yaml").write_text(text)
    assert len(await rescan(directory)) >= 1
    assert orgs(directory) == ["a", "b", "c"]
    (path / "b.yaml").write_text(content(entry("c", url="https://new.example/")))
    await rescan(directory)
    found = await directory.get(key("c"))
    assert found is not None
    is_own = any(text == TWO_IN_ONE[name] for name in TWO_IN_ONE if name.startswith("an organisation"))
    assert found.config.url == ("https://hooks.example/x" if is_own else "https://new.example/"), "an own entry stays"


async def test_claims_in_a_token_name_no_tenant(path: Path) -> None:
    broken = ", headers: {org: x}, auth: {type: jwt, sign: {claims: {org: x, sandbox: prod}}}"
    (path / "a.yaml").write_text(content(entry("a"), entry("b", more=broken)))
    directory, _ = directory_at(path)
    await directory.load()
    assert await directory.get(key("x")) is None


async def test_a_mistake_in_a_second_list_costs_no_webhook_of_the_first(path: Path) -> None:
    (path / "a.yaml").write_text(
        content(entry("a")) + "webhooks:\n  - {org: b, sandbox: prod, org: c, timeout: 1e999}\n"
    )
    directory, _ = directory_at(path)
    await directory.load()
    assert orgs(directory) == ["a"]
    for org in ("b", "c"):
        with pytest.raises(WebhookUnusable):
            await directory.get(key(org))


async def test_a_header_parameter_that_is_given_twice_is_a_mistake_whatever_its_type(path: Path) -> None:
    (path / "a.yaml").write_text(content(entry("a", more=", headers: {X-A: 1.50, X-A: 2.50}")))
    directory, _ = directory_at(path)
    await directory.load()
    assert texts(directory, path) == ["a.yaml:3: webhooks[0].headers.X-A: given twice, first on line 3: keep one"]


@pytest.mark.parametrize("broken", ["", "webhooks: ["], ids=["in an entry", "in the file"])
async def test_a_webhook_that_moves_leaves_a_file_with_a_mistake(path: Path, broken: str) -> None:
    (path / "a.yaml").write_text(content(entry("a"), entry("b")))
    directory, _ = directory_at(path)
    await directory.load()
    (path / "a.yaml").write_text(broken or content(entry("a").replace("org:", "ogr:")))
    (path / "b.yaml").write_text(content(entry("b", url="https://new.example/")))
    await rescan(directory)
    moved = await directory.get(key("b"))
    assert moved is not None
    assert moved.config.url == "https://new.example/"
    assert orgs(directory) == ["a", "b"]
    assert await directory.get(key("nobody")) is None, "the store is complete"


@pytest.mark.parametrize("left", ["name: b", "url: 'https://b.example/'"])
async def test_an_entry_without_tenant_is_known_by_its_name_or_url(path: Path, left: str) -> None:
    (path / "a.yaml").write_text(content(entry("a"), entry("b", url="https://b.example/")))
    directory, _ = directory_at(path)
    await directory.load()
    (path / "a.yaml").write_text(content(entry("a"), f"  - {{{left}, ogr: b, sandbox: prod}}\n"))
    await rescan(directory)
    assert orgs(directory) == ["a", "b"]
    assert await directory.get(key("nobody")) is None, "the store is complete"


async def test_a_new_webhook_without_tenant_is_not_taken_for_the_one_it_replaces(path: Path) -> None:
    (path / "a.yaml").write_text(content(entry("a"), entry("b", url="https://b.example/")))
    directory, _ = directory_at(path)
    await directory.load()
    (path / "a.yaml").write_text(content(entry("a"), entry("n").replace("org:", "ogr:")))
    await rescan(directory)
    with pytest.raises(WebhookUndecided):
        await directory.get(key("n"))
    assert orgs(directory) == ["a", "b"]


async def test_a_webhook_more_whose_tenant_is_unknown_makes_a_known_file_incomplete(path: Path) -> None:
    (path / "a.yaml").write_text(content(entry("a")))
    directory, notified = directory_at(path)
    await directory.load()
    (path / "a.yaml").write_text(content(entry("a"), "  - {name: y, url: 'https://y.example/'}\n"))
    await rescan(directory)
    assert orgs(directory) == ["a"]
    with pytest.raises(WebhookUndecided):
        await directory.get(key("y"))
    assert notified.changes[1:] == [set()], "listeners hear that the store is no longer complete"


async def test_a_file_of_another_version_is_refused_but_its_tenants_are_known(path: Path) -> None:
    (path / "a.yaml").write_text(content(entry("a")).replace("v1", "v2"))
    (path / "b.yaml").write_text(content(entry("b")))
    directory, _ = directory_at(path)
    await directory.load()
    assert texts(directory, path) == ["a.yaml:1: apiVersion: must be dispatcher/v1"]
    assert orgs(directory) == ["b"]
    with pytest.raises(WebhookUnusable):
        await directory.get(key("a"))
    assert await directory.get(key("nobody")) is None


async def test_a_webhook_keeps_its_last_good_version_when_it_moves_to_a_file_with_a_mistake_in_it(path: Path) -> None:
    (path / "a.yaml").write_text(content(entry("a"), entry("b")))
    directory, _ = directory_at(path)
    await directory.load()
    before = await directory.get(key("b"))
    (path / "a.yaml").write_text(content(entry("a")))
    (path / "c.yaml").write_text(content(entry("b", url="ftp://x")))
    await rescan(directory)
    assert await directory.get(key("b")) is before


async def test_a_webhook_whose_only_secret_is_not_there_yet_does_not_stop_the_start(path: Path) -> None:
    (path / "a.yaml").write_text(content(entry("a", more=SIGNED)))
    directory, notified = directory_at(path)
    assert len(await directory.load()) == 1
    with pytest.raises(WebhookUnusable):
        await directory.get(key("a"))
    (path.parent / "secrets").mkdir()
    (path.parent / "secrets" / "key").write_text("one" * 20)
    assert await rescan(directory) == []
    assert orgs(directory) == ["a"]
    assert notified.changes == [{"a"}, {"a"}]


async def test_at_most_twenty_problems_of_a_file_are_named(path: Path) -> None:
    keys = "".join(f", k{number}: 1" for number in range(1500))
    broken = [entry(f"t{number}", url="ftp://x") for number in range(30)]
    (path / "a.yaml").write_text(content(entry("a"), entry("b", more=keys), *broken))
    (path / "b.yaml").write_text(content(*broken))
    directory, _ = directory_at(path)
    problems = await directory.load()
    assert orgs(directory) == ["a"]
    assert len([problem for problem in problems if problem.file.endswith("a.yaml")]) == 21
    assert str(problems[20]).endswith("a.yaml: 1,510 more problems in this file")
    assert len(problems) == 21 + 21 + 21
    with pytest.raises(WebhookUnusable):
        await directory.get(key("t29"))


async def test_a_large_mapping_is_refused_before_each_of_its_keys_is(path: Path) -> None:
    keys = "".join(f", k{number}: 1" for number in range(60_000))
    (path / "a.yaml").write_text(content(entry("a", more=keys), entry("b")))
    directory, _ = directory_at(path)
    await directory.load()
    assert texts(directory, path) == ["a.yaml:3: webhooks[0]: must have at most 2,000 entries"]
    assert orgs(directory) == ["b"]


async def test_an_unchanged_webhook_stays_the_same_object(path: Path) -> None:
    (path / "a.yaml").write_text(content(entry("a"), entry("b")))
    directory, notified = directory_at(path)
    await directory.load()
    a, b = directory.all()
    (path / "a.yaml").write_text(content(entry("a"), entry("b", more=", enabled: false")))
    await rescan(directory)
    assert directory.all()[0] is a
    assert directory.all()[1] is not b
    os.utime(path / "a.yaml", (0, 0))
    await rescan(directory)
    assert notified.changes[1:] == [{"b"}]


async def test_a_removed_file_takes_its_webhooks_along(path: Path) -> None:
    (path / "a.yaml").write_text(content(entry("a")))
    (path / "b.yaml").write_text(content(entry("b")))
    directory, notified = directory_at(path)
    await directory.load()
    (path / "a.yaml").unlink()
    assert await rescan(directory) == []
    assert orgs(directory) == ["b"]
    assert notified.changes[1:] == [{"a"}]


async def test_a_bad_file_that_is_removed_takes_its_last_good_version_along(path: Path) -> None:
    (path / "a.yaml").write_text(content(entry("a")))
    (path / "b.yaml").write_text(content(entry("b")))
    directory, _ = directory_at(path)
    await directory.load()
    (path / "a.yaml").write_text(BAD)
    await rescan(directory)
    assert orgs(directory) == ["a", "b"]
    (path / "a.yaml").unlink()
    assert await rescan(directory) == []
    assert orgs(directory) == ["b"]


async def test_a_renamed_file_and_a_moved_webhook_stay_in_use(path: Path) -> None:
    (path / "a.yaml").write_text(content(entry("a"), entry("b")))
    (path / "c.yaml").write_text(content(entry("c")))
    directory, _ = directory_at(path)
    await directory.load()
    revisions = [webhook.revision for webhook in directory.all()]
    (path / "a.yaml").rename(path / "z.yaml")
    assert await rescan(directory) == []
    (path / "z.yaml").write_text(content(entry("a")))
    (path / "c.yaml").write_text(content(entry("b"), entry("c")))
    assert await rescan(directory) == []
    assert orgs(directory) == ["a", "b", "c"]
    assert [webhook.revision for webhook in directory.all()] == revisions
    assert [Path(webhook.source).name for webhook in directory.all()] == ["z.yaml:3", "c.yaml:3", "c.yaml:4"]


async def test_a_tenant_in_two_files_keeps_its_first_file_and_both_are_named(path: Path) -> None:
    (path / "b.yaml").write_text(content(entry("x")))
    directory, _ = directory_at(path)
    await directory.load()
    (path / "a.yaml").write_text(content(entry("y"), entry("x", url="https://thief.example/")))
    await rescan(directory)
    assert texts(directory, path) == [
        "a.yaml:4: webhooks[1]: x/prod is in b.yaml already: one webhook for each organisation and sandbox"
    ]
    assert orgs(directory) == ["x", "y"]
    assert directory.all()[0].source == f"{path}/b.yaml:3"
    (path / "b.yaml").unlink()
    assert await rescan(directory) == []
    assert [webhook.source for webhook in directory.all()] == [f"{path}/a.yaml:4", f"{path}/a.yaml:3"]


async def test_a_tenant_twice_in_a_file_is_a_mistake_in_it(path: Path) -> None:
    (path / "a.yaml").write_text(content(entry("x"), entry("x", "stage"), entry("x")))
    (path / "b.yaml").write_text(content(entry("b")))
    directory, _ = directory_at(path)
    await directory.load()
    assert texts(directory, path) == [
        "a.yaml:5: webhooks[2]: the same organisation and sandbox as webhooks[0], line 3: keep one"
    ]
    assert orgs(directory) == ["b", "x", "x"]
    assert directory.all()[1].source == f"{path}/a.yaml:3", "the earlier one is in use"


async def test_a_mistake_found_by_the_services_checks_has_its_line(path: Path) -> None:
    (path / "a.yaml").write_text(
        "apiVersion: dispatcher/v1\nwebhooks:\n  - name: a\n    org: a\n    sandbox: prod\n    url: https://10.0.0.1/\n"
        "    headers:\n      X-A: '1'\n"
    )
    (path / "b.yaml").write_text(content(entry("b")))

    def check(config: WebhookConfig) -> list[tuple[str, str]]:
        return [("url", "not allowed"), ("headers.X-A", "odd")] if config.org == "a" else []

    directory, _ = directory_at(path, check)
    await directory.load()
    assert texts(directory, path) == [
        "a.yaml:6: webhooks[0].url: not allowed",
        "a.yaml:8: webhooks[0].headers.X-A: odd",
    ]
    assert orgs(directory) == ["b"]


async def test_a_bug_in_a_check_costs_its_webhook_and_nothing_else(path: Path) -> None:
    (path / "a.yaml").write_text(content(entry("a")))
    (path / "b.yaml").write_text(content(entry("b")))

    def check(config: WebhookConfig) -> list[tuple[str, str]]:
        return [] if config.org == "b" else [("", str(1 // 0))]

    directory, _ = directory_at(path, check)
    await directory.load()
    assert texts(directory, path) == [
        "a.yaml:3: webhooks[0]: could not be checked (ZeroDivisionError, see the log): please report this"
    ]
    assert orgs(directory) == ["b"]


SIGNED = ", auth: {type: jwt, sign: {algorithm: HS256, key: {file: ../secrets/key}}}"


async def test_a_rotated_secret_alone_makes_a_new_webhook(path: Path) -> None:
    secret = path.parent / "secrets" / "key"
    secret.parent.mkdir()
    secret.write_text("one" * 20)
    (path / "a.yaml").write_text(content(entry("a", more=SIGNED), entry("b")))
    directory, notified = directory_at(path)
    await directory.load()
    old, content_hash = directory.all()[0], directory.content_hash
    secret.write_text("two" * 20)
    assert await rescan(directory) == []
    new = directory.all()[0]
    assert new.revision != old.revision
    assert new.config.secrets()[0].reveal() == b"two" * 20
    assert directory.content_hash != content_hash
    assert notified.changes[1:] == [{"a"}]


async def test_a_secret_that_goes_missing_keeps_the_last_good_version_until_it_is_back(path: Path) -> None:
    secret = path.parent / "secrets" / "key"
    secret.parent.mkdir()
    (path / "a.yaml").write_text(content(entry("a", more=SIGNED)))
    (path / "b.yaml").write_text(content(entry("b")))
    directory, _ = directory_at(path)
    await directory.load()
    assert texts(directory, path) == [
        f"a.yaml:3: webhooks[0].auth.sign.key: secret file {'../secrets/key'} can't be read (No such file or "
        "directory): create it, or correct the path"
    ]
    secret.write_text("one" * 20)
    assert await rescan(directory) == []
    old = directory.all()[0]
    secret.unlink()
    assert len(await rescan(directory)) == 1
    assert directory.all()[0] is old
    secret.write_text("one" * 20)
    assert await rescan(directory) == []
    assert directory.all()[0] is old


async def test_a_directory_that_goes_away_changes_nothing(path: Path) -> None:
    (path / "a.yaml").write_text(content(entry("a")))
    directory, notified = directory_at(path)
    await directory.load()
    path.rename(path.with_name("gone"))
    await rescan(directory)
    assert texts(directory, path) == ["DIR: can't be read (No such file or directory): what was loaded stays"]
    assert orgs(directory) == ["a"]
    path.with_name("gone").rename(path)
    assert await rescan(directory) == []
    assert notified.changes[1:] == []


async def test_losing_most_webhooks_at_once_needs_two_scans_that_agree(path: Path) -> None:
    for number in range(10):
        (path / f"{number}.yaml").write_text(content(entry(f"t{number}")))
    directory, notified = directory_at(path)
    await directory.load()
    for number in range(6):
        (path / f"{number}.yaml").unlink()
    (path / "9.yaml").write_text(content(entry("t9", url="https://new.example/")))
    await rescan(directory)
    message = "DIR: 6 of 10 webhooks would be removed: held back; done if the next scan finds the same"
    assert texts(directory, path) == [message]
    assert len(directory.all()) == 10
    (path / "6.yaml").unlink()
    await rescan(directory)
    assert texts(directory, path) == [message.replace("6 of", "7 of")]
    assert len(directory.all()) == 10
    assert await rescan(directory) == []
    assert orgs(directory) == ["t7", "t8", "t9"]
    assert notified.changes[1:] == [{f"t{number}" for number in (0, 1, 2, 3, 4, 5, 6, 9)}]


async def test_losing_most_webhooks_for_a_moment_changes_nothing(path: Path) -> None:
    for number in range(10):
        (path / f"{number}.yaml").write_text(content(entry(f"t{number}")))
    directory, notified = directory_at(path)
    await directory.load()
    path.rename(path.with_name("aside"))
    path.mkdir()
    assert len(await rescan(directory)) == 1
    path.rmdir()
    path.with_name("aside").rename(path)
    assert await rescan(directory) == []
    assert len(directory.all()) == 10
    assert notified.changes[1:] == []


def removed(path: Path) -> None:
    for file in path.iterdir():
        file.unlink()


def remounted(path: Path) -> None:
    path.rename(path.with_name("aside"))
    path.mkdir()


@pytest.mark.parametrize("empty", [removed, remounted])
@pytest.mark.parametrize("count", [1, 9, 12])
async def test_a_directory_without_webhook_files_keeps_its_webhooks_for_ten_minutes(
    path: Path, monkeypatch: pytest.MonkeyPatch, empty: Callable[[Path], None], count: int
) -> None:
    for number in range(count):
        (path / f"{number:02}.yaml").write_text(content(entry(f"t{number:02}")))
    directory, notified = directory_at(path)
    await directory.load()
    before = directory.all()
    empty(path)
    for _ in range(3):
        await rescan(directory)
        assert directory.all() == before
        assert texts(directory, path) == [
            f"DIR: no webhook file is left: {count} webhooks stay in use for 10 minutes; to remove them at once, "
            "add a file with `webhooks: []`, or restart"
        ]
    assert metrics.RELOAD_OK._value.get() == 0
    monkeypatch.setattr(yaml_directory, "REMOVAL_AFTER_S", 0.0)
    assert await rescan(directory) == []
    assert directory.all() == []
    assert len(notified.changes[-1]) == count


async def test_an_empty_generation_removes_no_webhook(tmp_path: Path) -> None:
    volume = MountedVolume(tmp_path / "webhooks.d")
    volume.update({"a.yaml": content(entry("a"), entry("b", url="ftp://x"))})
    directory, notified = directory_at(volume.path)
    await directory.load()
    volume.update({})
    await rescan(directory)
    await rescan(directory)
    assert orgs(directory) == ["a"]
    with pytest.raises(WebhookUnusable):
        await directory.get(key("b"))
    volume.update({"a.yaml": content(entry("a"))})
    assert await rescan(directory) == []
    assert notified.changes[1:] == [{"b"}]


async def test_a_file_that_says_that_there_are_no_webhooks_confirms_their_removal(path: Path) -> None:
    (path / "a.yaml").write_text(content(entry("a")))
    directory, notified = directory_at(path)
    await directory.load()
    (path / "a.yaml").unlink()
    await rescan(directory)
    assert orgs(directory) == ["a"]
    (path / "none.yaml").write_text(content())
    assert await rescan(directory) == []
    assert directory.all() == []
    assert notified.changes[1:] == [{"a"}]


async def test_removing_the_only_webhook_from_its_file_needs_two_scans(path: Path) -> None:
    (path / "a.yaml").write_text(content(entry("a")))
    directory, _ = directory_at(path)
    await directory.load()
    (path / "a.yaml").write_text(content())
    await rescan(directory)
    assert texts(directory, path) == [
        "DIR: 1 of 1 webhooks would be removed: held back; done if the next scan finds the same"
    ]
    assert orgs(directory) == ["a"]
    assert await rescan(directory) == []
    assert directory.all() == []


async def test_a_webhook_that_gets_another_tenant_needs_no_second_scan(path: Path) -> None:
    (path / "a.yaml").write_text(content(entry("a")))
    directory, _ = directory_at(path)
    await directory.load()
    (path / "a.yaml").write_text(content(entry("b")))
    assert await rescan(directory) == []
    assert orgs(directory) == ["b"]


async def test_metrics_say_how_a_reload_went(path: Path) -> None:
    metrics.initialise()
    ok, failed = (metrics.RELOADS.labels(result)._value.get() for result in ("ok", "failed"))
    (path / "a.yaml").write_text(content(entry("a")))
    directory, _ = directory_at(path)
    await directory.load()
    await rescan(directory)
    assert metrics.RELOAD_OK._value.get() == 1
    assert metrics.CONFIG_TENANTS._value.get() == 1
    (path / "b.yaml").write_text(BAD)
    await rescan(directory)
    await rescan(directory)
    assert metrics.RELOAD_OK._value.get() == 0
    assert [metrics.RELOADS.labels(result)._value.get() for result in ("ok", "failed")] == [ok + 1, failed + 1]
    assert list(metrics.CONFIG_HASH._metrics) == [(directory.content_hash,)]


# Kubernetes


async def test_one_scan_sees_one_generation_at_every_step_of_a_swap(tmp_path: Path) -> None:
    volume = MountedVolume(tmp_path / "webhooks.d")
    volume.update({"a.yaml": content(entry("a")), "gone.yaml": content(entry("gone"))})
    seen: list[tuple[str, list[str]]] = []
    for url in ("https://one.example/", "https://two.example/"):
        new = {"a.yaml": content(entry("a", url=url)), "new.yaml": content(entry("new", url=url))}

        def look(step: str) -> None:
            directory, _ = directory_at(volume.path)
            loop = asyncio.new_event_loop()
            problems = loop.run_until_complete(directory.load())
            loop.close()
            assert problems == []
            seen.append((step, [f"{w.config.org} {w.config.url[8:11]}" for w in directory.all()]))

        await asyncio.to_thread(volume.update, new, look)
    assert seen == [
        ("written", ["a hoo", "gone hoo"]),
        ("swapped", ["a one", "new one"]),
        ("linked", ["a one", "new one"]),
        ("cleaned", ["a one", "new one"]),
        ("written", ["a one", "new one"]),
        ("swapped", ["a two", "new two"]),
        ("linked", ["a two", "new two"]),
        ("cleaned", ["a two", "new two"]),
    ]


async def test_a_swap_in_the_middle_of_a_scan_makes_it_begin_again(tmp_path: Path) -> None:
    volume = MountedVolume(tmp_path / "webhooks.d")
    volume.update({name: content(entry(name, more=SIGNED.replace("../secrets/", ""))) for name in ("a.yaml", "b.yaml")}
                  | {"key": "one" * 20})  # fmt: skip
    swaps = iter(["two", "three"])

    def check(config: WebhookConfig) -> list[tuple[str, str]]:
        text = next(swaps, None)
        if text is not None:
            files = {name: content(entry(name, url=f"https://{text}.example/", more=SIGNED.replace("../secrets/", "")))
                     for name in ("a.yaml", "b.yaml")}  # fmt: skip
            volume.update(files | {"key": text * 20})
        return []

    directory, _ = directory_at(volume.path, check)
    await directory.load()
    assert [w.config.url for w in directory.all()] == ["https://three.example/"] * 2
    assert [w.config.secrets()[0].reveal_text() for w in directory.all()] == ["three" * 20] * 2


@asynccontextmanager
async def running(directory: YamlDirectory) -> AsyncIterator[None]:
    await directory.load()
    with pytest.MonkeyPatch.context() as patch:
        begun, watch = asyncio.Event(), yaml_directory.awatch

        def beginning(*paths: Path, **options: Any) -> AsyncGenerator[object, None]:
            asyncio.get_running_loop().call_soon(begun.set)  # its first step, which comes before, sets up the watch
            return watch(*paths, **options)

        patch.setattr(yaml_directory, "awatch", beginning)
        task = asyncio.create_task(directory.run())
        await begun.wait()
    try:
        yield
    finally:
        task.cancel()
        with suppress(asyncio.CancelledError):
            await task


async def eventually(notified: Notifications, change: Callable[[], None]) -> None:
    notified.news.clear()
    change()
    async with asyncio.timeout(60):
        await notified.news.wait()


async def test_swap_after_swap_is_noticed_at_once(tmp_path: Path) -> None:
    volume = MountedVolume(tmp_path / "webhooks.d")
    volume.update({"a.yaml": content(entry("a"))})
    directory, notified = directory_at(volume.path)
    async with running(directory):
        for host in ("one", "two", "three"):
            files = {"a.yaml": content(entry("a", url=f"https://{host}.example/"))}
            await eventually(notified, lambda files=files: volume.update(files))  # type: ignore[misc]
            assert directory.all()[0].config.url == f"https://{host}.example/"
        assert directory.problems == ()


async def test_a_rotated_secret_volume_is_noticed_at_once(tmp_path: Path) -> None:
    secrets = MountedVolume(tmp_path / "secrets")
    secrets.update({"key": "one" * 20})
    volume = MountedVolume(tmp_path / "webhooks.d")
    volume.update({"a.yaml": content(entry("a", more=SIGNED))})
    directory, notified = directory_at(volume.path)
    async with running(directory):
        for text in ("two" * 20, "three" * 20):
            await eventually(notified, lambda text=text: secrets.update({"key": text}))  # type: ignore[misc]
            assert directory.all()[0].config.secrets()[0].reveal_text() == text


NO_INSTANCE_LEFT = WatchfilesRustInternalError("creating recommended watcher: Too many open files (os error 24)")


@pytest.mark.parametrize(
    ("error", "is_a_bug"),
    [
        (OSError(28, "No space left on device"), False),
        (NO_INSTANCE_LEFT, False),
        (ExceptionGroup("of the watch", [ExceptionGroup("of a task", [NO_INSTANCE_LEFT])]), False),
        (RuntimeError("watch thread unexpectedly received a signal"), True),
    ],
    ids=repr,
)
async def test_a_directory_is_followed_without_a_watch_too(
    path: Path, monkeypatch: pytest.MonkeyPatch, error: Exception, *, is_a_bug: bool
) -> None:
    def no_watches_left(*paths: Path, **options: object) -> None:
        raise error

    bugs = metrics.ERRORS.labels("task")._value.get()
    monkeypatch.setattr("dispatcher.stores.yaml_directory.awatch", no_watches_left)
    (path / "a.yaml").write_text(content(entry("a")))
    directory, notified = directory_at(path, interval=0.1)
    async with running(directory):
        await eventually(notified, lambda: (path / "b.yaml").write_text(content(entry("b"))) and None)
        assert orgs(directory) == ["a", "b"]
    assert (metrics.ERRORS.labels("task")._value.get() > bugs) is is_a_bug


async def test_a_file_whose_name_is_not_utf_8_keeps_no_other_from_being_read(path: Path) -> None:
    (path / "a.yaml").write_text(content(entry("a")))
    directory, notified = directory_at(path, interval=0.2)

    def write() -> None:
        (path / os.fsdecode(b"\xff.tmp")).write_text("an editor's")
        (path / "b.yaml").write_text(content(entry("b")))

    async with running(directory):
        await eventually(notified, write)
        assert orgs(directory) == ["a", "b"]
        await eventually(notified, lambda: (path / "c.yaml").write_text(content(entry("c"))) and None)
        assert orgs(directory) == ["a", "b", "c"]


class Scans:
    """Counts the scans of a directory."""

    def __init__(self, directory: YamlDirectory, monkeypatch: pytest.MonkeyPatch) -> None:
        self._number = 0
        self._read = directory._read_files
        monkeypatch.setattr(directory, "_read_files", self._counted)

    async def _counted(self) -> bool:
        result = await self._read()
        self._number += 1
        return result

    async def next(self) -> None:
        """Waits until a scan has ended that began after this call, and what it found is noted."""
        wanted = self._number + 2  # one may be under way
        async with asyncio.timeout(60):
            while self._number < wanted:
                await asyncio.sleep(0.02)


async def test_a_file_that_is_being_written_is_used_as_it_was_until_it_is_complete(
    path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(settling, "SETTLE_S", 3600.0)

    def text(host: str) -> str:
        return content(*(entry(org, url=f"https://{org}.{host}.example/x") for org in "abcdef"))

    def urls() -> tuple[str, ...]:
        return tuple(webhook.config.url for webhook in directory.all())

    new = text("new")
    cut = new.index("https://d.new") + len("https://d.new")
    (path / "a.yaml").write_text(text("old"))
    (path / "g.yaml").write_text(content(entry("g")))
    directory, _ = directory_at(path)
    scans, seen = Scans(directory, monkeypatch), set()
    async with running(directory):
        before = urls()
        for part in (new[:40], new[:cut] + "'}", new):  # each but the last is valid, and of fewer webhooks
            written_at = asyncio.get_running_loop().time()
            (path / "a.yaml").write_text(part)
            if part == new[:40]:
                (path / "g.yaml").rename(path / ".g")
            for _ in range(2):
                await scans.next()
                seen.add(urls())
            assert directory._settling._since["a.yaml"][1] > written_at, "the wait begins again"
            if part == new[:40]:
                (path / ".g").rename(path / "g.yaml")
        monkeypatch.setattr(settling, "SETTLE_S", 0.0)
        async with asyncio.timeout(60):
            while urls() == before:
                await asyncio.sleep(0.05)
        seen.add(urls())
    after = tuple(url.replace(".old.", ".new.") for url in before)
    assert seen == {before, after}


KEYED = ", headers: {X-Api-Key: {file: ../secrets/key}}"


def secrets_at(path: Path, *, is_volume: bool) -> Callable[[str], None]:
    """Returns a function that writes the secret file beside the webhooks' directory."""
    secrets = path.with_name("secrets")
    if is_volume:
        volume = MountedVolume(secrets)
        return lambda text: volume.update({"key": text})
    secrets.mkdir()
    return lambda text: secrets.joinpath("key").write_text(text) and None


async def header_after_a_scan(directory: YamlDirectory) -> str:
    await directory._scan(confirms=False)
    return directory.all()[0].config.header_texts()["X-Api-Key"]


async def test_a_plain_secret_file_settles_though_the_webhook_file_is_of_a_volume(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(settling, "SETTLE_S", 3600.0)
    volume = MountedVolume(tmp_path / "webhooks.d")
    write_secret = secrets_at(volume.path, is_volume=False)
    write_secret("the-whole-key")
    volume.update({"a.yaml": content(entry("a", more=KEYED))})
    directory, _ = directory_at(volume.path)
    await directory.load()
    write_secret("the-ne")  # its writer pauses in the middle
    assert await header_after_a_scan(directory) == "the-whole-key"
    volume.update({"a.yaml": content(entry("a", url="https://new.example/", more=KEYED))})
    assert await header_after_a_scan(directory) == "the-whole-key", "a swap doesn't complete the secret"
    write_secret("the-new-key")
    assert await header_after_a_scan(directory) == "the-whole-key"
    assert directory._settling
    await rescan(directory)
    assert await header_after_a_scan(directory) == "the-new-key"


@pytest.mark.parametrize("is_volume", [False, True], ids=["plain file", "volume"])
async def test_a_swapped_secret_is_used_at_once_beside_any_webhook_file(tmp_path: Path, is_volume: bool) -> None:
    path = tmp_path / "webhooks.d"
    write_secret = secrets_at(path, is_volume=True)
    write_secret("one")
    text = content(entry("a", more=KEYED))
    if is_volume:
        MountedVolume(path).update({"a.yaml": text})
    else:
        path.mkdir()
        (path / "a.yaml").write_text(text)
    directory, _ = directory_at(path)
    await directory.load()
    write_secret("two")
    assert await header_after_a_scan(directory) == "two"
    assert not directory._settling


async def test_a_file_that_is_being_written_at_the_start_is_waited_for(
    path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(yaml_directory, "START_WITHIN_S", 60.0)
    whole = content(*(entry(org) for org in "abcdef"))
    (path / "a.yaml").write_text(whole[: whole.index("  - {name: c")])  # valid, and of fewer webhooks
    directory = YamlDirectory(WebhookSettings(path=path), Rules(no_check, scope_of(path)))
    loading = asyncio.create_task(directory.load())
    while not directory._settling:
        await asyncio.sleep(0)
    (path / "a.yaml").write_text(whole)
    assert await loading == []
    assert orgs(directory) == list("abcdef")


async def test_a_secret_that_is_being_written_at_the_start_is_waited_for(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(yaml_directory, "START_WITHIN_S", 60.0)
    volume = MountedVolume(tmp_path / "webhooks.d")
    write_secret = secrets_at(volume.path, is_volume=False)
    write_secret("")
    volume.update({"a.yaml": content(entry("a", more=KEYED))})
    directory = YamlDirectory(WebhookSettings(path=volume.path), Rules(no_check, scope_of(volume.path)))
    scans = Scans(directory, monkeypatch)
    loading = asyncio.create_task(directory.load())
    for part in ("the-", "the-whole-key"):
        await scans.next()
        write_secret(part)
    assert await loading == []
    assert directory.all()[0].config.header_texts()["X-Api-Key"] == "the-whole-key"


async def test_events_are_held_while_a_file_is_still_being_written_long_after_the_start(path: Path) -> None:
    (path / "old.yaml").write_text(content(entry("old")))
    os.utime(path / "old.yaml", (0, 0))
    (path / "a.yaml").write_text(content(entry("a")))
    is_writing = True

    def write_on(config: WebhookConfig) -> list[tuple[str, str]]:
        if is_writing and config.org == "a":  # the next scan finds another content
            with (path / "a.yaml").open("a") as file:
                file.write("#")
        return []

    directory = YamlDirectory(WebhookSettings(path=path), Rules(write_on, scope_of(path)))
    await directory.load()
    assert orgs(directory) == ["old"]
    with pytest.raises(WebhookUndecided):
        await directory.get(key("b"))
    assert texts(directory, path) == ["a.yaml: is being written: it is used once it has been the same for 2 seconds"]
    following = asyncio.create_task(directory.run())
    await asyncio.sleep(1)
    is_writing = False
    (path / "a.yaml").write_text(content(entry("a"), entry("b")))
    async with asyncio.timeout(60):
        while directory.problems:
            assert orgs(directory) == ["old"]
            await asyncio.sleep(0.05)
    assert orgs(directory) == ["a", "b", "old"]
    following.cancel()
    with suppress(asyncio.CancelledError):
        await following


async def test_old_files_and_mounted_volumes_are_used_at_the_start_without_a_wait(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    async def no_wait(_: float) -> None:
        raise AssertionError("the start waits")

    volume = MountedVolume(tmp_path / "webhooks.d")
    volume.update({"a.yaml": content(entry("a"))})
    (volume.path / "old.yaml").write_text(content(entry("old")))
    os.utime(volume.path / "old.yaml", (0, 0))
    directory = YamlDirectory(WebhookSettings(path=volume.path), Rules(no_check, scope_of(volume.path)))
    monkeypatch.setattr(yaml_directory.asyncio, "sleep", no_wait)
    assert await directory.load() == []
    assert orgs(directory) == ["a", "old"]


async def test_a_swapped_webhook_file_is_used_at_once_though_its_secret_is_plain(tmp_path: Path) -> None:
    volume = MountedVolume(tmp_path / "webhooks.d")
    secrets_at(volume.path, is_volume=False)("key")
    volume.update({"a.yaml": content(entry("a", more=KEYED))})
    directory, _ = directory_at(volume.path)
    await directory.load()
    volume.update({"a.yaml": content(entry("a", url="https://new.example/", more=KEYED))})
    await directory._scan(confirms=False)
    assert directory.all()[0].config.url == "https://new.example/"


async def test_a_mass_removal_is_applied_though_files_change_all_the_time(path: Path) -> None:
    for number in range(12):
        (path / f"{number:02}.yaml").write_text(content(entry(f"t{number:02}")))
    directory, notified = directory_at(path, interval=1.5)

    async def write_on() -> None:
        while True:  # a log, or a secret that an agent renews
            (path / "agent.log").write_text(str(asyncio.get_running_loop().time()))
            await asyncio.sleep(0.6)  # longer than the quiet after which a scan follows

    async with running(directory), asyncio.TaskGroup() as tasks:
        writing = tasks.create_task(write_on())
        await eventually(notified, lambda: [(path / f"{number:02}.yaml").unlink() for number in range(8)] and None)
        assert orgs(directory) == ["t08", "t09", "t10", "t11"]
        writing.cancel()


async def test_a_change_above_a_webhook_in_its_file_does_not_change_it(path: Path) -> None:
    (path / "a.yaml").write_text(content(entry("a"), entry("b")))
    directory, notified = directory_at(path)
    await directory.load()
    before = await directory.get(key("b"))
    (path / "a.yaml").write_text("# moved\n" + content(entry("a", url="https://new.example/"), entry("b")))
    await rescan(directory)
    after = await directory.get(key("b"))
    assert notified.changes[1:] == [{"a"}]
    assert before is not None
    assert after is not None
    assert (before.source, after.source) == (f"{path}/a.yaml:4", f"{path}/a.yaml:5")
    assert after.config is before.config, "what was prepared for it stays in use"


async def test_a_directory_that_is_replaced_is_followed_on(path: Path) -> None:
    (path / "a.yaml").write_text(content(entry("a")))
    directory, notified = directory_at(path, interval=0.5)

    def replace() -> None:
        path.rename(path.with_name("old"))
        path.mkdir()
        (path / "b.yaml").write_text(content(entry("b")))

    async with running(directory):
        await eventually(notified, replace)
        assert orgs(directory) == ["b"]
        await eventually(notified, lambda: (path / "c.yaml").write_text(content(entry("c"))) and None)
        assert orgs(directory) == ["b", "c"]


async def test_ten_thousand_tenants_load_and_a_scan_without_news_reads_none_of_them_again(path: Path) -> None:
    checked = 0

    def count(config: WebhookConfig) -> list[tuple[str, str]]:
        nonlocal checked
        checked += 1
        return []

    for part in range(20):
        (path / f"{part}.yaml").write_text(content(*(entry(f"t{part}-{number}") for number in range(500))))
    directory, notified = directory_at(path, count)
    await directory.load()
    assert len(directory.all()) == checked == 10_000
    await rescan(directory)
    assert checked == 10_000
    assert len(notified.changes) == 1


async def test_the_source_that_settings_name_is_opened(path: Path) -> None:
    (path / "a.yaml").write_text(content(entry("a")))
    async with open_source(WebhookSettings(path=path), Rules(no_check, scope_of(path))) as source:
        assert [webhook.config.org for webhook in source.all()] == ["a"]
