"""Settings from a file and the environment: what wins, what is refused, and that all mistakes come at once."""

import os
from pathlib import Path

import pytest

from dispatcher.config.loader import load_settings
from dispatcher.errors import ConfigError

GOOD = """\
apiVersion: dispatcher/v1
kafka:
  bootstrap_servers: kafka:9092
webhooks:
  path: hooks
"""


@pytest.fixture
def file(tmp_path: Path) -> Path:
    (tmp_path / "hooks").mkdir()
    path = tmp_path / "dispatcher.yaml"
    path.write_text(GOOD)
    return path


def problems_of(path: Path, **environ: str) -> list[str]:
    with pytest.raises(ConfigError) as caught:
        load_settings(path, environ)
    return [str(problem).replace(f"{path.parent}/", "") for problem in caught.value.problems]


def test_paths_start_from_the_directory_of_the_file(file: Path) -> None:
    (file.parent / "ca.pem").write_text("x")
    settings = load_settings(file, {"DISPATCHER_EGRESS__CA_BUNDLE": "ca.pem"})
    assert settings.webhooks.path == file.parent / "hooks"
    assert settings.egress.ca_bundle == file.parent / "ca.pem"


def test_paths_do_not_depend_on_the_working_directory(file: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(file.parent)
    assert load_settings(Path(file.name), {}).webhooks.path == file.parent / "hooks"


def test_a_variable_overrides_the_file_with_a_value_of_the_settings_type(file: Path) -> None:
    (file.parent / "password").write_text("s3cret\n")
    settings = load_settings(
        file,
        {
            "DISPATCHER_KAFKA__BOOTSTRAP_SERVERS": "a:1,b:2",
            "DISPATCHER_KAFKA__TOPIC": "0123",
            "dispatcher_kafka__group_id": "no",
            "DISPATCHER_KAFKA__SECURITY": "{protocol: SASL_SSL, username: u}",
            "DISPATCHER_KAFKA__SECURITY__MECHANISM": "PLAIN",
            "DISPATCHER_KAFKA__SECURITY__PASSWORD__FILE": "password",
            "DISPATCHER_RETRY__TIERS": "[10s, 1m]",
            "DISPATCHER_RETRY__MAX_AGE": "3600",
            "DISPATCHER_DELIVERY__MAX_IN_FLIGHT": "7",
            "DISPATCHER_DELIVERY__TIMEOUT": "1500ms",
            "DISPATCHER_EGRESS__ALLOW": '["10.0.0.0/8"]',
            "DISPATCHER_EGRESS__CA_BUNDLE": "null",
            "DISPATCHER_HISTORY__ANSWERS": "true",
            "OTHER": "x",
        },
    )
    assert settings.kafka.bootstrap_servers == "a:1,b:2"
    assert settings.kafka.topic == "0123"
    assert settings.kafka.group_id == "no"
    assert settings.kafka.security.mechanism == "PLAIN"
    assert settings.kafka.security.password is not None
    assert settings.kafka.security.password.reveal() == b"s3cret"
    assert settings.retry.tiers == (10, 60)
    assert settings.retry.max_age == 3600
    assert settings.delivery.max_in_flight == 7
    assert settings.delivery.timeout == 1.5
    assert settings.egress.allow == ("10.0.0.0/8",)
    assert settings.egress.ca_bundle is None
    assert settings.history.answers


def test_secrets_come_from_the_environment_that_is_given(file: Path) -> None:
    file.write_text(GOOD + "  store: sql\n  url: {env: DISPATCHER_DATABASE}\n")
    settings = load_settings(file, {"DISPATCHER_DATABASE": "sqlite+aiosqlite:///x"})
    assert settings.webhooks.url is not None
    assert settings.webhooks.url.reveal() == b"sqlite+aiosqlite:///x"


def test_variables_of_kubernetes_and_the_command_line_are_ignored(file: Path) -> None:
    load_settings(
        file,
        {
            "DISPATCHER_CONFIG": "/x",
            "DISPATCHER_SERVICE_HOST": "10.0.0.1",
            "DISPATCHER_SERVICE_PORT": "9090",
            "DISPATCHER_SERVICE_PORT_OPS": "9090",
            "DISPATCHER_PORT": "tcp://10.0.0.1:9090",
            "DISPATCHER_PORT_9090_TCP": "tcp://10.0.0.1:9090",
            "DISPATCHER_PORT_9090_TCP_PROTO": "tcp",
            "DISPATCHER_CONSOLE_SERVICE_HOST": "10.0.0.2",
            "DISPATCHER_CONSOLE_PORT": "tcp://10.0.0.2:80",
            "DISPATCHER_CONSOLE_PORT_80_TCP_ADDR": "10.0.0.2",
        },
    )


def test_a_variable_that_names_no_setting_is_named(file: Path) -> None:
    assert problems_of(
        file,
        DISPATCHER_KAFKA__TOPIK="x",
        DISPATCHER_KAKFA__TOPIC="x",
        DISPATCHER_OPS_PORT="9091",
        DISPATCHER_HOME="/",
    ) == [
        "environment variable DISPATCHER_KAFKA__TOPIK: kafka.topik: unknown key; did you mean 'topic'?",
        "environment variable DISPATCHER_KAKFA__TOPIC: names no setting, and DISPATCHER_… is for settings; "
        "did you mean DISPATCHER_KAFKA__TOPIC?",
        "environment variable DISPATCHER_OPS_PORT: names no setting, and DISPATCHER_… is for settings; "
        "did you mean DISPATCHER_OPS__PORT?",
        "environment variable DISPATCHER_HOME: names no setting, and DISPATCHER_… is for settings; "
        "rename it, or unset it",
    ]


@pytest.mark.parametrize("is_reversed", [False, True])
@pytest.mark.parametrize(
    ("outer", "value", "inner"),
    [
        ("DISPATCHER_KAFKA__TOPIC", "t", "DISPATCHER_KAFKA__TOPIC__X"),
        ("dispatcher_kafka__topic", "t", "DISPATCHER_KAFKA__TOPIC__X__Y"),
        ("DISPATCHER_RETRY__TIERS", "[10s, 1m]", "DISPATCHER_RETRY__TIERS__0"),
        ("DISPATCHER_WEBHOOKS__URL", "{file: dispatcher.yaml}", "DISPATCHER_WEBHOOKS__URL__FILE"),
        ("DISPATCHER_WEBHOOKS__URL", "null", "DISPATCHER_WEBHOOKS__URL__FILE"),
    ],
)
def test_a_variable_below_another_ones_value_is_refused(
    file: Path, outer: str, value: str, inner: str, is_reversed: bool
) -> None:
    environ = {outer: value, inner: "dispatcher.yaml"}
    problems = problems_of(file, **dict(reversed(environ.items())) if is_reversed else environ)
    assert (
        f"environment variable {inner}: lies below {outer}, which sets a whole value: unset one of the two" in problems
    )


@pytest.mark.parametrize("is_reversed", [False, True])
def test_a_variable_of_a_group_may_come_after_those_of_its_settings(file: Path, is_reversed: bool) -> None:
    (file.parent / "p").write_text("x")
    environ = {
        "DISPATCHER_KAFKA__SECURITY": "{protocol: SASL_SSL, username: u, mechanism: PLAIN, password: {file: p}}",
        "DISPATCHER_KAFKA__SECURITY__MECHANISM": "SCRAM-SHA-256",
    }
    settings = load_settings(file, dict(reversed(environ.items())) if is_reversed else environ)
    assert settings.kafka.security.mechanism == "SCRAM-SHA-256"
    assert settings.kafka.security.protocol == "SASL_SSL"


def test_variables_that_differ_only_in_case_are_refused(file: Path) -> None:
    assert problems_of(
        file, DISPATCHER_KAFKA__TOPIC="t", Dispatcher_Kafka__Topic="t", dispatcher_kafka__topic="u", DISPATCHER_OPS="{}"
    ) == [
        "environment variable Dispatcher_Kafka__Topic: sets the same as DISPATCHER_KAFKA__TOPIC, because the case of "
        "letters doesn't count: unset one of the two",
        "environment variable dispatcher_kafka__topic: sets the same as DISPATCHER_KAFKA__TOPIC, because the case of "
        "letters doesn't count: unset one of the two",
    ]


def test_a_wrong_value_is_named_with_its_variable_and_never_quoted(file: Path) -> None:
    assert problems_of(
        file,
        DISPATCHER_DELIVERY="canary",
        DISPATCHER_OPS__PORT="canary",
        DISPATCHER_RETRY__TIERS="30s",
        DISPATCHER_KAFKA__SECURITY__PASSWORD__FILE="nowhere",
        DISPATCHER_KAFKA__SECURITY__PROTOCOL="ssl",
        DISPATCHER_EGRESS__CA_BUNDLE="nowhere.pem",
    ) == [
        "environment variable DISPATCHER_DELIVERY: delivery: must be a mapping (key: value), not text",
        "environment variable DISPATCHER_RETRY__TIERS: retry.tiers: must be a list, not text",
        "environment variable DISPATCHER_OPS__PORT: ops.port: must be a whole number, not text",
        "environment variable DISPATCHER_KAFKA__SECURITY__PROTOCOL: kafka.security.protocol: must be one of "
        "PLAINTEXT, SSL, SASL_PLAINTEXT, SASL_SSL; did you mean 'SSL'?",
        "environment variable DISPATCHER_KAFKA__SECURITY__PASSWORD__FILE: kafka.security.password: secret file nowhere "
        "can't be read (No such file or directory): create it, or correct the path",
        "environment variable DISPATCHER_EGRESS__CA_BUNDLE: egress.ca_bundle: no such file (nowhere.pem): create it, "
        "or correct the path",
    ]


def test_all_mistakes_of_file_environment_and_paths_come_at_once(file: Path) -> None:
    file.write_text("""\
apiVersion: dispatcher/v2
kafka:
  bootstrap_servers: kafka:9092
  security: {protocol: SSL, ca: ca.pem, certificate: hooks, key: hooks/key.pem}
webhooks: {path: dispatcher.yaml, reload_intervall: 5s}
egress: {ca_bundle: nope.pem}
""")
    assert problems_of(file, DISPATCHER_LOG__LEVEL="loud") == [
        "dispatcher.yaml:1: apiVersion: must be dispatcher/v1",
        "environment variable DISPATCHER_LOG__LEVEL: log.level: must be one of debug, info, warning, error",
        "dispatcher.yaml:5: webhooks.reload_intervall: unknown key; did you mean 'reload_interval'?",
        "dispatcher.yaml:4: kafka.security.ca: no such file (ca.pem): create it, or correct the path",
        "dispatcher.yaml:4: kafka.security.certificate: is a directory (hooks): name the file in it",
        "dispatcher.yaml:4: kafka.security.key: no such file (hooks/key.pem): create it, or correct the path",
        "dispatcher.yaml:5: webhooks.path: is a file (dispatcher.yaml): name the directory",
        "dispatcher.yaml:6: egress.ca_bundle: no such file (nope.pem): create it, or correct the path",
    ]


@pytest.mark.parametrize(
    ("content", "line"),
    [
        ("", "dispatcher.yaml: empty: write at least apiVersion, kafka and webhooks"),
        ("- a\n", "dispatcher.yaml:1: must be a mapping (key: value) of the settings' groups"),
        ("a: [\n", "dispatcher.yaml:1: not valid YAML: did not find expected node content"),
        (GOOD.replace("dispatcher/v1", "v1"), "dispatcher.yaml:1: apiVersion: must be dispatcher/v1"),
        (GOOD.split("\n", 1)[1], "dispatcher.yaml:1: apiVersion: missing; write apiVersion: dispatcher/v1"),
    ],
)
def test_another_kind_of_file_is_refused_in_one_line(file: Path, content: str, line: str) -> None:
    file.write_text(content)
    assert problems_of(file) == [line]


def test_a_missing_file_is_reported_in_one_line(file: Path) -> None:
    assert problems_of(file.with_name("no.yaml")) == ["no.yaml: no such file: create it, or correct the path"]
    assert problems_of(file.parent / "hooks") == ["hooks: is a directory: name the file in it"]


@pytest.mark.skipif(os.geteuid() == 0, reason="root may read everything")
def test_an_unreadable_file_is_reported(file: Path) -> None:
    file.chmod(0)
    assert problems_of(file) == ["dispatcher.yaml: can't be read (Permission denied)"]


def test_a_settings_file_that_never_ends_is_refused(file: Path) -> None:
    file.unlink()
    os.mkfifo(file)
    (problem,) = problems_of(file)
    assert "is not a regular file: name a regular file" in problem


def test_settings_may_come_through_a_pipe_of_the_shell(file: Path) -> None:
    read, write = os.pipe()
    os.write(write, file.read_bytes().replace(b" hooks", b" " + str(file.parent / "hooks").encode()))
    os.close(write)
    try:
        assert load_settings(Path(f"/dev/fd/{read}"), {}).webhooks.path == file.parent / "hooks"
    finally:
        os.close(read)


@pytest.mark.parametrize(
    ("security", "unused", "protocol"),
    [
        ("{ca: ca.pem}", "ca", "SSL"),
        ("{certificate: ca.pem, key: ca.pem}", "certificate, key", "SSL"),
        ("{mechanism: PLAIN, username: u, password: {file: ca.pem}}", "mechanism, username, password", "SASL_SSL"),
        ("{username: u, ca: ca.pem}", "username, ca", "SASL_SSL"),
        ("{oauth: {token: {file: ca.pem}}}", "oauth", "SASL_SSL"),
    ],
)
def test_credentials_without_a_protocol_are_refused(file: Path, security: str, unused: str, protocol: str) -> None:
    (file.parent / "ca.pem").write_text("x")
    file.write_text(GOOD.replace("kafka:9092\n", f"kafka:9092\n  security: {security}\n"))
    (problem,) = problems_of(file)
    assert problem == (
        f"dispatcher.yaml:4: kafka.security: without protocol, nothing is encrypted and {unused} not used: "
        f"write protocol: {protocol}"
    )


@pytest.mark.parametrize("host", ["127.0.0.1:9090", "300.1.1.1", "[::1]", "1.2.3", "::g", "a..b"])
def test_an_address_to_listen_on_that_can_not_be_one_is_refused(file: Path, host: str) -> None:
    assert problems_of(file, DISPATCHER_OPS__HOST=host) == [
        "environment variable DISPATCHER_OPS__HOST: ops.host: must be an IP address or a host name, without brackets or "
        "a port"
    ]


@pytest.mark.parametrize("host", ["", "127.0.0.1", "0.0.0.0", "::", "::1", "fe80::1%eth0", "localhost", "pod-1.svc"])
def test_an_address_to_listen_on(file: Path, host: str) -> None:
    assert load_settings(file, {"DISPATCHER_OPS__HOST": host}).ops.host == host


def test_a_directory_that_is_a_file_is_said_to_be_one(file: Path) -> None:
    (file.parent / "hooks").rmdir()
    (file.parent / "hooks").write_text("x")
    (problem,) = problems_of(file)
    assert "is a file" in problem


@pytest.mark.parametrize("value", ["1.0e+300", "9" * 400 + "d", "36501d", "3153600001"])
@pytest.mark.parametrize(
    ("name", "key"),
    [
        ("HISTORY__KEEP__FAILED", "history.keep.failed"),
        ("RETRY__MAX_AGE", "retry.max_age"),
        ("WEBHOOKS__RELOAD_INTERVAL", "webhooks.reload_interval"),
        ("DELIVERY__LANE_MAX_WAIT", "delivery.lane_max_wait"),
    ],
)
def test_a_duration_that_no_date_can_hold_is_refused(file: Path, name: str, key: str, value: str) -> None:
    (problem,) = problems_of(file, **{f"DISPATCHER_{name}": value})
    assert problem == f"environment variable DISPATCHER_{name}: {key}: must be at most 36500d (100 years)"


def test_the_longest_duration(file: Path) -> None:
    assert load_settings(file, {"DISPATCHER_HISTORY__KEEP__FAILED": "36500d"}).history.keep.failed == 36500 * 86_400
