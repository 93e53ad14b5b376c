"""Pictures that are quickly painted and easily told apart: a coloured mosaic that moves, and a banner that says SANDBOX.

Everything is whole rows of bytes: a frame is a window on a painting that was made once, so that a thousand frames cost
little more than copying them.
"""

from __future__ import annotations

import hashlib
from collections.abc import Sequence

import av

from gateway.sandbox import font

_PAPER, _INK = 16, 235
_BAR_ROWS = 8
_STEP_ROWS = 2
"""How far the mosaic moves from one frame to the next; even, so that colours move with it."""


class Painting:
    """The frames of one film, or one picture.

    The same `name` gives the same painting, another gives visibly another; `lines` are written on the banner.
    """

    def __init__(self, name: str, lines: Sequence[str], *, width: int, height: int) -> None:
        self._width = width
        self._height = height
        blank = av.VideoFrame(width, height, "yuv420p")
        cell = max(8, min(width, height) // 12 // 4 * 4)
        bands = -(-height // cell) + 4
        self._planes = [
            _Plane(
                f"{name}/{index}",
                plane,
                cell=cell if index == 0 else cell // 2,
                bands=bands,
                light=index == 0,
            )
            for index, plane in enumerate(blank.planes)
        ]
        self._period_rows = bands * cell
        stride = blank.planes[0].line_size
        banner = _banner(lines, width=width, stride=stride)
        self._bar_rows = _BAR_ROWS if height > 4 * _BAR_ROWS else 0
        rows = min(len(banner), (height - self._bar_rows) // 2 * 2)
        self._banner_top = (height - self._bar_rows - rows) // 4 * 2
        self._banner_rows = rows
        self._banner = b"".join(banner[:rows])

    def frame(self, index: int, of: int) -> av.VideoFrame:
        """The frame with this index, of so many: the bar at its foot tells how far the film is."""
        frame = av.VideoFrame(self._width, self._height, "yuv420p")
        first = index * _STEP_ROWS % self._period_rows
        luma, *colours = zip(self._planes, frame.planes, strict=True)
        plane, target = luma
        foot = self._height - self._bar_rows
        target.update(
            b"".join(
                (
                    plane.rows(first, self._banner_top),
                    self._banner,
                    plane.rows(
                        first + self._banner_top + self._banner_rows,
                        foot - self._banner_top - self._banner_rows,
                    ),
                    self._bar(index + 1, of, stride=target.line_size),
                )
            )
        )
        for plane, target in colours:
            top, rows = self._banner_top // 2, self._banner_rows // 2
            target.update(
                b"".join(
                    (
                        plane.rows(first // 2, top),
                        b"\x80" * (rows * target.line_size),
                        plane.rows(first // 2 + top + rows, target.height - top - rows),
                    )
                )
            )
        return frame

    def _bar(self, done: int, of: int, *, stride: int) -> bytes:
        filled = self._width * done // of
        row = bytes([_INK]) * filled + bytes([_PAPER]) * (stride - filled)
        return row * self._bar_rows


class _Plane:
    """One colour plane of the mosaic, as high as its period and one picture more."""

    def __init__(
        self, name: str, plane: av.video.plane.VideoPlane, *, cell: int, bands: int, light: bool
    ) -> None:
        self._stride = plane.line_size
        columns = -(-self._stride // cell)
        # Light keeps away from the banner's black and white.
        low, high = (48, 208) if light else (16, 240)
        shades = [
            low + value * (high - low) // 255
            for value in hashlib.shake_128(name.encode()).digest(columns * bands)
        ]
        period = b"".join(
            b"".join(bytes([shade]) * cell for shade in shades[band * columns : (band + 1) * columns])[
                : self._stride
            ]
            * cell
            for band in range(bands)
        )
        self._rows = memoryview(period + period[: plane.height * self._stride])

    def rows(self, first: int, count: int) -> memoryview:
        return self._rows[first * self._stride : (first + count) * self._stride]


def _banner(lines: Sequence[str], *, width: int, stride: int) -> list[bytes]:
    """The rows of the banner: an even number of them, so that colours can be left out under it."""
    empty = bytes([_PAPER]) * stride
    rows = [empty] * 4
    for line in lines:
        scale = max(1, min(width // 48, (width - 8) // (font.ADVANCE * max(1, len(line)))))
        for dots in font.dots(line):
            ink = b"".join(bytes([_INK if dot else _PAPER]) * scale for dot in dots)[: width - 4]
            left = (width - len(ink)) // 2
            row = bytes([_PAPER]) * left + ink
            rows += [row + empty[len(row) :]] * scale
        rows += [empty] * (2 * scale)
    return rows + [empty] * (2 + len(rows) % 2)
