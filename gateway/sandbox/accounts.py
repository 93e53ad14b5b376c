"""Who asks: keys, balances, and what is reserved of them for jobs that run."""

from __future__ import annotations

import hashlib
import math
from dataclasses import dataclass

from gateway.domain.clock import Clock
from gateway.domain.money import Money
from gateway.sandbox.sqlite import Books, StoredAccount

FIRST_ACCOUNT = "default"
FIRST_KEY = "SG_0123456789abcdef"
_FIRST_CREDITS = Money.exactly("1000")
_WINDOW_SECONDS = 60.0


@dataclass(slots=True)
class Account:
    name: str
    credits: Money
    models: frozenset[str] | None
    """The models that it may use; None for all."""

    reserved: Money = Money.ZERO
    """Held for jobs that run. The balance that is told does not dip."""

    window: float = 0.0
    """The calendar minute in which its requests are counted."""

    requests: int = 0

    @property
    def available(self) -> Money:
        return self.credits - self.reserved


class Accounts:
    def __init__(self, books: Books, clock: Clock) -> None:
        self._books = books
        self._clock = clock
        self._by_name: dict[str, Account] = {}
        self._by_key: dict[str, Account] = {}

    async def open(self) -> None:
        for stored in await self._books.accounts():
            self._remember(stored)
        if FIRST_ACCOUNT not in self._by_name:
            await self.put(FIRST_ACCOUNT, key=FIRST_KEY, credits=_FIRST_CREDITS, models=None)

    async def put(self, name: str, *, key: str, credits: Money, models: frozenset[str] | None) -> Account:  # noqa: A002 -- the upstream's word
        """Open the account, or set its key, balance and models. Raises ValueError when the key is another's."""
        stored = StoredAccount(name, _digest(key), credits, models)
        await self._books.put_account(stored)
        return self._remember(stored)

    def named(self, name: str) -> Account:
        return self._by_name[name]

    def with_key(self, key: str) -> Account | None:
        return self._by_key.get(_digest(key))

    def admits(self, account: Account, per_minute: float) -> bool:
        """Count one request of the account; whether it is within the limit of this minute."""
        window = math.floor(self._clock() / _WINDOW_SECONDS)
        if account.window != window:
            account.window, account.requests = window, 0
        account.requests += 1
        return account.requests <= per_minute

    def window_ends_at(self) -> float:
        """When the next calendar minute begins."""
        return (math.floor(self._clock() / _WINDOW_SECONDS) + 1) * _WINDOW_SECONDS

    def _remember(self, stored: StoredAccount) -> Account:
        account = self._by_name.setdefault(stored.name, Account(stored.name, stored.credits, stored.models))
        account.credits, account.models = stored.credits, stored.models
        self._by_key = {digest: other for digest, other in self._by_key.items() if other is not account}
        self._by_key[stored.key_digest] = account
        return account


def _digest(key: str) -> str:
    return hashlib.sha256(key.encode(errors="surrogateescape")).hexdigest()
