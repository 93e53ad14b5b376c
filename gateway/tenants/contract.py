"""Who may ask, with which key, up to which budget."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from typing import Protocol

from gateway.domain.tenant import Caller, Tenant

KEYS_MARK = "keys"
"""The mark that changes with any key."""


class Tenants(Protocol):
    """The tenants of this gateway."""

    def find(self, name: str) -> Tenant:
        """The tenant called `name`; TenantUnknown, with the nearest known name, if there is none."""

    def __iter__(self) -> Iterator[Tenant]: ...


class TenantUnknown(Exception):
    """No tenant has this name; the text names the nearest known one."""


@dataclass(frozen=True, slots=True)
class Key:
    """What is known of a tenant's key: everything but the key."""

    id: str
    tenant: str
    name: str
    hint: str
    """Its first characters, by which its owner recognises it."""

    created_at: float
    revoked_at: float | None


class Keys(Protocol):
    """Tenants' keys. A key is shown once, when it is made; what is kept is its hash."""

    async def create(self, tenant: str, name: str) -> str:
        """A new key, random and prefixed: the only time that it is seen."""

    async def revoke(self, key: str) -> Key:
        """End a key, named by its id, its hint or the key itself, at once. Raises KeyUnknown."""

    async def listed(self, tenant: str | None) -> Sequence[Key]:
        """All keys, or those of one tenant, oldest first, revoked ones included."""

    def authenticate(self, presented: str | None) -> Caller:
        """Who shows this key. Does no I/O that could wait. Raises Unauthenticated.

        A key that a command or another process of the gateway has made or revoked is known at once; what somebody
        else has done to the database, within a second.
        """

    @property
    def revision(self) -> int:
        """For as long as this is the same, `authenticate` answers the same. Costs less than asking it."""


class KeyUnknown(Exception):
    """No key has this name, or more than one has."""
