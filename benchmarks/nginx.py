"""The receiver: nginx with TLS, which answers at once, late, or not as hoped, by path; its log shows what came when.

Paths: `/after-MS/…` answers after MS milliseconds (echo module), `/throttled/…` answers 429 with Retry-After,
everything else answers 204 at once. Each request is one line of the log: when it was answered, webhook-id, path, status.
"""

import os
import shutil
import ssl
import urllib.request
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from types import TracebackType
from typing import Final, Self

import trustme

from dispatcher.demo.child_process import ChildProcess, free_ports

DELAYS_MS: Final = (50, 500, 2000)

_CONFIG: Final = """\
{module}
daemon off;
master_process off;
error_log stderr warn;
pid {directory}/nginx.pid;
worker_rlimit_nofile {files};
events {{ worker_connections {connections}; multi_accept on; }}
http {{
    access_log off;
    log_format came '$msec $http_webhook_id $uri $status';
    client_body_temp_path {directory}/body;
    proxy_temp_path {directory}/proxy;
    fastcgi_temp_path {directory}/fastcgi;
    uwsgi_temp_path {directory}/uwsgi;
    scgi_temp_path {directory}/scgi;
    keepalive_timeout 600;
    keepalive_requests 1000000000;
    client_header_timeout 600;
    server {{
        listen 127.0.0.1:{port} ssl backlog=8192;
        ssl_certificate {certificate};
        ssl_certificate_key {certificate};
        ssl_protocols TLSv1.3 TLSv1.2;
        ssl_session_cache shared:tls:10m;
        access_log {log} came buffer=64k flush=50ms;
        location / {{ return 204; }}
        location /throttled/ {{ add_header Retry-After 2 always; return 429; }}
{delays}
    }}
    server {{
        listen 127.0.0.1:{status_port};
        location / {{ stub_status; }}
    }}
}}
"""
_MODULE: Final = Path("/usr/lib/nginx/modules/ngx_http_echo_module.so")


@dataclass(frozen=True, slots=True)
class Came:
    """One request, once answered."""

    at: float
    """Unix seconds."""
    webhook_id: str
    path: str
    status: int


class Nginx:
    """One nginx process. `with Nginx(directory) as receiver`."""

    def __init__(self, directory: Path, core: int | None = None) -> None:
        self.directory = directory
        self.port, self._status_port = free_ports(2)
        self._log = directory / "came.log"
        self._core = core
        self.authority = trustme.CA()
        self._process: ChildProcess | None = None
        self._own_requests = 0

    @property
    def ca(self) -> Path:
        """The authority that its certificate is from, PEM."""
        return self.directory / "ca.pem"

    @property
    def pid(self) -> int:
        assert self._process is not None
        return self._process.pid

    def url(self, path: str) -> str:
        """The URL of a path, which begins with a slash."""
        return f"https://localhost:{self.port}{path}"

    def client_context(self) -> ssl.SSLContext:
        """A context that verifies it."""
        return ssl.create_default_context(cafile=str(self.ca))

    def requests(self) -> int:
        """Requests since it was started, also those whose line isn't written yet."""
        with urllib.request.urlopen(f"http://127.0.0.1:{self._status_port}/", timeout=5) as answer:
            numbers = answer.read().split(b"\n")[2].split()
        self._own_requests += 1
        return int(numbers[2]) - self._own_requests

    def connections(self) -> int:
        """Open connections, but for the one that asks."""
        with urllib.request.urlopen(f"http://127.0.0.1:{self._status_port}/", timeout=5) as answer:
            first = answer.read().split(b"\n")[0]
        self._own_requests += 1
        return int(first.split()[2]) - 1

    def forget(self) -> None:
        """Empty the log."""
        os.truncate(self._log, 0)

    def came(self) -> Iterator[Came]:
        """The log; the last tenth of a second may be missing."""
        with self._log.open() as lines:
            for line in lines:
                at, webhook_id, path, status = line.split(" ")
                yield Came(float(at), webhook_id, path, int(status))

    async def start(self) -> None:
        """Start and wait until it listens."""
        self.authority.cert_pem.write_to_path(str(self.ca))
        certificate = self.directory / "server.pem"
        self.authority.issue_cert("localhost").private_key_and_cert_chain_pem.write_to_path(str(certificate))
        delays = "".join(
            f"        location /after-{ms}/ {{ echo_status 204; echo_sleep {ms / 1000}; echo -n ''; }}\n"
            for ms in DELAYS_MS
        )
        settings = self.directory / "nginx.conf"
        settings.write_text(
            _CONFIG.format(
                module=f"load_module {_MODULE};", directory=self.directory, certificate=certificate, log=self._log,
                port=self.port, status_port=self._status_port, delays=delays, connections=16_000, files=20_000,
            )
        )  # fmt: skip
        program = shutil.which("nginx") or "/usr/sbin/nginx"
        self._process = ChildProcess(
            [program, "-p", str(self.directory), "-c", str(settings)], log=self.directory / "nginx.err"
        )
        self._process.start()
        for _ in range(100):
            try:
                self.requests()
            except OSError:
                if not self._process.running:
                    break
                import asyncio

                await asyncio.sleep(0.05)
            else:
                return
        raise RuntimeError(f"nginx did not start:\n{self._process.log_tail()}")

    async def stop(self) -> None:
        """End it."""
        if self._process is not None:
            await self._process.stop(timeout_s=5)

    async def __aenter__(self) -> Self:
        await self.start()
        return self

    async def __aexit__(
        self, kind: type[BaseException] | None, error: BaseException | None, traceback: TracebackType | None
    ) -> None:
        await self.stop()


def missing() -> list[str]:
    """What is not installed of what it needs, as Debian's packages."""
    found = []
    if shutil.which("nginx") is None and not Path("/usr/sbin/nginx").exists():
        found.append("nginx-light")
    if not _MODULE.exists():
        found.append("libnginx-mod-http-echo")
    return found
