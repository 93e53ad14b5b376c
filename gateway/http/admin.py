"""Tenants, keys and the audit log, for those who administer them."""

from __future__ import annotations

import re
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, replace
from typing import Annotated

from aiohttp import web
from pydantic import AfterValidator, BaseModel, Field

from gateway.catalog.contract import Catalog
from gateway.documents.pydantic_models import parse
from gateway.documents.yaml_files import Document, DocumentInvalid, dotted
from gateway.domain import json_forms
from gateway.domain.balance import Balance
from gateway.domain.clock import Clock
from gateway.domain.errors import DeclarationInvalid, KeyUnknown, Problem
from gateway.domain.generation import Json
from gateway.domain.money import Money
from gateway.domain.tenant import Caller, KeyTerms, Tenant
from gateway.generation import intake
from gateway.http import members
from gateway.http.errors import json_response
from gateway.http.front_door import FrontDoor
from gateway.http.queries import MOST_ENTRIES, is_dry_run, number, query
from gateway.ledger.contract import Statements
from gateway.tenants.contract import Change, Declared, Keys, Register, Tenants
from gateway.tenants.declarations import (
    Line,
    declared_from_json,
    declared_to_json,
    terms_from_json,
    terms_to_json,
)
from gateway.tenants.yaml_files import tenants_in

_A_DAY_SECONDS = 86_400
_LONGEST_OVERLAP_SECONDS = 366 * _A_DAY_SECONDS


def _more_than_nothing(value: float | str) -> float | str:
    if Money.exactly(value) <= Money.ZERO:
        raise ValueError("should be more than 0")
    return value


def _said(value: str) -> str:
    if not value.strip():
        raise ValueError("is empty: say why")
    return value


class _TopUpBody(BaseModel):
    usd: Annotated[float | str, AfterValidator(_more_than_nothing)]
    reason: Annotated[Line, AfterValidator(_said)]
    budget: str | None = None
    key_id: str | None = None


class _KeyBody(BaseModel):
    """A key's own members; what it may is said by its terms, beside them."""

    tenant: str
    name: Line = ""


class _NameBody(BaseModel):
    name: Line | None = None


class _OverlapBody(BaseModel):
    overlap_seconds: Annotated[float, Field(ge=0, le=_LONGEST_OVERLAP_SECONDS)] = _A_DAY_SECONDS


@dataclass(frozen=True, slots=True)
class Admin:
    """The resources under /admin: every change is in force, and in the audit log, when it is answered."""

    front_door: FrontDoor
    tenants: Tenants
    register: Register
    keys: Keys
    statements: Statements
    catalog: Catalog
    clock: Clock

    # --- Tenants

    async def get_tenants(self, request: web.Request) -> web.Response:
        """Everybody, each behind its parent: what is said of them, and how their budgets stand."""
        self.front_door.admin(request)
        query(request)
        told = sorted(self.tenants, key=lambda tenant: tenant.path.split("/"))
        return json_response({"tenants": await self._described(told)})

    async def get_tenant(self, request: web.Request) -> web.Response:
        """One of them."""
        self.front_door.admin(request)
        query(request)
        (told,) = await self._described([self.tenants.find(request.match_info["name"])])
        return json_response(told)

    async def put_tenant(self, request: web.Request) -> web.Response:
        """Let the body, an entry as in the file, be what is said of a tenant: all of it."""
        who = _who(self.front_door.admin(request))
        dry_run = is_dry_run(request)
        body = await self._body(request)
        with _told():
            declared = declared_from_json(request.match_info["name"], body, models=self._models)
            made = await self.register.put(declared, who=who, dry_run=dry_run)
        return _changes(made, dry_run=dry_run)

    async def delete_tenant(self, request: web.Request) -> web.Response:
        """Remove a tenant, and with it its keys, until it is back."""
        who = _who(self.front_door.admin(request))
        dry_run = is_dry_run(request)
        with _told():
            made = await self.register.remove(request.match_info["name"], who=who, dry_run=dry_run)
        return _changes(made, dry_run=dry_run)

    async def post_top_up(self, request: web.Request) -> web.Response:
        """Add to a budget once, in the window that it is in now."""
        who = _who(self.front_door.admin(request))
        query(request)
        with _told():
            body = parse(_document(await self._body(request)), _TopUpBody, entry="member")
        tenant = request.match_info["name"]
        added = await self.register.top_up(
            tenant,
            Money.exactly(body.usd),
            reason=body.reason,
            who=who,
            budget=body.budget,
            key=None if body.key_id is None else _id(body.key_id),
        )
        told: dict[str, Json] = {"tenant": tenant, "key_id": body.key_id, "budget": body.budget}
        return json_response(
            {
                **told,
                **json_forms.money("added", added.amount),
                "at": json_forms.utc(added.at),
                "reason": added.reason,
            }
        )

    async def post_apply(self, request: web.Request) -> web.Response:
        """Let the body, a file of tenants in JSON, be what is said: of everybody that a file ever named."""
        who = _who(self.front_door.admin(request))
        dry_run = is_dry_run(request)
        body = await self._body(request)
        with _told():
            said = tenants_in(_document(body), models=self._models)
            made = await self.register.apply(said, who=who, dry_run=dry_run)
        return _changes(made, dry_run=dry_run)

    async def _described(self, tenants: Sequence[Tenant]) -> list[Json]:
        said = {declared.name: declared for declared in await self.register.declared()}
        holders = [tenant.holder for tenant in tenants]
        balances: dict[str, list[Balance]] = {}
        for balance in await self.statements.balances_of(holders, with_pace=True):
            balances.setdefault(balance.holder.tenant, []).append(balance)
        return [
            {
                "name": tenant.name,
                "path": tenant.path,
                "declaration": declared_to_json(said.get(tenant.name, Declared(tenant.name))),
                "budgets": [self._budget(balance) for balance in balances.get(tenant.name, ())],
            }
            for tenant in tenants
        ]

    def _budget(self, balance: Balance) -> dict[str, Json]:
        return {
            **members.budget(balance, self.clock(), in_full=True),
            "top_ups": [
                {
                    **json_forms.money("added", added.amount),
                    "at": json_forms.utc(added.at),
                    "reason": added.reason,
                }
                for added in balance.budget.top_ups
            ],
        }

    # --- Keys

    async def get_keys(self, request: web.Request) -> web.Response:
        """All keys, or those of one tenant, but never a key itself."""
        self.front_door.admin(request)
        tenant = query(request, "tenant").get("tenant")
        found = await self.keys.listed(tenant)
        if tenant is not None and not found:
            self.tenants.find(tenant)
        return json_response({"keys": [members.key(key) for key in found]})

    async def post_key(self, request: web.Request) -> web.Response:
        """Make a key: this answer is the only time that it is seen."""
        who = _who(self.front_door.admin(request))
        query(request)
        body = await self._body(request)
        with _told():
            said = parse(_document(_part(body, "tenant", "name")), _KeyBody, entry="member")
            terms = terms_from_json(_rest(body, "tenant", "name"), called="body", models=self._models)
            made = await self.keys.create(said.tenant, said.name, terms=terms, who=who)
        return json_response({"key": made, **members.key(await self.keys.find_key(made))})

    async def patch_key(self, request: web.Request) -> web.Response:
        """Say otherwise what the body names of a key's name and terms; the rest stays as it is."""
        who = _who(self.front_door.admin(request))
        query(request)
        body = await self._body(request)
        with _told():
            said = parse(_document(_part(body, "name")), _NameBody, entry="member")
            given = _rest(body, "name")
            # What is not named may be older than the catalogue, and is not looked at again.
            terms_from_json(given, called="body", models=self._models)
            amended = await self.keys.amend(
                _id(request.match_info["id"]),
                name=said.name,
                change=lambda terms: _amended(terms, given),
                who=who,
            )
        return json_response(members.key(amended))

    async def delete_key(self, request: web.Request) -> web.Response:
        """End a key at once and for good."""
        who = _who(self.front_door.admin(request))
        query(request)
        return json_response(members.key(await self.keys.revoke(_id(request.match_info["id"]), who=who)))

    async def post_rotation(self, request: web.Request) -> web.Response:
        """Make a key in place of another, which ends after the overlap: the only time that the new one is seen."""
        who = _who(self.front_door.admin(request))
        query(request)
        given = await self._body(request) if request.can_read_body else {}
        with _told():
            body = parse(_document(given), _OverlapBody, entry="member")
            old = _id(request.match_info["id"])
            made = await self.keys.rotate(old, overlap_seconds=body.overlap_seconds, who=who)
        return json_response({"key": made, **members.key(await self.keys.find_key(made)), "in_place_of": old})

    # --- The audit log

    async def get_audit(self, request: web.Request) -> web.Response:
        """Who changed what, newest first; `next` is the `before` of the page after this one."""
        self.front_door.admin(request)
        given = query(request, "limit", "before")
        limit = number(given, "limit", 100, most=MOST_ENTRIES)
        before = number(given, "before", 0) or None
        found = await self.register.audit(limit=limit, before=before)
        return json_response(
            {
                "entries": [members.audit_entry(entry) for entry in found],
                "next": found[-1].serial if len(found) == limit else None,
            }
        )

    # --- In

    @property
    def _models(self) -> list[str]:
        return [model.name for model in self.catalog]

    async def _body(self, request: web.Request) -> dict[str, Json]:
        return dict(intake.parse(await self.front_door.body(request), example='{"name": ...}'))


def _who(caller: Caller) -> str:
    """As the audit log names it."""
    return f"key:{caller.key_id}"


@contextmanager
def _told() -> Iterator[None]:
    """What is wrong with what was sent, as an answer."""
    try:
        yield
    except DocumentInvalid as error:
        raise DeclarationInvalid(
            [Problem(dotted(mistake.place), mistake.problem) for mistake in error.mistakes]
        ) from error


def _document(body: dict[str, Json]) -> Document:
    return Document("body", body, {})


def _part(body: Mapping[str, Json], *names: str) -> dict[str, Json]:
    return {name: value for name, value in body.items() if name in names}


def _rest(body: Mapping[str, Json], *names: str) -> dict[str, Json]:
    return {name: value for name, value in body.items() if name not in names}


def _id(given: str) -> str:
    """A key's id, and never a key, which has no business in an address."""
    if not re.fullmatch("[0-9a-f]{12}", given):
        raise KeyUnknown(
            "No key has this id: name it by the id that GET /admin/keys shows, and never by itself."
        )
    return given


def _amended(terms: KeyTerms, given: Mapping[str, Json]) -> KeyTerms:
    amended = terms_from_json({**terms_to_json(terms), **given}, called="body")
    return amended if "expires_at" in given else replace(amended, expires_at=terms.expires_at)


# --- Out


def _changes(made: Sequence[Change], *, dry_run: bool) -> web.Response:
    return json_response(
        {
            "dry_run": dry_run,
            "changes": [
                {"what": change.what, "before": change.before, "after": change.after} for change in made
            ],
        }
    )
