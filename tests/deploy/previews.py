"""Pictures of the dashboards with data: a broker, endpoints of every temper, the real dispatcher, a real Prometheus.

    python -m tests.deploy.previews --minutes 4 --out build/previews

Not a test: it takes minutes, and a person looks at the pictures. Fails if a query or a rule fails, and prints
which queries have no data and which alerts are on their way.
"""

import argparse
import asyncio
import json
import random
import ssl
import subprocess
import sys
import tempfile
import time
from pathlib import Path
from typing import Any

import trustme
import yaml
from aiohttp import web
from aiokafka import AIOKafkaProducer

from dispatcher.demo.broker import EmbeddedBroker
from tests.deploy.prometheus import answered, broken_rules, free_port, scraping

TENANTS = ("good1", "good2", "good3", "slow", "broken", "throttles", "rejects")
TRAFFIC = (*TENANTS, "good1", "good1", "good1", "nobody")
TOPIC = "delivery-events"


def _event(tenant: str, number: int) -> dict[str, Any]:
    journey = {
        "messageExecution": {
            "messageExecutionID": "m",
            "messageType": "transactional",
            "campaignID": "c",
            "campaignVersionID": "v",
        },
        "messageProfile": {"channel": {"_id": "https://ns.adobe.com/xdm/channels/email"}},
        "messageDeliveryfeedback": {"feedbackStatus": "delivered"},
    }
    return {
        "header": {"imsOrgId": f"{tenant.upper()}@AdobeOrg", "sandbox": {"id": "1", "name": "prod"}},
        "body": {
            "xdmMeta": {"schemaRef": {"id": "x", "contentType": "application/vnd.adobe.xed-full+json;version=1"}},
            "xdmEntity": {
                "_id": f"{tenant}-{number}",
                "timestamp": "2030-01-01T00:00:00Z",
                "eventType": "message.feedback",
                "identityMap": {"email": [{"id": "somebody@example.com"}]},
                "_experience": {"customerJourneyManagement": journey},
            },
        },
    }


async def _answer(request: web.Request) -> web.Response:
    await request.read()
    await asyncio.sleep(random.uniform(0.005, 0.05))
    match request.match_info["tenant"]:
        case "slow":
            await asyncio.sleep(1.5)
        case "broken":
            return web.Response(status=503)
        case "throttles" if random.random() < 0.5:
            return web.Response(status=429, headers={"retry-after": "2"})
        case "rejects" if random.random() < 0.3:
            return web.Response(status=400)
    return web.Response()


async def _endpoints(directory: Path) -> tuple[web.AppRunner, int]:
    authority, context = trustme.CA(), ssl.SSLContext(ssl.PROTOCOL_TLS_SERVER)
    authority.issue_cert("localhost").configure_cert(context)
    authority.cert_pem.write_to_path(str(directory / "ca.pem"))
    app = web.Application()
    app.router.add_post("/{tenant}", _answer)
    runner = web.AppRunner(app, access_log=None)
    await runner.setup()
    await web.TCPSite(runner, "127.0.0.1", 0, ssl_context=context).start()
    return runner, runner.addresses[0][1]


async def _send(bootstrap: str, minutes: float, spoil: Path) -> None:
    end, number, spoil_at = time.time() + minutes * 60, 0, time.time() + minutes * 40
    async with AIOKafkaProducer(bootstrap_servers=bootstrap) as producer:
        while time.time() < end:
            for _ in range(120 if int(time.time() / 30) % 2 else 60):
                number += 1
                value = json.dumps(_event(random.choice(TRAFFIC), number)).encode()
                await producer.send(TOPIC, b"rubbish" if random.random() < 0.001 else value, key=str(number).encode())
            if time.time() > spoil_at:
                await asyncio.to_thread(spoil.write_text, "apiVersion: nonsense\n")
            await asyncio.sleep(0.5)


def _settings(directory: Path, bootstrap: str, endpoints: int, ops: int) -> Path:
    webhook = {"sandbox": "prod", "channels": ["email"], "auth": {"type": "none"}}
    webhooks = [
        {"name": one, "org": f"{one.upper()}@AdobeOrg", "url": f"https://localhost:{endpoints}/{one}"} | webhook
        for one in TENANTS
    ]
    (directory / "webhooks.d").mkdir()
    (directory / "webhooks.d/all.yaml").write_text(
        yaml.safe_dump({"apiVersion": "dispatcher/v1", "webhooks": webhooks})
    )
    settings = {
        "apiVersion": "dispatcher/v1",
        "kafka": {"bootstrap_servers": bootstrap, "topic": TOPIC, "session_timeout": 6, "idempotence": "off"},
        "webhooks": {"path": "webhooks.d"},
        "egress": {"allow": ["127.0.0.0/8", "localhost"], "ca_bundle": str(directory / "ca.pem")},
        "retry": {"tiers": ["5s", "15s", "30s"]},
        "ops": {"host": "127.0.0.1", "port": ops},
        "log": {"level": "warning"},
    }
    path = directory / "dispatcher.yaml"
    path.write_text(yaml.safe_dump(settings))
    return path


def _told(prometheus: str) -> None:
    for alert in json.loads(answered(f"{prometheus}/api/v1/alerts"))["data"]["alerts"]:
        print(alert["state"], alert["labels"]["alertname"], alert["annotations"]["description"], sep="  ")
    if failed := broken_rules(prometheus):
        sys.exit(f"rules that fail: {failed}")


async def _run(minutes: float, out: Path, directory: Path) -> None:
    runner, port = await _endpoints(directory)
    async with EmbeddedBroker() as broker:
        ops = free_port()
        settings = _settings(directory, broker.bootstrap_servers, port, ops)
        with (directory / "log").open("w") as log:
            command = [sys.executable, "-m", "dispatcher", "run", "-c", str(settings)]
            daemon = subprocess.Popen(command, stdout=log, stderr=log)  # noqa: ASYNC220
        (directory / "prometheus").mkdir()
        prometheus, server = scraping(f"127.0.0.1:{ops}", directory / "prometheus")
        try:
            await _send(broker.bootstrap_servers, minutes, directory / "webhooks.d/spoilt.yaml")
            options = ["--prometheus", prometheus, "--out", str(out), "--minutes", str(minutes)]
            command = [sys.executable, "-m", "deploy.dashboards.preview", *options]
            await asyncio.to_thread(subprocess.run, command, check=True, timeout=300)
            _told(prometheus)
        finally:
            for process in (daemon, server):
                process.terminate()
            print("the dispatcher ended with", daemon.wait(60))
            server.wait(60)
    await runner.cleanup()


def main() -> None:
    """Make them."""
    parser = argparse.ArgumentParser(description=(__doc__ or "").partition("\n")[0])
    parser.add_argument("--minutes", type=float, default=4)
    parser.add_argument("--out", required=True, type=Path, metavar="DIR")
    options = parser.parse_args()
    with tempfile.TemporaryDirectory() as directory:
        asyncio.run(_run(options.minutes, options.out, Path(directory)))


if __name__ == "__main__":
    main()
