"""`dispatcher sample`: prints sample delivery events, or produces them to the topic."""

import asyncio
import time
import uuid
from typing import Annotated

import typer

from dispatcher.cli.options import DEFAULT_CONFIG, ConfigPath, counted, quiet_settings_at
from dispatcher.config.names import MAX_NAME
from dispatcher.config.settings import Settings
from dispatcher.config.webhooks import Channel
from dispatcher.demo.events import STATUSES, make_event
from dispatcher.errors import DispatcherError
from dispatcher.kafka.producer import Producer
from dispatcher.kafka.topic_reader import partitions_of, translating_kafka_errors

PRODUCE_WITHIN_S = 60.0


def sample(
    org: Annotated[str, typer.Option(help="Organisation id of the event, such as 9E10@AdobeOrg.")],
    sandbox: Annotated[str, typer.Option(help="Name of its sandbox.")] = "prod",
    channel: Annotated[Channel, typer.Option(help="Channel of the message.")] = Channel.EMAIL,
    status: Annotated[str, typer.Option(help=f"What happened: {', '.join(STATUSES)}.")] = "delivered",
    count: Annotated[int, typer.Option(min=1, max=100_000, help="How many events.")] = 1,
    produce: Annotated[
        bool, typer.Option("--produce", help="Write them to the events' topic of the settings.")
    ] = False,
    config: ConfigPath = DEFAULT_CONFIG,
) -> None:
    """Print sample delivery events, one per line, or produce them to the topic. Addresses in them are made up.

    Without --produce pipe them: dispatcher sample --org 9E10@AdobeOrg | kcat -P -b localhost:9092 -t delivery-events
    """
    if status not in STATUSES:
        raise typer.BadParameter(f"must be one of {', '.join(STATUSES)}", param_hint="--status")
    for option, value in (("--org", org), ("--sandbox", sandbox)):
        if not value.strip() or len(value) > MAX_NAME:
            raise typer.BadParameter(f"must have 1 to {MAX_NAME} characters, as a webhook's", param_hint=option)
    now = time.time()
    events = [
        make_event(org=org, sandbox=sandbox, channel=channel.value, status=status, event_id=str(uuid.uuid4()), at=now)
        for _ in range(count)
    ]
    if not produce:
        for event in events:
            typer.echo(event.decode())
        return
    settings = quiet_settings_at(config)
    asyncio.run(_produce(settings, events))
    typer.echo(f"{counted(count, 'event')} written to {settings.kafka.topic}")


async def _produce(settings: Settings, events: list[bytes]) -> None:
    with translating_kafka_errors(settings.kafka):
        await partitions_of(settings.kafka, ())  # says at once why no broker answers: a producer waits for one
    try:
        async with asyncio.timeout(PRODUCE_WITHIN_S), Producer(settings.kafka) as producer:
            for event in events:
                await producer.write(settings.kafka.topic, None, event, [], "sample")
    except TimeoutError:
        where = settings.kafka.bootstrap_servers
        raise DispatcherError(f"kafka at {where} did not take the events within {PRODUCE_WITHIN_S:g} s") from None


def add_to(app: typer.Typer) -> None:
    """Adds the command `sample` to the program."""
    app.command()(sample)
