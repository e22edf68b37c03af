"""The exceptions that are no faults of the program."""


class UserError(Exception):
    """Bad input: one line naming the file, key or option, what was found and what is allowed.

    The CLI prints the line and exits with status 2, without a traceback.
    """


class TakenOver(UserError):  # noqa: N818 - the state of a lock
    """Another process has taken a lock that was this one's."""


class WorkerLost(UserError):  # noqa: N818 - the state of a training
    """A training process was killed or ran out of memory; fewer lanes at once may fit."""


def is_out_of_memory(error: BaseException) -> bool:
    """Whether memory ran out, or the GPU failed: nothing that content on disk could cause."""
    # On a CPU torch raises no kind of its own.
    words = ("DefaultCPUAllocator", "out of memory", "CUDA error")
    return isinstance(error, MemoryError) or any(word in str(error) for word in words)


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


def first_line(error: BaseException) -> str:
    """What an error says first, or its kind."""
    return (str(error).strip().splitlines() or [type(error).__name__])[0][:200]
