"""`dispatcher receive`: an HTTPS receiver for trials on one machine."""

import asyncio
import binascii
import ssl
from pathlib import Path
from typing import TYPE_CHECKING, Annotated

import typer
from aiohttp import web

from dispatcher.cli.options import counted
from dispatcher.config.web_addresses import can_be_host
from dispatcher.errors import DispatcherError

if TYPE_CHECKING:  # imported by the command, not by `run`: they need `cryptography`
    import jwt

    from dispatcher.cli.trial_receiver import Expectations, TrialReceiver


def receive(
    port: Annotated[int, typer.Option(min=0, max=65535, help="Port to listen on; 0 takes a free one.")] = 8443,
    host: Annotated[str, typer.Option(help="Address to listen on.")] = "127.0.0.1",
    ca: Annotated[Path, typer.Option(help="Where to write the CA that the dispatcher has to trust.")] = Path(
        "receiver-ca.pem"
    ),
    secret: Annotated[
        Path | None, typer.Option(help="File with the whsec_ secret or whpk_ key of the signatures.")
    ] = None,
    keys: Annotated[Path | None, typer.Option(help="JWKS file with the keys of the JWTs.")] = None,
    audience: Annotated[str | None, typer.Option(help="Audience that a JWT must name.")] = None,
    status: Annotated[int, typer.Option(min=200, max=599, help="Status to answer verified requests with.")] = 204,
    count: Annotated[int | None, typer.Option(min=1, help="Exit after this number of different events.")] = None,
) -> None:
    """Receive webhooks over HTTPS on this machine, verify them, and print what arrives. For trials only."""
    from dispatcher.cli.trial_receiver import Expectations, TrialReceiver, server_tls

    if not host.strip() or not can_be_host(host):
        raise typer.BadParameter("must be an IP address or a host name", param_hint="--host")
    expectations = Expectations(_secret(secret), _keys(keys), audience)
    _check_secret(secret, expectations)
    try:
        tls = server_tls(host, ca)
    except OSError as error:
        raise DispatcherError(f"{ca}: can't be written ({error.strerror})") from None
    except ValueError:
        raise typer.BadParameter("must be an IP address or a host name", param_hint="--host") from None
    receiver = TrialReceiver(expectations, typer.echo, status, count)

    try:
        asyncio.run(_serve(receiver, host, port, tls, ca))
    except KeyboardInterrupt:
        typer.echo(f"{counted(receiver.events, 'event')} received")


async def _serve(receiver: "TrialReceiver", host: str, port: int, tls: ssl.SSLContext, ca: Path) -> None:
    from dispatcher.listener import listen_refusal

    runner = web.ServerRunner(web.Server(receiver.handle, access_log=None))
    await runner.setup()
    try:
        site = web.TCPSite(runner, host, port, ssl_context=tls)
        try:
            await site.start()
        except OSError as error:
            where = f"--host {host}, --port {port}"
            raise DispatcherError(listen_refusal(where, error, "an address of this host")) from None
        bound, shown = runner.addresses[0][1], f"[{host}]" if ":" in host else host
        typer.echo(f"receiving at https://{shown}:{bound}/ (trust {ca}); Ctrl-C ends it")
        await receiver.finished.wait()
    finally:
        await runner.cleanup()


def _secret(path: Path | None) -> str | None:
    if path is None:
        return None
    text = _text(path).strip()
    if not text.startswith(("whsec_", "whpk_")):
        raise DispatcherError(f"{path}: must begin with whsec_ or whpk_")
    return text


def _check_secret(path: Path | None, expectations: "Expectations") -> None:
    signed = {"webhook-id": "x", "webhook-timestamp": "0", "webhook-signature": "v1,x v1a,x"}
    try:
        expectations.problem_of(signed, b"", 0.0)
    except ValueError as error:
        raise DispatcherError(f"{path}: is not a signing secret or public key ({error})") from None


def _keys(path: Path | None) -> "jwt.PyJWKSet | None":
    if path is None:
        return None
    import jwt

    try:
        return jwt.PyJWKSet.from_json(_text(path))
    except (jwt.PyJWKError, jwt.PyJWKSetError, binascii.Error, ValueError, AttributeError) as error:
        raise DispatcherError(f"{path}: must be a JWKS document (RFC 7517): {error}") from None


def _text(path: Path) -> str:
    try:
        return path.read_text(encoding="utf-8")
    except OSError as error:
        raise DispatcherError(f"{path}: can't be read ({error.strerror})") from None
    except UnicodeDecodeError:
        raise DispatcherError(f"{path}: can't be read (not UTF-8 text)") from None


def add_to(app: typer.Typer) -> None:
    """Adds the command `receive` to the program."""
    app.command()(receive)
