"""The one exception that a user can cause and repair."""


class UserError(Exception):
    """Bad input: one line naming the file, key or option, what was found and what is allowed.

    The CLI prints the line and exits with status 2, without a traceback.
    """
