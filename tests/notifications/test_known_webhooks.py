"""The webhooks that the history worker has: those in use, and whether a tenant may have one that can't be used."""

import asyncio
from pathlib import Path

from dispatcher.config.loader import webhook_secret_scope
from dispatcher.contract.tenant import TenantKey
from dispatcher.history.webhooks import KnownWebhooks
from dispatcher.stores.webhook_file import Rules
from tests.notifications.receivers import Certificates
from tests.notifications.scene import LUMA, settings_for
from tests.notifications.test_notifications import until

OTHER, UNKNOWN = TenantKey("other@AdobeOrg", "prod"), TenantKey("unknown@AdobeOrg", "prod")


async def test_a_webhook_with_a_mistake_is_not_a_deleted_one(tmp_path: Path, issued: Certificates) -> None:
    directory = tmp_path / "webhooks.d"
    directory.mkdir()
    settings = settings_for(tmp_path, issued, None, None, webhooks={"path": str(directory)})
    for tenant, url in ((LUMA, "no URL"), (OTHER, "https://hooks.other.example/x")):
        text = f"{{name: x, org: {tenant.org!r}, sandbox: {tenant.sandbox}, url: {url!r}}}"
        (directory / f"{tenant.org}.yaml").write_text(f"apiVersion: dispatcher/v1\nwebhooks: [{text}]\n")
    known = KnownWebhooks(settings.webhooks, Rules(lambda _: [], webhook_secret_scope(settings)))
    assert known.is_held(UNKNOWN), "nothing has been read yet"
    running = asyncio.create_task(known.run())
    await until(lambda: known.all() is not None)
    assert [one.tenant for one in known.all() or ()] == [OTHER]
    assert known.is_held(LUMA)
    assert not known.is_held(UNKNOWN)
    running.cancel()
    await asyncio.wait([running])
