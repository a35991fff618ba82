"""The form between a browser and a draft: nothing changes by being looked at, nothing typed is lost, no secret comes back."""

from collections.abc import Mapping
from dataclasses import replace

import pytest
from multidict import MultiDict
from pydantic import JsonValue

from dispatcher.config.secrets import Secret
from dispatcher.config.webhook_auth import JwtAuth
from dispatcher.config.webhooks import WebhookConfig
from dispatcher.console.pages.fields import FOR_FIELDS, SECRETS
from dispatcher.console.pages.form import WebhookForm, with_placeholders
from dispatcher.console.pages.key_words import describe
from dispatcher.console.pages.sealing import LIFE_S, SecretSealer
from dispatcher.errors import ConfigError, ProblemCode
from dispatcher.stores.sql.documents import StoredSecret, extract_secrets, resolve_draft
from dispatcher.stores.sql.header_values import LOST
from tests.console.pages.sample_world import DRAFTS, EC_KEY
from tests.stores_sql.examples import CANARY, plain, secretive

SEALING = SecretSealer.of(None)


def _stored(config: WebhookConfig) -> tuple[dict[str, JsonValue], Mapping[str, StoredSecret]]:
    document, secrets = extract_secrets(config)
    return document, {path: StoredSecret(path, secret.fingerprint(), secret) for path, secret in secrets.items()}


def _headers(document: Mapping[str, JsonValue]) -> Mapping[str, JsonValue]:
    headers = document["headers"]
    assert isinstance(headers, dict)
    return headers


def _posted(shown: WebhookForm, **changes: str) -> "MultiDict[object]":
    """Returns what a browser sends of an untouched form, with these changes."""
    posted: MultiDict[object] = MultiDict(shown.texts)
    for key, values in shown.lists.items():
        posted.extend((key, value) for value in values)
    posted.extend((key, "on") for key, is_on in shown.switches.items() if is_on)
    posted["campaign_ids"] = shown.campaign_ids
    posted.extend((f"{place}.shown", one.stored) for place, one in shown.secrets.items() if one.stored)
    for number, row in enumerate(shown.headers):
        posted[f"headers.{number}.name"], posted[f"headers.{number}.value"] = row.name, row.value
        if row.is_stored:
            posted[f"headers.{number}.stored"] = "on"
    posted.update(changes)
    return posted


SEALED_HEADERS = secretive(
    name="sealed headers",
    headers={
        "X-Client": {"value": "luma"},
        "X-Api-Key": {"value": f"{CANARY}-key"},
        "X-Api.2": {"value": f"{CANARY}-second"},
        "X-Token": "",
        "value": {"value": f"{CANARY}-named-like-a-draft"},
    },
)
CONFIGS = [
    *(resolve_draft(draft, {}) for draft in DRAFTS),
    SEALED_HEADERS,
    secretive(name="a header named value", headers={"value": "prod"}),
    secretive(name="a header named fingerprint", headers={"fingerprint": "prod"}),
    secretive(),
    secretive(campaigns=["a", "b"], payload=2, timeout="7s"),
    secretive(
        name="post",
        connect_timeout="1500ms",
        auth={
            "type": "jwt",
            "fetch": {
                "grant": "jwt-bearer",
                "token_url": "https://login.luma.example/token",
                "client_id": "luma",
                "client_secret": {"value": "client"},
                "client_auth": "post",
                "parameters": {"resource": "https://api.luma.example/a=b", "x y": ""},
                "assertion": {"algorithm": "HS256", "key": {"value": "k" * 40}, "nbf": True, "jti": True},
            },
        },
    ),
    secretive(
        name="once",
        auth={"type": "jwt", "sign": {"algorithm": "HS256", "key": {"value": "k" * 40}, "nbf": True, "jti": True}},
    ),
]


@pytest.mark.parametrize("config", CONFIGS, ids=lambda config: config.name)
def test_saving_a_form_unchanged_keeps_the_configuration(config: WebhookConfig) -> None:
    document, secrets = _stored(config)
    shown = WebhookForm.of_document(document)
    typed = WebhookForm.of_post(_posted(shown), document, SEALING, "p")
    assert not typed.errors
    assert resolve_draft(typed.draft(_headers(document)), secrets, document) == config
    assert not typed.errors


def test_the_optional_parts_of_tokens_and_the_connect_timeout_are_edited() -> None:
    document, secrets = _stored(CONFIGS[-2])
    posted = _posted(WebhookForm.of_document(document))
    posted.update({"connect_timeout": "4s", "auth.fetch.client_auth": "basic", "auth.fetch.parameters": ""})
    del posted["auth.fetch.assertion.nbf"]
    typed = WebhookForm.of_post(posted, document, SEALING, "p")
    config = resolve_draft(typed.draft(_headers(document)), secrets, document)
    assert config.connect_timeout == 4
    assert isinstance(config.auth, JwtAuth)
    assert config.auth.fetch is not None
    assert config.auth.fetch.assertion is not None
    assert (config.auth.fetch.client_auth, config.auth.fetch.parameters) == ("basic", {})
    assert (config.auth.fetch.assertion.nbf, config.auth.fetch.assertion.jti) == (False, True)


@pytest.mark.parametrize(
    ("key", "typed_text"),
    [
        ("connect_timeout", "1h"),
        ("connect_timeout", "soon"),
        ("auth.fetch.parameters", '{"grant_type": "password"}'),
        ("auth.fetch.parameters", '{"a": 1}'),
        ("auth.fetch.parameters", "[]"),
        ("auth.fetch.parameters", "a=b"),
    ],
)
def test_a_mistake_in_an_optional_part_is_shown_beside_its_field(key: str, typed_text: str) -> None:
    document, secrets = _stored(CONFIGS[-2])
    typed = WebhookForm.of_post(_posted(WebhookForm.of_document(document), **{key: typed_text}), document, SEALING, "p")
    try:
        resolve_draft(typed.draft(_headers(document)), secrets, document)
    except ConfigError as error:
        typed.add_problems(error.problems)
    assert list(typed.errors) == [key]


def test_no_stored_secret_is_in_the_form() -> None:
    document, _ = _stored(secretive())
    shown = WebhookForm.of_document(document)
    described = repr((shown.texts, shown.headers, shown.secrets, shown.signing))
    assert shown.secrets["auth.fetch.client_secret"].stored
    claims_and_url = {"auth.fetch.assertion.claims", "auth.fetch.token_url"}  # typed in plain fields by the tenant
    others = {key: value for key, value in shown.texts.items() if key not in claims_and_url}
    assert CANARY not in repr((others, shown.headers, shown.secrets, shown.signing)), described


@pytest.mark.parametrize("place", ["sign", "fetch.assertion"])
def test_a_key_that_was_replaced_meanwhile_brings_its_algorithm_and_id(place: str) -> None:
    """Otherwise tokens are signed by the new key under the id of the old one."""

    def config(**token: JsonValue) -> WebhookConfig:
        fetch: JsonValue = {"grant": "jwt-bearer", "token_url": "https://login.luma.example/t", "assertion": token}
        return plain(auth={"type": "jwt", **({"sign": token} if place == "sign" else {"fetch": fetch})})

    before, _ = _stored(config(algorithm="HS256", key={"value": "1" * 40}, kid="k1", issuer="before"))
    replaced = config(algorithm="HS384", key={"value": "2" * 48}, issuer="before")
    document, secrets = _stored(replaced)
    posted = _posted(WebhookForm.of_document(before), name="Renamed")
    typed = WebhookForm.of_post(posted, document, SEALING, "p")
    assert typed.take_replaced_keys()
    assert not typed.take_replaced_keys()
    saved = resolve_draft(typed.draft({}), secrets, document)
    assert saved == replaced.model_copy(update={"name": "Renamed"})

    for harmless in ({f"auth.{place}.key": "3" * 40}, {"auth": "none"}):  # the stored key isn't kept
        typed = WebhookForm.of_post(_posted(WebhookForm.of_document(before), **harmless), document, SEALING, "p")
        assert not typed.take_replaced_keys()
        assert typed.texts[f"auth.{place}.kid"] == "k1"


def test_a_kept_header_value_does_not_follow_to_another_name() -> None:
    document, _ = _stored(secretive())
    typed = WebhookForm.of_post(_posted(WebhookForm.of_document(document)), document, SEALING, "p")
    row = next(row for row in typed.headers if row.name == "X-Api-Key")
    row.name = "X-Token"
    typed.draft(_headers(document))
    assert list(typed.errors) == [f"headers.{typed.headers.index(row)}.value"]


def test_a_sealed_header_value_is_replaced_by_what_is_typed() -> None:
    document, secrets = _stored(SEALED_HEADERS)
    posted = _posted(WebhookForm.of_document(document), **{"headers.0.value": "typed"})
    typed = WebhookForm.of_post(posted, document, SEALING, "p")
    config = resolve_draft(typed.draft(_headers(document)), secrets, document)
    assert config.headers == SEALED_HEADERS.headers | {"X-Client": "typed"}


@pytest.mark.parametrize("name", ["X-Environment", "X-Api-Key"])
def test_a_header_value_that_no_key_decrypts_is_not_saved_as_text(name: str) -> None:
    document, secrets = _stored(secretive(headers={name: "x"}))
    document["headers"] = {name: {"fingerprint": LOST}}
    posted = _posted(WebhookForm.of_document(document))
    typed = WebhookForm.of_post(posted, document, SEALING, "p")
    typed.draft(_headers(document))
    assert typed.errors == {"headers.0.value": ["The stored value can't be decrypted any more: enter it again."]}
    posted["headers.0.value"] = "again"
    typed = WebhookForm.of_post(posted, document, SEALING, "p")
    assert resolve_draft(typed.draft(_headers(document)), secrets, document).headers == {name: "again"}


def test_a_sealed_header_value_that_can_not_be_kept_is_reported_at_its_row() -> None:
    document, secrets = _stored(SEALED_HEADERS)
    locked = {path: replace(one, secret=None) for path, one in secrets.items() if path.startswith("headers.X-")}
    typed = WebhookForm.of_post(_posted(WebhookForm.of_document(document)), document, SEALING, "p")
    with pytest.raises(ConfigError) as caught:
        resolve_draft(typed.draft(_headers(document)), {**secrets, **locked}, document)
    typed.add_problems(caught.value.problems)
    assert set(typed.errors) == {f"headers.{number}.value" for number in (0, 1, 2)}


@pytest.mark.parametrize("url", ["https://hooks.evil.example/f", "http://hooks.luma.example/f"])
def test_a_hidden_header_value_is_sent_to_no_other_host_than_the_one_it_was_given_for(url: str) -> None:
    """Whether it is stored as a secret, or as text under a name that suggests one."""
    headers: JsonValue = {"X-Client": {"value": CANARY}, "X-Api-Key": CANARY, "X-Environment": "prod"}
    document, secrets = _stored(plain(headers=headers))
    posted = _posted(WebhookForm.of_document(document), url=url)
    typed = WebhookForm.of_post(posted, document, SEALING, "p")
    draft = typed.draft(_headers(document))
    assert CANARY not in repr(draft)
    with pytest.raises(ConfigError) as caught:
        resolve_draft(
            {**draft, "url": "https://hooks.evil.example/f", "headers": document["headers"]}, secrets, document
        )
    typed.add_problems(caught.value.problems)
    again = ["The webhook URL names another host than the one this value was given for: enter the value again."]
    assert typed.errors == {f"headers.{number}.value": again for number in (0, 1)}
    for changes in (
        {"headers.0.value": "new", "headers.1.value": "new"},
        {"url": "https://hooks"},
        {"url": "none yet"},
    ):
        typed = WebhookForm.of_post(MultiDict({**posted, **changes}), document, SEALING, "p")
        typed.draft(_headers(document))
        assert bool(typed.errors) == (changes == {"url": "https://hooks"})


def test_a_typed_secret_survives_another_field_s_mistake_sealed() -> None:
    blank = _posted(WebhookForm.blank("o", "s"), **{"auth": "sign", "auth.sign.key": EC_KEY})
    typed = WebhookForm.of_post(blank, {}, SEALING, "p")
    described = describe(typed, "auth.sign.key")
    assert described is not None
    assert described.text.startswith("EC P-256, 256 bits, fingerprint ")
    sealed = SEALING.seal(typed.secrets["auth.sign.key"].typed, person="p", place="auth.sign.key")
    assert "BEGIN" not in sealed
    assert EC_KEY.strip() not in repr(typed)
    blank["auth.sign.key"], blank["auth.sign.key.sealed"] = "", sealed
    assert WebhookForm.of_post(blank, {}, SEALING, "p").secrets["auth.sign.key"].typed == EC_KEY
    for other in (
        WebhookForm.of_post(blank, {}, SEALING, "another person"),
        WebhookForm.of_post(blank, {}, SecretSealer.of(None), "p"),
    ):
        assert not other.secrets["auth.sign.key"].typed
        assert "auth.sign.key" in other.errors


def test_a_key_is_the_one_that_was_pasted_though_a_browser_sends_other_line_ends() -> None:
    sent = EC_KEY.replace("\n", "\r\n")
    typed = WebhookForm.of_post(
        _posted(WebhookForm.blank("o", "s"), **{"auth": "sign", "auth.sign.key": sent}), {}, SEALING, "p"
    )
    described = describe(typed, "auth.sign.key")
    assert described is not None
    assert described.text.endswith(Secret(EC_KEY.strip().encode()).fingerprint())
    assert typed.secrets["auth.sign.key"].draft() == {"value": EC_KEY}


def test_a_sealed_value_is_valid_for_one_place_and_an_hour() -> None:
    sealer = SecretSealer.of(Secret(b"k" * 32))
    sealed = sealer.seal("x", person="p", place="tls.key")
    assert SecretSealer.of(Secret(b"k" * 32)).open(sealed, person="p", place="tls.key") == "x"
    assert sealer.open(sealed, person="p", place="tls.ca") is None
    broken = sealed[:40] + ("A" if sealed[40] != "A" else "B") + sealed[41:]
    assert sealer.open(broken, person="p", place="tls.key") is None
    assert sealer.open("ü", person="p", place="tls.key") is None
    timestamp = sealer.fernet.extract_timestamp(sealed.encode())
    old = sealer.fernet.encrypt_at_time(b'["p","tls.key","x"]', timestamp - LIFE_S - 1).decode()
    assert sealer.open(old, person="p", place="tls.key") is None


@pytest.mark.parametrize(
    ("changes", "places"),
    [
        ({"name": ""}, {"name"}),
        ({"url": "ftp://x"}, {"url"}),
        ({"auth": "sign", "auth.sign.ttl": "soon"}, {"auth.sign.key", "auth.sign.ttl"}),
        ({"auth": "sign", "auth.sign.key": EC_KEY, "auth.sign.claims": "{"}, {"auth.sign.claims"}),
        ({"auth": "sign", "auth.sign.key": EC_KEY, "auth.sign.claims": "[1]"}, {"auth.sign.claims"}),
        ({"auth": "sign", "auth.sign.key": EC_KEY, "auth.sign.claims": '{"iss": "x"}'}, {"auth.sign.claims"}),
        (
            {"auth": "sign", "auth.sign.key": EC_KEY, "auth.sign.claims": '{"n": 36893488147419103232}'},
            {"auth.sign.claims"},
        ),
        ({"auth": "fetch"}, {"auth.fetch.token_url"}),
        ({"auth": "fetch", "auth.fetch.token_url": "https://t.example/"}, {"auth.fetch.client_id"}),
        ({"headers.0.name": "Host", "headers.0.value": "x"}, {"headers.0.name"}),
        ({"headers.0.name": "", "headers.0.value": "x"}, {"headers.0.name"}),
        ({"headers.0.name": "A", "headers.0.value": "ü"}, {"headers.0.value"}),
        ({"headers.0.name": "A", "headers.1.name": "a"}, {"headers.1.name"}),
        ({"campaigns": "some"}, {"campaigns"}),
        ({"timeout": "90s", "rate_limit": "many"}, {"timeout", "rate_limit"}),
        ({"tls.certificate": "x"}, {"tls.certificate"}),
    ],
)
def test_each_mistake_is_shown_at_its_field(changes: dict[str, str], places: set[str]) -> None:
    start = WebhookForm.blank("o", "s")
    start.texts |= {"name": "n", "url": "https://a.example/"}
    typed = WebhookForm.of_post(_posted(start, **changes), {}, SEALING, "p")
    draft = typed.draft({})
    try:
        resolve_draft(draft, {})
    except ConfigError as error:
        typed.add_problems(error.problems)
    assert set(typed.errors) == places


def test_nothing_chosen_is_shown() -> None:
    posted = _posted(WebhookForm.blank("o", "s"), name="n", url="https://a.example/")
    for key in ("channels", "events"):
        del posted[key]
    typed = WebhookForm.of_post(posted, {}, SEALING, "p")
    with pytest.raises(ConfigError) as caught:
        resolve_draft(typed.draft({}), {})
    typed.add_problems(caught.value.problems)
    assert typed.errors == {"channels": ["Choose at least one."], "events": ["Choose at least one."]}


def test_each_code_of_a_problem_has_words_of_its_own_in_the_form() -> None:
    start = WebhookForm.blank("o", "s")
    typed = WebhookForm.of_post(_posted(start, url="https://a.example/", auth="sign"), {}, SEALING, "p")
    with pytest.raises(ConfigError) as caught:
        resolve_draft(typed.draft({}), {})
    typed.add_problems(caught.value.problems)
    assert typed.errors == {
        "name": ["Fill this in."],
        "auth.sign.key": ["Is missing: the HMAC secret, or the private key in PEM."],
    }
    assert FOR_FIELDS.keys() == set(ProblemCode)


def test_strange_posts_do_no_harm() -> None:
    posted: MultiDict[object] = MultiDict(
        {f"headers.{key}.name": "x" for key in ("-1", "1e9", "x", "", "999999999999")}
    )
    posted.update({"name": b"bytes", "payload": "7", "auth": "magic", "headers": "x", "headers.": "x"})
    typed = WebhookForm.of_post(posted, {}, SEALING, "p")
    assert (typed.texts["name"], typed.texts["payload"], typed.texts["auth"]) == ("", "1", "none")
    assert len(typed.headers) == 1


@pytest.mark.parametrize("config", CONFIGS, ids=lambda config: config.name)
def test_a_preview_needs_no_secret(config: WebhookConfig) -> None:
    document, _ = _stored(config)
    shown = WebhookForm.of_document(document)
    filled = resolve_draft(with_placeholders(shown.draft(_headers(document))), {})
    assert all(secret.reveal() == b"-" for secret in filled.secrets())
    texts = {name: value for name, value in config.headers.items() if isinstance(value, str)}
    assert texts.items() <= filled.headers.items()


def test_every_secret_of_the_model_has_its_field() -> None:
    _, secrets = _stored(secretive())
    places = {path for path in secrets if not path.startswith("signing.secrets")} | {"auth.sign.key", "signing.new"}
    assert places == set(SECRETS)
