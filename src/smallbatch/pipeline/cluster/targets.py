"""Which columns the `dvc repro` above this process was asked for."""

from __future__ import annotations

import sys
from pathlib import Path
from typing import TYPE_CHECKING

from smallbatch.errors import first_line, shown
from smallbatch.execution.watch import dvc_above
from smallbatch.pipeline.experiments import stage_of

if TYPE_CHECKING:
    from collections.abc import Sequence
    from typing import Any

    from smallbatch.config.params import Params


def columns_of_repro(params: Params) -> set[tuple[str, int]]:
    """The study and batch size of every column that the `dvc` above is to reproduce.

    Which of them it finds unchanged and leaves out is another question. Empty, after a line, where
    its command cannot be understood; and where there is none, as none is asked for.
    """
    dvc = dvc_above()
    if dvc is None:
        return set()
    try:
        words = dvc.cmdline()
        names = _stages(words[[Path(word).name for word in words].index("dvc") + 1 :])
    except Exception as error:  # noqa: BLE001 - whatever DVC says of its own command and files
        line = f"dvc: which stages it runs is not known ({first_line(error)}): one after another"
        print(shown(line), file=sys.stderr, flush=True)
        return set()
    return {column for column in params.columns if stage_of(params, *column) in names}


def _stages(words: Sequence[str]) -> set[str]:
    """The names of the stages that a `dvc repro` or `dvc exp run` goes through."""
    from dvc.cli import parse_args
    from dvc.dvcfile import PROJECT_FILE
    from dvc.repo import Repo
    from dvc.repo.reproduce import collect_stages, get_active_graph, plan_repro

    asked: dict[str, Any] = vars(parse_args([*words]))  # `exp run` has no --glob
    whole, every = asked.get("pipeline", False), asked.get("all_pipelines", False)
    with Repo() as repo:
        chosen: list[Any] = []
        if not every:
            chosen = collect_stages(
                repo,
                asked["targets"] or [PROJECT_FILE],
                recursive=asked.get("recursive", False),
                glob=asked.get("glob", False),
            )
        if whole or every or not asked.get("single_item", False):
            graph = get_active_graph(repo.index.graph)
            downstream = asked.get("downstream", False)
            chosen = plan_repro(graph, chosen, pipeline=whole, downstream=downstream)
        return {stage.addressing for stage in chosen if not stage.frozen}
