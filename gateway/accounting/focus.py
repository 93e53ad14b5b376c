"""Reports in the columns of FOCUS, the FinOps Open Cost and Usage Specification, version 1.2.

A line for each key, model and UTC day with the dimension `Usage`, and beside it, where anything was charged to or
credited by another tenant, one that is an `Adjustment`: over everybody these add up to nothing, so that BilledCost
adds up to what the ledger has spent. What is null in the specification's words is empty here.
"""

from __future__ import annotations

import json
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import replace
from datetime import date, timedelta

from gateway.accounting.asking import Asked, By
from gateway.accounting.formats import dollars, written
from gateway.accounting.usage import Figures, Report
from gateway.domain.errors import Problem, QueryInvalid
from gateway.domain.money import Money
from gateway.domain.tenant import Party

COLUMNS = (
    "BilledCost", "BillingAccountId", "BillingAccountName", "BillingAccountType", "BillingCurrency", "BillingPeriodEnd",
    "BillingPeriodStart", "ChargeCategory", "ChargeClass", "ChargeDescription", "ChargeFrequency", "ChargePeriodEnd",
    "ChargePeriodStart", "ConsumedQuantity", "ConsumedUnit", "ContractedCost", "EffectiveCost", "InvoiceIssuerName",
    "ListCost", "PricingCategory", "PricingQuantity", "PricingUnit", "ProviderName", "PublisherName", "ResourceId",
    "ResourceName", "ResourceType", "ServiceCategory", "ServiceName", "ServiceSubcategory", "SubAccountId",
    "SubAccountName", "SubAccountType", "Tags", "x_Organisation", "x_PaidAndLost", "x_Reserved", "x_SavedByHits",
    "x_SavedByJoining", "x_Unknown",
)  # fmt: skip
"""Those of the specification that there is something to say in, and five of our own."""

_UNIT = "Generations"


def focused(asked: Asked) -> Asked:
    """The same, with what FOCUS tells lines apart by. Raises QueryInvalid where something else was asked for."""
    problems = []
    if asked.by:
        problems.append(Problem("by", "FOCUS has lines of its own: leave it out"))
    if asked.zone != "UTC":
        problems.append(Problem("zone", f"FOCUS has days of UTC, not of {asked.zone}: leave it out"))
    if problems:
        raise QueryInvalid(problems)
    return replace(asked, by=(By.DAY, By.TEAM, By.KEY, By.MODEL))


def to_focus(report: Report, *, upstream: str) -> str:
    """A report that was `focused`, as CSV; `upstream` is the name of who makes the media, and sends the invoice."""
    rows = [row for line in report.lines for row in _rows(line.group, line.figures, upstream)]
    return written(COLUMNS, ([row.get(column, "") for column in COLUMNS] for row in rows))


def _rows(group: Sequence[str], figures: Figures, upstream: str) -> Iterator[Mapping[str, object]]:
    day, path, key_id, model = group
    begins = date.fromisoformat(day)
    month = begins.replace(day=1)
    party = Party(path, key_id)
    every: Mapping[str, object] = {
        "BillingAccountId": upstream,
        "BillingAccountName": upstream,
        "BillingAccountType": "Upstream account",
        "BillingCurrency": "USD",
        "BillingPeriodStart": _midnight(month),
        "BillingPeriodEnd": _midnight((month + timedelta(days=31)).replace(day=1)),
        "ChargePeriodStart": _midnight(begins),
        "ChargePeriodEnd": _midnight(begins + timedelta(days=1)),
        "ChargeFrequency": "Usage-Based",
        "InvoiceIssuerName": upstream,
        "ProviderName": upstream,
        "PublisherName": upstream,
        "ResourceId": model,
        "ResourceName": model,
        "ResourceType": "Model",
        "ServiceCategory": "AI and Machine Learning",
        "ServiceSubcategory": "Generative AI",
        "ServiceName": f"{upstream} generations",
        "SubAccountId": path,
        "SubAccountName": party.tenant,
        "SubAccountType": "Tenant",
        "Tags": json.dumps({"key_id": key_id}),
        "x_Organisation": party.organisation,
    }
    booked, tally, bought = figures.booked, figures.tally, figures.tally.misses + figures.tally.bypasses
    yield {
        **every,
        **_costs(booked.spent),
        "ChargeCategory": "Usage",
        "ChargeDescription": f"Generations with {model}",
        "ConsumedQuantity": bought,
        "ConsumedUnit": _UNIT,
        "PricingCategory": "Standard",
        "PricingQuantity": bought,
        "PricingUnit": _UNIT,
        "x_PaidAndLost": dollars(booked.lost),
        "x_Reserved": dollars(booked.reserved),
        "x_Unknown": dollars(booked.unknown),
        "x_SavedByHits": dollars(tally.saved_by_hits),
        "x_SavedByJoining": dollars(tally.saved_by_joining),
    }
    for amount, why in (
        (figures.moved.charged, "others have paid for"),
        (Money.ZERO - figures.moved.credited, "others were given as well"),
    ):
        if amount:
            described = f"Generations with {model} that {why}"
            yield {
                **every,
                **_costs(amount),
                "ChargeCategory": "Adjustment",
                "ChargeDescription": described,
            }


def _costs(amount: Money) -> Mapping[str, str]:
    return dict.fromkeys(("BilledCost", "ContractedCost", "EffectiveCost", "ListCost"), dollars(amount))


def _midnight(day: date) -> str:
    return f"{day}T00:00:00Z"
