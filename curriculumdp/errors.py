"""The one class of errors that commands print as a line instead of a traceback."""


class UserError(ValueError):
    """An error that a user can mend; its message is one line that says what, where, and how to mend it.

    Every part of the package has subclasses of its own. Whatever else is raised is a bug.
    """
