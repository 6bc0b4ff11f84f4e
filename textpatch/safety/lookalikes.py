"""Characters that look like Latin letters, and signs that people write in place of letters.

Unicode lists many more of both (UTS 39).  Those here are the ones that a keyboard, a phone or a generator of
fancy letters offers.
"""

from __future__ import annotations

import string

# each string of characters stands above the letters that they look like
_PAIRS = (
    # Cyrillic
    ("АВЕКМНОРСТУХІЈЅԚԜЗЬ", "abekmhopctyxijsqwzb"),
    ("авекмнорстухіјѕԛԝһԁӏгп", "abekmhopctyxijsqwhdlrn"),
    # Greek
    ("ΑΒΕΖΗΙΚΜΝΟΡΤΥΧ", "abezhikmnoptyx"),
    ("αβγεηικνορτυχωμ", "abyenikvoptuxwu"),
    # Armenian
    ("օսհոց", "ouhng"),
    # small capitals, and Latin letters that do not decompose
    ("ᴀʙᴄᴅᴇɢʜɪᴊᴋʟᴍɴᴏᴘʀꜱᴛᴜᴠᴡʏᴢ", "abcdeghijklmnoprstuvwyz"),
    ("øđłħıȷɑɡɩƒŧ", "odlhijagift"),
)


def _lettered() -> dict[str, str]:
    """Capitals in squares, in black circles and squares, and as halves of flags."""
    blocks = (0x1F130, 0x1F150, 0x1F170, 0x1F1E6)
    return {
        chr(first + place): letter
        for first in blocks
        for place, letter in enumerate(string.ascii_lowercase)
    }


LOOKALIKES = _lettered() | {
    character: letter
    for characters, letters in _PAIRS
    for character, letter in zip(characters, letters, strict=True)
}

# a sign -> the letters that it may stand for
LEET = {
    "0": "o",
    "1": "il",
    "2": "z",
    "3": "e",
    "4": "a",
    "5": "s",
    "6": "gb",
    "7": "t",
    "8": "b",
    "9": "gq",
    "@": "a",
    "$": "s",
    "!": "il",
    "|": "il",
    "+": "t",
    "€": "e",
    "£": "l",
}

# signs that hide one letter each
MASKS = "*#_?%&^~•█"
