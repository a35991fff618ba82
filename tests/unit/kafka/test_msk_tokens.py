"""The token for Amazon MSK IAM: a presigned request (AWS Signature Version 4), signed by the maintained library.

AWS itself can't be reached here. The signature is computed a second time, by the published algorithm.
"""

import base64
import hashlib
import hmac
import re
import sys
from urllib.parse import parse_qs, quote, urlsplit

import pytest

from dispatcher.errors import TokenUnavailable
from dispatcher.kafka.oauth import AWS_MARGIN_S, AwsTokens

KEY_ID, SECRET, SESSION = "AKIDEXAMPLE", "wJalrXUtnFEMI/K7MDENG+bPxRfiCYEXAMPLEKEY", "session/token=="
REGION = "eu-west-1"


@pytest.fixture(autouse=True)
def _credentials(monkeypatch: pytest.MonkeyPatch) -> None:
    for name in ("AWS_PROFILE", "AWS_SESSION_TOKEN", "AWS_ROLE_ARN", "AWS_WEB_IDENTITY_TOKEN_FILE"):
        monkeypatch.delenv(name, raising=False)
    monkeypatch.setenv("AWS_CONFIG_FILE", "/dev/null")
    monkeypatch.setenv("AWS_SHARED_CREDENTIALS_FILE", "/dev/null")
    monkeypatch.setenv("AWS_EC2_METADATA_DISABLED", "true")
    monkeypatch.setenv("AWS_ACCESS_KEY_ID", KEY_ID)
    monkeypatch.setenv("AWS_SECRET_ACCESS_KEY", SECRET)


def _signature(host: str, query: dict[str, str]) -> str:
    """The SigV4 signature of `GET https://host/?query` without a body, of these parameters."""

    def encoded(text: str) -> str:
        return quote(text, safe="-_.~")

    parameters = "&".join(f"{encoded(name)}={encoded(query[name])}" for name in sorted(query))
    request = "\n".join(["GET", "/", parameters, f"host:{host}", "", "host", hashlib.sha256(b"").hexdigest()])
    scope = query["X-Amz-Credential"].partition("/")[2]
    to_sign = "\n".join(["AWS4-HMAC-SHA256", query["X-Amz-Date"], scope, hashlib.sha256(request.encode()).hexdigest()])
    key = f"AWS4{SECRET}".encode()
    for part in scope.split("/"):
        key = hmac.digest(key, part.encode(), "sha256")
    return hmac.new(key, to_sign.encode(), "sha256").hexdigest()


@pytest.mark.parametrize("session", [None, SESSION], ids=["a user's keys", "a role's keys"])
async def test_the_token_is_a_presigned_request_in_base64(session: str | None, monkeypatch: pytest.MonkeyPatch) -> None:
    if session is not None:
        monkeypatch.setenv("AWS_SESSION_TOKEN", session)
    token = await AwsTokens(REGION).token(0.0)
    assert re.fullmatch(r"[\w-]+", token, re.ASCII), "URL-safe, and no padding"
    url = urlsplit(base64.urlsafe_b64decode(token + "=" * (-len(token) % 4)).decode())
    assert (url.scheme, url.netloc, url.path) == ("https", f"kafka.{REGION}.amazonaws.com", "/")
    query = {name: value for name, (value,) in parse_qs(url.query, strict_parsing=True).items()}
    assert query.pop("User-Agent").startswith("aws-msk-iam-sasl-signer-python/")  # it is not signed
    assert query["Action"] == "kafka-cluster:Connect"
    assert re.fullmatch(rf"{KEY_ID}/\d{{8}}/{REGION}/kafka-cluster/aws4_request", query["X-Amz-Credential"])
    assert query["X-Amz-Expires"] == "900"
    assert query["X-Amz-SignedHeaders"] == "host"
    assert query.get("X-Amz-Security-Token") == session
    assert query.pop("X-Amz-Signature") == _signature(url.netloc, query)


async def test_a_token_is_used_until_a_minute_before_it_expires(monkeypatch: pytest.MonkeyPatch) -> None:
    from aws_msk_iam_sasl_signer import MSKAuthTokenProvider

    made = iter(["first", "second"])
    monkeypatch.setattr(MSKAuthTokenProvider, "generate_auth_token", lambda _region: (next(made), 900_000))
    tokens = AwsTokens(REGION)
    last = 900 - AWS_MARGIN_S - 1
    assert [await tokens.token(now) for now in (0.0, last, last + 1)] == ["first", "first", "second"]


async def test_missing_credentials_are_named_with_the_cure(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.delenv("AWS_ACCESS_KEY_ID")
    monkeypatch.delenv("AWS_SECRET_ACCESS_KEY")
    with pytest.raises(TokenUnavailable, match=r"no AWS credentials to sign with .*: give the pod a role"):
        await AwsTokens(REGION).token(0.0)


async def test_a_missing_extra_is_named(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(sys.modules, "aws_msk_iam_sasl_signer", None)
    with pytest.raises(TokenUnavailable, match=r"pip install 'feedback-dispatcher\[msk-iam\]'"):
        await AwsTokens(REGION).token(0.0)
