"""Bitmap glyphs for pictures: a face of 5×7 dots, one of 3×5, and the seven segments.

An entry is a character and then a digit per line of dots, from the top; a digit's highest bit is
the leftmost dot. The 5×7 face counts in base 32, the 3×5 face in octal.
"""

from __future__ import annotations

from functools import cache

import numpy as np

_LARGE = (
    "0ehjlphe 14c4444e 2eh1248v 3v2421he 426aiv22 5vgu11he 668guhhe 7v124888 8ehhehhe 9ehhf12c "
    "Aehhvhhh Buhhuhhu Cehggghe Dsihhhis Evgguggv Fvgguggg Gehgnhhf Hhhhvhhh Ie44444e J72222ic "
    "Khikokih Lggggggv Mhrllhhh Nhhpljhh Oehhhhhe Puhhuggg Qehhhlid Ruhhukih Sfgge11u Tv444444 "
    "Uhhhhhhe Vhhhhha4 Whhhllla Xhha4ahh Yhhha444 Zv1248gv "
    "a00e1fhf bggmphhu c00eggge d11djhhf e00ehvge f698s888 g0fhhf1e hggmphhh i40c444e j20622ic "
    "kggikoki lc44444e m00qllhh n00mphhh o00ehhhe p00uhugg q00djf11 r00mpggg s00ege1u t88s8896 "
    "u00hhhjd v00hhha4 w00hhlla x00ha4ah y00hhf1e z00v248v -000v000 .00000cc :0cc0cc0 ?eh12404"
)
_SMALL = (
    "075557 126227 271747 371717 455711 574717 674757 771111 875757 975717 A25755 B65656 C34443 "
    "D65556 E74647 F74644 G34553 H55755 I72227 J11152 K55655 L44447 M57755 N65555 O25552 P65644 "
    "Q25563 R65655 S34216 T72222 U55557 V55552 W55775 X55255 Y55222 Z71247 -00700 .00002 :02020"
)
_SEGMENTS = (
    "abcdef",
    "bc",
    "abged",
    "abgcd",
    "fgbc",
    "afgcd",
    "afgecd",
    "abc",
    "abcdefg",
    "abcdfg",
)


def _face(text: str, base: int, width: int) -> dict[str, np.ndarray]:
    bits = 1 << np.arange(width - 1, -1, -1)
    return {
        entry[0]: (np.array([int(d, base) for d in entry[1:]])[:, None] & bits) > 0
        for entry in text.split()
    }


_FACES = {"large": _face(_LARGE, 32, 5), "small": _face(_SMALL, 8, 3)}
#: Ways to write: (face, weight). "slanted" leans the large face to the right.
FONTS = ("plain", "bold", "slanted", "small")


@cache
def glyph(character: str, font: str, scale: int) -> np.ndarray:
    """Dots [lines, columns] of ``character``; lower case falls back to upper in the small face."""
    if font == "small":
        dots = _FACES["small"][character.upper()]
    else:
        dots = _FACES["large"][character]
    dots = np.repeat(np.repeat(dots, scale, 0), scale, 1)
    if font == "bold":
        return _widened(dots, max(1, scale // 2))
    if font == "slanted":
        return _slanted(dots, scale)
    return dots


def _widened(dots: np.ndarray, by: int) -> np.ndarray:
    out = np.zeros((dots.shape[0], dots.shape[1] + by), bool)
    for shift in range(by + 1):
        out[:, shift : shift + dots.shape[1]] |= dots
    return out


def _slanted(dots: np.ndarray, scale: int) -> np.ndarray:
    height, width = dots.shape
    lean = 2 * scale
    out = np.zeros((height, width + lean), bool)
    for line in range(height):
        shift = lean * (height - 1 - line) // max(1, height - 1)
        out[line, shift : shift + width] = dots[line]
    return out


@cache
def seven_segments(digit: str, width: int, height: int, stroke: int) -> np.ndarray:
    """A digit of a display, [height, width]."""
    out = np.zeros((height, width), bool)
    half = height // 2
    bars = {
        "a": (slice(0, stroke), slice(1, width - 1)),
        "d": (slice(height - stroke, height), slice(1, width - 1)),
        "g": (slice(half - stroke // 2, half - stroke // 2 + stroke), slice(1, width - 1)),
        "f": (slice(1, half), slice(0, stroke)),
        "e": (slice(half, height - 1), slice(0, stroke)),
        "b": (slice(1, half), slice(width - stroke, width)),
        "c": (slice(half, height - 1), slice(width - stroke, width)),
    }
    for bar in _SEGMENTS[int(digit)]:
        out[bars[bar]] = True
    return out
