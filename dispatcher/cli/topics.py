"""`dispatcher topics`: prints the dispatcher's own topics and the permissions it needs, or creates the topics."""

import asyncio
import shlex
from typing import Annotated

import typer

from dispatcher.cli.options import DEFAULT_CONFIG, ConfigPath, quiet_settings_at
from dispatcher.config.settings import Settings
from dispatcher.errors import DispatcherError
from dispatcher.kafka.topic_comparison import KnownTopics, known_topics
from dispatcher.kafka.topic_permissions import acl_commands, kafka_user
from dispatcher.kafka.topic_reader import translating_kafka_errors
from dispatcher.kafka.topics import create_topics, planned_topics

PARTITIONS_SHOWN = 12
COMPARE_S = 10.0
"""Time for the comparison with the topics that exist: the commands are printed without it, too."""


def topics(
    config: ConfigPath = DEFAULT_CONFIG,
    create: Annotated[
        bool, typer.Option("--create", help="Create what is missing, and set what existing topics lack.")
    ] = False,
    partitions: Annotated[
        int | None, typer.Option(min=1, help="Partitions of each; as many as the topic of events has, by default.")
    ] = None,
    replication: Annotated[int, typer.Option(min=1, help="Replicas of each partition.")] = 3,
    acls: Annotated[
        str | None,
        typer.Option(metavar="USER", help="Print the permissions the Kafka user needs, and create no topic."),
    ] = None,
) -> None:
    """Print the commands that create the topics the dispatcher needs, or create them; say what is wrong with them."""
    settings = quiet_settings_at(config)
    if acls is not None:
        if create:
            raise typer.BadParameter("give either --create or --acls")
        _print_permissions(settings, acls)
        return
    if create:
        with translating_kafka_errors(settings.kafka):
            created = asyncio.run(create_topics(settings, replication, partitions))
        for name, what in created.items():
            typer.echo(f"{name}: {what}")
    known = _known(settings)
    if not create:
        _print_commands(settings, partitions or known.events_partitions or PARTITIONS_SHOWN, replication)
    for warning in known.warnings:
        typer.echo(f"warning: {warning}", err=True)


def _known(settings: Settings) -> KnownTopics:
    """Returns what the broker reports about the topics; nothing if it doesn't answer: the commands need no broker."""
    try:
        with translating_kafka_errors(settings.kafka):
            return asyncio.run(asyncio.wait_for(known_topics(settings), COMPARE_S))
    except DispatcherError as error:
        typer.echo(f"not compared with the existing topics: {error}", err=True)
        return KnownTopics(0, ())


def _print_commands(settings: Settings, partitions: int, replication: int) -> None:
    bootstrap = shlex.quote(settings.kafka.bootstrap_servers)
    for plan in planned_topics(settings, partitions, replication):
        options = " ".join(f"--config {key}={value}" for key, value in plan.config.items())
        typer.echo(
            f"kafka-topics.sh --bootstrap-server {bootstrap} --create --if-not-exists "
            f"--topic {plan.name} --partitions {plan.partitions} --replication-factor {plan.replication} {options}"
        )


def _print_permissions(settings: Settings, user: str) -> None:
    for command in acl_commands(settings, user):
        typer.echo(command)
    typer.echo("\n# The same for Strimzi; fill in the cluster's name:")
    typer.echo(kafka_user(settings, user))


def add_to(app: typer.Typer) -> None:
    """Adds the command `topics` to the program."""
    app.command()(topics)
