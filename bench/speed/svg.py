"""Bar charts as SVG, by hand: they follow the reader's light or dark, and need nothing but a browser."""

from __future__ import annotations

import math
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from xml.sax.saxutils import escape, quoteattr

_WIDTH = 860
_LEFT, _RIGHT = 190, 96
"""Room for the names, and for the values behind the bars."""

_TOP, _BOTTOM = 84, 46
_BAR, _BETWEEN_BARS, _BETWEEN_GROUPS, _GROUP_HEAD = 18, 6, 16, 24
_MOST_TICKS = 6


@dataclass(frozen=True, slots=True)
class Bar:
    name: str
    value: float
    low: float
    high: float


@dataclass(frozen=True, slots=True)
class Group:
    name: str
    bars: Sequence[Bar]


def chart(title: str, subtitle: str, axis: str, groups: Sequence[Group], *, names: Sequence[str]) -> str:
    """Horizontal bars from zero, each with its value and, as a line, its spread.

    A bar's colour is its name's place among `names`, which has all of them. Groups without bars are left out.
    """
    groups = [group for group in groups if group.bars]
    ticks = _ticks(max((bar.high for group in groups for bar in group.bars), default=0.0) or 1.0)
    rows = sum(len(group.bars) * (_BAR + _BETWEEN_BARS) + _GROUP_HEAD + _BETWEEN_GROUPS for group in groups)
    bottom = _TOP + rows
    height = bottom + _BOTTOM
    scale = (_WIDTH - _LEFT - _RIGHT) / ticks[-1]
    size = f'viewBox="0 0 {_WIDTH} {height}" width="{_WIDTH}" height="{height}"'
    lines = [
        f'<svg xmlns="http://www.w3.org/2000/svg" {size} role="img" aria-label={quoteattr(title)}>',
        f"<style>{_STYLE}</style>",
        f'<rect class="page" x="0.5" y="0.5" width="{_WIDTH - 1}" height="{height - 1}" rx="8"/>',
        _text(24, 34, title, "title"),
        _text(24, 56, subtitle, "quiet"),
        *_grid(groups, ticks, scale),
        *_axis(ticks, scale, bottom, axis),
        *_bars(groups, names, scale),
        "</svg>",
    ]
    return "\n".join([*lines, ""])


def number(value: float) -> str:
    """As it stands behind a bar: three figures or all whole ones."""
    if value >= 100:
        return f"{value:,.0f}"
    return f"{value:.1f}" if value >= 10 else f"{value:.2f}"


def _grid(groups: Sequence[Group], ticks: Sequence[float], scale: float) -> Iterator[str]:
    """Behind the bars, and not behind the groups' names."""
    y = _TOP
    for group in groups:
        top, height = y + _GROUP_HEAD, len(group.bars) * (_BAR + _BETWEEN_BARS)
        for tick in ticks:
            yield f'<path class="grid" d="M{_LEFT + tick * scale:.1f} {top - 3}v{height}"/>'
        y = top + height + _BETWEEN_GROUPS


def _axis(ticks: Sequence[float], scale: float, bottom: int, axis: str) -> Iterator[str]:
    for tick in ticks:
        yield _text(_LEFT + tick * scale, bottom + 10, f"{tick:,.10g}", "quiet middle")
    yield _text(_LEFT + ticks[-1] * scale / 2, bottom + 32, axis, "quiet middle")


def _bars(groups: Sequence[Group], names: Sequence[str], scale: float) -> Iterator[str]:
    y = float(_TOP)
    for group in groups:
        yield _text(24, y + _GROUP_HEAD - 8, group.name, "group")
        y += _GROUP_HEAD
        for bar in group.bars:
            middle, end = y + _BAR / 2, _LEFT + bar.value * scale
            colour = f"colour{names.index(bar.name) % _COLOURS}"
            width = max(1.0, bar.value * scale)
            yield _text(_LEFT - 10, middle + 4, bar.name, "end")
            yield f'<rect class="{colour}" x="{_LEFT}" y="{y:.1f}" width="{width:.1f}" height="{_BAR}" rx="2"/>'
            low, high = _LEFT + bar.low * scale, _LEFT + bar.high * scale
            yield f'<path class="spread" d="M{low:.1f} {middle}H{high:.1f}M{low:.1f} {middle - 4}v8M{high:.1f} {middle - 4}v8"/>'
            yield _text(max(high, end) + 8, middle + 4, number(bar.value), "value")
            y += _BAR + _BETWEEN_BARS
        y += _BETWEEN_GROUPS


def _ticks(most: float) -> Sequence[float]:
    """From zero to the first round number that is not below `most`."""
    step = 10.0 ** math.floor(math.log10(most))
    step = next(
        each for each in (step / 5, step / 2, step, step * 2) if math.ceil(most / each) <= _MOST_TICKS
    )
    return [step * index for index in range(math.ceil(most / step) + 1)]


def _text(x: float, y: float, text: str, kind: str) -> str:
    return f'<text class="{kind}" x="{x:.1f}" y="{y:.1f}">{escape(text)}</text>'


_COLOURS = 6
_STYLE = """
text { font: 13px -apple-system, "Segoe UI", "Noto Sans", Helvetica, Arial, sans-serif; fill: #1f2328; }
.title { font-size: 18px; font-weight: 600; } .group { font-weight: 600; } .value { font-weight: 600; }
.quiet { fill: #59636e; } .middle { text-anchor: middle; } .end { text-anchor: end; }
.page { fill: #ffffff; stroke: #d1d9e0; } .grid { stroke: #d1d9e0; } .spread { stroke: #1f2328; fill: none; opacity: .55; }
.colour0 { fill: #0969da; } .colour1 { fill: #79b8ff; } .colour2 { fill: #2da44e; } .colour3 { fill: #bf8700; }
.colour4 { fill: #8250df; } .colour5 { fill: #8c959f; }
@media (prefers-color-scheme: dark) {
text { fill: #f0f6fc; } .quiet { fill: #9198a1; }
.page { fill: #0d1117; stroke: #3d444d; } .grid { stroke: #3d444d; } .spread { stroke: #f0f6fc; }
.colour0 { fill: #4493f8; } .colour1 { fill: #1f5fbf; } .colour2 { fill: #3fb950; } .colour3 { fill: #d29922; }
.colour4 { fill: #ab7df8; } .colour5 { fill: #656c76; }
}
"""
