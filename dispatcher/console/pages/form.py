"""The form to create and edit a webhook: converts posted fields to a draft, and stored documents to fields. Pure.

Fields are named like the draft's keys, so that a problem is shown beside its field. A response contains everything that
was typed; secrets are returned sealed, never as text.
"""

import re
from collections.abc import Mapping
from dataclasses import dataclass, field

import orjson
from pydantic import JsonValue

from dispatcher.config.documents import key_of
from dispatcher.config.secrets import suggests_a_secret
from dispatcher.config.webhook_headers import MAX_HEADERS, header_name_problem, header_value_problem
from dispatcher.console.formatting import sentence
from dispatcher.console.pages.fields import (
    ADVANCED,
    CHOICES,
    DEFAULTS,
    FOR_FIELDS,
    LISTS,
    SECRETS,
    SWITCHES,
    TEXTS,
    TOKEN_SWITCHES,
    HeaderRow,
    Posted,
    SecretField,
    rows_of,
    shown,
    text_of,
    value_at,
    without_none,
)
from dispatcher.console.pages.sealing import SecretSealer
from dispatcher.console.request_body import wide_integers_in
from dispatcher.errors import Problem
from dispatcher.stores.sql.documents import fingerprint_in, is_elsewhere, replace_secrets
from dispatcher.stores.sql.header_values import LOST


@dataclass(slots=True)
class WebhookForm:
    """Content of the form."""

    texts: dict[str, str] = field(default_factory=dict)
    """Every text and choice, by key."""
    lists: dict[str, list[str]] = field(default_factory=dict)
    switches: dict[str, bool] = field(default_factory=dict)
    campaign_ids: str = ""
    """One per line."""
    headers: list[HeaderRow] = field(default_factory=list)
    secrets: dict[str, SecretField] = field(default_factory=lambda: {place: SecretField() for place in SECRETS})
    signing: list[SecretField] = field(default_factory=list)
    """Stored signing secrets, the newest first."""
    errors: dict[str, list[str]] = field(default_factory=dict)
    """Messages by key; the empty key is for the whole form."""
    document: Mapping[str, JsonValue] = field(default_factory=dict, repr=False)
    """The stored document: members without a field in the form stay unchanged."""

    @classmethod
    def blank(cls, org: str, sandbox: str) -> "WebhookForm":
        """Returns the form of a new webhook."""
        texts = dict.fromkeys(TEXTS, "") | DEFAULTS | {"org": org}
        if sandbox:
            texts["sandbox"] = sandbox
        return cls(
            texts,
            {"channels": ["email", "sms"], "events": ["sent", "delivered", "bounce", "error"]},
            {"enabled": True, **dict.fromkeys(TOKEN_SWITCHES, False)},
            headers=[HeaderRow()],
        )

    @classmethod
    def of_document(cls, document: Mapping[str, JsonValue]) -> "WebhookForm":
        """Returns the form of a stored webhook."""
        form = cls.blank("", "")
        for key in TEXTS:
            value = value_at(document, key)
            if value is not None or key in ("org", "sandbox"):
                form.texts[key] = shown(key, value)
        auth = value_at(document, "auth.type")
        if auth == "jwt":
            form.texts["auth"] = "sign" if value_at(document, "auth.sign") else "fetch"
            form.texts["auth.fetch.grant"] = str(value_at(document, "auth.fetch.grant") or "client-credentials")
            form.texts["auth.fetch.client_auth"] = str(value_at(document, "auth.fetch.client_auth") or "basic")
        form.texts["payload"] = str(document.get("payload", 1))
        campaigns = document.get("campaigns")
        if isinstance(campaigns, list):
            form.texts["campaigns"], form.campaign_ids = "some", "\n".join(map(str, campaigns))
        for key in LISTS:
            if isinstance(value := document.get(key), list):
                form.lists[key] = [str(item) for item in value]
        form.switches = {"enabled": document.get("enabled") is not False}
        form.switches |= {key: value_at(document, key) is True for key in TOKEN_SWITCHES}
        form.set_stored(document)
        headers = value_at(document, "headers")
        rows = headers.items() if isinstance(headers, dict) else ()
        form.headers = [
            HeaderRow(name, value)
            if isinstance(value, str) and not suggests_a_secret(name)
            else HeaderRow(name, is_stored=True)
            for name, value in rows
        ] or [HeaderRow()]
        return form

    @classmethod
    def of_post(
        cls, posted: Posted, document: Mapping[str, JsonValue], sealer: SecretSealer, person: str
    ) -> "WebhookForm":
        """Returns the form that a browser posted.

        Args:
            document: the stored document; empty for a new webhook.
        """
        form = cls.blank("", "")
        form.texts = {key: text_of(posted, key) for key in TEXTS}
        for key, choices in CHOICES.items():
            given = text_of(posted, key)
            form.texts[key] = given if given in choices else choices[0]
        form.lists = {key: [str(one)[:200] for one in posted.getall(key, [])] for key in LISTS}
        form.switches = {key: text_of(posted, key) == "on" for key in SWITCHES}
        form.campaign_ids = text_of(posted, "campaign_ids")
        form.set_stored(document)
        for place, one in form.secrets.items():
            one.shown = text_of(posted, f"{place}.shown")
            one.typed = text_of(posted, place, strip=False).replace("\r\n", "\n")  # undo the browser's line ends
            sealed = text_of(posted, f"{place}.sealed", strip=False)
            one.is_removed = text_of(posted, f"{place}.remove") == "on"
            if not one.typed and sealed and not one.is_removed:
                opened = sealer.open(sealed, person=person, place=place)
                one.typed = opened or ""
                if opened is None:
                    form.add_error(place, "What was typed here has expired: enter it again.")
        for one in form.signing:
            one.is_removed = text_of(posted, f"signing.remove.{one.stored}") == "on"
        form.headers = list(rows_of(posted)) or [HeaderRow()]
        form.seal_headers(sealer, person)
        return form

    def seal_headers(self, sealer: SecretSealer, person: str) -> None:
        """Opens the sealed values of header parameters, and seals the values whose names suggest a secret."""
        for number, row in enumerate(self.headers):
            place = f"headers.{row.name.lower()}"
            if not row.value and row.sealed:
                opened = sealer.open(row.sealed, person=person, place=place)
                row.value = opened or ""
                if opened is None:
                    self.add_error(f"headers.{number}.value", "What was typed here has expired: enter it again.")
            row.sealed = sealer.seal(row.value, person=person, place=place) if _is_secret(row) else ""

    def set_stored(self, document: Mapping[str, JsonValue]) -> None:
        """Sets the fingerprints of the stored secrets."""
        self.document = document
        for place, one in self.secrets.items():
            one.stored = fingerprint_in(value_at(document, place)) or ""
        stored = value_at(document, "signing.secrets")
        found = [fingerprint_in(one) for one in stored] if isinstance(stored, list) else []
        self.signing = [SecretField(one) for one in found if one is not None]

    @property
    def keys_in_use(self) -> list[str]:
        """Keys of the fields with the signing keys that the chosen method needs."""
        if self.texts["auth"] == "sign":
            return ["auth.sign.key"]
        is_assertion = self.texts["auth"] == "fetch" and self.texts["auth.fetch.grant"] == "jwt-bearer"
        return ["auth.fetch.assertion.key"] if is_assertion else []

    def _is_wrong(self, value_key: str) -> bool:
        """Returns True if a header's row has an error already."""
        return not self.errors.keys().isdisjoint((value_key, value_key.removesuffix("value") + "name"))

    def take_replaced_keys(self) -> bool:
        """Takes over algorithm and id of a signing key that has replaced the one that the browser was shown.

        The store replaces keys without a new version. Returns False if it has replaced none that the form keeps.
        """
        saved = WebhookForm.of_document(self.document)
        replaced = False
        for place in self.keys_in_use:
            one = self.secrets[place]
            if not one.typed and one.shown and one.stored and one.shown != one.stored:
                at = place.removesuffix("key")
                self.texts |= {f"{at}{key}": saved.texts[f"{at}{key}"] for key in ("algorithm", "kid")}
                one.shown, replaced = one.stored, True
        return replaced

    def sort_errors(self) -> None:
        """Sorts the errors in the order of the page."""
        order = ("name", "org", "sandbox", "channels", "url", "auth", "headers")
        place = {key: number for number, key in enumerate(order)}
        found = sorted(self.errors.items(), key=lambda item: place.get(item[0].partition(".")[0], len(order)))
        self.errors = dict(found)

    @property
    def advanced_is_open(self) -> bool:
        """True if the folded section contains an error."""
        return any(key.startswith(ADVANCED) for key in self.errors)

    def add_error(self, key: str, message: str) -> None:
        errors, text = self.errors.setdefault(key, []), sentence(message)
        if text not in errors:
            errors.append(text)

    def add_problems(self, problems: tuple[Problem, ...]) -> None:
        """Adds each problem to its field's errors."""
        for problem in problems:
            key, message = self._field_of(problem.key), problem.message
            if key.startswith("headers.") and self._is_wrong(key):
                continue  # `draft` has added it to its row
            if problem.code is not None:
                message = ": ".join(filter(None, (FOR_FIELDS[problem.code], problem.subject)))
            self.add_error(key, message)

    def _field_of(self, key: str) -> str:
        for number, row in enumerate(self.headers):
            if key == key_of(("headers", row.name)):
                return f"headers.{number}.value"
        name = key.partition("[")[0]
        if name == "signing.secrets":
            return "signing.new"
        if name in ("tls", "auth.fetch", "auth.sign", "auth.fetch.assertion"):
            return {"tls": "tls.certificate", "auth.fetch": "auth.fetch.client_id"}.get(name, f"{name}.key")
        if name.startswith(("auth.sign.claims", "auth.fetch.assertion.claims")):
            return name.partition(".claims")[0] + ".claims"
        if name.startswith("auth.fetch.parameters"):
            return "auth.fetch.parameters"
        known = {*TEXTS, *CHOICES, *LISTS, *SWITCHES, *SECRETS}
        return name if name in known else ""

    def draft(self, stored_headers: Mapping[str, JsonValue]) -> dict[str, JsonValue]:
        """Returns the draft for `WebhookRepository.resolve`. Adds to `errors` what only a form can get wrong."""
        texts = self.texts
        draft: dict[str, JsonValue] = {
            "name": texts["name"],
            "org": texts["org"],
            "sandbox": texts["sandbox"],
            "channels": list(self.lists["channels"]),
            "url": texts["url"],
            "auth": self._auth(),
            "headers": self._headers(stored_headers),
            "events": list(self.lists["events"]),
            "campaigns": "all" if texts["campaigns"] == "all" else self._campaigns(),
            "payload": int(texts["payload"]),
            "enabled": self.switches["enabled"],
            **self._members_without_field("", ("paused",)),
            "tls": without_none({key: self.secrets[f"tls.{key}"].draft() for key in ("ca", "certificate", "key")}),
        }
        draft |= {key: texts[key] for key in ("sandbox_id", "rate_limit", "timeout", "connect_timeout") if texts[key]}
        if texts["notify.emails"]:
            draft["notify"] = {"emails": [one for one in re.split(r"[\s,;]+", texts["notify.emails"]) if one]}
        secrets = [one.draft() for one in (self.secrets["signing.new"], *self.signing)]
        if any(secrets):
            listed: list[JsonValue] = [one for one in secrets if one is not None]
            ends = value_at(self.document, "signing.ends")
            older = [one["fingerprint"] for one in listed[1:] if isinstance(one, dict) and "fingerprint" in one]
            kept = {one: end for one, end in ends.items() if one in older} if isinstance(ends, dict) else {}
            draft["signing"] = {"secrets": listed, **({"ends": kept} if kept else {})}
        return draft

    def _auth(self) -> JsonValue:
        kind = self.texts["auth"]
        if kind == "none":
            return {"type": "none"}
        auth: dict[str, JsonValue] = {"type": "jwt", "scheme": self.texts["auth.scheme"]}
        if self.texts["auth.header"]:
            auth["header"] = self.texts["auth.header"]
        if kind == "sign":
            return auth | {"sign": self._token("auth.sign")}
        grant = self.texts["auth.fetch.grant"]
        fetch: dict[str, JsonValue] = {"grant": grant}
        keys = ("token_url", "client_id", "scope", "audience")
        fetch |= {key: self.texts[f"auth.fetch.{key}"] for key in keys if self.texts[f"auth.fetch.{key}"]}
        fetch["client_auth"] = self.texts["auth.fetch.client_auth"]
        if self.texts["auth.fetch.parameters"]:
            fetch["parameters"] = self._json("auth.fetch.parameters", '{"resource": "https://api.luma.example"}')
        if (secret := self.secrets["auth.fetch.client_secret"].draft()) is not None:
            fetch["client_secret"] = secret
        if grant == "jwt-bearer":
            fetch["assertion"] = self._token("auth.fetch.assertion")
        return auth | {"fetch": fetch}

    def _token(self, at: str) -> JsonValue:
        keys = ("algorithm", "kid", "issuer", "subject", "audience", "ttl")
        token: dict[str, JsonValue] = {key: self.texts[f"{at}.{key}"] for key in keys if self.texts[f"{at}.{key}"]}
        if (secret := self.secrets[f"{at}.key"].draft()) is not None:
            token["key"] = secret
        if self.texts[f"{at}.claims"]:
            token["claims"] = self._json(f"{at}.claims", '{"tenant": "luma"}')
        if "," in (audience := self.texts[f"{at}.audience"]):
            token["audience"] = [one.strip() for one in audience.split(",") if one.strip()]
        for key in ("body_hash", "nbf", "jti"):
            if self.switches.get(f"{at}.{key}"):
                token[key] = True
        kept: tuple[str, ...] = () if f"{at}.jti" in SWITCHES else ("jti",)
        if not self.secrets[f"{at}.key"].typed:  # a new key replaces the next one, too
            kept += ("next",)
        return token | self._members_without_field(at, kept)

    def _members_without_field(self, at: str, keys: tuple[str, ...]) -> dict[str, JsonValue]:
        """Returns stored members that the form has no field for."""
        return without_none({key: value_at(self.document, f"{at}.{key}" if at else key) for key in keys})

    def _json(self, key: str, example: str) -> JsonValue:
        try:
            read: JsonValue = orjson.loads(self.texts[key])
        except orjson.JSONDecodeError as error:
            self.add_error(key, f"is not JSON ({error.msg}, line {error.lineno}): write it as {example}")
            return {}
        if not isinstance(read, dict):
            self.add_error(key, f"must be a JSON object: write it as {example}")
            return {}
        for problem in wide_integers_in(self.texts[key], read):
            self.add_error(key, f"{problem.key}: {problem.message}")
        return read

    def _campaigns(self) -> JsonValue:
        ids: list[JsonValue] = [line.strip() for line in self.campaign_ids.splitlines() if line.strip()]
        if not ids:
            self.add_error("campaigns", "name at least one campaign, or choose all")
        return ids

    def _headers(self, stored: Mapping[str, JsonValue]) -> JsonValue:
        taken = frozenset[str]()
        if self.texts["auth"] != "none":
            taken = frozenset({self.texts["auth.header"].lower() or "authorization", "authorization"})
        headers: dict[str, JsonValue] = {}
        seen: set[str] = set()
        for index, row in enumerate(self.headers):
            if not row.name and not row.value:
                continue
            is_kept = row.is_stored and not row.value
            value = stored.get(row.name) if is_kept else row.value
            wrong = self._keeping_problem(value) if is_kept else header_value_problem(row.value)
            problem = header_name_problem(row.name, taken) if row.name else "give the header a name"
            if problem is None and row.name.lower() in seen:
                problem = "given twice (names are the same in either case): keep one"
            if problem is not None:
                self.add_error(f"headers.{index}.name", problem)
            elif wrong is not None:
                self.add_error(f"headers.{index}.value", wrong)
            seen.add(row.name.lower())
            headers[row.name] = "" if is_kept and wrong is not None else value
        if len(headers) > MAX_HEADERS:
            self.add_error("headers", f"at most {MAX_HEADERS} header parameters")
        return headers

    def _keeping_problem(self, stored: JsonValue) -> str | None:
        """Returns why a header parameter can't keep its stored value, or None if it can."""
        if stored is None:
            return "the stored value belongs to another name: enter it again"
        if fingerprint_in(stored) == LOST:
            return "the stored value can't be decrypted any more: enter it again"
        if is_elsewhere(self.texts["url"], self.document.get("url")):
            return "the webhook URL names another host than the one this value was given for: enter the value again"
        return None


def with_placeholders(draft: Mapping[str, JsonValue]) -> dict[str, JsonValue]:
    """Returns the draft with a placeholder for each secret: a preview needs no secrets."""
    placeholder: JsonValue = {"value": "-"}
    filled = replace_secrets(draft, placeholder)
    for place in ("auth.sign", "auth.fetch.assertion", "auth.fetch"):
        part = value_at(filled, place)
        if isinstance(part, dict) and part.get("grant") != "jwt-bearer":
            part.setdefault("client_secret" if "grant" in part else "key", placeholder)
    return filled


def _is_secret(row: HeaderRow) -> bool:
    return bool(row.value) and suggests_a_secret(row.name)
