"""The exceptions that are no faults of the program."""


class UserError(Exception):
    """Bad input: one line naming the file, key or option, what was found and what is allowed.

    The CLI prints the line and exits with status 2, without a traceback.
    """


class Stopping(Exception):  # noqa: N818 - nothing went wrong
    """A trainer was asked to stop and its state is kept."""


class Stopped(Exception):  # noqa: N818
    """The command ends early, on request, with its progress kept.

    Args:
        reason: in a few words.
        exit_code: of the command.
    """

    def __init__(self, reason: str, exit_code: int) -> None:
        super().__init__(reason)
        self.exit_code = exit_code
