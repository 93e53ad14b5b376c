"""Money: whole micro-dollars, never a float."""

from __future__ import annotations

from dataclasses import dataclass
from decimal import ROUND_CEILING, ROUND_HALF_UP, Decimal, InvalidOperation
from typing import ClassVar

_MICROS_PER_DOLLAR = 1_000_000
_MOST = 10**12
"""Dollars: what is more is a mistake, and does not fit into 64 bits soon after."""


@dataclass(frozen=True, order=True, slots=True)
class Money:
    """An amount in whole micro-dollars (one millionth of a US dollar); may be negative."""

    micros: int

    ZERO: ClassVar[Money]

    @classmethod
    def reported(cls, usd: Decimal | float | str) -> Money:
        """What somebody else says that something cost, to the nearest micro-dollar (half up)."""
        return cls._rounded(usd, ROUND_HALF_UP)

    @classmethod
    def at_least(cls, usd: Decimal | float | str) -> Money:
        """The smallest amount that is not below `usd`: how prices and holds are rounded."""
        return cls._rounded(usd, ROUND_CEILING)

    @classmethod
    def exactly(cls, usd: Decimal | float | str) -> Money:
        """`usd` itself; ValueError when it is finer than a micro-dollar: how limits are read."""
        amount = cls._rounded(usd, ROUND_HALF_UP)
        if amount.usd != _decimal(usd):
            raise ValueError(f"{usd} dollars is finer than a micro-dollar (0.000001)")
        return amount

    @classmethod
    def _rounded(cls, usd: Decimal | float | str, rounding: str) -> Money:
        return cls(int((_decimal(usd) * _MICROS_PER_DOLLAR).to_integral_value(rounding)))

    @property
    def usd(self) -> Decimal:
        """The amount in dollars, exactly."""
        return Decimal(self.micros) / _MICROS_PER_DOLLAR

    @property
    def usd_number(self) -> float:
        """The amount in dollars for JSON and metrics, where people read it and nobody adds it up."""
        return self.micros / _MICROS_PER_DOLLAR

    def __add__(self, other: Money) -> Money:
        return Money(self.micros + other.micros)

    def __sub__(self, other: Money) -> Money:
        return Money(self.micros - other.micros)

    def __mul__(self, count: int) -> Money:
        return Money(self.micros * count)

    def __bool__(self) -> bool:
        return self.micros != 0

    def __str__(self) -> str:
        """Dollars for people: at least cents, as many digits as there are: `$0.416`, `$25.00`."""
        sign = "-" if self.micros < 0 else ""
        whole, fraction = divmod(abs(self.micros), _MICROS_PER_DOLLAR)
        digits = f"{fraction:06d}".rstrip("0").ljust(2, "0")
        return f"{sign}${whole}.{digits}"


def _decimal(usd: Decimal | float | str) -> Decimal:
    # A float stands for the shortest decimal that names it: 0.1 is a dime, not 0.1000000000000000055.
    try:
        amount = Decimal(repr(usd)) if isinstance(usd, float) else Decimal(usd)
    except InvalidOperation:
        amount = Decimal("NaN")
    if not amount.is_finite() or abs(amount) > _MOST:
        raise ValueError(f"{usd} is not an amount of money")
    return amount


Money.ZERO = Money(0)
