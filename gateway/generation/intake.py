"""From a caller's JSON to a request that is valid, complete, named and priced."""

from __future__ import annotations

import json
import secrets
from collections.abc import Mapping
from typing import Any, NoReturn

import orjson

from gateway.catalog.contract import Model
from gateway.domain.errors import MalformedRequest, ModelForbidden
from gateway.domain.generation import GenerationRequest, Json
from gateway.domain.identity import Fingerprint
from gateway.domain.tenant import Caller
from gateway.generation.fingerprint import fingerprint_of

SEED = "seed"
ANY_SEED = -1
"""What a caller sends for something new each time."""

_SEEDS = 2**31 - 1
_EXACT = 2.0**53
_PLAIN = frozenset({str, int, float, bool, type(None)})


def parse(body: bytes, *, example: str = '{"prompt": "..."}') -> Mapping[str, Json]:
    """The JSON object in a request's body. Raises MalformedRequest, which says that it should be like `example`.

    Stricter than the upstream where leniency would change what is bought: a name given twice is refused, since
    one of its values would be lost; so are NaN and Infinity, which are not JSON.
    """
    plain = _parse_plain(body)
    if plain is not None:
        return plain
    try:
        value = json.loads(body, object_pairs_hook=_object, parse_constant=_no_constant)
    except UnicodeDecodeError as error:
        raise MalformedRequest("The body is not UTF-8: send JSON encoded as UTF-8.") from error
    except json.JSONDecodeError as error:
        raise MalformedRequest(
            f"The body is not JSON: {error.msg} at line {error.lineno}, column {error.colno}. "
            f"Send the parameters as one object: {example}."
        ) from error
    except RecursionError as error:
        raise MalformedRequest("The body is nested too deeply to be a request.") from error
    except ValueError as error:
        raise MalformedRequest(f"The body is not JSON that can be read: {error}.") from error
    if not isinstance(value, dict):
        raise MalformedRequest(
            f"The body is JSON, but not an object: send the parameters at top level, as {example}, "
            f"not {_kind(value)}."
        )
    return value


def name(caller: Caller, model: Model, given: Mapping[str, Json]) -> GenerationRequest:
    """What `caller` asks of `model`: every parameter there, the seed that will be sent, the price by the model's rule.

    Raises ModelForbidden, InvalidParameters and PriceUnknown.
    """
    check_allowed(caller, model)
    parameters = model.complete(given)
    fresh = parameters.get(SEED) == ANY_SEED and not isinstance(parameters.get(SEED), bool)
    if fresh:
        parameters = {**parameters, SEED: 1 + secrets.randbelow(_SEEDS)}
    seed = parameters.get(SEED)
    return GenerationRequest(
        model=model.name,
        parameters=parameters,
        fingerprint=fingerprint_of(model.name, parameters, scope=caller.tenant.cache_scope),
        price=model.price(parameters),
        seed=seed if isinstance(seed, int) else None,
        fresh=fresh,
        shape=model.shape(parameters),
    )


def check_allowed(caller: Caller, model: Model) -> None:
    """Raise ModelForbidden if the model is not for this key, its tenant, or whoever is above it."""
    if not caller.may_use(model.name):
        allowed = ", ".join(sorted(caller.models or ())) or "none"
        raise ModelForbidden(
            f"{caller.tenant.name} may not use {model.name} with this key. Allowed models: {allowed}. Whoever runs this "
            "gateway can add it to the `models` of the key, the tenant, or whoever is above it."
        )


def fingerprint_of_plain(scope: str | None, model: Model, body: bytes) -> Fingerprint | None:
    """The name that `name` gives to what is in `body`; None where it is not plain, or is to be something new each time.

    Raises InvalidParameters.
    """
    given = _parse_plain(body)
    if given is None:
        return None
    parameters = model.complete(given)
    if parameters.get(SEED) == ANY_SEED:
        return None
    return fingerprint_of(model.name, parameters, scope=scope)


def respelled(body: bytes) -> bytes:
    """A plain body as everybody would write it who means the same; any other as it is.

    Order, white space and the forms of numbers and texts are gone, so the name that a body stands for can be known by
    these bytes. It is no canonical form: two that differ may still mean the same, as 1 and 1.0 do.
    """
    given = _parse_plain(body)
    return body if given is None else orjson.dumps(given, option=orjson.OPT_SORT_KEYS)


def _parse_plain(body: bytes) -> dict[str, Json] | None:
    """The object in a body like most are, without nesting or anything odd; None for the strict parser to judge.

    orjson is five times as fast, and lenient in two ways that matter: it keeps the last of two equal names, and it
    reads integers beyond 64 bits as the nearest float. So the texts that were written are counted, and large numbers
    are left alone.
    """
    try:
        value = orjson.loads(body)
    except ValueError:
        return None
    if type(value) is not dict:
        return None
    texts = len(value)
    # One loop, and no expression for each of the questions: this is asked of every body that was not seen before.
    for each in value.values():
        kind = type(each)
        if kind is str:
            texts += 1
        elif kind is float:
            if not -_EXACT < each < _EXACT:
                return None
        elif kind not in _PLAIN:
            return None
    written = body.count(b'"')
    if b"\\" in body:
        if b"\\\\" in body:
            return None
        written -= body.count(b'\\"')
    return value if written == 2 * texts else None


def _object(pairs: list[tuple[str, Any]]) -> dict[str, Any]:
    members = dict(pairs)
    if len(members) != len(pairs):
        names = [name for name, _ in pairs]
        twice = next(name for name in names if names.count(name) > 1)
        raise MalformedRequest(f"The body names {twice!r} more than once: send it once.")
    return members


def _no_constant(constant: str) -> NoReturn:
    raise MalformedRequest(f"The body holds {constant}, which is not JSON: send a number.")


def _kind(value: object) -> str:
    return {list: "an array", str: "a string", bool: "a boolean", type(None): "null"}.get(
        type(value), "a number"
    )
