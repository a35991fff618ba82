"""Every way in which an attempt can end has words for what to do."""

import pytest

from dispatcher.config.secrets import Secret
from dispatcher.config.settings import RetrySettings
from dispatcher.contract.outcomes import Attempt, FailureReason
from dispatcher.delivery.remedies import remedy_for, verdict_in_words
from dispatcher.delivery.verdicts import judge, reason_of
from tests.auth.keys import TOKEN_URL, WHSEC, fetched, signed, webhook

RETRY = RetrySettings.model_validate({})
DETAIL = "what the network {said}"


@pytest.mark.parametrize("failure", FailureReason)
def test_every_failure_is_shown_with_its_detail_or_place(failure: FailureReason) -> None:
    text = remedy_for(failure.value, None, DETAIL, webhook())
    assert DETAIL in text or "hooks.luma.example" in text
    assert text.endswith(".")
    assert "{" not in text.replace(DETAIL, "")


@pytest.mark.parametrize("failure", FailureReason)
def test_a_failure_of_a_former_configuration_names_nothing_of_the_present_one(failure: FailureReason) -> None:
    text = remedy_for(failure.value, None, DETAIL, None)
    assert DETAIL in text
    assert "{" not in text.replace(DETAIL, "")
    assert text.endswith(".")
    for certificate in ("certificate has expired", "Hostname mismatch", "self-signed certificate"):
        assert certificate in remedy_for("tls", None, certificate, None)


@pytest.mark.parametrize("status", range(300, 600))
def test_an_answer_to_a_former_configuration_is_shown_with_its_status(status: int) -> None:
    text = remedy_for(reason_of(Attempt(0.1, status=status)), status, "", None)
    assert str(status) in text
    assert "authentication is set up" not in text
    assert text.endswith(".")


@pytest.mark.parametrize("status", range(300, 600))
def test_every_answer_but_success_is_shown_with_its_status(status: int) -> None:
    text = remedy_for(reason_of(Attempt(0.1, status=status)), status, "", webhook())
    assert str(status) in text
    assert text.endswith(".")


@pytest.mark.parametrize("status", [200, 202, 204])
def test_success_needs_no_cure(status: int) -> None:
    assert remedy_for("http_2xx", status, "", webhook()) == ""


@pytest.mark.parametrize(
    ("detail", "message"),
    [
        ("certificate not accepted: certificate has expired", "has expired: renew it"),
        ("certificate not accepted: certificate is not yet valid", "not valid yet"),
        ("certificate not accepted: Hostname mismatch, certificate is not valid for 'x'", "name exactly this host"),
        ("certificate not accepted: unable to get local issuer certificate", "give your own CA"),
        ("certificate not accepted: self-signed certificate", "give your own CA"),
        ("TLS: tlsv13 alert certificate required", "wants a client certificate"),
        ("TLS: wrong version number", "needs TLS 1.2 or newer"),
    ],
)
def test_the_fault_of_a_certificate_is_named(detail: str, message: str) -> None:
    assert message in remedy_for("tls", None, detail, webhook())


def test_a_refused_token_is_described_by_what_the_server_has_to_expect() -> None:
    own = webhook({"type": "jwt", "sign": signed("ES256", kid="k1")})
    text = remedy_for("http_4xx", 401, "", own)
    for part in ("401", "ES256", "key id k1", "issuer is feedback-dispatcher", "audience https://hooks.luma.example"):
        assert part in text
    theirs = webhook({"type": "jwt", "fetch": fetched(scope="feedback", audience="luma")})
    text = remedy_for("http_4xx", 403, "", theirs)
    for part in ("403", "login.luma.example", "scope feedback", "audience luma"):
        assert part in text
    assert TOKEN_URL not in text  # its path may hold a secret
    assert "choose JWT Authentication" in remedy_for("http_4xx", 401, "", webhook())
    signing = webhook(signing={"secrets": [Secret(WHSEC.encode())]})
    assert "webhook-signature" in remedy_for("http_4xx", 401, "", signing)


@pytest.mark.parametrize(
    ("attempt", "message"),
    [
        (Attempt(0.1, status=200), "Delivered: your server took the event."),
        (Attempt(0.1, status=200, webhook_delivery="disable"), "until the webhook is edited"),
        (
            Attempt(0.1, status=503),
            "up to 3 times within 15s, then after 30s and at growing intervals, for 24h in all.",
        ),
        (Attempt(0.1, status=401), "after 30s and at growing intervals, for 24h."),
        (Attempt(0.1, status=410), "Sending stops until the webhook is edited; events wait for up to 24h."),
        (Attempt(0.1, status=400), "tried 4 times within minutes; then it is dead"),
        (Attempt(0.1, status=501), "goes to the dead events at once"),
    ],
)
def test_every_verdict_has_words_for_what_happens_to_the_event(attempt: Attempt, message: str) -> None:
    assert message in verdict_in_words(judge(attempt), RETRY)


def test_without_quick_tries_none_are_promised() -> None:
    retry = RetrySettings.model_validate({"soon_attempts": 0})
    assert "tried again after 30s" in verdict_in_words(judge(Attempt(0.1, status=503)), retry)
