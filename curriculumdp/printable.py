"""Which characters text of unknown origin may contain, and how it is displayed.

Imports the standard library only, since every command imports this module.
"""

# Unicode classifies these as letters, marks or symbols, but they render as blank.
BLANKS = frozenset("\u034f\u115f\u1160\u17b4\u17b5\u2800\u3164\uffa0")


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
    return text


def printable(text: object) -> str:
    """Return `text` as one line, with a space for each character that `require_line` refuses."""
    return "".join(letter if _shows(letter) else " " for letter in str(text))


def _shows(letter: str) -> bool:
    return letter.isprintable() and letter not in BLANKS
