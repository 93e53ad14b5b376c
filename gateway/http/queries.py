"""What stands behind the question mark of an address."""

from __future__ import annotations

import re
from collections.abc import Mapping

from aiohttp import web

from gateway.documents.spelling import remedy
from gateway.domain.errors import Problem, QueryInvalid

MOST_ENTRIES = 1000
"""How many entries of a log one answer may have."""


def query(request: web.Request, *known: str) -> Mapping[str, str]:
    """The query, in which nothing else may be: what is misspelt would be left undone, or done in earnest."""
    problems = []
    for name in dict.fromkeys(request.query):
        if name not in known:
            problems.append(Problem(name[:100], f"is not a parameter of this address{remedy(name, known)}"))
        elif len(request.query.getall(name)) > 1:
            problems.append(Problem(name, "is given more than once"))
    if problems:
        raise QueryInvalid(problems)
    return request.query


def number(query: Mapping[str, str], name: str, default: int, *, most: int = 2**63 - 1) -> int:
    """The number of that name, from 1 to `most`; `default` where none is given."""
    given = query.get(name, str(default))
    if not re.fullmatch("[0-9]{1,19}", given) or int(given) > most or (name in query and int(given) < 1):
        raise QueryInvalid([Problem(name, f"should be a number from 1 to {most}, not {given[:100]}")])
    return int(given)


def is_dry_run(request: web.Request) -> bool:
    """Whether it is only to be shown what would be changed; nothing else may be in the query."""
    given = query(request, "dry_run").get("dry_run", "false")
    if given not in {"true", "false"}:
        raise QueryInvalid([Problem("dry_run", f"should be true or false, not {given[:100]}")])
    return given == "true"
