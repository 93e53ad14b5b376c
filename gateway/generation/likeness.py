"""Whether a past call in the upstream's history may be what a request of ours became."""

from __future__ import annotations

import enum
import json

import rfc8785

from gateway.domain.generation import GenerationRequest, Json
from gateway.upstream.contract import PastCall

_LONGEST_PLAIN_TEXT = 4096


class Likeness(enum.Enum):
    SAME = "same"
    """Its model, and everything that was sent; what the upstream has added makes no difference."""

    PERHAPS = "perhaps"
    """Nothing speaks against it, and too little for it."""

    OTHER = "other"


def likeness_of(call: PastCall, request: GenerationRequest) -> Likeness:
    """By model and inputs alone; when it was made and whose it may be is the caller's question."""
    same_model = _letters(call.model) == _letters(request.model)
    recorded = call.inputs
    if recorded is None:
        return Likeness.PERHAPS if same_model or not call.model else Likeness.OTHER
    sent = request.parameters
    if any(_contradicts(recorded[name], value) for name, value in sent.items() if name in recorded):
        return Likeness.OTHER
    complete = all(name in recorded and _equal(recorded[name], value) for name, value in sent.items())
    if same_model:
        return Likeness.SAME if complete else Likeness.PERHAPS
    # How the history spells models is not documented: by another name it is no proof, and no proof against.
    return Likeness.PERHAPS if complete else Likeness.OTHER


def equal_requests(one: GenerationRequest, other: GenerationRequest) -> bool:
    """Whether the upstream would see no difference, whoever asks."""
    return one.model == other.model and _equal(dict(one.parameters), dict(other.parameters))


def _equal(one: Json, other: Json) -> bool:
    """As canonical JSON (RFC 8785): 24 is 24.0 and True is not 1."""
    try:
        return bool(rfc8785.dumps(one) == rfc8785.dumps(other))
    except ValueError:
        # Numbers that no canonical JSON has were never sent.
        return False


def _contradicts(recorded: Json, sent: Json) -> bool:
    """Whether `recorded` cannot stand for `sent`: more than another type, nothing at all, or something for media."""
    if _equal(recorded, sent) or recorded is None:
        return False
    # The upstream does not keep the media that it was sent: what is in their place says nothing.
    return not _is_media(sent) and _spelled(recorded) != _spelled(sent)


def _spelled(value: Json) -> str:
    return (value if isinstance(value, str) else json.dumps(value)).strip().casefold()


def _letters(model: str) -> str:
    return "".join(filter(str.isalnum, model.casefold()))


def _is_media(sent: Json) -> bool:
    match sent:
        case str():
            return sent.startswith(("http://", "https://", "data:")) or len(sent) > _LONGEST_PLAIN_TEXT
        case list():
            return bool(sent) and all(_is_media(item) for item in sent)
        case _:
            return False
