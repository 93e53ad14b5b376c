from __future__ import annotations

import json

import pytest
from hypothesis import example, given
from hypothesis import strategies as st

from gateway.domain.errors import MalformedRequest
from gateway.generation.intake import parse, respelled


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


def _strictly(body: bytes) -> object:
    """What a body says by the letter of RFC 8259, or that it cannot be read: names given twice are an error."""

    def members(pairs: list[tuple[str, object]]) -> dict[str, object]:
        if len(dict(pairs)) != len(pairs):
            raise ValueError("a name given twice")
        return dict(pairs)

    def refused(constant: str) -> object:
        raise ValueError(constant)

    try:
        value = json.loads(body, object_pairs_hook=members, parse_constant=refused)
    except ValueError:
        return "unreadable"
    return value if isinstance(value, dict) else "unreadable"


def _read(body: bytes) -> object:
    try:
        return parse(body)
    except MalformedRequest:
        return "unreadable"


_TEXTS = st.text(st.sampled_from('ab"\\\n\u00fc\U0001f98a/'), max_size=4)
_NUMBERS = st.integers() | st.floats(allow_nan=False, allow_infinity=False) | st.just(2**64) | st.just(-0.0)
_VALUES = st.recursive(
    st.none() | st.booleans() | _NUMBERS | _TEXTS, lambda inner: st.lists(inner, max_size=2), max_leaves=3
)


@given(
    members=st.lists(st.tuples(_TEXTS, _VALUES), max_size=4),
    ascii_only=st.booleans(),
    space=st.sampled_from(["", " ", "\n"]),
)
@example(members=[("a", 1), ("a", "x")], ascii_only=True, space="")
@example(members=[('"', '"'), ('"', '\\"')], ascii_only=False, space=" ")
def test_every_body_is_read_to_the_letter_names_given_twice_and_large_numbers_too(
    members: list[tuple[str, object]], ascii_only: bool, space: str
) -> None:
    written = (
        f"{json.dumps(name, ensure_ascii=ascii_only)}:{space}{json.dumps(value, ensure_ascii=ascii_only)}"
        for name, value in members
    )
    body = f"{space}{{{f',{space}'.join(written)}}}".encode()

    assert repr(_read(body)) == repr(_strictly(body))


@pytest.mark.parametrize(
    "body",
    [
        b'{"a": -0}',
        b'{"a": 1E400}',
        b'{"a": 18446744073709551616}',
        b'{"a": 9007199254740993}',
        b'{"a": "\\ud800"}',
        b'{"a": "\\u0061", "\\u0061": 1}',
        b'{"\\\\": 1, "\\\\": 2}',
        b'{"a": 01}',
        b'{"a": 1} x',
        b'{"a": "\t"}',
        b"\xef\xbb\xbf{}",
        b"{}",
    ],
)
def test_an_odd_body_is_read_to_the_letter(body: bytes) -> None:
    assert repr(_read(body)) == repr(_strictly(body))


@given(
    members=st.dictionaries(_TEXTS, _VALUES, max_size=4), ascii_only=st.booleans(), backwards=st.booleans()
)
def test_a_body_that_is_respelled_says_what_it_said_type_by_type(
    members: dict[str, object], ascii_only: bool, backwards: bool
) -> None:
    written = dict(reversed(members.items())) if backwards else members
    said = parse(respelled(json.dumps(written, ensure_ascii=ascii_only).encode()))

    assert repr(sorted(said.items())) == repr(sorted(parse(json.dumps(members).encode()).items()))


def test_order_white_space_and_forms_of_numbers_and_texts_do_not_matter_to_what_is_said() -> None:
    spellings = (
        b'{"seed": 7, "scale": 4.5, "prompt": "\xc3\xbc"}',
        b'{"prompt":"\\u00fc","scale":45e-1,"seed":7}',
        b'\n{ "scale" : 4.50,\t"prompt": "\\u00FC", "seed":\r7 }',
    )
    assert len({respelled(body) for body in spellings}) == 1
    assert len({respelled(b'{"seed": 7}'), respelled(b'{"seed": 7.0}'), respelled(b'{"seed": true}')}) == 3
