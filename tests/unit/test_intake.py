from __future__ import annotations

import pytest

from gateway.domain.errors import MalformedRequest
from gateway.generation.intake import parse


def test_an_object_is_read_as_it_is() -> None:
    assert parse(b' {"prompt": "\xc3\xbc", "n": 24.0} ') == {"prompt": "ü", "n": 24}


@pytest.mark.parametrize(
    ("body", "word"),
    [
        (b"", "not JSON"),
        (b"{", "not JSON"),
        (b'{"a": 1,}', "not JSON"),
        (b"[1]", "an array"),
        (b'"prompt"', "a string"),
        (b"12", "a number"),
        (b"null", "null"),
        (b'{"a": NaN}', "NaN"),
        (b'{"a": -Infinity}', "Infinity"),
        (b'{"seed": 1, "seed": 2}', "'seed' more than once"),
        (b'{"a": {"b": 1, "b": 1}}', "'b' more than once"),
        (b'\xff{"a": 1}', "UTF-8"),
        (b'{"a": ' * 100_000 + b"1" + b"}" * 100_000, "nested"),
        (b'{"a": ' + b"9" * 10_000 + b"}", "cannot|JSON"),
    ],
)
def test_what_is_no_json_object_is_refused_with_what_it_is(body: bytes, word: str) -> None:
    with pytest.raises(MalformedRequest, match=word):
        parse(body)
