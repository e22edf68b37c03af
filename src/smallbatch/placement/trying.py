"""Whether something works that may fail, hang or start threads: tried in a process of its own."""

from __future__ import annotations

import multiprocessing
import os
from collections.abc import Callable
from functools import cache

from smallbatch.errors import UserError
from smallbatch.processes import live_and_die_with

CHILD_S = 120.0  # seconds that trying out an update may take; one of two images takes under ten


@cache
def vmap_works(
    model: str,
    norm: str,
    classes: int,
    image: tuple[int, int, int],
    batch_size: int,
    bn_batch_size: int | None,
) -> bool:
    """Whether a model can be computed under vmap; found by an update of two lanes.

    Raises:
        UserError: The model cannot be built for these images.
    """
    from smallbatch.engines.lanes.torch import vmap
    from smallbatch.models import build_model

    def works() -> bool:
        import torch

        torch.set_num_threads(1)  # an OpenMP pool of the parent does not live on in a fork
        built = build_model(
            model, norm, num_classes=classes, in_chans=image[0], image_size=image[1:], seed=0,
            batch_size=batch_size, bn_batch_size=bn_batch_size,
        )  # fmt: skip
        return vmap.vmap_works(built, image, batch_size)

    return in_a_child(works)


def in_a_child(call: Callable[[], bool]) -> bool:
    """Call a function in a forked process and return its answer; False if it fails or hangs.

    The function may start threads, as autograd does. This process must have none, because workers
    are forked from it later.

    Raises:
        UserError: The function raised it, or a kind of it.
    """
    context, parent = multiprocessing.get_context("fork"), os.getpid()
    receive, send = context.Pipe(duplex=False)

    def answer() -> None:
        live_and_die_with(parent)
        try:
            send.send(call())
        except UserError as error:
            send.send(str(error))  # an exception need not survive a pipe
        except BaseException:  # noqa: BLE001 - that it fails is the answer
            send.send(False)

    child = context.Process(target=answer, daemon=True)
    child.start()
    send.close()
    try:
        found = receive.recv() if receive.poll(CHILD_S) else False
    except (EOFError, OSError):  # the process was killed
        found = False
    finally:
        child.kill()
        child.join()
    if isinstance(found, str):
        raise UserError(found)
    return bool(found)
