"""From any text of a webhook file to the bytes on the wire: no text yields a forbidden header or address.

Unlike the properties in test_egress, which begin at the model, these begin at the file, with authentication, token
endpoints and TLS in it, and go through the same steps as the daemon: reading, checking, signing, rendering.
"""

import json
import re
from pathlib import Path
from typing import Any

import yaml
from hypothesis import HealthCheck, example, given, settings
from hypothesis import strategies as st
from pydantic import ValidationError

from dispatcher.auth.authenticator import Authenticator
from dispatcher.auth.signatures import Signer
from dispatcher.auth.token_answers import form_of
from dispatcher.checks import webhook_check
from dispatcher.config.documents import parse_document
from dispatcher.config.secrets import SecretSource
from dispatcher.config.settings import Settings
from dispatcher.config.webhook_auth import JwtAuth
from dispatcher.config.webhook_revision import Webhook
from dispatcher.config.webhooks import WebhookConfig, WebhookFile
from dispatcher.contract.events import DeliveryEvent
from dispatcher.contract.records import AssignmentEpoch, ProcessingAttempt
from dispatcher.delivery.pending_delivery import PendingDelivery, request_headers
from dispatcher.delivery.permits import Priority
from dispatcher.errors import ConfigError
from dispatcher.transport import Endpoint
from dispatcher.transport.addresses import AddressKind, kind_of
from dispatcher.transport.egress import EgressGuard, literal
from dispatcher.transport.request_head import HeaderBlock
from tests.auth.keys import NOW, WHSEC
from tests.security.test_egress import header_names, header_values, urls
from tests.unit.examples import email_event, read

SETTINGS = Settings.model_validate(
    {"apiVersion": "dispatcher/v1", "kafka": {"bootstrap_servers": "k:1"}, "webhooks": {"path": "/"}}
)
CHECK = webhook_check(SETTINGS)
GUARD = EgressGuard(SETTINGS.egress)
ENVIRONMENT = {"KEY": "k" * 40, "WHSEC": WHSEC, "TEXT": "s3cret\r\nhost: evil"}
SOURCE = SecretSource(Path("/nonexistent"), environ=ENVIRONMENT).as_context()
EVENT: DeliveryEvent = read(email_event())

nasty = st.one_of(
    header_values, header_names, st.text(max_size=30), st.sampled_from(["Bearer", "", "X-Token", "x\r\ny"])
)
secrets = st.sampled_from([{"env": name} for name in ENVIRONMENT] + [{"file": "/etc/passwd"}, "inline", None])
signed_tokens = st.fixed_dictionaries(
    {"algorithm": st.sampled_from(["HS256", "none", "ES256"]), "key": secrets},
    optional={"kid": nasty, "issuer": nasty, "subject": nasty, "audience": nasty,
              "claims": st.dictionaries(nasty, nasty, max_size=2), "body_hash": st.booleans()},
)  # fmt: skip
fetched_tokens = st.fixed_dictionaries(
    {"grant": st.sampled_from(["client-credentials", "jwt-bearer"]), "token_url": urls},
    optional={
        "client_id": nasty,
        "client_secret": secrets,
        "assertion": signed_tokens,
        "scope": nasty,
        "audience": nasty,
    },
)
auths = st.one_of(
    st.just({"type": "none"}),
    st.fixed_dictionaries({"type": st.just("jwt"), "sign": signed_tokens}, optional={"header": nasty, "scheme": nasty}),
    st.fixed_dictionaries(
        {"type": st.just("jwt"), "fetch": fetched_tokens}, optional={"header": nasty, "scheme": nasty}
    ),
)
good_urls = st.builds(
    "https://{}.example{}".format, st.sampled_from(["a", "b.c", "xn--a"]), st.sampled_from(["/", "", "?q"])
)
webhooks = st.fixed_dictionaries(
    {"name": st.just("n"), "org": nasty, "sandbox": nasty, "url": urls | good_urls, "auth": auths},
    optional={"headers": st.dictionaries(header_names, header_values, max_size=4),
              "signing": st.fixed_dictionaries({"secrets": st.lists(secrets, max_size=2)})},
)  # fmt: skip
files = webhooks.map(lambda one: {"apiVersion": "dispatcher/v1", "webhooks": [one]})
texts = st.one_of(
    files.map(json.dumps),
    files.map(lambda one: yaml.safe_dump(one, allow_unicode=True)),
    st.builds(lambda one, cut, put: one[:cut] + put + one[cut:], files.map(yaml.safe_dump), st.integers(0, 400), nasty),
)

OURS = ["host", "content-type", "user-agent", "content-length"]
RESERVED = {"connection", "transfer-encoding", "te", "trailer", "upgrade", "keep-alive", "expect", "cookie", *OURS}


def accepted(text: str) -> WebhookConfig | None:
    """The webhook of a file, where the daemon would use it."""
    try:
        document = parse_document(text.encode("utf-8", "surrogatepass"), "x.yaml")
        file = WebhookFile.model_validate(document.data, context=SOURCE)
    except (ConfigError, ValidationError):
        return None
    return file.webhooks[0] if file.webhooks and not CHECK(file.webhooks[0]) else None


def sent_by(config: WebhookConfig) -> list[str]:
    """The lines of the request's head, as both transports render it."""
    authenticator = Authenticator.of(config, None)  # type: ignore[arg-type]  # no token endpoint is used
    signer = None if config.signing is None else Signer.of(config.signing)
    header = authenticator.cached_header(NOW)
    if header is None and isinstance(config.auth, JwtAuth):
        scheme = config.auth.scheme
        header = (config.auth.header, f"{scheme} token" if scheme else "token")
    parcel = PendingDelivery.of(
        EVENT, Webhook.of(config, "x"), b"{}", 0, Priority.NEW, ProcessingAttempt(AssignmentEpoch())
    )
    headers = tuple(request_headers(parcel, 1, NOW, signer, header))
    return HeaderBlock(Endpoint.of(config)).render("application/json", 2, headers).decode("ascii").split("\r\n")


def assert_harmless(config: WebhookConfig) -> None:
    """What must hold of any webhook that is used."""
    lines = sent_by(config)
    assert lines[-2:] == ["", ""]
    assert not any(character in line for line in lines for character in "\r\n\0")
    assert lines[0].startswith("POST /")
    assert lines[0].endswith(" HTTP/1.1")
    assert lines[0].count(" ") == 2
    names = [line.partition(":")[0].lower() for line in lines[1:-2]]
    assert names[:4] == OURS
    assert len(names) == len(set(names)), "no header comes twice"
    tenants = names[4:]
    assert not RESERVED & set(tenants)
    mine = {name.lower() for name in config.headers}
    assert not any(name.startswith(("content-", "proxy-", "webhook-")) for name in mine)
    if isinstance(config.auth, JwtAuth):
        assert tenants.count(config.auth.header) == 1
        assert config.auth.header not in mine
    targets = [config.url]
    if isinstance(config.auth, JwtAuth) and config.auth.fetch is not None:
        fetch = config.auth.fetch
        targets.append(fetch.token_url)
        headers, body = form_of(fetch, "a.b.c" if fetch.grant == "jwt-bearer" else None)
        HeaderBlock(Endpoint.at(fetch.token_url)).render("application/x-www-form-urlencoded", len(body), headers)
        assert body.isascii()
    for url in targets:
        endpoint = Endpoint.at(url)
        assert endpoint.scheme == "https"
        assert GUARD.problem_of_target(endpoint.scheme, endpoint.host, endpoint.port) is None
        address = literal(endpoint.host)
        assert address is None or kind_of(address) is AddressKind.PUBLIC
        # No resolver may read a name as a number: inet_aton takes 127.1, 0x7f.1 and 2130706433.
        assert address is not None or not re.fullmatch(r"(0x[0-9a-f]*|\d+)", endpoint.host.rpartition(".")[2])
        assert endpoint.port in (443, 8443) or endpoint.port >= 1024


@given(texts)
@settings(max_examples=1500, suppress_health_check=list(HealthCheck))
@example(json.dumps({"apiVersion": "dispatcher/v1", "webhooks": [{"name": "n", "org": "o", "sandbox": "s",
    "url": "https://a.example/", "auth": {"type": "jwt", "fetch": {"grant": "client-credentials", "client_id": "a:b",
    "token_url": "https://b.example/", "client_secret": {"env": "TEXT"}}, "scheme": ""}, "headers": {"X-A": "b"},
    "signing": {"secrets": [{"env": "WHSEC"}]}}]}))  # fmt: skip
def test_no_text_of_a_file_yields_a_request_with_a_forbidden_header_or_address(text: str) -> None:
    config = accepted(text)
    if config is not None:
        assert_harmless(config)


LINES = ["a\nb", "a\rb", "a\0b", "a\x7f", "a\x0bb", "a\u2028b", "ä", " a", "a b"]

names = st.sampled_from(["X-A", "x-a", "X-B", "x-env", "Authorization"])
mixed = st.sampled_from(["luma", "k1", "Bearer", ""]) | nasty
small_signed = st.fixed_dictionaries(
    {"algorithm": st.just("HS256"), "key": st.just({"env": "KEY"})},
    optional={
        "kid": mixed,
        "issuer": mixed,
        "claims": st.dictionaries(mixed, mixed, max_size=2),
        "body_hash": st.booleans(),
    },
)
small_fetched = st.fixed_dictionaries(
    {
        "grant": st.just("client-credentials"),
        "client_id": mixed,
        "client_secret": secrets,
        "token_url": good_urls | urls,
    },
    optional={"scope": mixed, "audience": mixed},
)
likely: st.SearchStrategy[dict[str, Any]] = st.fixed_dictionaries(
    {"name": st.just("n"), "org": st.just("o"), "sandbox": st.just("s"), "url": good_urls},
    optional={
        "auth": st.one_of(
            st.fixed_dictionaries(
                {"type": st.just("jwt"), "sign": small_signed},
                optional={"header": names | mixed, "scheme": mixed},
            ),
            st.fixed_dictionaries({"type": st.just("jwt"), "fetch": small_fetched}, optional={"scheme": mixed}),
        ),
        "headers": st.dictionaries(
            names | header_names, st.just("prod") | st.just("1") | st.sampled_from(LINES), max_size=2
        ),
        "signing": st.just({"secrets": [{"env": "WHSEC"}]}),
    },
)


def test_that_is_tried_with_many_webhooks_that_are_accepted() -> None:
    """So that the property says something: drawn from what is often right."""
    tried: list[bool] = []

    @given(likely)
    @settings(max_examples=1500, suppress_health_check=list(HealthCheck), database=None)
    def attempt(webhook: dict[str, Any]) -> None:
        config = accepted(json.dumps({"apiVersion": "dispatcher/v1", "webhooks": [webhook]}))
        tried.append(config is not None)
        if config is not None:
            assert_harmless(config)

    attempt()
    assert sum(tried) > len(tried) / 5, f"{sum(tried)} of {len(tried)}"
