"""`dispatcher run` and `dispatcher check`: the same code path, with and without starting."""

import asyncio
from pathlib import Path
from typing import Annotated

import typer
import uvloop

from dispatcher.checks import settings_warnings, store_warnings, webhook_warnings
from dispatcher.cli.interpreter import prepare_interpreter
from dispatcher.cli.ops_client import OpsUrl, check_ready
from dispatcher.cli.options import DEFAULT_CONFIG, ConfigPath, counted, quiet_settings_at, settings_at
from dispatcher.config.settings import Settings
from dispatcher.errors import ConfigError, DispatcherError
from dispatcher.kafka.check import check_kafka
from dispatcher.service import Service, checked_webhooks
from dispatcher.telemetry.logs import configure_logging
from dispatcher.transport.descriptors import raise_limit


def run(config: ConfigPath = DEFAULT_CONFIG) -> None:
    """Deliver events until a signal (SIGTERM drains, a second one stops at once)."""
    settings = settings_at(config)
    configure_logging(settings.log)
    raise_limit(settings.delivery)
    service = Service(settings)
    prepare_interpreter()
    with asyncio.Runner(loop_factory=uvloop.new_event_loop) as runner:
        raise typer.Exit(runner.run(service.run()))


def check(
    config: ConfigPath = DEFAULT_CONFIG,
    ops: OpsUrl = None,
    kafka: Annotated[
        bool, typer.Option("--kafka", help="Connect to Kafka, too: brokers, TLS, authentication, topics, permissions.")
    ] = False,
) -> None:
    """Check settings and webhooks as `run` would read them, and start nothing.

    Exit status 78 if a file has a mistake; 1 if a check of Kafka or of a running instance finds a problem. The other
    checks are made even if a file has a mistake.
    """
    settings: Settings | None = None
    mistakes: ConfigError | None = None
    try:
        settings = quiet_settings_at(config)  # the problems are printed once, at the end
        _check_files(config, settings)
    except ConfigError as error:
        mistakes = error
    failed = False
    if kafka and settings is not None:  # the mistake may be in a webhook file
        failed = not _check_kafka(settings)
    if ops is not None:
        try:
            asyncio.run(check_ready(ops, None if settings is None else settings.ops))
            typer.echo(f"{ops} is ready")
        except DispatcherError as error:
            typer.echo(str(error), err=True)
            failed = True
    if mistakes is not None:
        raise mistakes
    if failed:
        raise typer.Exit(1)


def _check_files(config: Path, settings: Settings) -> None:
    webhooks, problems = asyncio.run(checked_webhooks(settings))
    if problems:
        raise ConfigError(problems)
    typer.echo(f"{config}: the settings can be used")
    for key, warning in settings_warnings(settings):
        typer.echo(f"{config}: warning: {key}: {warning}")
    for warning in store_warnings(settings.webhooks, webhooks):
        typer.echo(f"warning: {warning}")
    warnings_of = webhook_warnings(settings)
    for webhook in webhooks:
        config_of = webhook.config
        channels = "+".join(config_of.channels)
        typer.echo(f"{webhook.source}: {webhook.tenant} {channels} to {config_of.origin}: the webhook can be used")
        for key, warning in warnings_of(config_of):
            typer.echo(f"{webhook.source}: {webhook.tenant}: warning: {key}: {warning}")
    typer.echo(f"{counted(len(webhooks), 'webhook')}, no problems")


def _check_kafka(settings: Settings) -> bool:
    """Prints what a connection to Kafka shows. Returns False if there is a problem."""
    report = asyncio.run(check_kafka(settings))
    for line in report.good:
        typer.echo(line)
    for line in report.warnings:
        typer.echo(f"warning: {line}", err=True)
    for line in report.problems:
        typer.echo(line, err=True)
    return not report.problems


def add_to(app: typer.Typer) -> None:
    """Adds this module's commands to the program."""
    app.command()(run)
    app.command()(check)
