"""Every route is in the documentation, and no other."""

from __future__ import annotations

import re

import pytest

from tests.house.project import table_rows, text_of


def documented(after: str) -> set[tuple[str, str]]:
    return {(row[0], row[1].strip("`")) for row in table_rows(text_of("docs/api.md"), after=after)}


def declared(function: str) -> set[tuple[str, str]]:
    """The routes in routes.py: read, not built, since building them takes the whole gateway."""
    source = text_of("gateway/http/routes.py")
    body = re.split(r"\n(?:async )?def ", source.partition(f"def {function}(")[2])[0]
    found = re.findall(r'web\.(get|post|put|patch|delete|head|view|route)\("([^"]+)"', body)
    assert len(found) == body.count("        web.") > 0
    return {(verb.upper(), path) for verb, path in found}


@pytest.mark.parametrize(
    ("function", "heading"),
    [
        ("front", "## Routes"),
        ("administration", "## Routes of the admin API"),
        ("operations", "## Routes of the operations listener"),
    ],
)
def test_the_routes_of_the_documentation_are_those_of_the_code(function: str, heading: str) -> None:
    assert documented(heading) == declared(function)


def test_every_header_of_an_answer_is_in_the_documentation() -> None:
    page = text_of("docs/api.md").lower()
    sources = [text_of(f"gateway/http/{name}.py") for name in ("heads", "errors", "front_door")]

    for header in ("x-request-id", "x-cost", "x-remaining-credits", "x-generation-time", "x-seed-value", "Cache-Status",
                   "Age", "ETag", "Repr-Digest", "Retry-After", "Allow", "RateLimit", "RateLimit-Policy"):  # fmt: skip
        assert any(f'"{header}"' in source for source in sources), header
        assert re.search(f"`{header.lower()}[`:]", page), header
