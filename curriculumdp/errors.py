"""The base class of the errors that commands print as one line instead of a traceback."""


class UserError(ValueError):
    """An error that the user can fix. Its message is one line that says what is wrong, where, and how to fix it.

    Each part of the package has its own subclasses. Any other exception is a bug.
    """


class StoppedByMain(UserError):
    """Raised on the other ranks when rank 0 has raised an error, which it reports itself."""
