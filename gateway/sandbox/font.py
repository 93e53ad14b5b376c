"""Letters for the pictures: five dots wide, seven dots high."""

from __future__ import annotations

from collections.abc import Sequence

HEIGHT = 7
ADVANCE = 6
"""Dots from one letter's left edge to the next one's."""

_ALPHABET = "ABCDEFGHIJKLMNOPQRSTUVWXYZ0123456789-.,:?' "

# Seven rows a letter, each a digit to the base 32: its bits are the five dots, the leftmost first.
_ROWS = (
    "ehhvhhh uhhuhhu ehggghe uhhhhhu vgguggv vgguggg ehgnhhf hhhvhhh e44444e 72222ic hikokih ggggggv "
    "hrllhhh hpljhhh ehhhhhe uhhuggg ehhhlid uhhukih fgge11u v444444 hhhhhhe hhhhha4 hhhllla hha4ahh "
    "hha4444 v1248gv ehjlphe 4c4444e eh168gv v2421he 26aiv22 vgu11he 68guhhe v124888 ehhehhe ehhf12c "
    "000v000 00000cc 0000c48 0cc0cc0 eh12404 4480000 0000000"
)

_LETTERS = {
    letter: [int(digit, 32) for digit in rows] for letter, rows in zip(_ALPHABET, _ROWS.split(), strict=True)
}


def dots(text: str) -> Sequence[Sequence[bool]]:
    """`text` in capitals, as seven rows of dots; a letter that there is not is a question mark."""
    letters = [_LETTERS.get(letter, _LETTERS["?"]) for letter in text.upper()]
    return [
        [
            bool(letter[row] >> (4 - dot) & 1) if dot < 5 else False
            for letter in letters
            for dot in range(ADVANCE)
        ]
        for row in range(HEIGHT)
    ]
