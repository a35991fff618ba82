"""What people read when a document breaks a rule of its model: golden lines."""

import json

import pytest
from hypothesis import given
from hypothesis import strategies as st
from pydantic import BaseModel, ValidationError

from dispatcher.config.documents import parse_document, problems_from
from dispatcher.config.kafka_settings import KafkaSettings
from dispatcher.config.settings import Settings
from dispatcher.config.webhook_auth import FetchedToken, JwtAuth, SignedToken
from dispatcher.config.webhooks import WebhookConfig, WebhookFile


def problems_of(text: str, model: type[BaseModel]) -> list[str]:
    document = parse_document(text.encode(), "x.yaml")
    with pytest.raises(ValidationError) as caught:
        model.model_validate(document.data)
    return [str(problem) for problem in problems_from(caught.value, document, model)]


def test_all_mistakes_in_the_settings_are_reported_in_the_order_of_lines() -> None:
    text = """\
apiVersion: dispatcher/v2
kafka:
  bootstrap_server: x
  topic: 5
  security: {protocol: SASL_SSl, password: hunter2}
  session_timeout: 1s
  nonsense: 1
webhook: {}
retry: {tiers: 30s}
delivery: [1]
log: {level: inf}
ops: {port: http, host: 1, hots: x}
metrics: {max_tenant_series: 1.5}
console: {port: true}
history: {answers: perhaps}
egress: {proxy: {url: "http://proxy:3128", username: "a:b"}}
"""
    assert problems_of(text, Settings) == [
        "x.yaml:1: apiVersion: must be dispatcher/v1",
        "x.yaml:1: webhooks: missing",
        "x.yaml:2: kafka.bootstrap_servers: missing; host:port of one or more brokers, separated by commas",
        "x.yaml:3: kafka.bootstrap_server: unknown key; did you mean 'bootstrap_servers'?",
        "x.yaml:4: kafka.topic: must be text: put it in quotes",
        "x.yaml:5: kafka.security.protocol: must be one of PLAINTEXT, SSL, SASL_PLAINTEXT, SASL_SSL; "
        "did you mean 'SASL_SSL'?",
        "x.yaml:5: kafka.security.password: a secret can't be written here: write {file: PATH} or {env: NAME}",
        "x.yaml:6: kafka.session_timeout: must be at least 2s",
        "x.yaml:7: kafka.nonsense: unknown key; known here: bootstrap_servers, topic, topic_prefix, group_id, "
        "group_instance_id, client_id, security, auto_offset_reset, session_timeout, commit_interval, partition_window, max_unfinished, "
        "max_unfinished_bytes, fetch_max_bytes, max_record_bytes, idempotence",
        "x.yaml:8: webhook: unknown key; did you mean 'webhooks'?",
        "x.yaml:9: retry.tiers: must be a list, not text",
        "x.yaml:10: delivery: must be a mapping (key: value), not a list",
        "x.yaml:11: log.level: must be one of debug, info, warning, error; did you mean 'info'?",
        "x.yaml:12: ops.host: must be text: put it in quotes",
        "x.yaml:12: ops.port: must be a whole number, not text",
        "x.yaml:12: ops.hots: unknown key; did you mean 'host'?",
        "x.yaml:13: metrics.max_tenant_series: must be a whole number, not a number with a fraction",
        "x.yaml:14: console.port: must be a number, not true or false",
        "x.yaml:15: history.answers: must be true or false, not text",
        "x.yaml:16: egress.proxy.username: must have no ':' and no control characters",
    ]


def test_every_mistake_in_a_webhook_file_has_the_key_that_the_tenant_wrote() -> None:
    text = """\
apiVersion: dispatcher/v1
webhooks:
  - name: a
    org: o
    sandbox: 12
    url: http//x
    campaigns: some
    auth: {type: jwt, sign: {algorithm: ES265, key: x, ttl: 1h, wj: 1}}
  - name: ""
    org: o
    sandbox: [1]
    url: https://x.example
    campaigns: [1, x]
    auth: {type: oauth}
    channels: [mail]
    payload: "1"
    rate_limit: 5/x
  - name: a
    auth: {}
    headers: {X: null}
    signing: {secrets: []}
    timeout: 0.5
    enabled: nope
  - 5
  - {name: a, org: o, sandbox: s, url: https://x.example, headers: {a b: c}, channels: []}
  - {name: a, org: o, sandbox: s, url: https://x.example, headers: {Host: c}, auth: {type: jwt}}
  - {name: a, org: o, sandbox: s, url: https://x.example, headers: {Host: c}}
"""
    assert problems_of(text, WebhookFile) == [
        "x.yaml:5: webhooks[0].sandbox: must be text: put it in quotes",
        "x.yaml:6: webhooks[0].url: must begin with https://",
        "x.yaml:7: webhooks[0].campaigns: must be all, or a list",
        "x.yaml:8: webhooks[0].auth.sign.algorithm: must be one of HS256, HS384, HS512, RS256, RS384, RS512, PS256, "
        "PS384, PS512, ES256, ES384, ES512, EdDSA, Ed25519, Ed448; did you mean 'ES256'?",
        "x.yaml:8: webhooks[0].auth.sign.key: a secret can't be written here: write {file: PATH} or {env: NAME}",
        "x.yaml:8: webhooks[0].auth.sign.ttl: must be at most 5m",
        "x.yaml:8: webhooks[0].auth.sign.wj: unknown key; known here: algorithm, key, kid, next, issuer, subject, "
        "audience, ttl, claims, nbf, jti, body_hash",
        "x.yaml:9: webhooks[1].name: must have at least 1 character",
        "x.yaml:11: webhooks[1].sandbox: must be text, not a list",
        "x.yaml:13: webhooks[1].campaigns[0]: must be text: put it in quotes",
        "x.yaml:14: webhooks[1].auth.type: must be one of none, jwt",
        "x.yaml:15: webhooks[1].channels[0]: must be one of email, sms; did you mean 'email'?",
        "x.yaml:16: webhooks[1].payload: must be one of 1, 2: a number, without quotes",
        "x.yaml:17: webhooks[1].rate_limit: write a rate as 100/s, 600/m, or 1000/h",
        "x.yaml:18: webhooks[2].org: missing; organisation id, as in the event's `imsOrgId`",
        "x.yaml:18: webhooks[2].sandbox: missing; sandbox name, `prod`",
        "x.yaml:18: webhooks[2].url: missing; HTTPS endpoint that receives the feedback, at most 2,048 characters",
        "x.yaml:19: webhooks[2].auth.type: missing; must be one of none, jwt",
        "x.yaml:20: webhooks[2].headers.X: must be text, not empty",
        "x.yaml:21: webhooks[2].signing.secrets: must have at least 1 entry",
        "x.yaml:22: webhooks[2].timeout: must be at least 1s",
        "x.yaml:23: webhooks[2].enabled: must be true or false, not text",
        "x.yaml:24: webhooks[3]: must be a mapping (key: value), not a number",
        "x.yaml:25: webhooks[4].channels: must have at least 1 entry",
        "x.yaml:25: webhooks[4].headers['a b']: not a header name: use up to 64 letters, digits and any of "
        "!#$%&'*+-.^_`|~",
        "x.yaml:26: webhooks[5].auth: give either sign (a token that the dispatcher signs) or fetch (a token endpoint)",
        "x.yaml:26: webhooks[5].headers.Host: host is set by the dispatcher and can't be replaced: choose another name",
        "x.yaml:27: webhooks[6].headers.Host: host is set by the dispatcher and can't be replaced: choose another name",
    ]


def test_each_mistake_in_the_header_parameters_is_reported_with_its_line() -> None:
    text = """\
apiVersion: dispatcher/v1
webhooks:
  - name: a
    org: o
    sandbox: s
    url: http//x
    auth: {type: jwt, header: X-Token, sign: {algorithm: RS256, key: {file: k}}}
    headers:
      X-Fine: '1'
      Webhook-Id: x
      a b: c
      X-Empty: null
      authorization: Basic x
      x-token: x
      X-Line: "a\\nb"
      x-fine: '2'
"""
    reserved = "is set by the dispatcher and can't be replaced: choose another name"
    assert problems_of(text, WebhookFile) == [
        "x.yaml:6: webhooks[0].url: must begin with https://",
        f"x.yaml:10: webhooks[0].headers.Webhook-Id: webhook-id {reserved}",
        "x.yaml:11: webhooks[0].headers['a b']: not a header name: use up to 64 letters, digits and any of "
        "!#$%&'*+-.^_`|~",
        "x.yaml:12: webhooks[0].headers.X-Empty: must be text, not empty",
        f"x.yaml:13: webhooks[0].headers.authorization: authorization {reserved}",
        f"x.yaml:14: webhooks[0].headers.x-token: x-token {reserved}",
        "x.yaml:15: webhooks[0].headers.X-Line: not a header value: use visible ASCII characters, no space at either "
        "end, no line break",
        "x.yaml:16: webhooks[0].headers.x-fine: given twice (names are the same in either case): keep one",
    ]


@pytest.mark.parametrize(
    ("auth", "reserved"),
    [({"type": "none"}, False), ({"type": "jwt", "sign": {"algorithm": "RS256", "key": {"file": "k"}}}, True)],
)
def test_a_tenant_may_set_authorization_unless_its_token_uses_that_header(auth: object, reserved: bool) -> None:
    webhook = {"name": "", "url": "https://x.example", "headers": {"Authorization": "Basic x"}, "auth": auth}
    text = json.dumps({"apiVersion": "dispatcher/v1", "webhooks": [webhook]})
    found = [one for one in problems_of(text, WebhookFile) if "headers.Authorization" in one]
    assert len(found) == reserved


def test_a_key_called_like_a_tag_of_a_union_is_still_itself() -> None:
    text = """\
apiVersion: dispatcher/v1
webhooks:
  - {name: a, org: o, sandbox: s, url: https://x.example, auth: {type: jwt,
      jwt: {sign: 1},
      sign: {algorithm: RS256}}}
"""
    assert problems_of(text, WebhookFile) == [
        "x.yaml:4: webhooks[0].auth.jwt: unknown key; known here: type, sign, fetch, header, scheme",
        "x.yaml:5: webhooks[0].auth.sign.key: missing; the HMAC secret, or the private key in PEM",
    ]


def test_no_value_is_ever_quoted() -> None:
    canary = "canary-4711"
    text = f"""\
apiVersion: {canary}
webhooks:
  - name: [{canary}]
    org: {{a: {canary}}}
    sandbox: s
    url: {canary}
    auth: {{type: jwt, sign: {{algorithm: {canary}, key: {canary}, ttl: {canary}, body_hash: {canary}}}}}
    signing: {{secrets: {canary}}}
    headers: {canary}
    channels: [{canary}]
    payload: {canary}
    timeout: {canary}
    rate_limit: {canary}
    enabled: {canary}
    campaigns: {canary}
  - {{name: a, org: o, sandbox: s, url: "https://x.example/{canary}#f", auth: {{type: {canary}}}}}
"""
    problems = problems_of(text, WebhookFile)
    assert len(problems) >= 16
    assert not [problem for problem in problems if canary in problem]


_KEYS = st.sampled_from(
    sorted({name for model in (Settings, WebhookFile, WebhookConfig, KafkaSettings, JwtAuth, SignedToken, FetchedToken)
            for name in model.model_fields} | {"type", "file", "env", "jwt", "none", "a b", ""})
)  # fmt: skip
_VALUES = st.recursive(
    st.none() | st.booleans() | st.integers(-3, 10**6) | st.floats(-1e9, 1e9)
    | st.sampled_from(["", "jwt", "none", "all", "10s", "dispatcher/v1", "https://x.example", "a\0b", "x" * 5000]),
    lambda inner: st.lists(inner, max_size=3) | st.dictionaries(_KEYS, inner, max_size=6),
    max_leaves=25,
)  # fmt: skip


@given(st.dictionaries(_KEYS, _VALUES, max_size=6), st.sampled_from([Settings, WebhookFile]))
def test_any_document_is_valid_or_has_problems_with_a_line(data: dict[str, object], model: type[BaseModel]) -> None:
    document = parse_document(json.dumps(data, indent=1).encode(), "x.json")
    problems = []
    try:
        model.model_validate(document.data)
    except ValidationError as error:
        problems = problems_from(error, document, model)
        assert problems
    assert all(problem.line and problem.message and "\n" not in str(problem) for problem in problems)


@given(st.lists(_VALUES, min_size=1, max_size=2))
def test_any_webhook_is_valid_or_has_problems_with_a_line(values: list[object]) -> None:
    test_any_document_is_valid_or_has_problems_with_a_line.hypothesis.inner_test(  # type: ignore[attr-defined]
        {"apiVersion": "dispatcher/v1", "webhooks": values}, WebhookFile
    )
