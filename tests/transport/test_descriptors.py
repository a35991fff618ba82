"""The limit on file descriptors is raised at start, and what deliveries need is known."""

import asyncio
import json
import resource
import sys
from pathlib import Path

import pytest
import structlog
import trustme

from dispatcher.config.settings import DeliverySettings
from dispatcher.transport import descriptors
from tests.transport.conftest import Serving
from tests.transport.servers import NameServer, answering


class Limits:
    """Stands for the process's limits: the tests' own must stay."""

    def __init__(self, soft: int, hard: int, error: Exception | None = None) -> None:
        self.now = (soft, hard)
        self._error = error

    def get(self, which: int) -> tuple[int, int]:
        assert which == resource.RLIMIT_NOFILE
        return self.now

    def set(self, which: int, limits: tuple[int, int]) -> None:
        assert which == resource.RLIMIT_NOFILE
        if self._error is not None:
            raise self._error
        self.now = limits


@pytest.mark.parametrize(
    ("limits", "expected", "warnings"),
    [
        (Limits(1024, 1_048_576), 1_048_576, 0),
        (Limits(65_536, 65_536), 65_536, 0),
        (Limits(1024, 1024), 1024, 1),
        (Limits(1024, 1256), 1256, 0),
        (Limits(1024, 1255), 1255, 1),
        (Limits(1024, 4096, PermissionError("no")), 1024, 2),
        (Limits(1024, resource.RLIM_INFINITY, ValueError("no")), 1024, 2),
        (Limits(1024, resource.RLIM_INFINITY), resource.RLIM_INFINITY, 0),
    ],
)
def test_the_soft_limit_is_raised_to_the_hard_one(
    monkeypatch: pytest.MonkeyPatch, limits: Limits, expected: int, warnings: int
) -> None:
    monkeypatch.setattr(resource, "getrlimit", limits.get)
    monkeypatch.setattr(resource, "setrlimit", limits.set)
    # A logger of its own: another test may have configured logging, and loggers are kept once they were used.
    monkeypatch.setattr(descriptors, "log", structlog.wrap_logger(None, wrapper_class=structlog.BoundLogger))
    with structlog.testing.capture_logs() as lines:
        assert descriptors.raise_limit(DeliverySettings()) == expected
    assert [line["log_level"] for line in lines] == ["warning"] * warnings


def test_deliveries_need_a_descriptor_for_each_connection_in_use_or_at_rest() -> None:
    assert descriptors.needed(DeliverySettings.model_validate({"max_in_flight": 100})) == 456


ONCE = b"HTTP/1.1 200 OK\r\nconnection: close\r\ncontent-length: 0\r\n\r\n"
OUT_OF_DESCRIPTORS = """
import asyncio, json, os, resource, sys
from pathlib import Path

from dispatcher.config.secrets import Secret
from dispatcher.config.settings import DeliverySettings, EgressSettings
from dispatcher.delivery.verdicts import judge
from dispatcher.transport import Endpoint, Request, open_transport
from dispatcher.transport.token_client import TokenClient

client, port, ca, nameserver, warm = sys.argv[1:]
resource.setrlimit(resource.RLIMIT_NOFILE, (128, 128))
URLS = [f"https://127.0.0.1:{port}/", f"https://hooks.example:{port}/"]


async def main():
    settings = {"allow": ["127.0.0.0/8", "localhost"], "ca_bundle": ca, "nameservers": [nameserver]}
    delivery = DeliverySettings(transport=client)
    async with open_transport(delivery, EgressSettings.model_validate(settings)) as transport:
        async def post(url, endpoint=None):
            attempt = await transport.post(Request(endpoint or Endpoint.at(url), (), b"{}", 20.0, 20.0))
            return [attempt.status, attempt.failure, judge(attempt).is_evidence]

        plain = Endpoint.at(URLS[0])
        pem = Secret(Path(ca).with_name("client.pem").read_bytes())
        own = Endpoint(plain.scheme, plain.host, plain.port, plain.target, plain.authority, certificate=pem, key=pem)
        if warm:
            await post(URLS[0])
        taken, without = [], []

        def take_all():
            while True:
                try:
                    taken.append(os.open("/dev/null", os.O_RDONLY))
                except OSError:
                    break

        for url, endpoint in [*((url, None) for url in URLS), ("", own)]:
            take_all()  # a connection that was closed has given its descriptor back
            without.append(await post(url, endpoint))
        take_all()
        token = await TokenClient(transport).post_form(URLS[0], (), b"", 20.0)
        for descriptor in taken:
            os.close(descriptor)
        await asyncio.sleep(1.1)
        after = [(await post(url))[0] for url in URLS] + [(await post("", own))[0]]
        print(json.dumps({"taken": len(taken), "without": without, "token": token.is_local, "after": after}))


asyncio.run(main())
"""


@pytest.mark.parametrize("warm", ["", "warm"], ids=["from the start", "after a request"])
@pytest.mark.parametrize("client", ["aiohttp", "lean"])
async def test_a_process_without_descriptors_blames_no_endpoint_and_recovers(
    serving: Serving, ca_bundle: Path, authority: trustme.CA, client: str, warm: str
) -> None:
    """A real process that has used up its limit: every attempt is our own failure, and no evidence for a breaker."""
    client_certificate = authority.issue_cert("client.example")
    client_certificate.private_key_and_cert_chain_pem.write_to_path(ca_bundle.with_name("client.pem"))
    async with NameServer().running() as names, serving(answering(ONCE)) as server:
        names.zone["hooks.example"] = [["127.0.0.1"]]
        process = await asyncio.create_subprocess_exec(
            sys.executable, "-c", OUT_OF_DESCRIPTORS, client, str(server.port), str(ca_bundle), names.address, warm,
            stdout=asyncio.subprocess.PIPE, stderr=asyncio.subprocess.PIPE,
        )  # fmt: skip
        out, err = await process.communicate()
    assert process.returncode == 0, err.decode()
    found = json.loads(out.splitlines()[-1])  # log lines come before
    assert found["taken"] > 50
    assert found["without"] == [[None, "local", False]] * 3
    assert found["token"] is True
    assert found["after"] == [200, 200, 200]
