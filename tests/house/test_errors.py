"""Every error has one status and one code, and the documentation has them all."""

from __future__ import annotations

import ast
import re
from collections.abc import Iterator

import pytest

from gateway.domain import errors
from gateway.domain.errors import GatewayError
from gateway.http.errors import STATUSES
from tests.house.project import PROJECT, table_rows, text_of

FALLBACK = {GatewayError.code: 500}


def tree(kind: type[GatewayError] = GatewayError) -> Iterator[type[GatewayError]]:
    for below in kind.__subclasses__():
        yield below
        yield from tree(below)


LEAVES = [kind for kind in tree() if not kind.__subclasses__() and kind.__module__ == errors.__name__]


def documented() -> dict[str, int]:
    rows = table_rows(text_of("docs/api.md"), after="## Errors")
    return {row[0].strip("`"): int(row[1]) for row in rows}


@pytest.mark.parametrize("kind", LEAVES, ids=lambda kind: kind.__name__)
def test_every_leaf_of_the_error_tree_has_a_status_and_a_code_of_its_own(kind: type[GatewayError]) -> None:
    assert kind in STATUSES
    assert "code" in vars(kind)


def test_no_two_errors_share_a_code() -> None:
    codes = [kind.code for kind in STATUSES]

    assert len(codes) == len(set(codes))
    assert GatewayError.code not in codes


def test_the_errors_of_the_documentation_are_those_of_the_code() -> None:
    assert documented() == {kind.code: status for kind, status in STATUSES.items()} | FALLBACK


def test_every_row_of_the_documentation_says_what_it_means_for_the_money() -> None:
    for code, _, when, money in table_rows(text_of("docs/api.md"), after="## Errors"):
        assert when, code
        assert money, code


def test_a_failure_that_is_only_written_down_has_its_code_in_the_documentation_too() -> None:
    written = {
        node.args[0].value
        for path in (PROJECT / "gateway" / "generation").glob("*.py")
        for node in ast.walk(ast.parse(path.read_text(encoding="utf-8")))
        if isinstance(node, ast.Call) and isinstance(node.func, ast.Name) and node.func.id == "Failed"
        if node.args and isinstance(node.args[0], ast.Constant) and isinstance(node.args[0].value, str)
    }
    page = text_of("docs/api.md")

    assert written
    assert all(f"`{code}`" in page for code in written), written


def test_the_statuses_of_the_readme_are_those_that_there_are() -> None:
    shown = {
        int(status)
        for row in table_rows(text_of("README.md"), after="## Errors")
        for status in re.findall(r"\d{3}", row[0])
    }

    # A 500 is promised to nobody.
    assert shown == set(STATUSES.values())


def test_the_docstring_of_the_tree_names_every_error() -> None:
    assert errors.__doc__
    assert all(kind.__name__ in errors.__doc__ for kind in tree() if kind.__module__ == errors.__name__)
