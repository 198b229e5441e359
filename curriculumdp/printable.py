"""What text of unknown origin may hold, and how it is shown. Standard library alone: every command imports it."""

# Letters and marks by Unicode's categories, yet they show as nothing at all.
BLANKS = frozenset("\u034f\u115f\u1160\u17b4\u17b5\u2800\u3164\uffa0")


def require_line(text: str) -> str:
    """Return `text` if it is one printable line; raise ValueError, which names the first letter that is not.

    Letters, digits and signs of any script and the ordinary space are. Controls (C0 and C1), line and paragraph
    separators, other spaces, marks of direction, letters without width, surrogates and unassigned codes are not:
    a terminal would show other text than the one that was checked.
    """
    for letter in text:
        if not _shows(letter):
            raise ValueError(
                f"must be one line of printable text, without U+{ord(letter):04X}: use letters, digits, signs "
                "and ordinary spaces"
            )
    if not text.strip():
        raise ValueError("must be one line of printable text, not spaces alone")
    return text


def printable(text: object) -> str:
    """Return the text of `text` on one line, a space for each letter that `require_line` refuses."""
    return "".join(letter if _shows(letter) else " " for letter in str(text))


def _shows(letter: str) -> bool:
    return letter.isprintable() and letter not in BLANKS
