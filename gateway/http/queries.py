"""What stands behind the question mark of an address."""

from __future__ import annotations

import re
from collections.abc import Mapping

from aiohttp import web

from gateway.documents.spelling import nearest
from gateway.domain.errors import DeclarationInvalid, Problem

MOST_ENTRIES = 1000
"""How many entries of a log one answer may have."""


def query(request: web.Request, *known: str) -> Mapping[str, str]:
    """The query, in which nothing else may be: what is misspelt would be left undone, or done in earnest."""
    for name in request.query:
        if name not in known:
            like = nearest(name, known)
            hint = f", did you mean {like}?" if like else f" (known: {', '.join(known) or 'none'})"
            raise DeclarationInvalid([Problem(name[:100], f"is not a parameter of this address{hint}")])
        if len(request.query.getall(name)) > 1:
            raise DeclarationInvalid([Problem(name, "is given more than once")])
    return request.query


def number(query: Mapping[str, str], name: str, default: int, *, most: int = 2**63 - 1) -> int:
    """The number of that name, from 1 to `most`; `default` where none is given."""
    given = query.get(name, str(default))
    if not re.fullmatch("[0-9]{1,19}", given) or int(given) > most or (name in query and int(given) < 1):
        raise DeclarationInvalid([Problem(name, f"should be a number from 1 to {most}, not {given[:100]}")])
    return int(given)
