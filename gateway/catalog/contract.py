"""What may be asked of each model, and what it costs before it is asked."""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from typing import Protocol

from gateway.domain.expectation import Expectation
from gateway.domain.generation import Json, Parameters
from gateway.domain.money import Money


class Model(Protocol):
    """One model of the catalogue."""

    @property
    def name(self) -> str:
        """The slug in its URL: `ltx-2-19b-t2v`."""

    @property
    def title(self) -> str:
        """Its name for people."""

    @property
    def modality(self) -> str:
        """What it makes of what: `text-to-video`."""

    @property
    def media_type(self) -> str:
        """What it answers with: `video/mp4`."""

    @property
    def schema(self) -> Mapping[str, Json]:
        """JSON Schema (2020-12) of its parameters, defaults included."""

    @property
    def example(self) -> Mapping[str, Json]:
        """Parameters that it takes, to show and to price."""

    @property
    def protocol(self) -> str:
        """How the upstream is asked: `v2` (submit and poll) or `v1` (one long call)."""

    @property
    def deadline_seconds(self) -> float:
        """How long a caller may be kept waiting for it: longer than the upstream's slowest."""

    def complete(self, given: Mapping[str, Json]) -> Parameters:
        """`given`, checked whole, with defaults filled in and each number in one form (`24.0` is `24`).

        Raises InvalidParameters with every problem there is, not just the first.
        """

    def price(self, parameters: Parameters) -> Money:
        """What these (complete) parameters are expected to cost, rounded up; PriceUnknown where nobody can say."""

    @property
    def price_in_words(self) -> str:
        """By which rule it is priced, for people."""

    @property
    def price_is_ceiling(self) -> bool:
        """Whether the price is an upper bound of what nobody can say beforehand, and not what is expected."""

    def shape(self, parameters: Parameters) -> str:
        """Those of these (complete) parameters on which price and time depend, as JSON in one form.

        What has the same shape has the same price and the same expected seconds.
        """

    def expected_seconds(self, parameters: Parameters) -> float:
        """How long the upstream is expected to work on these (complete) parameters."""

    def expectation(self, parameters: Parameters) -> Expectation:
        """What is promised of the result of these (complete) parameters; nothing where nothing is known."""


class Catalog(Protocol):
    def find(self, name: str) -> Model:
        """The model called `name`; ModelUnknown, with the nearest known name, if there is none."""

    def __iter__(self) -> Iterator[Model]:
        """Every model, by name."""
