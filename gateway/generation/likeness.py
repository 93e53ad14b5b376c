"""Whether a past call in the upstream's history may be what a request of ours became."""

from __future__ import annotations

import enum

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
    missing = [name for name in request.parameters if name not in recorded]
    differing = [
        name
        for name, sent in request.parameters.items()
        if name in recorded and not _equal(sent, recorded[name])
    ]
    # The upstream does not keep the media that it was sent: what stands in their place says nothing.
    if not all(_is_media(request.parameters[name]) for name in differing):
        return Likeness.OTHER
    complete = not missing and not differing
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
