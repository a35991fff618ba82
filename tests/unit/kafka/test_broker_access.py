"""What aiokafka is handed for each connection."""

import asyncio
from pathlib import Path

import pytest
import trustme
from aiokafka.errors import KafkaConnectionError

from dispatcher.config.kafka_settings import KafkaSettings
from dispatcher.config.secrets import SecretSource
from dispatcher.contract.kafka_problems import KafkaReason
from dispatcher.kafka.broker_access import BrokerAccess
from dispatcher.kafka.connection import ConnectionArguments, connection_arguments, until_answered
from dispatcher.kafka.connection_errors import explain_error
from dispatcher.kafka.problems import KafkaProblems
from tests.unit.virtual_time import virtual_time


@pytest.mark.parametrize("ca", ["not a certificate\n", "", None])
@virtual_time
async def test_a_new_client_waits_for_a_certificate_file_that_is_broken(tmp_path: Path, ca: str | None) -> None:
    """A file that is broken while the process runs ends neither the process nor its repetitions."""
    good, file, problems = trustme.CA().cert_pem.bytes(), tmp_path / "ca.pem", KafkaProblems()
    file.write_bytes(good)
    settings = KafkaSettings.model_validate(
        {
            "bootstrap_servers": "kafka:9092", "topic": "events", "group_id": "a",
            "security": {"protocol": "SSL", "ca": str(file)},
        }
    )  # fmt: skip
    assert connection_arguments(settings)["ssl_context"] is not None
    if ca is None:
        file.unlink()
    else:
        file.write_text(ca)

    async def join() -> ConnectionArguments:
        return connection_arguments(settings, problems)

    joining = asyncio.create_task(until_answered("consumer a", join, settings, problems))
    await asyncio.sleep(30)
    assert not joining.done()
    (problem,) = problems.current
    assert problem.reason is KafkaReason.CREDENTIALS_UNREADABLE
    assert str(file) in problem.detail
    file.write_bytes(good)
    assert (await joining)["ssl_context"] is not None
    assert not problems.current


async def test_a_missing_token_is_an_error_of_the_connection(tmp_path: Path) -> None:
    """Any other kind of error would pass aiokafka's handlers and end the process."""
    token = tmp_path / "token"
    token.write_text("a-token")
    settings = KafkaSettings.model_validate(
        {
            "bootstrap_servers": "kafka:9092",
            "topic": "events",
            "group_id": "a",
            "security": {
                "protocol": "SASL_PLAINTEXT",
                "mechanism": "OAUTHBEARER",
                "oauth": {"token": {"file": str(token)}},
            },
        },
        context=SecretSource(tmp_path).as_context(),
    )
    access = BrokerAccess(settings)
    assert await access.token() == "a-token"
    token.unlink()
    with pytest.raises(KafkaConnectionError) as raised:
        await access.token()
    reason, detail = explain_error(raised.value, access.peer("kafka:9092"))
    assert reason is KafkaReason.TOKEN_UNAVAILABLE
    assert "kafka.security.oauth.token" in detail
