"""The words of a card that say under which licence something is published."""

import re

from curriculumdp.errors import UserError


class TermsError(UserError):
    """A licence that no card can state; the message is one line."""


def require_license(license_: str | None) -> None:
    """Raise TermsError unless `license_` is None or has the form of a Hugging Face licence identifier.

    Whether the Hub knows the identifier is for the Hub to say.
    """
    if license_ is not None and not re.fullmatch(r"[a-z0-9][a-z0-9.+-]{0,49}", license_):
        raise TermsError(
            f"license is {license_!r}: give an identifier in lower case, such as apache-2.0, cc-by-4.0 or other"
        )


def license_words(license_: str | None) -> str:
    """Return a card's sentence on the licence."""
    if license_ is None:
        return "No licence is stated: ask whoever publishes this before using it."
    return f"Licence: {license_}, as whoever published this states."
