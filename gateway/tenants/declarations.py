"""What can be said of a tenant and of a key, and what it means: for files, for the admin API, and for the database."""

from __future__ import annotations

import itertools
import re
from collections.abc import Collection, Iterable, Iterator, Mapping, Sequence
from dataclasses import replace
from datetime import date, datetime
from decimal import Decimal
from functools import lru_cache
from typing import Annotated, Literal
from zoneinfo import available_timezones

from pydantic import AfterValidator, BaseModel, ConfigDict, Field, model_validator

from gateway.documents.pydantic_models import parse
from gateway.documents.spelling import remedy
from gateway.documents.yaml_files import Document, Place
from gateway.domain.generation import Json
from gateway.domain.json_forms import utc
from gateway.domain.money import Money
from gateway.domain.tenant import Budget, KeyTerms, Rate, Role, Tenant, TopUp
from gateway.domain.window import Per, Window
from gateway.tenants.contract import Change, Declared, DeclaredKey

PER_REQUEST = "request"
"""What the budget is called that `max_usd_per_request` makes."""

MODELS_LISTED = ": `gateway models` lists them"
"""What follows the name of a model that there is not, and that is like no other."""

_WEEKDAYS = ("monday", "tuesday", "wednesday", "thursday", "friday", "saturday", "sunday")
_SECONDS = {"second": 1, "minute": 60, "hour": 3600, "day": 86_400}
_LONGEST_LINE = 200
_HOURS = {"h": 1, "d": 24, "w": 168}

Weekday = Literal["monday", "tuesday", "wednesday", "thursday", "friday", "saturday", "sunday"]


def _amount(value: float | str) -> float | str:
    if Money.exactly(value) < Money.ZERO:
        raise ValueError("should be 0 or more")
    return value


def _zone(value: str) -> str:
    if value != "UTC" and value not in _zones():
        like = remedy(value, _zones(), otherwise=": write one such as Europe/Berlin")
        raise ValueError(f"unknown time zone {value}{like}")
    return value


@lru_cache(1)
def _zones() -> Collection[str]:
    # Files beside those of the zones that stand for no place: for this machine's own zone, and for none.
    return available_timezones() - {"Factory", "localtime", "posixrules"}


def _day(value: str) -> str:
    try:
        return date.fromisoformat(value).isoformat()
    except ValueError:
        raise ValueError(f"should be a day such as 2026-12-31, not {value}") from None


def _moment(value: str) -> str:
    try:
        moment = datetime.fromisoformat(value)
    except ValueError:
        moment = None
    if moment is None or moment.tzinfo is None:
        raise ValueError(f"should be a moment such as 2026-12-31T23:00:00Z, not {value}")
    return value


def _rolling(value: str) -> str:
    if not re.fullmatch(r"[1-9][0-9]{0,4}[hdw]", value):
        raise ValueError(f"should be a length such as 12h, 30d or 4w, not {value}")
    return value


def _name(value: str) -> str:
    if not re.fullmatch(r"[\w][\w .+-]{0,62}", value):
        raise ValueError("should have letters, digits, spaces and . + - _, at most 63 of them")
    return value


def one_line(value: str) -> str:
    """Something that is said in words, for a list or a log. Raises ValueError."""
    if len(value) > _LONGEST_LINE or re.search(r"[\x00-\x1f\x7f-\x9f\u2028\u2029]", value):
        raise ValueError(f"should be one line of at most {_LONGEST_LINE} characters")
    return value


def _hash(value: str) -> str:
    if not re.fullmatch("sha256:[0-9a-f]{64}", value):
        raise ValueError(
            "should be what `gateway keys hash` says of a key: sha256: and 64 hexadecimal digits"
        )
    return value


def _some(value: list[str] | None) -> list[str] | None:
    if value == []:
        raise ValueError("names no model: leave it out where all of them count")
    return value


Amount = Annotated[float | str, AfterValidator(_amount)]
Zone = Annotated[str, AfterValidator(_zone)]
Day = Annotated[str, AfterValidator(_day)]
Line = Annotated[str, AfterValidator(one_line)]


class _Entry(BaseModel):
    model_config = ConfigDict(frozen=True, extra="forbid")


class BudgetEntry(_Entry):
    limit_usd: Amount
    per: Literal["day", "week", "month", "quarter", "year", "total"] | None = None
    rolling: Annotated[str, AfterValidator(_rolling)] | None = None
    zone: Zone | None = None
    week_starts: Weekday | None = None
    first_day: Day | None = None
    last_day: Day | None = None
    models: Annotated[list[str] | None, AfterValidator(_some)] = None
    name: Annotated[str, AfterValidator(_name)] | None = None
    alert_at: list[Annotated[int, Field(ge=1, le=100)]] | None = None

    @model_validator(mode="after")
    def _make_sense(self) -> BudgetEntry:
        if (self.per is None) == (self.rolling is None):
            raise ValueError(
                "should have one of per (day, week, month, quarter, year, total) and rolling (30d), and has "
                + ("none" if self.per is None else "both")
            )
        if self.week_starts is not None and self.per != "week":
            raise ValueError("has week_starts, which goes with per: week alone")
        self.window("UTC", "monday")
        return self

    def window(self, zone: str, week_starts: Weekday) -> Window:
        """Over what it counts, where `zone` and `week_starts` are what others say that say nothing."""
        starts = _WEEKDAYS.index(self.week_starts or week_starts) if self.per == "week" else 0
        has_days = self.per not in (None, "total") or self.first_day or self.last_day
        return Window(
            Per(self.per) if self.per else Per.ROLLING,
            zone=(self.zone or zone) if has_days else "UTC",
            week_starts=starts,
            rolling_seconds=int(self.rolling[:-1]) * _HOURS[self.rolling[-1]] * 3600 if self.rolling else 0,
            first_day=date.fromisoformat(self.first_day) if self.first_day else None,
            last_day=date.fromisoformat(self.last_day) if self.last_day else None,
        )


class RateEntry(_Entry):
    requests: Annotated[int, Field(ge=1, le=1_000_000)]
    per: Literal["second", "minute", "hour", "day"]
    burst: Annotated[int, Field(ge=1, le=1_000_000)] | None = None


class _TermsEntry(_Entry):
    role: Literal["caller", "reader", "admin"] = "caller"
    models: list[str] | None = None
    budgets: list[BudgetEntry] = []
    rate: RateEntry | None = None
    expires_at: Annotated[str, AfterValidator(_moment)] | None = None


class KeyEntry(_TermsEntry):
    hash: Annotated[str, AfterValidator(_hash)]
    name: Line = ""


class TenantEntry(_Entry):
    parent: str | None = None
    budgets: list[BudgetEntry] | None = None
    max_usd_per_request: Amount | None = None
    models: list[str] | None = None
    cache: Literal["shared", "private"] = "shared"
    keys: list[KeyEntry] = []


class Reading:
    """Entries into what they mean, with what is said once for all of a file."""

    def __init__(
        self,
        *,
        zone: str = "UTC",
        week_starts: Weekday = "monday",
        groups: Mapping[str, Sequence[str]] | None = None,
    ) -> None:
        self._zone = zone
        self._week_starts = week_starts
        self._groups = groups or {}

    def declared(self, name: str, entry: TenantEntry) -> Declared:
        return Declared(
            name=name,
            parent=entry.parent,
            budgets=None if entry.budgets is None else self.budgets(entry.budgets),
            most_per_request=(
                None if entry.max_usd_per_request is None else _money(entry.max_usd_per_request)
            ),
            models=self._models(entry.models),
            private_cache=entry.cache == "private",
            keys=tuple(DeclaredKey(key.hash, key.name, self.terms(key)) for key in entry.keys),
        )

    def terms(self, entry: _TermsEntry) -> KeyTerms:
        rate = entry.rate
        return KeyTerms(
            role=Role(entry.role),
            models=self._models(entry.models),
            budgets=self.budgets(entry.budgets),
            rate=None
            if rate is None
            else Rate(rate.requests, _SECONDS[rate.per], rate.burst or rate.requests),
            expires_at=(
                None if entry.expires_at is None else datetime.fromisoformat(entry.expires_at).timestamp()
            ),
        )

    def budgets(self, entries: Sequence[BudgetEntry]) -> tuple[Budget, ...]:
        """Each with a name of its own: where none is given, its window's and its models', and a number if need be."""
        taken = {entry.name for entry in entries if entry.name}
        budgets = []
        for entry in entries:
            window = entry.window(self._zone, self._week_starts)
            name = entry.name
            if not name:
                called = " ".join([window.label, *sorted(entry.models or ())])
                names = (called if number == 1 else f"{called} {number}" for number in itertools.count(1))
                name = next(each for each in names if each not in taken)
                taken.add(name)
            budgets.append(
                Budget(
                    _money(entry.limit_usd),
                    window,
                    name="" if name == window.label else name,
                    models=self._models(entry.models),
                    alert_at=None if entry.alert_at is None else tuple(sorted({*entry.alert_at})),
                )
            )
        return tuple(budgets)

    def _models(self, names: Sequence[str] | None) -> frozenset[str] | None:
        if names is None:
            return None
        return frozenset(model for name in names for model in self._groups.get(name, [name]))


def declared_from_json(name: str, value: Json, *, models: Collection[str] | None = None) -> Declared:
    """A tenant from the JSON of one entry of the file. Raises DocumentInvalid with every mistake that is in it.

    `models` are those that it may name; None where that was looked at before.
    """
    document = Document(name, value, {})
    entry = parse(document, TenantEntry, entry="entry")
    mistakes = [*mistakes_in_name(name, ("name",)), *mistakes_in_entry(entry, (), models)]
    if mistakes:
        raise document.invalid(mistakes)
    return Reading().declared(name, entry)


def declared_to_json(declared: Declared) -> dict[str, Json]:
    """What `declared_from_json` makes the same of; what goes without saying is left out."""
    said: dict[str, Json] = {}
    if declared.parent is not None:
        said["parent"] = declared.parent
    if declared.budgets is not None:
        said["budgets"] = [_budget_to_json(budget) for budget in declared.budgets]
    if declared.most_per_request is not None:
        said["max_usd_per_request"] = str(declared.most_per_request.usd)
    if declared.models is not None:
        said["models"] = _names(declared.models)
    if declared.private_cache:
        said["cache"] = "private"
    if declared.keys:
        said["keys"] = [_key_to_json(key) for key in declared.keys]
    return said


def _key_to_json(key: DeclaredKey) -> dict[str, Json]:
    named: dict[str, Json] = {"name": key.name} if key.name else {}
    return {"hash": key.hash, **named, **terms_to_json(key.terms)}


def terms_from_json(value: Json, *, called: str = "key", models: Collection[str] | None = None) -> KeyTerms:
    """A key's terms: `role`, `models`, `budgets`, `rate` and `expires_at` (ISO 8601), each of which may be left out.

    Raises DocumentInvalid with every mistake that is in it, in which it is called `called`.
    """
    document = Document(called, value, {})
    entry = parse(document, _TermsEntry, entry="entry")
    mistakes = [
        *_strange_models(entry.models, ("models",), models),
        *_mistakes_in_budgets(entry.budgets, (), models, ()),
    ]
    if mistakes:
        raise document.invalid(mistakes)
    return Reading().terms(entry)


def terms_to_json(terms: KeyTerms) -> dict[str, Json]:
    """What `terms_from_json` makes the same of, but for parts of a second; what goes without saying is left out."""
    said: dict[str, Json] = {}
    if terms.role is not Role.CALLER:
        said["role"] = terms.role.value
    if terms.models is not None:
        said["models"] = _names(terms.models)
    if terms.budgets:
        said["budgets"] = [_budget_to_json(budget) for budget in terms.budgets]
    if terms.rate is not None:
        per = next(word for word, seconds in _SECONDS.items() if seconds == terms.rate.seconds)
        said["rate"] = {"requests": terms.rate.requests, "per": per, "burst": terms.rate.burst}
    if terms.expires_at is not None:
        said["expires_at"] = utc(terms.expires_at)
    return said


def _budget_to_json(budget: Budget) -> dict[str, Json]:
    window = budget.per
    said: dict[str, Json] = {"limit_usd": str(budget.limit.usd)}
    if window.per is Per.ROLLING:
        said["rolling"] = window.label.removeprefix("rolling ")
    else:
        said["per"] = window.per.value
    if window.zone != "UTC":
        said["zone"] = window.zone
    if window.week_starts:
        said["week_starts"] = _WEEKDAYS[window.week_starts]
    if window.first_day is not None:
        said["first_day"] = window.first_day.isoformat()
    if window.last_day is not None:
        said["last_day"] = window.last_day.isoformat()
    if budget.models is not None:
        said["models"] = _names(budget.models)
    if budget.name:
        said["name"] = budget.name
    if budget.alert_at is not None:
        said["alert_at"] = [*budget.alert_at]
    return said


def _names(models: Iterable[str]) -> list[Json]:
    return [*sorted(models)]


def mistakes_in_name(name: str, place: Place) -> Iterator[tuple[Place, str]]:
    if not re.fullmatch(r"[\w-]{1,63}", name):
        yield place, f"{name[:70]!r} is no name: use letters, digits, - and _, at most 63 of them"


def mistakes_in_entry(
    entry: TenantEntry, place: Place, models: Collection[str] | None
) -> Iterator[tuple[Place, str]]:
    """What is wrong with a tenant's entry that can be seen without the others."""
    if entry.budgets is None and entry.parent is None:
        yield (*place, "budgets"), "is missing (write `budgets: []` for no limit)"
    yield from _strange_models(entry.models, (*place, "models"), models)
    taken = () if entry.max_usd_per_request is None else (PER_REQUEST,)
    yield from _mistakes_in_budgets(entry.budgets or (), place, models, taken)
    for index, key in enumerate(entry.keys):
        at: Place = (*place, "keys", index)
        yield from _strange_models(key.models, (*at, "models"), models)
        yield from _mistakes_in_budgets(key.budgets, at, models, ())


def _mistakes_in_budgets(
    entries: Sequence[BudgetEntry], place: Place, models: Collection[str] | None, taken: Collection[str]
) -> Iterator[tuple[Place, str]]:
    names = set(taken)
    for index, budget in enumerate(entries):
        at: Place = (*place, "budgets", index)
        if budget.name in names:
            yield (*at, "name"), f"another budget is called {budget.name} already: give it a name of its own"
        if budget.name is not None:
            names.add(budget.name)
        yield from _strange_models(budget.models, (*at, "models"), models)


def _strange_models(
    named: Sequence[str] | None, place: Place, models: Collection[str] | None
) -> Iterator[tuple[Place, str]]:
    for index, model in enumerate(named or ()):
        if models is not None and model not in models:
            yield (*place, index), f"unknown model {model}{remedy(model, models, otherwise=MODELS_LISTED)}"


def mistakes_in_tree(declared: Mapping[str, Declared]) -> Iterator[tuple[str, str]]:
    """Of which tenant's parent there is something wrong, and what."""
    for tenant in declared.values():
        if tenant.parent is None:
            continue
        if tenant.parent not in declared:
            like = remedy(tenant.parent, declared, otherwise="")
            yield tenant.name, f"there is no tenant {tenant.parent}{like}"
            continue
        above = [tenant.name]
        while (parent := declared[above[-1]].parent) in declared and parent is not None:
            if parent in above:
                break
            above.append(parent)
        if parent == tenant.name:
            yield tenant.name, f"stands below itself: {' < '.join([*above, tenant.name])}"


def mistakes_in_keys(declared: Mapping[str, Declared]) -> Iterator[tuple[str, int, str]]:
    """Which of a tenant's keys, by its number, somebody else has, too."""
    holders: dict[str, str] = {}
    for tenant in declared.values():
        for index, key in enumerate(tenant.keys):
            if key.hash in holders:
                yield tenant.name, index, f"is a key of {holders[key.hash]} already: a key is one tenant's"
            holders.setdefault(key.hash, tenant.name)


TopUps = Mapping[tuple[str, str, str], Sequence[TopUp]]
"""By tenant, key (empty for the tenant itself) and what the budget is called."""


def tree(declared: Iterable[Declared], top_ups: TopUps) -> dict[str, Tenant]:
    """The tenants, each with those above it; among them there is no mistake."""
    by_name = {each.name: each for each in declared}
    tenants: dict[str, Tenant] = {}

    def grown(name: str) -> Tenant:
        if name not in tenants:
            said = by_name[name]
            tenants[name] = Tenant(
                name=name,
                budgets=topped_up(said.limits, name, [""], top_ups),
                models=said.models,
                private_cache=said.private_cache,
                parent=None if said.parent is None else grown(said.parent),
            )
        return tenants[name]

    return {name: grown(name) for name in by_name}


def topped_up(
    budgets: Iterable[Budget], tenant: str, key_ids: Sequence[str], top_ups: TopUps
) -> tuple[Budget, ...]:
    """The budgets with what was added to each, with whichever of the keys it was named."""
    return tuple(
        replace(
            budget,
            top_ups=tuple(
                added for key_id in key_ids for added in top_ups.get((tenant, key_id, budget.label), ())
            ),
        )
        for budget in budgets
    )


def changes(before: Mapping[str, Declared], after: Mapping[str, Declared]) -> Sequence[Change]:
    """What is different, tenant by tenant and member by member; budgets are known again by their names."""
    found: list[Change] = []
    for name in sorted(before.keys() | after.keys()):
        if name not in before:
            found.append(Change(name, None, declared_to_json(after[name])))
        elif name not in after:
            found.append(Change(name, declared_to_json(before[name]), None))
        else:
            found += _different(name, _members(before[name]), _members(after[name]))
    return found


def _different(what: str, before: Mapping[str, Json], after: Mapping[str, Json]) -> Iterator[Change]:
    for member in sorted(before.keys() | after.keys()):
        was, now = before.get(member), after.get(member)
        if isinstance(was, dict) and isinstance(now, dict):
            yield from _different(f"{what}.{member}", was, now)
        elif was != now:
            yield Change(f"{what}.{member}", was, now)


def _members(declared: Declared) -> dict[str, Json]:
    members = declared_to_json(declared)
    if declared.budgets:
        del members["budgets"]
        members |= {f"budgets.{budget.label}": _budget_to_json(budget) for budget in declared.budgets}
    if declared.keys:
        del members["keys"]
        members |= {f"keys.{key.hash[:15]}": _key_to_json(key) for key in declared.keys}
    return members


def _money(usd: float | str) -> Money:
    return Money.exactly(Decimal(str(usd)))
