"""What a request costs, before it is sent: one rule a model, exact in decimals, rounded up to the micro-dollar."""

from __future__ import annotations

import json
import math
from collections.abc import Iterable, Mapping
from dataclasses import dataclass
from decimal import Decimal
from typing import Protocol

from gateway.domain.errors import PriceUnknown
from gateway.domain.generation import Json, Parameters
from gateway.domain.money import Money


class PriceRule(Protocol):
    @property
    def names(self) -> tuple[str, ...]:
        """The parameters on which the price depends."""

    @property
    def words(self) -> str:
        """The rule, for people."""

    def price(self, parameters: Parameters) -> Money:
        """What these complete parameters cost; PriceUnknown if nobody can say. Never zero."""


@dataclass(frozen=True, slots=True)
class Flat:
    """The same, whatever is asked for: a fixed price, or a ceiling that is held until the real one is known."""

    usd: Decimal
    is_ceiling: bool = False

    @property
    def names(self) -> tuple[str, ...]:
        return ()

    @property
    def words(self) -> str:
        return f"at most ${self.usd}" if self.is_ceiling else f"${self.usd}"

    def price(self, parameters: Parameters) -> Money:
        del parameters
        return Money.at_least(self.usd)


@dataclass(frozen=True, slots=True)
class Scaled:
    """`usd` at one known shape, and in proportion to the product of that shape's parameters elsewhere."""

    usd: Decimal
    at: Mapping[str, int | float]
    minimum_usd: Decimal = Decimal(0)

    @property
    def names(self) -> tuple[str, ...]:
        return tuple(self.at)

    @property
    def words(self) -> str:
        at = ", ".join(f"{name} {value:.15g}" for name, value in self.at.items())
        least = f", at least ${self.minimum_usd}" if self.minimum_usd else ""
        return f"${self.usd} at {at}, and in proportion to their product elsewhere{least}"

    def price(self, parameters: Parameters) -> Money:
        return Money.at_least(max(self.minimum_usd, scaled(self.usd, self.at, parameters)))


@dataclass(frozen=True, slots=True)
class Table:
    """Dollars by the values of one or two parameters, times others."""

    by: tuple[str, ...]
    usd: Mapping[tuple[str, ...], Decimal]
    """By the values of `by`, as they are written in JSON: `6`, `true`; text without its quotes."""

    times: tuple[str, ...] = ()

    @property
    def names(self) -> tuple[str, ...]:
        return (*self.by, *self.times)

    @property
    def words(self) -> str:
        rows = ", ".join(f"{' and '.join(row)} ${usd}" for row, usd in self.usd.items())
        times = f"; times {' times '.join(self.times)}" if self.times else ""
        return f"by {' and '.join(self.by)}: {rows}{times}"

    def price(self, parameters: Parameters) -> Money:
        usd = self.usd[tuple(as_key(parameters[name]) for name in self.by)]
        return Money.at_least(usd * product(parameters[name] for name in self.times))


@dataclass(frozen=True, slots=True)
class Unknown:
    """Nobody can say beforehand, so it is not sold."""

    model: str
    because: str

    @property
    def names(self) -> tuple[str, ...]:
        return ()

    @property
    def words(self) -> str:
        return f"nobody can say: {self.because}"

    def price(self, parameters: Parameters) -> Money:
        del parameters
        raise PriceUnknown(
            f"{self.model} is not sold here: nobody can say beforehand what a request costs ({self.because}). "
            "Ask the operator to give it a price rule, or use another model."
        )


def scaled(amount: Decimal, at: Mapping[str, int | float], parameters: Parameters) -> Decimal:
    """`amount`, which holds at the shape `at`, in proportion to the shape in `parameters`."""
    # Multiplied first: at the shape itself the quotient is `amount`, to the last digit.
    return amount * product(parameters[name] for name in at) / product(at.values())


def product(numbers: Iterable[Json]) -> Decimal:
    # Through text: a float stands for the shortest decimal that names it.
    return math.prod((Decimal(str(number)) for number in numbers), start=Decimal(1))


def as_key(value: Json) -> str:
    """A parameter's value as a table writes it: text as it is, everything else as in JSON."""
    return value if isinstance(value, str) else json.dumps(value)
