"""How several ranks share the batches of a column, as far as it is known before they train."""

from __future__ import annotations

from typing import TYPE_CHECKING

from smallbatch import machine
from smallbatch.errors import UserError
from smallbatch.text import count

if TYPE_CHECKING:
    from smallbatch.protocol.column import Column


def share_of(column: Column, ranks: int, *, own: int) -> int:
    """Most examples of a batch that one rank computes.

    Args:
        column: The column.
        ranks: Their number.
        own: Examples that the model normalises together where the settings have no BN batch.

    Raises:
        UserError: Its batches cannot be divided among so many.
    """
    from smallbatch.engines.ranks import shares

    m = column.batch_size
    found = {run.settings.bn_batch_size or min(m, own) for run in column.runs}
    divided = [shares(m, together, ranks)[0] for together in sorted(found)]
    return max(part.stop - part.start for parts in divided for part in parts)


def refuse_too_few_gpus(ranks: int) -> None:
    """Check that each rank has a GPU.

    Raises:
        UserError: There are fewer of the first one's model.
    """
    models = list(machine.gpus().values())
    if (alike := models.count(models[0])) < ranks:
        raise UserError(
            f"compute.ranks: found {ranks} with {count(alike, 'GPU')} of one model, "
            f"allowed here: at most {alike}"
        )
