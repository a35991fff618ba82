"""The selections of the top bar: organisation and sandbox (the scope), and colours. Both are kept in cookies.

The scope filters what is shown. It grants no access: that depends on the person only.
"""

from collections.abc import Iterable
from dataclasses import dataclass
from typing import Final, Self
from urllib.parse import quote, unquote

from aiohttp import web

from dispatcher.console.model import Person
from dispatcher.contract.tenant import TenantKey
from dispatcher.stores.sql.records import Orgs

SCOPE_COOKIE: Final = "dispatcher-scope"
THEME_COOKIE: Final = "dispatcher-theme"
THEMES: Final = ("system", "light", "dark")


@dataclass(frozen=True, slots=True)
class Choice:
    """One option of the switch."""

    value: str
    label: str
    is_chosen: bool


@dataclass(frozen=True, slots=True)
class Scope:
    """The tenants that are shown: all, those of an organisation, or one."""

    org: str | None = None
    sandbox: str | None = None

    @classmethod
    def read(cls, text: str) -> Self:
        """Parses a scope in the form of `value`; returns the scope of all tenants if the text is invalid."""
        org, _, sandbox = text.partition("/")
        return cls(unquote(org)[:200] or None, (unquote(sandbox)[:200] or None) if org else None)

    @classmethod
    def of(cls, request: web.Request, person: Person | None) -> Self:
        """Returns the request's scope; all tenants if the cookie names an organisation that the person can't see."""
        found = cls.read(request.cookies.get(SCOPE_COOKIE, ""))
        return cls() if person is None or (found.org is not None and not person.may_see(found.org)) else found

    @property
    def value(self) -> str:
        """`org/sandbox`, percent-encoded; `org` for all its sandboxes; empty for all."""
        return "/".join(quote(part, safe="@") for part in (self.org, self.sandbox) if part is not None)

    @property
    def tenant(self) -> TenantKey | None:
        """The tenant, if the scope is a single one."""
        return None if self.org is None or self.sandbox is None else TenantKey(self.org, self.sandbox)

    def orgs(self, person: Person) -> Orgs:
        """Returns the organisations that are shown: the scope's, else those of the person; None for all."""
        return person.orgs if self.org is None else frozenset({self.org})

    @property
    def label(self) -> str:
        if self.org is None:
            return "All organisations"
        return f"{self.org} / {self.sandbox}" if self.sandbox else f"{self.org}, all sandboxes"

    def choices(self, found: Iterable[TenantKey], orgs: Orgs) -> list[Choice]:
        """Returns all options, including this scope. `orgs` are the person's, which may have no webhook yet."""
        scopes = [Scope()]
        tenants = sorted(set(found))
        for org in sorted({tenant.org for tenant in tenants} | (orgs or frozenset())):
            scopes.append(Scope(org))
            scopes += [Scope(*tenant) for tenant in tenants if tenant.org == org]
        if self not in scopes:
            scopes.append(Scope(self.org, self.sandbox))
        return [Choice(scope.value, scope.label, scope == self) for scope in scopes]


def theme_of(request: web.Request) -> str:
    """Returns the request's theme; `system` follows the browser's setting."""
    theme = request.cookies.get(THEME_COOKIE, "")
    return theme if theme in THEMES else "system"
