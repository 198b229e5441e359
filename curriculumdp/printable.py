"""Which characters text of unknown origin may contain, and how it is displayed.

Imports the standard library only, since every command imports this module.
"""

import re

# Unicode classifies these as letters, marks or symbols, but they render as blank.
BLANKS = frozenset(
    "\u034f\u115f\u1160\u17b4\u17b5\u180b\u180c\u180d\u180f\u2800\u3164\uffa0\U00016fe4\U0001d159"
) | {chr(code) for codes in (range(0xFE00, 0xFE10), range(0xE0100, 0xE01F0)) for code in codes}


def require_line(text: str) -> str:
    """Return `text` if it is one printable line. Raises ValueError naming the first character that is not printable.

    Letters, digits and symbols of any script and the ordinary space are allowed. Control characters (C0 and C1),
    line and paragraph separators, other spaces, direction marks, zero-width letters, surrogates and unassigned code
    points are not: a terminal would display something other than the text that was checked.
    """
    for letter in text:
        if not _shows(letter):
            raise ValueError(
                f"must be one line of printable text, without U+{ord(letter):04X}: use letters, digits, symbols "
                "and ordinary spaces"
            )
    if not text.strip():
        raise ValueError("must be one line of printable text, not only spaces")
    if "  " in text:  # enough of them to fill a terminal's line would start another
        raise ValueError("must be one line of printable text, without two spaces in a row")
    return text


def printable(text: object) -> str:
    """Return `text` as one line, with one space for each run of spaces and characters that `require_line` refuses."""
    shown = "".join(letter if _shows(letter) else " " for letter in str(text))
    return re.sub(" +", " ", shown)


def _shows(letter: str) -> bool:
    return letter.isprintable() and letter not in BLANKS
