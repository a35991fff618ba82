"""The operator's settings: their defaults, and what is refused."""

import pytest
from pydantic import ValidationError

from dispatcher.config.kafka_security import KafkaSecurity
from dispatcher.config.kafka_settings import KafkaSettings
from dispatcher.config.settings import DeliverySettings, RetrySettings, Settings, WebhookSettings
from dispatcher.kafka.topics import planned_topics

LEAST = {
    "apiVersion": "dispatcher/v1",
    "kafka": {"bootstrap_servers": "kafka:9092"},
    "webhooks": {"path": "webhooks.d"},
}


def test_the_least_that_must_be_given_and_the_designs_defaults() -> None:
    settings = Settings.model_validate(LEAST)

    assert settings.kafka.topic == "delivery-events"
    assert settings.kafka.group_id == "feedback-dispatcher"
    assert settings.delivery.max_in_flight == 500
    assert (settings.delivery.timeout, settings.delivery.connect_timeout) == (10, 3)
    assert settings.delivery.drain_timeout == 25
    assert settings.retry.tiers == (30, 120, 300, 900)
    assert settings.retry.max_age == 86_400
    assert (settings.ops.port, settings.console.host, settings.console.port) == (9090, "127.0.0.1", 8080)
    assert settings.egress.allow_http is False


@pytest.mark.parametrize("path", ["kafka", "webhooks", "delivery", "retry", "dead_letters", "egress", "ops", "console",
                                  "log", "metrics", None])  # fmt: skip
def test_a_misspelt_key_stops_the_start_in_every_group(path: str | None) -> None:
    values = {**LEAST, path: {**LEAST.get(path, {}), "mispelt": 1}} if path else {**LEAST, "mispelt": 1}  # type: ignore[dict-item]

    with pytest.raises(ValidationError, match="mispelt"):
        Settings.model_validate(values)


@pytest.mark.parametrize("key", LEAST)
def test_required_settings_are_reported(key: str) -> None:
    with pytest.raises(ValidationError, match=key):
        Settings.model_validate({name: value for name, value in LEAST.items() if name != key})


@pytest.mark.parametrize("protocol", ["SASL_PLAINTEXT", "SASL_SSL"])
@pytest.mark.parametrize("missing", ["mechanism", "username", "password"])
def test_sasl_needs_all_three(protocol: str, missing: str) -> None:
    values = {"mechanism": "PLAIN", "username": "d", "password": {"env": "X"}}
    KafkaSecurity.model_validate({"protocol": protocol, **values})
    del values[missing]

    with pytest.raises(ValidationError, match="needs mechanism, username and password"):
        KafkaSecurity.model_validate({"protocol": protocol, **values})


def test_a_client_certificate_needs_its_key() -> None:
    with pytest.raises(ValidationError, match="belong together"):
        KafkaSecurity.model_validate({"protocol": "SSL", "certificate": "a.pem"})


def test_a_session_too_short_to_outlast_a_heartbeat_is_refused() -> None:
    with pytest.raises(ValidationError, match="session_timeout"):
        KafkaSettings.model_validate({"bootstrap_servers": "k:1", "session_timeout": "1s"})


@pytest.mark.parametrize(
    ("values", "message"),
    [
        ({"tiers": []}, "at least one"),
        ({"tiers": ["2m", "30s"]}, "longer than the one before"),
        ({"tiers": ["30s", "30s"]}, "longer than the one before"),
        ({"tiers": ["30s"] * 17}, "at most 16"),
        ({"tiers": ["50ms"]}, "greater than or equal to 0.1"),
        ({"max_age": "0s"}, "greater than 0"),
        ({"soon_attempts": 11}, "less than or equal to 10"),
        ({"profile": "other"}, "profile"),
    ],
)
def test_retry_settings_that_make_no_sense(values: dict[str, object], message: str) -> None:
    with pytest.raises(ValidationError, match=message):
        RetrySettings.model_validate(values)


def test_explicit_retry_settings_win_over_the_profile() -> None:
    settings = RetrySettings.model_validate({"profile": "standard-webhooks", "tiers": ["1s", "1m"]})

    assert settings.tiers == (1, 60)
    assert settings.max_age == 80 * 3600


@pytest.mark.parametrize("values", [{"store": "yaml"}, {"store": "sql"}, {"store": "sql", "path": "x"}])
def test_each_store_needs_its_place(values: dict[str, object]) -> None:
    with pytest.raises(ValidationError, match=r"store (yaml needs path|sql needs url)"):
        WebhookSettings.model_validate(values)


@pytest.mark.parametrize("values", [{"timeout": "500ms"}, {"timeout": "31s"}, {"max_in_flight": 0},
                                    {"lane_start": 0}, {"transport": "curl"}, {"drain_timeout": "11m"}])  # fmt: skip
def test_delivery_settings_out_of_bounds(values: dict[str, object]) -> None:
    with pytest.raises(ValidationError, match=next(iter(values))):
        DeliverySettings.model_validate(values)


def test_settings_are_frozen() -> None:
    with pytest.raises(ValidationError, match="frozen"):
        Settings.model_validate(LEAST).delivery.max_in_flight = 1


WITH_HISTORY = {"kafka": {"bootstrap_servers": "x:1", "group_id": "g"}, "history": {"store": "none"}}
OWN = [plan.name for plan in planned_topics(Settings.model_validate(LEAST | WITH_HISTORY), 1, 1)]


def test_all_own_topics_are_planned() -> None:
    assert {"g.retry.30s", "g.held", "g.dead", "g.history"} <= set(OWN)


@pytest.mark.parametrize("name", [*OWN, "g.attempts"])
def test_the_topic_of_events_is_none_of_the_dispatchers_own_topics(name: str) -> None:
    with pytest.raises(ValidationError, match=f"topic {name} is one of the dispatcher's own topics"):
        KafkaSettings.model_validate({"bootstrap_servers": "x:1", "group_id": "g", "topic": name})


@pytest.mark.parametrize(
    ("written", "used"),
    [
        ("kafka:9092", "kafka:9092"),
        ("kafka", "kafka:9092"),
        (" a:9092 , b:9093 ", "a:9092,b:9093"),
        ("a:9092,", "a:9092"),
        ("[2001:db8::1]:9094", "[2001:db8::1]:9094"),
        ("[::1]", "[::1]:9092"),
        ("::1,10.0.0.1:1", "[::1]:9092,10.0.0.1:1"),
        ("broker_0.kafka-brokers:65535", "broker_0.kafka-brokers:65535"),
        ("fe80::1%eth0", "[fe80::1%eth0]:9092"),
    ],
)
def test_bootstrap_servers_are_hosts_and_ports(written: str, used: str) -> None:
    assert KafkaSettings.model_validate({"bootstrap_servers": written}).bootstrap_servers == used


@pytest.mark.parametrize(
    ("written", "message"),
    [
        (",", "names no broker"),
        (" ", "names no broker"),
        ("kafka:abc", "'kafka:abc': the port must be a number from 1 to 65535"),
        ("kafka:", "'kafka:': the port must be"),
        ("kafka:0", "'kafka:0': the port must be"),
        ("kafka:65536", "'kafka:65536': the port must be"),
        ("kafka:٣", "the port must be"),
        ("a:1,kafka:-1", "'kafka:-1': the port must be"),
        ("SSL://kafka:9093", "'SSL://kafka:9093': write host:port without a scheme"),
        ("http://kafka:9093/", "without a scheme; kafka.security.protocol"),
        ("kafka:9092;b:9092", "'kafka:9092;b:9092': is not host:port"),
        ("a:9092 b:9092", "is not host:port; commas separate brokers"),
        (":9092", "':9092': is not host:port"),
        ("kafka/path", "is not host:port"),
        ("user@kafka:1", "is not host:port"),
        ("[::1", "'[::1': write an IPv6 address with a port as [address]:port"),
        ("[kafka]:9092", "write an IPv6 address"),
        ("[::1]9092", "write an IPv6 address"),
        ("::1:xyz", "write an IPv6 address"),
        ("fe80::1%eth0:9092:", "write an IPv6 address"),
        ("fe80::1%eth0:9092", "write an IPv6 address"),
        ("[::1]]:1", "write an IPv6 address"),
        ("k" * 300 + ":x", "the port must be"),
    ],
)
def test_bootstrap_servers_that_are_none_name_the_cure(written: str, message: str) -> None:
    with pytest.raises(ValidationError) as caught:
        KafkaSettings.model_validate({"bootstrap_servers": written})
    assert message in str(caught.value)
    assert "kkk" * 50 not in caught.value.errors()[0]["msg"]
