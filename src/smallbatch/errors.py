"""Exceptions for situations that are not the program's fault, and exit statuses."""

FAULT, INTERRUPTED, OUT_OF_TIME = 70, 75, 76
"""A fault of this program; stopped by a signal or by the end of `dvc`; before the time limit."""


class UserError(Exception):
    """Bad input: one line naming the file, key or option, what was found and what is allowed.

    The CLI prints the line and exits with status 2, without a traceback.
    """


class Missing(UserError):  # noqa: N818 - the state of a folder
    """What a command reads is not there, as in a folder that holds no project."""


class TakenOver(UserError):  # noqa: N818 - the state of a lock
    """Another process has taken over a lock that this process held."""


class WorkerLost(UserError):  # noqa: N818 - the state of a training
    """A training process was killed or ran out of memory; fewer lanes at once may fit."""


def is_out_of_memory(error: BaseException) -> bool:
    """Whether memory ran out or the GPU failed, so that files on disk cannot be the cause."""
    # On a CPU torch raises a plain RuntimeError; the linker's errors are those of imports.
    words = ("DefaultCPUAllocator", "out of memory", "CUDA error", "failed to map segment",
             "Cannot allocate memory", "can't start new thread")  # fmt: skip
    return isinstance(error, MemoryError) or any(word in str(error) for word in words)


class Stopping(Exception):  # noqa: N818 - nothing went wrong
    """A trainer was asked to stop, and its state is saved."""


class Stopped(Exception):  # noqa: N818
    """The command ends early, on request, with its progress saved.

    Args:
        reason: The reason in a few words.
        exit_code: The command's exit code.
    """

    def __init__(self, reason: str, exit_code: int) -> None:
        super().__init__(reason)
        self.exit_code = exit_code


def shown(text: str) -> str:
    """A line as it is printed, of characters that can be seen: others could steer a terminal."""
    return "".join(it if it.isprintable() else ascii(it)[1:-1] for it in text)


def first_line(error: BaseException) -> str:
    """The first line of an error's message, or the error's type if it has none."""
    return (str(error).strip().splitlines() or [type(error).__name__])[0][:200]
