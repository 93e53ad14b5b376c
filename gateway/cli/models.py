"""`gateway models`"""

from __future__ import annotations

import json

from gateway.app.opening import declared
from gateway.catalog.contract import Model
from gateway.cli.options import FILE_AND_ENVIRONMENT, Options
from gateway.cli.tables import aligned
from gateway.domain.errors import PriceUnknown

_HEADER = ("MODEL", "MAKES", "ANSWERS", "ITS EXAMPLE")


def models(model: str | None = None, *, options: Options = FILE_AND_ENVIRONMENT) -> None:
    """List the models, or show all that one of them takes.

    Parameters
    ----------
    model
        The name of one; all of them if it is left out.
    """
    catalog, _ = declared(options.settings())
    if model is not None:
        found = catalog.find(model)
        print(f"{found.name}: {found.title}, {found.modality}, answers {found.media_type}")
        print(f"Price: {found.price_in_words}. Of its example: {_price_of_example(found)}.")
        print(json.dumps({"parameters": found.schema, "example": found.example}, indent=2))
        return
    rows = ((each.name, each.modality, each.media_type, _price_of_example(each)) for each in catalog)
    for line in aligned(_HEADER, rows, right=("ITS EXAMPLE",)):
        print(line)


def _price_of_example(model: Model) -> str:
    try:
        return str(model.price(model.complete(model.example)))
    except PriceUnknown:
        return "unknown"
