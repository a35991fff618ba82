"""schemathesis asks whatever the served document allows, and much that it doesn't: always the same questions."""

import asyncio
import sys
from pathlib import Path

import pytest

from dispatcher.stores.sql.records import Role, StoredWebhook
from tests.console.api.conftest import Console

EXAMPLES = "12"

# Resources that exist, so that requests reach more than a 404.
CONFIGURATION = """
[checks]
missing_required_header.expected-statuses = [428]

[[operations]]
include-path-regex = '^/api/v1/webhooks/\\{{id\\}}'
exclude-method = "DELETE"
parameters = {{ "path.id" = "{webhook}" }}

[[operations]]
include-path = "/api/v1/dead-events/{{id}}"
parameters = {{ "path.id" = "0-1" }}

[[operations]]
include-path = "/api/v1/tokens/{{id}}"
parameters = {{ "path.id" = "{token}" }}

# What a webhook must be beyond its schema (addresses, keys, names of headers), and what it takes in other spellings
# (a number for a header), is tried by our own tests.
[[operations]]
include-operation-id = ["createWebhook", "testDraft", "previewDraft"]
checks.positive_data_acceptance.expected-statuses = ["2xx", 403, 404, 409, 422]
checks.negative_data_rejection.expected-statuses = ["2xx", 400, 401, 403, 404, 405, 409, 413, 415, 422]

[[operations]]
include-operation-id = ["replaceWebhook", "deleteWebhook"]
checks.positive_data_acceptance.expected-statuses = ["2xx", 404, 412, 422]
checks.negative_data_rejection.expected-statuses = [400, 401, 404, 405, 412, 415, 422, 428]

# Parameters that belong together: no schema can say so.
[[operations]]
include-operation-id = [
    "listDeadEvents", "searchHistory", "eraseHistory", "listRedrives", "resend", "checkResend", "listNotifications",
]
checks.positive_data_acceptance.expected-statuses = ["2xx", 404, 422]

# A tenant without a webhook, or a time range that ends before it begins.
[[operations]]
include-operation-id = "redrive"
checks.positive_data_acceptance.expected-statuses = ["2xx", 404, 409, 422]

# At most four secrets, and the newest can't end: it depends on those that are there.
[[operations]]
include-operation-id = ["generateSigningSecret", "endSigningSecret", "generateSigningKey", "removeSigningKey"]
checks.positive_data_acceptance.expected-statuses = ["2xx", 404, 412, 422]
"""


@pytest.mark.slow
@pytest.mark.parametrize("empty_url", ["sqlite"], indirect=True)  # both databases answer alike: test_webhooks
@pytest.mark.timeout(300)
async def test_every_answer_is_as_the_document_says(console: Console, luma: StoredWebhook, tmp_path: Path) -> None:
    configuration = tmp_path / "schemathesis.toml"
    victim, _ = await console.services.tokens.create("victim", Role.VIEWER, orgs=None, by="test")
    configuration.write_text(CONFIGURATION.format(webhook=luma.id, token=victim.id))
    process = await asyncio.create_subprocess_exec(
        Path(sys.executable).with_name("schemathesis"), "--config-file", str(configuration), "run",
        f"{console.base}/api/v1/openapi.json", "--header", f"Authorization: Bearer {await console.token()}",
        "--generation-deterministic", "--max-examples", EXAMPLES, "--phases", "coverage,fuzzing",
        "--checks", "all", "--no-color",
        cwd=tmp_path, stdout=asyncio.subprocess.PIPE, stderr=asyncio.subprocess.STDOUT,
    )  # fmt: skip
    out, _ = await process.communicate()
    assert process.returncode == 0, out.decode()[-12_000:]
