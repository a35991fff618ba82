"""What aiokafka is handed for each connection."""

from pathlib import Path

import pytest
from aiokafka.errors import KafkaConnectionError

from dispatcher.config.kafka_settings import KafkaSettings
from dispatcher.config.secrets import SecretSource
from dispatcher.contract.kafka_problems import KafkaReason
from dispatcher.kafka.broker_access import BrokerAccess
from dispatcher.kafka.connection_errors import explain


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
    reason, detail = explain(raised.value, access.peer("kafka:9092"))
    assert reason is KafkaReason.TOKEN_UNAVAILABLE
    assert "kafka.security.oauth.token" in detail
