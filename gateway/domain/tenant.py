"""Who may ask, with which key, and up to which budgets: a tree of tenants, with keys for leaves."""

from __future__ import annotations

import enum
from dataclasses import dataclass, field

from gateway.domain.money import Money
from gateway.domain.window import Per, Span, Window


@dataclass(frozen=True, slots=True)
class TopUp:
    """A one-off addition to a budget's limit, in the window that holds `at`."""

    amount: Money
    at: float
    reason: str


@dataclass(frozen=True, slots=True)
class Budget:
    """At most `limit` may be spent and held together within one window."""

    limit: Money
    per: Window
    name: str = ""
    """Tells it from others of the same holder; without one it is called after its window."""

    models: frozenset[str] | None = None
    """The models for which it counts; None for all together."""

    alert_at: tuple[int, ...] | None = None
    """At which hundredths of the limit somebody is told; None: at those that the settings have."""

    top_ups: tuple[TopUp, ...] = ()

    @property
    def label(self) -> str:
        """What people call it."""
        return self.name or self.per.label

    def covers(self, model: str) -> bool:
        """Whether what is spent on `model` counts."""
        return self.models is None or model in self.models

    def limit_in(self, span: Span) -> Money:
        """The limit of the window that is `span`, with what was added to it meanwhile."""
        return sum((top_up.amount for top_up in self.top_ups if span.holds(top_up.at)), start=self.limit)

    @property
    def is_per_request(self) -> bool:
        """Whether it limits each request by itself, whatever was spent before."""
        return self.per.per is Per.REQUEST


@dataclass(frozen=True, slots=True)
class Tenant:
    """Who pays: an organisation, or a team anywhere below one."""

    name: str
    budgets: tuple[Budget, ...]
    """Every one of them must have room; an empty tuple is no limit, and has to be written down to be had."""

    models: frozenset[str] | None = None
    """The models that this tenant may use; None for all."""

    private_cache: bool = False
    """Whether this tenant's generations are kept from others, and others' from it."""

    parent: Tenant | None = None
    """To whom it belongs; every budget above it must have room, too."""

    @property
    def chain(self) -> tuple[Tenant, ...]:
        """Itself, its parent, and so on to the organisation."""
        return (self, *self.parent.chain) if self.parent else (self,)

    @property
    def path(self) -> str:
        """Where it stands: `acme/film`."""
        return f"{self.parent.path}/{self.name}" if self.parent else self.name

    @property
    def holder(self) -> Holder:
        """By itself, with its own budgets."""
        return Holder(self.name, "", self.budgets)

    @property
    def cache_scope(self) -> str | None:
        """Within whom its generations are kept private: the nearest above it that wants that; None where nobody does."""
        return next((tenant.name for tenant in self.chain if tenant.private_cache), None)

    def may_use(self, model: str) -> bool:
        """Whether it and everybody above it allow the model."""
        return all(tenant.models is None or model in tenant.models for tenant in self.chain)


class Role(enum.Enum):
    """What a key is good for."""

    CALLER = "caller"
    """Everything that its tenant may."""

    READER = "reader"
    """To look: usage, models, requests, quotes. It buys nothing and is given no media."""

    ADMIN = "admin"
    """What a reader may, and to administer tenants and keys."""


@dataclass(frozen=True, slots=True)
class Rate:
    """How often a key may be used."""

    requests: int
    """On average, within `seconds`."""

    seconds: int
    burst: int
    """At once, after a pause."""


@dataclass(frozen=True, slots=True)
class KeyTerms:
    """What one key may, within what its tenant may."""

    role: Role = Role.CALLER
    models: frozenset[str] | None = None
    budgets: tuple[Budget, ...] = ()
    rate: Rate | None = None
    expires_at: float | None = None


@dataclass(frozen=True, slots=True)
class Party:
    """Who is charged: a key, and where its tenant stood in the tree. What the books keep stays there for ever."""

    path: str
    """`acme/film`."""

    key_id: str

    @property
    def tenant(self) -> str:
        """The last name of the path."""
        return self.path.rpartition("/")[2]

    @property
    def organisation(self) -> str:
        """The first name of the path."""
        return self.path.partition("/")[0]


@dataclass(frozen=True, slots=True)
class Holder:
    """Somebody with budgets: a tenant, or one of its keys."""

    tenant: str
    key_id: str
    """Empty for the tenant itself."""

    budgets: tuple[Budget, ...]
    rotated_with: tuple[str, ...] = ()
    """Of a key: those that it was made in place of, or that were in its. They spend one budget together."""

    @property
    def key_ids(self) -> tuple[str, ...]:
        """With which keys what counts in its budgets was bought; none for the tenant itself, which is with any."""
        return (self.key_id, *self.rotated_with) if self.key_id else ()

    @property
    def name(self) -> str:
        """`film`, or `film#1f2e3d` for a key of it."""
        return f"{self.tenant}#{self.key_id}" if self.key_id else self.tenant


@dataclass(frozen=True, slots=True)
class Caller:
    """A tenant as it arrived: with which of its keys."""

    tenant: Tenant
    key_id: str
    terms: KeyTerms = field(default_factory=KeyTerms)
    place: int = 0
    """Where its rate is kept: no other key with a rate has the same."""

    rotated_with: tuple[str, ...] = ()
    """The keys that this one was made in place of, and those that were made in its."""

    @property
    def party(self) -> Party:
        """Who is charged for what it asks."""
        return Party(self.tenant.path, self.key_id)

    @property
    def holder(self) -> Holder:
        """The key alone, with its own budgets."""
        return Holder(self.tenant.name, self.key_id, self.terms.budgets, self.rotated_with)

    @property
    def holders(self) -> tuple[Holder, ...]:
        """Whose budgets a request has to fit, the nearest first: its key's, and everybody's above it."""
        key = (self.holder,) if self.terms.budgets else ()
        return key + tuple(tenant.holder for tenant in self.tenant.chain)

    @property
    def models(self) -> frozenset[str] | None:
        """The models that key, tenant and everybody above it allow; None for all."""
        named = [
            each
            for each in (self.terms.models, *(tenant.models for tenant in self.tenant.chain))
            if each is not None
        ]
        return frozenset.intersection(*named) if named else None

    def may_use(self, model: str) -> bool:
        """Whether key and tenant allow the model."""
        return (self.terms.models is None or model in self.terms.models) and self.tenant.may_use(model)
