"""The pictures of the page and the README: what was found, as bars."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from statistics import median

from bench.speed.findings import (
    CONNECTIONS,
    GATEWAY,
    LARGE,
    LITELLM,
    NGINX,
    SENDFILE,
    UNSEEN,
    VARNISH,
    Findings,
    small,
)
from bench.speed.load import Sample
from bench.speed.svg import Bar, Group, chart

_COLOURED = (GATEWAY, UNSEEN, NGINX, VARNISH, LITELLM, SENDFILE)
"""In every picture in this order. Two workers have the load generator on one of their cores: they are in the table."""


def plots(found: Findings) -> Mapping[str, str]:
    """By the names of their files; nothing of what was not measured."""
    made = {
        "small-hits.svg": chart(
            "1 KB cache hits a second, one core",
            "More is better. The line at a bar's end is the spread. LiteLLM: its own cached chat completions.",
            "answers a second",
            _groups(found, [small(count) for count in CONNECTIONS], lambda sample: sample.rate),
            names=_COLOURED,
        ),
        "large-hits.svg": chart(
            "Large cache hits, one core, 16 connections",
            "More is better. C sendfile is the ceiling: a server that looks at nothing and sends one file.",
            "GB a second",
            _groups(found, LARGE, lambda sample: sample.megabytes_a_second / 1000),
            names=_COLOURED,
        ),
        "cpu.svg": chart(
            "What a 1 KB cache hit costs the server",
            "Less is better. LiteLLM, which takes some hundred times as long, is in the table.",
            "microseconds of processor time an answer",
            _groups(
                found,
                [small(count) for count in CONNECTIONS],
                lambda sample: sample.cpu_microseconds,
                without=LITELLM,
            ),
            names=_COLOURED,
        ),
    }
    return {name: text for name, text in made.items() if '<rect class="colour' in text}


def _groups(
    found: Findings,
    scenes: Sequence[str],
    figure: Callable[[Sample], float],
    *,
    without: str = "",
) -> list[Group]:
    groups = []
    for scene in scenes:
        seen = {
            name: values
            for name in _COLOURED
            if name != without and (values := found.figures(scene, name, figure))
        }
        bars = [Bar(name, median(values), min(values), max(values)) for name, values in seen.items()]
        groups.append(Group(scene, bars))
    return groups
