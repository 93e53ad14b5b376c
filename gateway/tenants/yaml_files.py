"""Tenants, as config/tenants.yaml declares them."""

from __future__ import annotations

from collections.abc import Collection, Iterator, Mapping
from decimal import Decimal
from pathlib import Path
from typing import Annotated, Literal

from pydantic import AfterValidator, BaseModel, ConfigDict

from gateway.documents.pydantic_models import parse
from gateway.documents.spelling import nearest
from gateway.documents.yaml_files import DocumentInvalid, Mistake, read
from gateway.domain.money import Money
from gateway.domain.tenant import Budget, Tenant
from gateway.domain.window import Per, Window
from gateway.tenants.contract import TenantUnknown


def _limit(value: float | str) -> float | str:
    if Money.exactly(value) < Money.ZERO:
        raise ValueError("should be 0 or more")
    return value


class _Entry(BaseModel):
    model_config = ConfigDict(frozen=True, extra="forbid")


class _BudgetEntry(_Entry):
    limit_usd: Annotated[float | str, AfterValidator(_limit)]
    per: Literal["day", "month", "total"]


class _TenantEntry(_Entry):
    budgets: list[_BudgetEntry]
    models: list[str] | None = None
    cache: Literal["shared", "private"] = "shared"


class _File(_Entry):
    tenants: dict[str, _TenantEntry]


class DeclaredTenants:
    """Keeps the contract Tenants."""

    def __init__(self, tenants: Mapping[str, Tenant]) -> None:
        self._tenants = dict(tenants)

    def find(self, name: str) -> Tenant:
        tenant = self._tenants.get(name)
        if tenant is None:
            like = nearest(name, self._tenants)
            known = ", ".join(sorted(self._tenants)) or "none"
            hint = f"did you mean {like}?" if like else f"known tenants: {known}"
            raise TenantUnknown(f"unknown tenant {name}: {hint}")
        return tenant

    def __iter__(self) -> Iterator[Tenant]:
        return iter(self._tenants.values())


def load_tenants(path: Path, *, models: Collection[str]) -> DeclaredTenants:
    """The tenants in the file `path`, none of which may name a model outside `models`.

    Raises DocumentInvalid with every mistake that there is.
    """
    document = read(path)
    file = parse(document, _File, entry="entry")
    mistakes = []
    for name, entry in file.tenants.items():
        if not name.replace("-", "").replace("_", "").isalnum():
            where = document.where(("tenants", name))
            mistakes.append(Mistake(where, f"the name {name} may only have letters, digits, - and _"))
        for index, model in enumerate(entry.models or ()):
            if model not in models:
                like = nearest(model, models)
                hint = f", did you mean {like}?" if like else ""
                where = document.where(("tenants", name, "models", index))
                mistakes.append(Mistake(where, f"unknown model {model}{hint}"))
    if mistakes:
        raise DocumentInvalid(mistakes)
    return DeclaredTenants({name: _tenant(name, entry) for name, entry in file.tenants.items()})


def _tenant(name: str, entry: _TenantEntry) -> Tenant:
    return Tenant(
        name=name,
        budgets=tuple(
            Budget(Money.exactly(Decimal(str(budget.limit_usd))), Window(Per(budget.per)))
            for budget in entry.budgets
        ),
        models=None if entry.models is None else frozenset(entry.models),
        private_cache=entry.cache == "private",
    )
