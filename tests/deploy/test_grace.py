"""SIGTERM under the worst of loads, held against the grace period that the chart renders."""

from pathlib import Path

import yaml

from tests.conftest import Broker
from tests.deploy.rendering import rendered_text
from tests.integration.harness import slowly, stage, tenants, until

SHORT = ("--set", "config.delivery.drain_timeout=4s,config.delivery.timeout=3s")


async def test_requests_that_hang_longer_than_the_drain_do_not_outlast_the_grace_period(
    kafka: Broker, tmp_path: Path
) -> None:
    """The kubelet never has to kill it, and what was cut off is sent by the next pod."""
    made = [one for one in yaml.safe_load_all(rendered_text("helm4", "minimal", *SHORT)) if one]
    (workload,) = [one for one in made if one["kind"] == "Deployment"]
    (mounted,) = [one["data"]["dispatcher.yaml"] for one in made if one["metadata"]["name"].endswith("-settings")]
    grace_s = workload["spec"]["template"]["spec"]["terminationGracePeriodSeconds"]
    async with (
        stage(kafka.bootstrap_servers, tmp_path) as scene,
        scene.dispatcher(delivery=yaml.safe_load(mounted)["delivery"]) as dispatcher,
    ):
        everybody = tenants(3)
        scene.mount([scene.webhook(tenant, timeout="30s") for tenant in everybody])
        for tenant in everybody:
            scene.receiver.behave(f"/{tenant.org}", slowly(60))
        dispatcher.start()
        await scene.produce(everybody, 12)
        await until(lambda: len(scene.receiver.seen) == 12, "every request under way", 60, dispatcher)
        dispatcher.sigterm()
        assert await dispatcher.wait(grace_s) == 0
        for tenant in everybody:
            scene.receiver.behave(f"/{tenant.org}", None)
        dispatcher.start()
        await scene.all_accepted(dispatcher)
