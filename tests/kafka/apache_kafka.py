"""Apache Kafka 4, one node in KRaft mode, without Docker: Java runs the jars that Maven has fetched.

For tests, benchmarks and CI. It starts, hangs, kills and revives a real broker. `server_properties` holds its settings, `topics` the
administration.
"""

import asyncio
import base64
import os
import shutil
import subprocess
import tempfile
import uuid
from pathlib import Path
from types import TracebackType
from typing import Any, Self

from dispatcher.demo.child_process import ChildFailedError, ChildProcess, free_ports
from tests.kafka import acls, maven
from tests.kafka.acls import Operation, Permission, Resource
from tests.kafka.certificates import Certificates
from tests.kafka.server_properties import SCRAM, KafkaOptions, Listener, Mechanism, server_properties

_TRIES = 3
"""Sets of ports that a new broker tries."""
_READY = b"Kafka Server started"
_READY_WITHIN_S = 180.0  # usually 2 to 3 s; a loaded machine has taken 70 s for the storage format alone
_STOP_WITHIN_S = 20.0  # usually under 1
_JAVA_FLAGS = ("-XX:+UseSerialGC", "-XX:TieredStopAtLevel=1", "-Xshare:auto", "-Djava.awt.headless=true")

# Warnings, and the one line that says the broker is up; Kafka's own files print five hundred lines of settings first.
_LOGGING = """
rootLogger.level=warn
rootLogger.appenderRef.console.ref=Console
appender.console.type=Console
appender.console.name=Console
appender.console.layout.type=PatternLayout
appender.console.layout.pattern=%d %p %c{1} %m%n
logger.server.name=kafka.server.KafkaRaftServer
logger.server.level=info
logger.authorizer.name=kafka.authorizer.logger
logger.authorizer.level=info
"""


class ApacheKafka:
    """One broker and its data: `async with ApacheKafka() as broker`, or plain `with` if no event loop runs.

    Its ports and its data stay the same until `close`, over any number of `stop`, `kill` and `start`. It dies with the
    thread that called `start`, see `ChildProcess`.
    """

    def __init__(self, options: KafkaOptions | None = None) -> None:
        self.options = options or KafkaOptions()
        self.kind = f"Apache Kafka {maven.kafka_version()}"
        self._directory: Path | None = None
        self._process: ChildProcess | None = None
        self._ports: dict[Listener, int] = {}
        self._controller_port = 0

    def __repr__(self) -> str:
        return f"<{self.kind} at {self._ports or 'no port yet'}, {self._process or 'not started'}>"

    @property
    def bootstrap_servers(self) -> str:
        """Address that PLAINTEXT clients bootstrap from."""
        return self.address(Listener.PLAINTEXT)

    @property
    def controller(self) -> str:
        """`127.0.0.1:port` of the node's controller, for the nodes that join it."""
        return f"127.0.0.1:{self._controller_port}"

    @property
    def certificates(self) -> Certificates:
        """Files for clients of the SSL, MTLS and SASL_SSL listeners."""
        return Certificates(self.directory)

    @property
    def directory(self) -> Path:
        """Directory of settings, logs and data; removed by `close`."""
        if self._directory is None:
            raise RuntimeError("the broker has not been started yet")
        return self._directory

    def address(self, listener: Listener) -> str:
        """Returns `127.0.0.1:port` of a listener."""
        return f"127.0.0.1:{self._ports[listener]}"

    def client_options(
        self,
        listener: Listener = Listener.PLAINTEXT,
        *,
        user: str | None = None,
        mechanism: Mechanism = Mechanism.SCRAM_SHA_512,
    ) -> dict[str, Any]:
        """Returns the keyword arguments that an aiokafka client needs for `listener`."""
        found: dict[str, Any] = {"bootstrap_servers": self.address(listener), "security_protocol": listener.protocol}
        if listener.tls:
            found["ssl_context"] = self.certificates.client_context(with_certificate=listener is Listener.MTLS)
        if listener.sasl and user is not None:
            found["sasl_mechanism"] = str(mechanism)
            found["sasl_plain_username"] = user
            found["sasl_plain_password"] = self.options.users[user]
        return found

    async def start(self) -> None:
        """Starts and waits until clients are served: 2 to 4 s, at first 1 s more (minutes if jars must be fetched)."""
        tries = 0 if self._process is not None else _TRIES
        while True:
            if self._process is None:
                self._process = await asyncio.to_thread(self._prepare)
            self._process.start()
            try:
                return await self.wait_ready()
            except ChildFailedError as error:  # another process of the tests may have taken a port meanwhile
                tries -= 1
                if tries <= 0 or "Address already in use" not in str(error):
                    raise
                await self.close()

    async def wait_ready(self, *, timeout_s: float = _READY_WITHIN_S) -> None:
        """Waits until the present run serves clients; raises `ChildFailedError` if it ends or takes longer."""
        await self._child.wait_for(_READY, timeout_s=timeout_s)

    async def stop(self) -> None:
        """Stops in order (SIGTERM), under 1 s, and by force after 20 s. Keeps data and ports for the next `start`."""
        await self._child.stop(timeout_s=_STOP_WITHIN_S)

    async def restart(self) -> None:
        """Stops in order, then starts with the same data on the same ports."""
        await self.stop()
        await self.start()

    def kill(self) -> None:
        """Sends SIGKILL. What was acknowledged is still there after `start`: the kernel has it, flushed or not."""
        self._child.kill()

    def pause(self) -> None:
        """Makes the broker hang: connections stay, the kernel accepts new ones, nothing is answered."""
        self._child.pause()

    def resume(self) -> None:
        """Ends `pause`."""
        self._child.resume()

    async def close(self) -> None:
        """Stops the broker and removes all data."""
        if self._process is not None:
            await self._process.stop(timeout_s=_STOP_WITHIN_S)
        if self._directory is not None:
            shutil.rmtree(self._directory, ignore_errors=True)
        self._directory = self._process = None

    async def deny(self, user: str, operation: Operation, name: str, resource: str = Resource.TOPIC) -> None:
        """Refuses `operation` on a topic or group to a SASL user, and nothing else to any user. Needs `authorizer`.

        In force when this returns. The broker says "not authorised", whatever the operation.
        """
        # one rule, and what none allows is refused
        everybody = acls.rule(Permission.ALLOW, "*", Operation.ALL, name, resource)
        await acls.add(self.bootstrap_servers, everybody, acls.rule(Permission.DENY, user, operation, name, resource))

    async def permit(self, user: str, operation: Operation, name: str, resource: str = Resource.TOPIC) -> None:
        """Reverts `deny`; in force when this returns."""
        await acls.remove(self.bootstrap_servers, acls.rule(Permission.DENY, user, operation, name, resource))

    async def move(self) -> None:
        """Stops, and starts with the same data on other ports, as a rescheduled broker does."""
        await self.stop()
        ports = free_ports(len(self._ports))
        self._ports = dict(zip(self._ports, ports, strict=True))
        self._write_settings()
        await self.start()

    async def __aenter__(self) -> Self:
        try:
            await self.start()
        except BaseException:
            await self.close()
            raise
        return self

    async def __aexit__(
        self, kind: type[BaseException] | None, error: BaseException | None, traceback: TracebackType | None
    ) -> None:
        await self.close()

    def __enter__(self) -> Self:
        return asyncio.run(self.__aenter__())

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, traceback: TracebackType | None
    ) -> None:
        asyncio.run(self.close())

    @property
    def _child(self) -> ChildProcess:
        if self._process is None:
            raise RuntimeError("the broker has not been started yet")
        return self._process

    def _prepare(self) -> ChildProcess:
        """Creates everything that is created once: directory, ports, certificates, settings, a storage with its users."""
        jars = maven.class_path()
        self._directory = directory = Path(tempfile.mkdtemp(prefix="apache-kafka-"))
        listeners = [Listener.PLAINTEXT, *sorted(self.options.listeners - {Listener.PLAINTEXT})]
        controller_port, *ports = free_ports(len(listeners) + 1)
        self._ports = dict(zip(listeners, ports, strict=True))
        if any(listener.tls for listener in listeners):
            self.certificates.write()
        self._controller_port = controller_port
        settings = self._write_settings()
        logging = directory / "log4j2.properties"
        logging.write_text(_LOGGING)
        java = (
            _java(),
            f"-Xmx{self.options.heap_mb}m",
            *_JAVA_FLAGS,
            *self.options.java_flags,
            f"-Dlog4j2.configurationFile={logging}",
            "-cp",
            jars,
        )
        self._format((*java, "kafka.tools.StorageTool"), settings)
        return ChildProcess((*java, "kafka.Kafka", str(settings)), log=directory / "broker.log")

    def _write_settings(self) -> Path:
        settings = self.directory / "server.properties"
        settings.write_text(
            server_properties(
                self.options,
                ports=self._ports,
                controller_port=self._controller_port,
                data=self.directory / "data",
                pem=self.certificates.broker,
            )
        )
        return settings

    def _format(self, storage_tool: tuple[str, ...], settings: Path) -> None:
        cluster_id = self.options.cluster_id or random_cluster_id()
        users = [
            f"--add-scram={mechanism}=[name={name},password={password}]"
            for name, password in self.options.users.items()
            for mechanism in SCRAM
        ]
        command = (*storage_tool, "format", f"--cluster-id={cluster_id}", "--config", str(settings), *users)
        run = subprocess.run(command, capture_output=True, text=True, timeout=_READY_WITHIN_S, check=False)
        if run.returncode != 0:
            raise maven.KafkaUnavailableError(f"StorageTool failed:\n{run.stdout[-2000:]}{run.stderr[-2000:]}")


def random_cluster_id() -> str:
    """Returns an id in Kafka's form: 16 bytes in URL-safe base64."""
    return base64.urlsafe_b64encode(uuid.uuid4().bytes).decode().rstrip("=")


def _java() -> str:
    """Returns the absolute path of `java`: the child is started without a search path."""
    home = os.environ.get("JAVA_HOME")
    found = shutil.which("java") or (home and shutil.which("java", path=f"{home}/bin"))
    if not found:
        raise maven.KafkaUnavailableError("not installed: java")
    return found
