"""Which existing topics hold events of earlier versions or earlier settings."""

from dispatcher.config.settings import Settings
from dispatcher.kafka.former_topics import FormerNames, FormerTopics, former_names


def settings(retry: dict[str, object] | None = None, **kafka: object) -> Settings:
    return Settings.model_validate(
        {
            "apiVersion": "dispatcher/v1",
            "kafka": {"bootstrap_servers": "none:1", "topic": "t", "group_id": "g", **kafka},
            "webhooks": {"store": "yaml", "path": "x"},
            "retry": retry or {},
        }
    )


EXISTING = [
    "t", "g.retry.30s", "g.retry.2m", "g.retry.5m", "g.retry.15m", "g.held", "g.dead",
    "t.retry.30s", "t.retry.x", "t.held", "t.dead", "p.retry.1m", "p.held", "p.dead", "p.history",
]  # fmt: skip
NONE = FormerNames({}, frozenset(), (), ())


def test_topics_named_after_the_topic_of_events_may_be_another_groups() -> None:
    assert former_names(settings(), EXISTING) == FormerNames(
        {"t.retry.30s": 30.0}, frozenset({"t.retry.30s"}), (), ("t.dead",)
    )


def test_tiers_that_are_gone_from_the_settings_are_found_by_their_prefix() -> None:
    own = [name for name in EXISTING if name.startswith(("g.", "p."))]
    assert former_names(settings(), own) == NONE
    switched = former_names(settings({"profile": "standard-webhooks"}), own)
    assert switched == FormerNames(
        {"g.retry.2m": 120.0, "g.retry.15m": 900.0} | {"g.retry.30s": 30.0}, frozenset(), (), ()
    )
    fewer = former_names(settings({"tiers": ["30s"]}, topic_prefix="t"), EXISTING)
    assert fewer.tiers == {}
    fewer = former_names(settings({"tiers": ["2m"]}, topic_prefix="t"), EXISTING)
    assert (fewer.tiers, fewer.uncertain) == ({"t.retry.30s": 30.0}, frozenset())


def test_topics_of_another_prefix_are_found_by_the_groups_commits() -> None:
    read = {"p.retry.1m", "p.held", "t.held", "g.held", "g.retry.30s", "deleted.retry.30s", "p.history"}
    assert former_names(settings(), [name for name in EXISTING if name != "t.retry.30s"], read) == FormerNames(
        {"p.retry.1m": 60.0}, frozenset(), ("p.held", "t.held"), ("p.dead", "t.dead"), ("p.history",)
    )


def test_every_former_topic_is_named_with_what_to_do() -> None:
    found = FormerTopics({"p.retry.1m": 60.0}, {"p.retry.1m": 3}, {"p.held": 5}, ("p.dead",))
    parked, held, dead = found.messages()
    assert parked.startswith("topic p.retry.1m: holds 3 unread events")
    assert held.startswith("topic p.held: holds up to 5 held events")
    assert "set kafka.topic_prefix to p " in held
    assert dead.startswith("topic p.dead: holds dead events")
