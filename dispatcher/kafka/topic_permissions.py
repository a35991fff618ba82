"""Lists the permissions of the dispatcher's Kafka user, as kafka-acls.sh lines and as a Strimzi KafkaUser."""

import shlex
from collections.abc import Iterator
from dataclasses import dataclass
from typing import Literal

import yaml

from dispatcher.config.settings import Settings
from dispatcher.kafka.groups import group_names
from dispatcher.kafka.topics import planned_topics


@dataclass(frozen=True, slots=True)
class Permission:
    """Operations on one topic or group."""

    resource: Literal["topic", "group"]
    name: str
    operations: tuple[str, ...]


def permissions(settings: Settings) -> Iterator[Permission]:
    """Returns the permissions that `run`, `history`, `redrive` and the console need.

    Creating topics takes an administrator.
    """
    kafka = settings.kafka
    yield Permission("topic", kafka.topic, ("Read", "Describe"))
    for plan in planned_topics(settings, 1, 1):
        yield Permission("topic", plan.name, ("Read", "Write", "Describe", "DescribeConfigs"))
    for group in group_names(settings):
        yield Permission("group", group, ("Read", "Describe"))


def acl_commands(settings: Settings, user: str) -> Iterator[str]:
    """Returns one kafka-acls.sh line for each topic and group."""
    for one in permissions(settings):
        operations = " ".join(f"--operation {name}" for name in one.operations)
        yield (
            f"kafka-acls.sh --bootstrap-server {shlex.quote(settings.kafka.bootstrap_servers)} --add "
            f"--allow-principal {shlex.quote(f'User:{user}')} {operations} --{one.resource} {shlex.quote(one.name)}"
        )


def kafka_user(settings: Settings, user: str) -> str:
    """Returns the same permissions as a KafkaUser in YAML. The operator fills in the cluster's name."""
    security = settings.kafka.security
    authentication = "tls" if security.certificate is not None else "scram-sha-512"
    acls = [
        {"resource": {"type": one.resource, "name": one.name, "patternType": "literal"},
         "operations": list(one.operations), "host": "*"}
        for one in permissions(settings)
    ]  # fmt: skip
    document = {
        "apiVersion": "kafka.strimzi.io/v1",
        "kind": "KafkaUser",
        "metadata": {"name": user, "labels": {"strimzi.io/cluster": "my-cluster"}},
        "spec": {
            "authentication": {"type": authentication},
            "authorization": {"type": "simple", "acls": acls},
        },
    }
    return yaml.safe_dump(document, sort_keys=False)
