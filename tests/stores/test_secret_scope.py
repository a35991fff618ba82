"""What the secret references of webhook files may name, and files that never end."""

import asyncio
import os
import threading
from pathlib import Path

import pytest

from dispatcher.config.loader import load_settings, webhook_secret_scope
from dispatcher.config.secret_scope import OutOfScope, SecretScope, read_regular_file
from dispatcher.errors import ConfigError, WebhookUnusable
from dispatcher.stores.background_read import BackgroundRead
from dispatcher.stores.webhook_file import Rules
from dispatcher.stores.webhook_files import read_directory
from dispatcher.stores.yaml_directory import YamlDirectory
from tests.stores.kubelet import MountedVolume
from tests.stores.rescanning import load_at_once, rescan
from tests.stores.test_yaml_directory import content, entry, key, no_check, orgs

SETTINGS = """\
apiVersion: dispatcher/v1
kafka:
  bootstrap_servers: k:1
  security: {protocol: SASL_SSL, mechanism: PLAIN, username: u, password: {file: own/password}, ca: own/ca.pem}
webhooks: {path: webhooks.d%s}
tracing: {headers: {authorization: {env: COLLECTOR_TOKEN}}}
"""


@pytest.fixture
def place(tmp_path: Path) -> Path:
    for name in ("own", "webhooks.d", "elsewhere", "listed"):
        (tmp_path / name).mkdir()
    for name in ("own/password", "own/ca.pem", "elsewhere/secret", "listed/secret", "webhooks.d/secret"):
        (tmp_path / name).write_text("canary")
    return tmp_path


def loaded(place: Path, more: str = "") -> YamlDirectory:
    (place / "dispatcher.yaml").write_text(SETTINGS % more)
    settings = load_settings(place / "dispatcher.yaml", {"COLLECTOR_TOKEN": "canary"})
    directory = YamlDirectory(settings.webhooks, Rules(no_check, webhook_secret_scope(settings)))
    load_at_once(directory)
    return directory


def with_key(reference: str) -> str:
    return content(entry("a", more=f", auth: {{type: jwt, sign: {{algorithm: HS256, key: {reference}}}}}"), entry("b"))


OUT_OF_SCOPE = [
    ("{file: ../elsewhere/secret}", "outside the directories of webhook secrets"),
    ("{file: ../webhooks.d/../elsewhere/secret}", "outside the directories of webhook secrets"),
    ("{file: /etc/passwd}", "outside the directories of webhook secrets"),
    ("{file: /proc/self/environ}", "outside the directories of webhook secrets"),
    ("{file: /no/such/file}", "outside the directories of webhook secrets"),
    ("{file: leaving}", "outside the directories of webhook secrets"),
    ("{file: away/secret}", "outside the directories of webhook secrets"),
    ("{file: ../own/password}", "outside the directories of webhook secrets"),
    ("{file: ../webhooks.d-beside/secret}", "outside the directories of webhook secrets"),
    ("{env: HOME}", "is not one of those for webhook secrets (WEBHOOK_*)"),
    ("{env: COLLECTOR_TOKEN}", "belongs to the dispatcher's settings"),
    ("{env: DISPATCHER_KAFKA__SECURITY__PASSWORD}", "belongs to the dispatcher's settings"),
    ("{env: dispatcher_kafka__security__password}", "belongs to the dispatcher's settings"),
]


@pytest.mark.parametrize(("reference", "says"), OUT_OF_SCOPE)
async def test_a_reference_out_of_scope_is_refused_whatever_it_names(place: Path, reference: str, says: str) -> None:
    (place / "webhooks.d-beside").mkdir()
    (place / "webhooks.d-beside" / "secret").write_text("canary")
    (place / "webhooks.d" / "leaving").symlink_to("../elsewhere/secret")
    (place / "webhooks.d" / "away").symlink_to(place / "elsewhere")
    (place / "webhooks.d" / "a.yaml").write_text(with_key(reference))
    directory = loaded(place)
    (problem,) = await directory.load()
    assert says in problem.message
    assert (problem.key, problem.line) == ("webhooks[0].auth.sign.key", 3)
    assert "canary" not in str(problem)
    assert orgs(directory) == ["b"]


async def test_a_file_of_the_settings_is_refused_even_in_a_directory_of_webhook_secrets(place: Path) -> None:
    (place / "webhooks.d" / "a.yaml").write_text(with_key("{file: ../own/ca.pem}"))
    directory = loaded(place, ", secrets: {files: [own]}".replace("own", "elsewhere"))
    assert "outside" in (await directory.load())[0].message
    (place / "elsewhere" / "ca.pem").symlink_to(place / "own" / "ca.pem")
    scope = SecretScope(roots=(place,), prefixes=(), own_files=frozenset({place / "own" / "ca.pem"}))
    for name in ("own/ca.pem", "elsewhere/ca.pem"):
        with pytest.raises(OutOfScope, match="belongs to the dispatcher's settings"):
            scope.allowed_file(place / name)


async def test_listed_directories_and_prefixes_are_in_scope(place: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("LUMA_KEY", "k" * 40)
    (place / "listed" / "secret").write_text("k" * 40)
    (place / "webhooks.d" / "a.yaml").write_text(with_key("{file: ../listed/secret}"))
    (place / "webhooks.d" / "b.yaml").write_text(with_key("{env: LUMA_KEY}").replace("a, org: a", "c, org: c"))
    directory = loaded(place, ", secrets: {files: [listed], env: [LUMA_]}")
    assert [problem.message for problem in await directory.load()] == [
        f"b/prod is in {place}/webhooks.d/a.yaml already: one webhook for each organisation and sandbox"
    ]
    assert orgs(directory) == ["a", "b", "c"]


def test_a_secret_of_the_settings_among_those_of_webhooks_is_refused(place: Path) -> None:
    with pytest.raises(ConfigError, match=r"kafka.security.password: .*own/password lies in .*: move it"):
        loaded(place, ", secrets: {files: [own]}")


async def test_links_of_a_mounted_volume_stay_inside(tmp_path: Path) -> None:
    volume = MountedVolume(tmp_path / "webhooks.d")
    volume.update({"a.yaml": with_key("{file: key}"), "key": "k" * 40})
    scope = SecretScope(roots=(volume.path,), prefixes=())
    (tmp_path / "dispatcher.yaml").write_text(
        "apiVersion: dispatcher/v1\nkafka: {bootstrap_servers: k:1}\nwebhooks: {path: webhooks.d}\n"
    )
    settings = load_settings(tmp_path / "dispatcher.yaml", {})
    directory = YamlDirectory(settings.webhooks, Rules(no_check, scope))
    assert await directory.load() == []
    assert orgs(directory) == ["a", "b"]


async def test_a_webhook_file_that_is_a_link_out_of_the_directory_is_refused(place: Path) -> None:
    (place / "elsewhere" / "c.yaml").write_text(content(entry("c")))
    (place / "webhooks.d" / "c.yaml").symlink_to(place / "elsewhere" / "c.yaml")
    (place / "webhooks.d" / "d.yaml").write_text(content(entry("d")))
    directory = loaded(place)
    (problem,) = await directory.load()
    assert "it is a link that leaves the directory" in problem.message
    assert orgs(directory) == ["d"]


@pytest.mark.parametrize("what", ["pipe", "device", "directory", "loop"])
@pytest.mark.parametrize("place_of_it", ["secret", "webhook file"])
async def test_a_secret_that_never_ends_stops_nothing(place: Path, what: str, place_of_it: str) -> None:
    endless = place / "webhooks.d" / ("endless" if place_of_it == "secret" else "c.yaml")
    match what:
        case "pipe":
            os.mkfifo(endless)
        case "device":
            endless.symlink_to("/dev/zero")
        case "directory":
            (place / "webhooks.d" / "deeper").mkdir()
            endless.symlink_to("deeper")
        case "loop":
            endless.symlink_to(endless.name)
    (place / "webhooks.d" / "a.yaml").write_text(
        with_key("{file: endless}" if place_of_it == "secret" else "{file: no}")
    )
    directory = loaded(place)
    async with asyncio.timeout(60):
        problems = await directory.load()
    assert problems
    assert orgs(directory) == ["b"]
    with pytest.raises(WebhookUnusable):
        await directory.get(key("a"))
    (place / "webhooks.d" / "b.yaml").write_text(content(entry("d")))
    async with asyncio.timeout(60):
        await rescan(directory)
    assert orgs(directory) == ["b", "d"], "reloads go on"


def test_the_settings_refuse_a_pipe_too(place: Path) -> None:
    (place / "own" / "password").unlink()
    os.mkfifo(place / "own" / "password")
    (place / "own" / "ca.pem").unlink()
    os.mkfifo(place / "own" / "ca.pem")
    with pytest.raises(ConfigError) as refused:
        loaded(place)
    assert sorted(problem.key for problem in refused.value.problems) == ["kafka.security.ca", "kafka.security.password"]


def test_a_path_that_changes_while_it_is_read_leads_nowhere_else(place: Path) -> None:
    with pytest.raises(OSError, match="its path changed"):
        read_regular_file(place / "listed" / "secret", 10, must_be=place / "elsewhere" / "secret")


async def test_a_read_that_hangs_is_reported_and_not_started_again(place: Path) -> None:
    may_end, calls = threading.Event(), []

    def read() -> int:
        calls.append(1)
        may_end.wait()
        return len(calls)

    background: BackgroundRead[int] = BackgroundRead(within_s=0.05)
    for _ in range(2):
        with pytest.raises(TimeoutError, match="reading takes longer than"):
            await background(read)
    may_end.set()
    slow: BackgroundRead[int] = background
    slow._within_s = 60
    assert await slow(read) == 1, "the result of the slow call"
    assert await slow(read) == 2


async def test_a_scan_that_hangs_is_a_problem_until_it_ends(place: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    (place / "webhooks.d" / "a.yaml").write_text(content(entry("a")))
    directory = loaded(place)
    assert await directory.load() == []
    may_end = threading.Event()
    real = os.scandir

    def hanging(path: str) -> object:
        may_end.wait()
        return real(path)

    monkeypatch.setattr("dispatcher.stores.webhook_files.os.scandir", hanging)
    directory._read._within_s = 0.05
    (problem,) = await rescan(directory)
    assert "can't be read (reading takes longer than" in problem.message
    assert orgs(directory) == ["a"]
    may_end.set()
    directory._read._within_s = 20
    assert await rescan(directory) == []


def test_a_path_of_any_length_makes_a_short_problem(tmp_path: Path) -> None:
    """A tenant chooses the path, and the problem is in the log, in `/readyz` and in the console."""
    (tmp_path / "a.yaml").write_text(
        "apiVersion: dispatcher/v1\nwebhooks:\n- name: a\n  org: o\n  sandbox: prod\n  url: https://h.example/\n"
        f"  headers: {{X-A: {{file: {'x' * 500_000}}}}}\n"
    )
    scope = SecretScope((tmp_path,), ("WEBHOOK_",))
    (problem,) = read_directory(tmp_path, {}, Rules(lambda _: [], scope))["a.yaml"].problems
    assert len(str(problem)) < 1_500
    assert str(problem).endswith("create it, or correct the path")
