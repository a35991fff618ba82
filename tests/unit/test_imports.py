"""What `dispatcher run` imports: libraries of other commands and of unused settings cost it neither memory nor time."""

import subprocess
import sys

import pytest

_LOADED = """
import sys
{statement}
print("\\n".join(sys.modules))
"""

FOREIGN = (
    "alembic", "asyncpg", "boto3", "botocore", "cryptography", "dispatcher.console", "hypothesis", "jinja2", "jwt",
    "greenlet", "opentelemetry", "pygments", "pytest", "rich", "sqlalchemy", "uvicorn",
)  # fmt: skip
"""Of the console, of the SQL store, of tracing, of signed tokens, of tests, of printing in colours."""

LAZY = ("dispatcher.auth.signing_keys", "dispatcher.kafka.oauth", "dispatcher.transport.aiohttp_client")
"""Modules of the dispatcher that only some settings or webhooks use."""
OTHERS = ("dispatcher.cli.commands", "dispatcher.demo", "dispatcher.flow.explain", "dispatcher.kafka.redrive")
"""Modules of other commands."""


def loaded(statement: str) -> set[str]:
    """Names of the modules that a new interpreter has after the statement."""
    program = _LOADED.format(statement=statement)
    done = subprocess.run([sys.executable, "-c", program], capture_output=True, text=True, timeout=300, check=True)
    return set(done.stdout.split())


@pytest.fixture(scope="module")
def service() -> set[str]:
    return loaded("from dispatcher.cli import load; load(['run'])")


@pytest.mark.parametrize("name", [*FOREIGN, *LAZY, *OTHERS])
def test_run_does_not_import(service: set[str], name: str) -> None:
    found = sorted(module for module in service if module == name or module.startswith(name + "."))
    assert found == []


def test_a_webhook_that_signs_tokens_imports_what_it_needs() -> None:
    """The names above are spelled as the modules that are imported: one that no import finds would prove nothing."""
    found = loaded("import dispatcher.auth.jwt_signer, dispatcher.kafka.oauth, dispatcher.transport.aiohttp_client")
    assert {"cryptography", "jwt", *LAZY} <= found
    assert set(OTHERS) <= loaded("from dispatcher.cli import load; load(['redrive'])")
