from __future__ import annotations

import hashlib
from typing import Any

import rfc8785
from hypothesis import example, given
from hypothesis import strategies as st

from gateway.generation.fingerprint import fingerprint_of

_SCALARS = st.none() | st.booleans() | st.integers(-(2**53) + 1, 2**53 - 1) | st.text(max_size=20)
_PARAMETERS = st.dictionaries(st.text(max_size=10), _SCALARS | st.lists(_SCALARS, max_size=3), max_size=6)


def test_the_fingerprint_is_the_sha256_of_the_canonical_request() -> None:
    canonical = b'{"model":"m","parameters":{"a":1,"b":"\xc3\xbc"},"schema":1}'

    assert fingerprint_of("m", {"b": "ü", "a": 1.0}) == hashlib.sha256(canonical).hexdigest()


def test_the_same_request_of_another_model_has_another_name() -> None:
    assert fingerprint_of("m", {"a": 1}) != fingerprint_of("n", {"a": 1})


def test_a_private_request_has_another_name_than_the_shared_and_than_anothers() -> None:
    names = {fingerprint_of("m", {}, scope=scope) for scope in (None, "acme", "other")}

    assert len(names) == 3


_NUMBERS = st.floats(allow_nan=False, allow_infinity=False) | st.integers(-(2**53) + 1, 2**53 - 1)


@given(st.dictionaries(st.text(max_size=3), _SCALARS | _NUMBERS | st.text(max_size=8), max_size=6))
@example({"a": 1e-3, "b": 0.1 + 0.2, "c": 1e15 + 0.5, "d": 5e-324, "e": 1e21})
@example({"\ue000": 1, "\U0001f98a": 2})
@example({"a": '\x00\x1f\x7f\u2028\\"/'})
def test_whoever_writes_the_canonical_form_writes_the_same(parameters: dict[str, Any]) -> None:
    named: Any = {"schema": 1, "model": "m", "parameters": parameters}

    assert fingerprint_of("m", parameters) == hashlib.sha256(rfc8785.dumps(named)).hexdigest()


@given(_PARAMETERS)
def test_the_order_of_members_makes_no_difference(parameters: dict[str, Any]) -> None:
    backwards = dict(reversed(parameters.items()))

    assert fingerprint_of("m", parameters) == fingerprint_of("m", backwards)


@given(_PARAMETERS, _PARAMETERS)
def test_different_parameters_have_different_names(one: dict[str, Any], other: dict[str, Any]) -> None:
    def plain(parameters: dict[str, Any]) -> str:
        # Python holds True and 1 for equal; JSON does not.
        return repr(sorted(parameters.items(), key=lambda member: member[0]))

    assert (fingerprint_of("m", one) == fingerprint_of("m", other)) == (plain(one) == plain(other))
