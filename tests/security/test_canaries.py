"""Searches all output of the real program, through success and every failure, for secrets and personal data.

Canaries are planted in every place of the configuration that can hold a secret and in every field of an event that can hold
text. Endpoints and token endpoints echo what they were sent. Then all that came out is searched: standard output and
error at level debug, the ops endpoint, the attempt log, the traces, the headers that parked and dead records were given,
and what `check`, `explain` and `webhooks list` say.

Two things are output by design, and left out: `explain` shows the payload of the requested event and each header
parameter whose name doesn't suggest a secret; a parked or dead record keeps its own key, value and headers.
"""

import asyncio
import base64
import os
import re
import signal
import sys
from collections.abc import AsyncIterator, Mapping
from contextlib import asynccontextmanager
from dataclasses import dataclass, field
from datetime import UTC, datetime, timedelta
from pathlib import Path

import orjson
import pytest
import trustme
import yaml

from dispatcher.config.secrets import Secret, SecretSource
from dispatcher.config.settings import Settings
from dispatcher.config.webhooks import WebhookConfig
from dispatcher.contract.history import decode_record
from dispatcher.demo.child_process import free_ports
from dispatcher.kafka.topics import dead_letter_topic, history_topic, retry_topics
from dispatcher.stores.sql.database import Database
from dispatcher.stores.sql.encryption import Encryption, new_key
from dispatcher.stores.sql.migrate import upgrade
from dispatcher.stores.sql.repository import WebhookRepository
from tests.integration.brokers import needs_kafka
from tests.integration.harness import LARGEST_RECORD, TIERS, Dispatcher, Json, Stage, create_topics, group_of, until
from tests.kafka import topics
from tests.kafka.apache_kafka import ApacheKafka
from tests.kafka.server_properties import KafkaOptions, Listener
from tests.security.canaries import KNOWN_FIELDS, Aviary, planted_event, secret_places, text_places, traces_in
from tests.security.witness import FAILING, REFUSING, Witness, issuing
from tests.stores.kubelet import MountedVolume
from tests.tracing.collector import Collector
from tests.transport.servers import ConnectProxy
from tests.transport.servers import Endpoint as Server

WEBHOOK_PLACES = frozenset(
    {
        "url", "headers", "auth.sign.key", "auth.sign.next.key", "auth.sign.claims", "auth.fetch.token_url",
        "auth.fetch.client_secret", "auth.fetch.parameters", "auth.fetch.assertion.key", "auth.fetch.assertion.next.key",
        "auth.fetch.assertion.claims", "signing.secrets", "tls.ca", "tls.certificate", "tls.key",
    }
)  # fmt: skip
SETTINGS_PLACES = frozenset(
    {
        "kafka.security.username", "kafka.security.password", "kafka.security.oauth.token",
        "kafka.security.oauth.client_secret", "egress.proxy.password", "history.url", "history.recipient_key",
        "webhooks.url", "webhooks.encryption_keys", "console.session_key",
        "console.oidc.client_secret", "tracing.headers",
    }
)  # fmt: skip

NOT_PLANTED = frozenset(
    {"ops.token", "notifications.smtp.password", "notifications.link_key", "notifications.webhook.signing.secrets"}
)
"""Not yet in the whole process's run: `tests/notifications` and `test_ops_port` search their own texts."""


def test_every_place_that_can_hold_a_secret_has_a_canary() -> None:
    assert secret_places(WebhookConfig) == WEBHOOK_PLACES
    assert secret_places(Settings) == SETTINGS_PLACES | NOT_PLANTED


def test_every_field_of_an_event_that_can_hold_text_has_a_canary_or_a_reason() -> None:
    aviary = Aviary()
    planted_event(aviary, "org", "e")
    assert text_places() <= aviary.personal.keys() | KNOWN_FIELDS.keys()
    assert len(aviary.personal) >= 25


@pytest.mark.parametrize("around", [b"", b"x", b"ab"])
def test_a_canary_is_found_in_every_form(around: bytes) -> None:
    aviary = Aviary()
    text = aviary.secret("here").encode()
    whole = around + text + around
    shown = [
        whole.decode(), base64.b64encode(whole).decode(), base64.urlsafe_b64encode(whole).decode().rstrip("="),
        whole.hex(), whole.hex().upper(), "".join(f"%{byte:02x}" for byte in whole), whole.decode()[::-1],
    ]  # fmt: skip
    assert [len(aviary.found_in({"log": f'{{"a": "{one}"}}'})) >= 1 for one in shown] == [True] * len(shown)
    assert aviary.found_in({"log": "nothing"}) == []


@pytest.mark.parametrize("text", ["Bearer abcd", "eyJhbGciOiJIUzI1NiJ9.e30.x", "v1," + "A" * 44, "whsec_AAAAAAAA",
                                  "-----BEGIN PRIVATE KEY-----", "Basic dXNlcg=="])  # fmt: skip
def test_a_token_a_signature_and_a_key_are_found_whosever_they_are(text: str) -> None:
    assert traces_in({"log": f"x {text} y"})


# --- the run

_MIDDLE = 3
"""Line of a PEM document that is taken for its canary."""

# Loaded by the interpreter of the process under test: one event meets a bug, whose message and locals hold it whole.
_SABOTAGE = """
import sys
if "run" in sys.argv:
    from dispatcher.contract import feedback
    def sabotaged(encoded):
        def made(*values, **named):
            everything = repr((values, named))
            if "explode" not in everything:
                return encoded(*values, **named)
            try:
                raise KeyError(everything)
            except KeyError as error:
                raise RuntimeError("can't encode " + everything) from error
        return made
    feedback.FeedbackV1 = sabotaged(feedback.FeedbackV1)  # looked up at each event, also by compiled code
    feedback.FeedbackV2 = sabotaged(feedback.FeedbackV2)
"""


@dataclass
class Scene:
    """One run's stage, its canaries, and the process's output so far."""

    stage: Stage
    aviary: Aviary
    witness: Witness
    secrets: Path
    environment: dict[str, str] = field(default_factory=dict)
    answers: dict[str, str] = field(default_factory=dict)

    def hidden(self, place: str, text: str, whose: str = "webhooks") -> Json:
        """A secret with this text, by reference: in the environment every other time."""
        secrets = self.secrets / whose
        secrets.mkdir(exist_ok=True)
        count = len(list(self.secrets.glob("*/*"))) + len(self.environment)
        name = f"{re.sub('[^a-z0-9]', '_', place.lower())}_{count}"
        if len(self.environment) % 2 and len(text) < 1000:
            self.environment[f"CANARY_{name.upper()}"] = text
            return {"env": f"CANARY_{name.upper()}"}
        (secrets / name).write_text(text)
        return {"file": str(secrets / name)}

    def pem(self, place: str, text: bytes) -> Json:
        """A PEM document as a secret; one of its lines is the canary."""
        self.aviary.secret(place, text.decode().splitlines()[_MIDDLE])
        return self.hidden(place, text.decode())

    def webhook(self, org: str, path: str, auth: Json, url: str | None = None) -> Json:
        """A webhook with a secret wherever there can be one."""
        secret, client = self.aviary.secret, self._client
        return {
            "name": org,
            "org": org,
            "sandbox": "prod",
            "url": url or self.witness.url(f"/{secret('url')}{path}?k={secret('url query')}"),
            "auth": auth,
            "headers": {"X-Api-Key": secret("headers"), "X-Plain": secret("a header that does not say so")},
            "signing": {"secrets": [self._whsec(), self._whsk()]},
            "tls": {
                "ca": self.pem("tls.ca", self.witness.authority.cert_pem.bytes()),
                "certificate": self.pem("tls.certificate", client.cert_chain_pems[0].bytes()),
                "key": self.pem("tls.key", client.private_key_pem.bytes()),
            },
            "payload": 2,
            "timeout": "2s",
        }

    def signing(self) -> Json:
        """Authentication by a token that we sign."""
        claims = {"api_key": self.aviary.secret("auth.sign.claims")}
        return {"type": "jwt", "sign": {**self._keys("auth.sign"), "claims": claims, "body_hash": True}}

    def fetching(self, path: str, grant: str, url: str | None = None) -> Json:
        """Authentication by a token that is fetched."""
        secret = self.aviary.secret
        url = url or self.witness.url(f"/{secret('auth.fetch.token_url')}{path}?k={secret('token_url query')}")
        hidden = self.hidden("auth.fetch.client_secret", secret("auth.fetch.client_secret"))
        fetch: Json = {"grant": grant, "token_url": url, "client_id": "luma", "client_secret": hidden}
        fetch["parameters"] = {"api_key": secret("auth.fetch.parameters")}
        if grant == "jwt-bearer":
            claims = {"api_key": secret("auth.fetch.assertion.claims")}
            fetch["assertion"] = {**self._keys("auth.fetch.assertion"), "claims": claims}
        return {"type": "jwt", "fetch": fetch}

    def _keys(self, place: str) -> Json:
        """A key that signs, and the one that follows it in an hour."""
        now, later = (
            {"algorithm": "HS256", "key": self.hidden(name, self.aviary.secret(name) * 3)}
            for name in (f"{place}.key", f"{place}.next.key")
        )
        return {**now, "next": {**later, "starts": (datetime.now(UTC) + timedelta(hours=1)).isoformat()}}

    def _whsec(self) -> Json:
        raw = self.aviary.secret("signing.secrets") + "0123456789"
        return self.hidden("signing.secrets", "whsec_" + base64.b64encode(raw.encode()).decode())

    def _whsk(self) -> Json:
        raw = (self.aviary.secret("signing.secrets, Ed25519") + "0" * 32)[:32]
        return self.hidden("signing.secrets", "whsk_" + base64.b64encode(raw.encode()).decode())

    @property
    def _client(self) -> trustme.LeafCert:
        return self.witness.client

    async def look(self, dispatcher: Dispatcher, when: str) -> None:
        """Keep what the ops endpoint shows."""
        paths = [
            "/",
            "/livez",
            "/readyz",
            "/metrics",
            "/configz",
            "/lanes",
            "/lanes/ok-sign/prod",
            "/lanes/x/y",
            "/nope",
        ]
        for path in paths:
            self.answers[f"{path} {when}"] = (await dispatcher.get(path))[1]


def everybody(scene: Scene) -> dict[str, Json]:
    """The webhooks by organisation: one that works of each kind, and one for each way to fail."""
    closed = free_ports(1)[0]
    secret = scene.aviary.secret
    elsewhere = f"https://localhost:{closed}/{secret('url')}?k={secret('url query')}"
    found = {
        "ok-sign": scene.webhook("ok-sign", "/ok", scene.signing()),
        "ok-client": scene.webhook("ok-client", "/ok", scene.fetching("/token", "client-credentials")),
        "ok-bearer": scene.webhook("ok-bearer", "/ok", scene.fetching("/token", "jwt-bearer")),
        "fetched-401": scene.webhook("fetched-401", "/401", scene.fetching("/token", "client-credentials")),
        "refused": scene.webhook("refused", "/", scene.signing(), elsewhere),
        "untrusted": scene.webhook("untrusted", "/ok", scene.signing()),
        "token-refused": scene.webhook(
            "token-refused", "/ok", scene.fetching("/", "client-credentials", elsewhere)
        ),
    }  # fmt: skip
    found["untrusted"]["tls"].pop("ca")
    found["untrusted"]["tls"]["ca"] = scene.pem("another tls.ca", trustme.CA().cert_pem.bytes())
    for name, behaviour in FAILING.items():
        scene.witness.behave(f"/{secret('url')}/{name}", behaviour)
        found[f"end-{name}"] = scene.webhook(f"end-{name}", f"/{name}", scene.signing())
    for name, behaviour in REFUSING.items():
        scene.witness.behave(f"/{secret('auth.fetch.token_url')}/token-{name}", behaviour)
        grant = "jwt-bearer" if name in ("error", "page") else "client-credentials"
        found[f"token-{name}"] = scene.webhook(f"token-{name}", "/ok", scene.fetching(f"/token-{name}", grant))
    scene.witness.behave(f"/{secret('auth.fetch.token_url')}/token", issuing(secret("an issued token")))
    return found


def settings_with_secrets(scene: Scene, broker: ApacheKafka, collector: Collector, store: str) -> Json:
    """The settings, with a secret wherever there can be one, whether it is used or not."""
    secret = scene.aviary.secret
    scene.aviary.secret("webhooks.encryption_keys", key := new_key())
    database = f"sqlite+aiosqlite:///{scene.stage.directory / secret('webhooks.url')}.db"
    history = f"sqlite+aiosqlite:///{scene.stage.directory / secret('history.url')}.db"
    return {
        "kafka": {
            "bootstrap_servers": broker.address(Listener.SASL_SSL),
            "security": {
                "protocol": "SASL_SSL",
                "mechanism": "SCRAM-SHA-512",
                "username": scene.hidden("kafka.security.username", secret("kafka.security.username"), "settings"),
                "password": scene.hidden("kafka.security.password", secret("kafka.security.password"), "settings"),
                "ca": str(broker.certificates.ca),
            },
        },
        "webhooks": {
            "store": store,
            "url": scene.hidden("webhooks.url", database, "settings"),
            "encryption_keys": [scene.hidden("webhooks.encryption_keys", key, "settings")],
            "secrets": {"files": [str(scene.secrets / "webhooks")], "env": ["CANARY_"]},
            "cache_ttl": "1s",
        },
        "console": {
            "session_key": scene.hidden("console.session_key", secret("console.session_key") * 3, "settings"),
            "oidc": {
                "issuer": "https://login.example",
                "audience": "dispatcher",
                "client_id": "console",
                "client_secret": scene.hidden("console.oidc", secret("console.oidc.client_secret"), "settings"),
            },
        },
        "tracing": {
            "enabled": True,
            "endpoint": collector.url,
            "sample_ratio": 1.0,
            "headers": {"authorization": scene.hidden("tracing.headers", secret("tracing.headers"), "settings")},
        },
        "retry": {"max_age": "9s", "soon_attempts": 1, "soon_within": "1s"},
        "history": {
            "url": scene.hidden("history.url", history, "settings"),
            "recipient_key": scene.hidden("history.recipient_key", secret("history.recipient_key") * 3, "settings"),
        },
    }


def oauth_settings(scene: Scene, broker: ApacheKafka) -> dict[str, Json]:
    """Both kinds of OAUTHBEARER with secrets; the broker takes neither."""
    secret = scene.aviary.secret
    place = "kafka.security.oauth"
    client = {
        "token_url": scene.witness.url(f"/{secret('auth.fetch.token_url')}/token-error"),
        "client_id": "kafka",
        "client_secret": scene.hidden(f"{place}.client_secret", secret(f"{place}.client_secret"), "settings"),
        "ca": str(scene.stage.directory / "ca.pem"),
    }
    token = {"token": scene.hidden(f"{place}.token", secret(f"{place}.token"), "settings")}
    return {
        name: {
            "bootstrap_servers": broker.address(Listener.SASL_SSL),
            "security": {
                "protocol": "SASL_SSL",
                "mechanism": "OAUTHBEARER",
                "username": None,
                "password": None,
                "oauth": oauth,
                "ca": str(broker.certificates.ca),
            },
        }
        for name, oauth in (("client", client), ("token", token))
    }


UNREADABLE = 6


async def produce(scene: Scene, orgs: list[str]) -> None:
    """Produces two events for each organisation, with canaries, and unreadable records."""
    aviary, producer = scene.aviary, await scene.stage.producer()
    key, headers = aviary.person("a record's key").encode(), [("x-mine", aviary.person("a record's header").encode())]
    events = [planted_event(aviary, org, f"{org}-{n}", ("email", "sms")[n]) for org in orgs for n in range(2)]
    events.append(planted_event(aviary, "ok-sign", "explodes", campaignVersionID="explode"))
    values = [orjson.dumps(event) for event in events]
    whole = orjson.dumps(planted_event(aviary, "ok-sign", "unreadable"))
    wrong: Json = planted_event(aviary, "ok-sign", "wrong")
    wrong["body"]["xdmEntity"]["identityMap"] = {f"{aviary.person('a namespace')}@canary.example": [{"id": 5}]}
    wrong["body"]["xdmEntity"]["_id"] = [aviary.person("an id in a list")]
    texts: Json = planted_event(aviary, "ok-sign", "texts")
    management = texts["body"]["xdmEntity"]["_experience"]["customerJourneyManagement"]
    management["messageDeliveryfeedback"]["retryCount"] = aviary.person("a number that is text")
    management["messageProfile"]["isTestExecution"] = aviary.person("a boolean that is text")
    long: Json = planted_event(aviary, "ok-sign", "long")
    long["body"]["xdmEntity"]["identityMap"]["Email"][0]["id"] *= 1000
    values += [
        whole[:-9],
        whole.replace(b'"header"', b'"header":{},"header"'),
        whole[1:],
        *map(orjson.dumps, (wrong, texts, long)),
    ]
    for value in values:
        await producer.send_and_wait(scene.stage.topic, value, key, headers=headers)


async def mounted(scene: Scene, webhooks: dict[str, Json], settings: Json) -> None:
    """Put the webhooks where the process finds them."""
    if settings["webhooks"]["store"] == "yaml":
        scene.stage.mount(webhooks.values())
        return
    source = SecretSource(scene.stage.directory, environ=scene.environment).as_context()
    url = Secret(_text_of(scene, settings["webhooks"]["url"]))
    key = Secret(_text_of(scene, settings["webhooks"]["encryption_keys"][0]))
    await upgrade(url)
    database = Database(url)
    try:
        repository = WebhookRepository(database, Encryption([key]))
        for webhook in webhooks.values():
            await repository.create(WebhookConfig.model_validate(webhook, context=source), by="ada", orgs=None)
        other = WebhookRepository(database, Encryption([Secret(new_key().encode())]))  # its secrets can't be read here
        lost = {**webhooks["ok-sign"], "org": "lost"}
        await other.create(WebhookConfig.model_validate(lost, context=source), by="ada", orgs=None)
    finally:
        await database.close()


def _text_of(scene: Scene, reference: Mapping[str, str]) -> bytes:
    if "env" in reference:
        return scene.environment[reference["env"]].encode()
    return Path(reference["file"]).read_bytes()


def spoilt(scene: Scene, good: Json) -> dict[str, str]:
    """Files of webhooks with a secret in every wrong place, by name."""
    secret = scene.aviary.secret
    inline, odd = secret("a secret inline in the file"), secret("a value of the wrong kind")
    lines = [
        {**good, "org": "bad1", "auth": {"type": "jwt", "sign": {"algorithm": odd, "key": inline, "ttl": odd}}},
        {**good, "org": "bad2", "url": f"https://user:{inline}@localhost/", "signing": {"secrets": [inline]}},
        {**good, "org": "bad3", "headers": {"X-Api-Key": f"{inline}\r\nx: y"}, "rate_limit": odd, "timeout": odd},
        {**good, "org": "bad4", "url": f"https://10.0.0.1/{secret('url')}", "channels": [odd], "enabled": odd},
        {**good, "org": "bad5", "url": f"https://localhost/{secret('url')}#{inline}", "payload": odd, "events": odd},
        {**good, "org": "bad6", "auth": scene.fetching("/", "client-credentials", f"https://127.1/{inline}")},
        {**good, "org": "bad7", "signing": {"secrets": [scene.hidden("signing.secrets", inline)]}},
        {**good, "org": "bad8", "auth": {"type": "jwt", "sign": {"algorithm": "ES256", "key": scene.hidden("key", inline)}}},
        {**good, "org": "bad9", "tls": {"ca": scene.hidden("ca", inline), "certificate": inline}},
    ]  # fmt: skip
    each = {
        f"bad{n}": yaml.safe_dump({"apiVersion": "dispatcher/v1", "webhooks": [one]}) for n, one in enumerate(lines)
    }
    return each | {
        "broken1": f"apiVersion: dispatcher/v1\nwebhooks:\n- name: [{inline}\n  key: '{inline}\n",
        "broken2": f"apiVersion: dispatcher/v1\nwebhooks: &a\n- {inline}: *{inline}\n",
        "broken3": f"apiVersion: !{inline} x\n",
        "broken4": f"apiVersion: {inline}\x00\n",
    }


async def command(scene: Scene, *arguments: str) -> str:
    """What `dispatcher …` prints, both ways."""
    process = await asyncio.create_subprocess_exec(
        sys.executable, "-m", "dispatcher", *arguments, env={**os.environ, "COLUMNS": "250", "PYTHONFAULTHANDLER": "1"},
        stdin=asyncio.subprocess.DEVNULL, stdout=asyncio.subprocess.PIPE, stderr=asyncio.subprocess.STDOUT,
    )  # fmt: skip
    running = asyncio.create_task(process.communicate())
    ended, _ = await asyncio.wait([running], timeout=180)
    if not ended:
        process.send_signal(signal.SIGABRT)  # the fault handler prints where it hangs
    out, _ = await running
    assert ended, f"dispatcher {' '.join(arguments)} does not end:\n{out.decode(errors='replace')[-6000:]}"
    return out.decode(errors="replace")


@pytest.fixture(scope="module")
async def broker() -> AsyncIterator[ApacheKafka]:
    """One that asks for a password, which is a canary."""
    options = KafkaOptions(
        listeners=frozenset({Listener.SASL_SSL}),
        users={Aviary().secret("kafka.security.username"): Aviary().secret("kafka.security.password")},
        auto_create_topics=False,
        message_max_bytes=LARGEST_RECORD,
    )
    async with ApacheKafka(options) as running:
        yield running


@asynccontextmanager
async def a_scene(broker: ApacheKafka, directory: Path) -> AsyncIterator[Scene]:
    """A stage whose receiver asks for client certificates, and a place for secrets."""
    (directory / "secrets").mkdir()
    (directory / "python").mkdir()
    (directory / "python" / "sitecustomize.py").write_text(_SABOTAGE)
    topic = f"canaries-{directory.name[-12:]}"
    async with Witness(trustme.CA()) as witness:
        await create_topics(broker.bootstrap_servers, topic, 4)
        await topics.create_topic(broker.bootstrap_servers, history_topic(group_of(topic)))
        witness.authority.cert_pem.write_to_path(str(directory / "ca.pem"))
        volume = MountedVolume(directory / "webhooks.d")
        stage = Stage(broker.bootstrap_servers, directory, witness, topic, volume)
        try:
            yield Scene(stage, Aviary(), witness, directory / "secrets")
        finally:
            await stage.close()


@needs_kafka
@pytest.mark.slow
@pytest.mark.timeout(600)
@pytest.mark.parametrize(
    ("store", "transport", "form", "proxied"), [("yaml", "lean", "json", True), ("sql", "aiohttp", "console", False)]
)
async def test_no_output_of_the_process_contains_a_secret_or_personal_data(
    broker: ApacheKafka, tmp_path: Path, monkeypatch: pytest.MonkeyPatch,
    store: str, transport: str, form: str, proxied: bool,
) -> None:  # fmt: skip
    asking = ConnectProxy()
    async with (
        a_scene(broker, tmp_path) as scene,
        Server(asking, None).running() as proxy,
        Collector() as collector,
    ):
        stage = scene.stage
        webhooks, groups = everybody(scene), settings_with_secrets(scene, broker, collector, store)
        await mounted(scene, webhooks, groups)
        groups |= {"delivery": {"transport": transport}, "log": {"format": form, "level": "debug"}}
        password = scene.hidden("egress.proxy.password", scene.aviary.secret("egress.proxy.password"), "settings")
        if proxied:
            url = f"http://127.0.0.1:{proxy.port}"
            groups["egress"] = {"proxy": {"url": url, "username": "ada", "password": password}}
        refused = oauth_settings(scene, broker)
        bad = spoilt(scene, webhooks["ok-sign"])
        for name, value in (
            scene.environment | {"PYTHONPATH": f"{tmp_path / 'python'}{os.pathsep}{Path.cwd()}"}
        ).items():
            monkeypatch.setenv(name, value)
        async with stage.dispatcher(**groups) as dispatcher:
            dispatcher.start()
            await dispatcher.ready()
            await scene.look(dispatcher, "at first")
            await produce(scene, [*webhooks, "nobody", "lost"])
            await until(lambda: len(scene.witness.seen) > 20, "the first requests", 60, dispatcher)
            await scene.look(dispatcher, "under way")
            if store == "yaml":
                stage.mount(webhooks.values(), **bad)
                await until(lambda: "bad8.yaml" in dispatcher.log, "the refusals", 60, dispatcher)
                await until(lambda: _names(dispatcher, "bad8.yaml"), "the refusals in /readyz", 60, dispatcher)
                await scene.look(dispatcher, "with bad files")
                scene.answers["check of bad files"] = await command(scene, "check", "-c", str(dispatcher.path))
                assert scene.answers["check of bad files"].count("bad") >= 9
                stage.mount(webhooks.values())
            failing = len(webhooks) - 3

            async def enough_dead() -> bool:
                ends = await topics.end_offsets(stage.bootstrap_servers, stage.dead_topic)
                return sum(ends.values()) >= UNREADABLE + 1 + 8 + failing

            await until(enough_dead, "the dead letters", 60, dispatcher)
            await scene.look(dispatcher, "at the end")
            # Stopped twice, while a request hangs.
            seen = scene.witness.seen.total()
            scene.witness.behave(f"/{scene.aviary.secret('url')}/ok", FAILING["timeout"])
            producer = await stage.producer()
            await producer.send_and_wait(stage.topic, orjson.dumps(planted_event(scene.aviary, "ok-sign", "last")))
            await until(lambda: scene.witness.seen.total() > seen, "a request that hangs", 60, dispatcher)
            dispatcher.sigterm()
            await until(lambda: "stopping: finishing" in dispatcher.log, "a first signal", 60, dispatcher)
            dispatcher.sigterm()
            assert await dispatcher.wait() in (0, 3)
            scene.answers["log"] = dispatcher.all_logs
            debug_lines = [
                line
                for line in scene.answers["log"].splitlines()
                if re.search(r'"level":"debug"|\[(?:\x1b\[[\d;]*m)*debug ', line)
            ]
            assert len(debug_lines) > 20, "without lines at debug level nothing is proven of them"
        await _asked_afterwards(scene, dispatcher)
        await asyncio.gather(
            _history_worker(scene, dispatcher),
            *(_explain_with(scene, dispatcher, name, kafka) for name, kafka in refused.items()),
        )
        await _records(scene)
        scene.answers["traces"] = "\n".join(map(str, (*collector.spans, *collector.resources)))
        _used(scene)
        if proxied:
            given = base64.b64encode(f"ada:{scene.aviary.secrets['egress.proxy.password'].text}".encode()).decode()
            assert asking.authorizations == {f"Basic {given}"}
        assert scene.aviary.secrets["tracing.headers"].text in collector.headers[0]["authorization"]
        assert len(collector.spans) > 30
        plain = scene.aviary.secrets["a header that does not say so"]
        shown = {name: text for name, text in scene.answers.items() if name.startswith("explain")}
        history = {name: text for name, text in scene.answers.items() if name.startswith("history")}
        worker = {"log of the worker": scene.answers["log of the worker"]}
        others = {name: text for name, text in scene.answers.items() if name not in {*shown, *history, *worker}}
        # A database's name without user and password, for SQLite its path, isn't secret (`Database.name`).
        leaks_of_worker = scene.aviary.found_in(worker, but=[scene.aviary.secrets["history.url"]])
        leaks = leaks_of_worker + scene.aviary.found_in(others) + traces_in(scene.answers)
        leaks += scene.aviary.found_in(history, but=[scene.aviary.personal[place] for place in HISTORY_IDS])
        leaks += scene.aviary.found_in(shown, but=[plain, *scene.aviary.personal.values()])
        assert leaks == [], "\n".join(leaks[:40])


HISTORY_IDS = (
    "header.requestId",
    "body.xdmEntity._id",
    "body.xdmEntity._experience.customerJourneyManagement.messageExecution.messageExecutionID",
    "body.xdmEntity._experience.customerJourneyManagement.messageExecution.campaignID",
)
"""The ids by which an event is found in the history (docs/history.md)."""


async def _history_worker(scene: Scene, dispatcher: Dispatcher) -> None:
    """Lets `dispatcher history` fill its store, and keeps its output and the store's bytes."""
    (port,) = free_ports(1)
    settings = {**dispatcher.settings, "ops": {"host": "127.0.0.1", "port": port}}
    path = scene.stage.directory / "history.yaml"
    path.write_text(yaml.safe_dump(settings))
    process = await asyncio.create_subprocess_exec(
        sys.executable, "-m", "dispatcher", "history", "-c", str(path), stdin=asyncio.subprocess.DEVNULL,
        stdout=asyncio.subprocess.PIPE, stderr=asyncio.subprocess.STDOUT,
        env={**os.environ, "PYTHONFAULTHANDLER": "1"},
    )  # fmt: skip
    running = asyncio.create_task(process.communicate())
    store = scene.stage.directory / f"{scene.aviary.secrets['history.url'].text}.db"

    async def is_filled() -> bool:
        files = [*store.parent.glob(f"{store.name}*")]
        return any(b"msg_" in file.read_bytes() for file in files) or running.done()

    try:
        await until(is_filled, "entries in the history's store", 60)
    finally:
        if process.returncode is None:
            process.terminate()
        ended, _ = await asyncio.wait([running], timeout=60)
        if not ended:
            process.send_signal(signal.SIGABRT)  # with PYTHONFAULTHANDLER it prints where it hangs
        out, _ = await running
        assert process.returncode in (0, 3), out.decode(errors="replace")[-4000:]
    scene.answers["log of the worker"] = out.decode(errors="replace")
    content = b"".join(file.read_bytes() for file in store.parent.glob(f"{store.name}*"))
    assert b"msg_" in content, scene.answers["log of the worker"]
    scene.answers["history store"] = content.decode("latin-1")


async def _explain_with(scene: Scene, dispatcher: Dispatcher, name: str, kafka: Json) -> None:
    """Keeps what `explain` says if there is no token, or the broker refuses it."""
    path = scene.stage.directory / f"oauth-{name}.yaml"
    settings = {**dispatcher.settings, "kafka": {**dispatcher.settings["kafka"], **kafka}}
    path.write_text(yaml.safe_dump(settings))
    place = ("--topic", scene.stage.topic, "--partition", "0", "--offset", "0")
    said = scene.answers[f"explain with oauth, {name}"] = await command(scene, "explain", "-c", str(path), *place)
    assert "What would be sent" not in said
    assert "token" in said.lower() or "kafka" in said.lower(), said


async def _names(dispatcher: Dispatcher, file: str) -> bool:
    return file in (await dispatcher.get("/readyz"))[1]


async def _asked_afterwards(scene: Scene, dispatcher: Dispatcher) -> None:
    config, outputs = str(dispatcher.path), scene.answers
    outputs["check"] = await command(scene, "check", "-c", config)
    outputs["webhooks list"] = await command(scene, "webhooks", "list", "-c", config)
    for topic in (scene.stage.topic, scene.stage.dead_topic, retry_topics(scene.stage.prefix, TIERS)[0]):
        place = ("--topic", topic, "--partition")
        for partition in range(2):
            name = f"explain {topic}/{partition}"
            outputs[name] = await command(scene, "explain", "-c", config, *place, str(partition), "--offset", "0")
    assert any("What would be sent" in text for text in outputs.values())
    inline = {
        **dispatcher.settings,
        "kafka": {"security": {"password": scene.aviary.secret("kafka.security.password")}},
    }
    bad = scene.stage.directory / "bad.yaml"
    bad.write_text(yaml.safe_dump(inline))
    outputs["check of bad settings"] = await command(scene, "check", "-c", str(bad))
    assert "a secret can't be written here" in outputs["check of bad settings"]


async def _records(scene: Scene) -> None:
    """What was written: attempts whole; of parked and dead records the headers that we gave them."""
    servers, prefix = scene.stage.bootstrap_servers, scene.stage.prefix
    records = await topics.read_all(servers, history_topic(prefix))
    entries = [one for record in records for run in decode_record(record.value).runs for one in run.entries]
    assert len(entries) > 30
    scene.answers["history"] = "\n".join(repr((one.key, one.value, one.headers)) for one in records)
    reasons: set[str] = set()
    for name in (dead_letter_topic(prefix), *retry_topics(prefix, TIERS)):
        records = await topics.read_all(servers, name)
        ours = [[pair for pair in one.headers if pair[0].startswith("feedback-")] for one in records]
        scene.answers[f"headers in {name}"] = "\n".join(map(repr, ours))
        reasons |= {value.decode() for headers in ours for key, value in headers if key == "feedback-reason"}
        assert all(len(headers) >= 9 for headers in ours)
    assert {"unreadable", "expired", "redirected", "aborted"} <= reasons, reasons
    failed = {one.reason for one in entries}
    assert {"tls", "timeout", "reset", "protocol", "token"} <= failed, failed
    assert failed & {"connect_refused", "proxy"}, failed


def _used(scene: Scene) -> None:
    """That the canaries were in use: else their absence says nothing."""
    aviary, arrived = scene.aviary, scene.witness.requests
    sent = "\n".join(f"{one.path} {dict(one.headers)} {one.body.decode()}" for one in arrived)
    for place in ("url", "headers", "an issued token", "auth.fetch.token_url", "a header that does not say so"):
        assert aviary.secrets[place].text in sent, place
    encoded = {form for form in aviary.secrets["auth.fetch.client_secret"].forms if form in sent}
    assert encoded, "Basic authentication"
    assert [form for form in aviary.secrets["auth.sign.claims"].forms if form in sent], "our own token"
    assert aviary.personal["body.xdmEntity.identityMap.*.id"].text in sent
    assert scene.witness.shown.total() > 20, "client certificates"
    assert "v1a," in sent
    assert "stopping at once" in scene.answers["log"]
    assert "record dies because of a bug" in scene.answers["log"]
