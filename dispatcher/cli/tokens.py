"""`dispatcher tokens`: tokens for the admin API and for signing in to the console."""

import asyncio
from collections.abc import Sequence
from datetime import UTC, datetime, timedelta
from enum import StrEnum
from typing import TYPE_CHECKING, Annotated

import typer

from dispatcher.cli.options import DEFAULT_CONFIG, By, ConfigPath, actor, counted, quiet_settings_at
from dispatcher.config.settings import Settings
from dispatcher.config.units import format_duration, parse_duration

if TYPE_CHECKING:
    from dispatcher.stores.sql.records import ApiToken

tokens = typer.Typer(help="Tokens for the admin API and the console.", no_args_is_help=True)


class TokenRole(StrEnum):
    """Role of a token: what its holder may do."""

    VIEWER = "viewer"
    ADMIN = "admin"


@tokens.command()
def create(
    name: Annotated[str, typer.Option(help="Whom or what it is for: the audit names it.")],
    role: Annotated[TokenRole, typer.Option(help="viewer sees, admin changes.")] = TokenRole.VIEWER,
    org: Annotated[
        list[str] | None, typer.Option(help="An organisation it is good for; can be given more than once.")
    ] = None,
    all_orgs: Annotated[bool, typer.Option("--all-orgs", help="It is good for all organisations.")] = False,
    expires: Annotated[
        str | None, typer.Option(metavar="AGE", help="How long it is good: 90d, 12h; by default for ever.")
    ] = None,
    config: ConfigPath = DEFAULT_CONFIG,
    by: By = None,
) -> None:
    """Create a token and print it. It is shown only once: only its hash is stored."""
    if bool(org) == all_orgs:
        raise typer.BadParameter("name the organisations with --org, or say --all-orgs")
    if not name.strip() or not name.isprintable() or len(name) > 200:
        raise typer.BadParameter("--name: 1 to 200 visible characters")
    life = None if expires is None else _life(expires)
    orgs = None if all_orgs else frozenset(org or ())
    token, text = asyncio.run(_created(quiet_settings_at(config), name, role, orgs, life, actor(by)))
    until = "for ever" if token.expires_at is None else f"until {token.expires_at:%Y-%m-%d %H:%M} UTC"
    typer.echo(
        f"token {token.id} for {name}: {role.value} of {_orgs(orgs)}, good {until}; keep it, it is not shown again",
        err=True,
    )
    typer.echo(text)


@tokens.command("list")
def list_tokens(config: ConfigPath = DEFAULT_CONFIG) -> None:
    """List every token, revoked ones too."""
    found = asyncio.run(_listed(quiet_settings_at(config)))
    now = datetime.now(UTC)
    rows = [("ID", "NAME", "ROLE", "ORGANISATIONS", "STATE", "LAST USED"), *(_row(token, now) for token in found)]
    widths = [max(len(row[column]) for row in rows) for column in range(len(rows[0]))]
    for row in rows if found else ():
        typer.echo("  ".join(text.ljust(width) for text, width in zip(row, widths, strict=True)).rstrip())
    typer.echo(counted(len(found), "token"))


@tokens.command()
def revoke(
    token_id: Annotated[str, typer.Argument(metavar="ID", help="As `dispatcher tokens list` shows it.")],
    config: ConfigPath = DEFAULT_CONFIG,
    by: By = None,
) -> None:
    """Revoke a token: at once for the API, within 30 s for people who signed in with it."""
    asyncio.run(_revoked(quiet_settings_at(config), token_id, actor(by)))
    typer.echo(f"token {token_id} is revoked")


async def _created(
    settings: Settings, name: str, role: TokenRole, orgs: frozenset[str] | None, life: timedelta | None, by: str
) -> "tuple[ApiToken, str]":
    from dispatcher.cli.webhook_database import open_database  # SQLAlchemy takes its time
    from dispatcher.stores.sql.records import Role
    from dispatcher.stores.sql.tokens import ApiTokens

    expires_at = None if life is None else datetime.now(UTC) + life
    async with open_database(settings) as database:
        return await ApiTokens(database).create(name, Role(role.value), orgs=orgs, by=by, expires_at=expires_at)


async def _listed(settings: Settings) -> "Sequence[ApiToken]":
    from dispatcher.cli.webhook_database import open_database
    from dispatcher.stores.sql.tokens import ApiTokens

    async with open_database(settings) as database:
        return await ApiTokens(database).list_all()


async def _revoked(settings: Settings, token_id: str, by: str) -> None:
    from dispatcher.cli.webhook_database import open_database
    from dispatcher.stores.sql.tokens import ApiTokens

    async with open_database(settings) as database:
        await ApiTokens(database).revoke(token_id, by=by)


def _life(text: str) -> timedelta:
    try:
        seconds = parse_duration(text)
        life = timedelta(seconds=seconds if isinstance(seconds, float) else 0)
    except (ValueError, OverflowError) as error:
        raise typer.BadParameter(f"--expires: {error}") from None
    if not timedelta() < life <= timedelta(days=3650):
        raise typer.BadParameter(f"--expires: more than nothing, at most {format_duration(3650 * 86_400)}")
    return life


def _row(token: "ApiToken", now: datetime) -> tuple[str, ...]:
    if token.revoked_at is not None:
        state = "revoked"
    elif token.expires_at is not None and token.expires_at <= now:
        state = "expired"
    else:
        state = "good" if token.expires_at is None else f"good until {token.expires_at:%Y-%m-%d}"
    used = "never" if token.last_used_at is None else f"{token.last_used_at:%Y-%m-%d %H:%M}"
    return (token.id, token.name, token.role.value, _orgs(token.orgs), state, used)


def _orgs(orgs: frozenset[str] | None) -> str:
    return "all organisations" if orgs is None else ", ".join(sorted(orgs))


def add_to(app: typer.Typer) -> None:
    """Adds this module's commands to the program."""
    app.add_typer(tokens, name="tokens")
