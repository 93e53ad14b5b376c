"""Who may ask, with which key, up to which budgets: a tree of tenants, with keys for leaves.

What is in force is what the database says. A file of tenants is applied to it, as one change with a line in the audit
log; commands and the admin API change it in the same way. Every change counts for each reservation after its commit.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass, field
from typing import Protocol

from gateway.domain.generation import Json
from gateway.domain.money import Money
from gateway.domain.tenant import Budget, Caller, KeyTerms, Tenant, TopUp
from gateway.domain.window import Window

KEYS_MARK = "keys"
"""The mark that changes with any key, tenant, budget or top-up."""


@dataclass(frozen=True, slots=True)
class DeclaredKey:
    """What is said of a key that was made elsewhere."""

    hash: str
    """`sha256:` and 64 hexadecimal digits; of the key itself nobody says anything."""

    name: str = ""
    terms: KeyTerms = field(default_factory=KeyTerms)


@dataclass(frozen=True, slots=True)
class Declared:
    """What is said of one tenant: by a file, by the admin API, by the database."""

    name: str
    parent: str | None = None
    budgets: tuple[Budget, ...] | None = None
    """None where they were left out, which only a tenant with a parent may."""

    most_per_request: Money | None = None
    models: frozenset[str] | None = None
    private_cache: bool = False
    keys: tuple[DeclaredKey, ...] = ()
    """All that are declared with it; those that were made here are no matter of a declaration."""

    @property
    def limits(self) -> tuple[Budget, ...]:
        """Its budgets, what a single request may cost among them."""
        alone = () if self.most_per_request is None else (Budget(self.most_per_request, Window.REQUEST),)
        return (*(self.budgets or ()), *alone)


@dataclass(frozen=True, slots=True)
class Key:
    """What is known of a tenant's key: everything but the key."""

    id: str
    tenant: str
    name: str
    hint: str
    """Its first characters, by which its owner recognises it; of one that was made elsewhere, those of its hash."""

    created_at: float
    revoked_at: float | None
    terms: KeyTerms = field(default_factory=KeyTerms)
    last_used_at: float | None = None
    """To within a minute."""

    replaced_by: str | None = None
    """The id of the key that was made in its place."""

    is_declared: bool = False
    """Whether it was made elsewhere, and its tenant's declaration says what it may."""


@dataclass(frozen=True, slots=True)
class Change:
    """One thing that is said differently."""

    what: str
    """A tenant, or a member of one: `film.budgets.month.limit_usd`."""

    before: Json
    """None: nothing was said."""

    after: Json
    """None: nothing is said any more."""


@dataclass(frozen=True, slots=True)
class AuditEntry:
    """One line of the audit log, to which is only added."""

    serial: int
    at: float
    who: str
    """`start`, `SIGHUP`, `cli:NAME`, `key:ID`."""

    action: str
    what: str
    """A tenant, or a key: `film#1f2e3d4c5b6a`."""

    before: Json
    after: Json


class Tenants(Protocol):
    """The tenants of this gateway, as they are now."""

    def find(self, name: str) -> Tenant:
        """The tenant called `name`; TenantUnknown, with the nearest known name, if there is none."""

    def __iter__(self) -> Iterator[Tenant]: ...


class Keys(Protocol):
    """Tenants' keys. A key is shown once, when it is made; what is kept is its hash.

    Keys are named by their id, their hint or the key itself; KeyUnknown if none in force has it, or more than one.
    What a key may that is declared with its tenant is said there alone: to rotate or to amend it is DocumentInvalid.
    """

    async def create(self, tenant: str, name: str, *, terms: KeyTerms = ..., who: str = "") -> str:
        """A new key, random and prefixed: the only time that it is seen.

        Raises TenantUnknown, and DocumentInvalid where it would have ended before it begins.
        """

    async def rotate(self, key: str, *, overlap_seconds: float, who: str = "") -> str:
        """A new key with the same name and terms; the old one ends after `overlap_seconds`, or sooner if it was to.

        They spend one budget together, with those before them. DocumentInvalid for a key that was rotated already.
        Raises KeyUnknown, TenantUnknown.
        """

    async def amend(
        self,
        key: str,
        *,
        name: str | None = None,
        change: Callable[[KeyTerms], KeyTerms] = ...,
        who: str = "",
    ) -> Key:
        """Another name, or other terms, for a key; without them they stay. Raises KeyUnknown."""

    async def revoke(self, key: str, *, who: str = "") -> Key:
        """End a key at once and for good. Raises KeyUnknown."""

    async def listed(self, tenant: str | None) -> Sequence[Key]:
        """All keys, or those of one tenant, oldest first, those that have ended included."""

    def authenticate(self, presented: str | None) -> Caller:
        """Who shows this key. Does no I/O that could wait. Raises Unauthenticated.

        What a command or another process of the gateway has changed is known at once; what somebody else has done to
        the database, within a second. After each change it is another Caller, never the same one changed.
        """

    async def find_key(self, key: str) -> Key:
        """What is known of a key. Raises KeyUnknown."""

    def caller(self, key_id: str) -> Caller | None:
        """Whose key this is; None where it has ended or its tenant is gone."""

    def callers(self) -> Iterator[Caller]:
        """All whose keys are in force."""

    def note_use(self, key_id: str) -> None:
        """Remember that a key was used just now: for whoever does not ask who it is each time."""

    async def write_down_uses(self) -> None:
        """Write down when each key was last used: to be called every minute."""

    @property
    def revision(self) -> int:
        """For as long as this is the same, `authenticate` answers the same. Costs less than asking it."""


class Register(Protocol):
    """What is said of tenants, and how it is changed. Each change is one transaction with its lines in the audit log.

    Raises DocumentInvalid, with all mistakes, for what would not be a tree of tenants: nothing is changed then.
    Changes to tenants with `dry_run` are told and not made.
    """

    async def apply(
        self, declared: Sequence[Declared], *, who: str, dry_run: bool = False, if_other: bool = False
    ) -> Sequence[Change]:
        """Let a file be what is said: of everybody but those that no file has ever named.

        Whom an earlier file named, and this one does not, is removed. With `if_other` nothing is done where the file
        that was applied last said the same: what was changed since then by other means stays.
        """

    async def was_applied(self) -> bool:
        """Whether any file ever was."""

    async def put(self, declared: Declared, *, who: str, dry_run: bool = False) -> Sequence[Change]:
        """Let this be what is said of one tenant, which is made if there is none of its name."""

    async def move(
        self, name: str, *, parent: str | None, who: str, dry_run: bool = False
    ) -> Sequence[Change]:
        """Put a tenant, with all below it, below another; None: below nobody. Raises TenantUnknown."""

    async def remove(self, name: str, *, who: str, dry_run: bool = False) -> Sequence[Change]:
        """End a tenant and, with it, its keys, until it is back. What it has spent stays. Raises TenantUnknown."""

    async def declared(self) -> Sequence[Declared]:
        """What is said now, by name."""

    async def top_up(
        self,
        tenant: str,
        amount: Money,
        *,
        reason: str,
        who: str,
        budget: str | None = None,
        key: str | None = None,
    ) -> TopUp:
        """Add to a budget of a tenant, or of one of its keys, in the window that it is in now.

        `budget` may be left out where there is one only. Raises TenantUnknown, KeyUnknown, BudgetUnknown.
        """

    async def audit(self, *, limit: int = 100, before: int | None = None) -> Sequence[AuditEntry]:
        """The newest lines of the audit log, newest first; with `before`, those older than that one's serial."""
