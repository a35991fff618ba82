"""The console's own metrics, labelled with no person, organisation or address."""

from typing import Final

from prometheus_client import Counter, Histogram

from dispatcher.telemetry import metrics

REQUESTS = Counter(
    "dispatcher_console_requests", "Requests answered, by the route's template.", ["route", "method", "status"]
)
REQUEST_SECONDS = Histogram(
    "dispatcher_console_request_duration_seconds",
    "From a request's headers to the answer's end.",
    buckets=(0.005, 0.01, 0.025, 0.05, 0.1, 0.25, 0.5, 1, 2.5, 5, 10, 30, 60),
)
SIGN_INS = Counter("dispatcher_console_sign_ins", "Sign-ins of browsers, by way and result.", ["way", "result"])
REFUSED_TOKENS = Counter("dispatcher_console_refused_bearer_tokens", "Bearer tokens of the API that were refused.")
KEY_FETCH_FAILURES = Counter(
    "dispatcher_console_oidc_fetch_failures",
    "Requests to the OIDC issuer that failed, by what was requested.",
    ["what"],
)

WAYS: Final = ("token", "link", "oidc")
RESULTS: Final = ("ok", "refused", "throttled")
METHODS: Final = frozenset({"GET", "HEAD", "POST", "PUT", "DELETE", "PATCH", "OPTIONS"})


def initialise() -> None:
    """Creates the series of closed label sets at zero."""
    for way in WAYS:
        for result in RESULTS:
            SIGN_INS.labels(way, result)
    for what in ("discovery", "keys", "token"):
        KEY_FETCH_FAILURES.labels(what)
    metrics.ERRORS.labels("console")
