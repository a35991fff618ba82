"""`dispatcher topics`: the retry, dead-letter and attempt topics, printed or created."""

import asyncio
from typing import Annotated

import typer
from aiokafka.errors import KafkaError

from dispatcher.cli.options import DEFAULT_CONFIG, ConfigPath, settings_at
from dispatcher.errors import DispatcherError
from dispatcher.kafka.topics import create_topics, planned_topics
from dispatcher.telemetry.logs import configure_logging

PARTITIONS_SHOWN = 12


def topics(
    config: ConfigPath = DEFAULT_CONFIG,
    create: Annotated[bool, typer.Option("--create", help="Create what is missing.")] = False,
    partitions: Annotated[
        int | None, typer.Option(min=1, help="Partitions of each; as many as the topic of events has, by default.")
    ] = None,
    replication: Annotated[int, typer.Option(min=1, help="Replicas of each partition.")] = 3,
) -> None:
    """Print the commands that create the topics the dispatcher needs, or create them."""
    settings = settings_at(config)
    if not create:
        for plan in planned_topics(settings, partitions or PARTITIONS_SHOWN, replication):
            options = " ".join(f"--config {key}={value}" for key, value in plan.config.items())
            typer.echo(
                f"kafka-topics.sh --bootstrap-server {settings.kafka.bootstrap_servers} --create --if-not-exists "
                f"--topic {plan.name} --partitions {plan.partitions} --replication-factor {plan.replication} {options}"
            )
        return
    configure_logging(settings.log)
    try:
        created = asyncio.run(create_topics(settings, replication, partitions))
    except (KafkaError, OSError) as error:
        raise DispatcherError(f"kafka at {settings.kafka.bootstrap_servers}: {type(error).__name__}: {error}") from None
    for name, what in created.items():
        typer.echo(f"{name}: {what}")


def add_to(app: typer.Typer) -> None:
    """Add the command."""
    app.command()(topics)
