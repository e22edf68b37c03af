"""What a node must have so that a column's numbers are those that its submitter would get."""

from __future__ import annotations

import hashlib
from typing import TYPE_CHECKING

from smallbatch.errors import UserError

if TYPE_CHECKING:
    from collections.abc import Mapping

    from smallbatch.config.study import StudyConfig

_OF_GPUS = "triton"  # which builds of torch for a CPU do without
_DIGITS = 12


def needs(study: StudyConfig) -> dict[str, str]:
    """What is here: the protocol, the code with its kernels, the libraries, the model's own files.

    And the variables of the environment that choose between models or precisions. Of torch the
    local part of the version is left out: it names the build, for a CPU or a GPU.
    """
    from smallbatch.config.model_files import model_digest
    from smallbatch.engines.made_by import ENTRY, choices_here, code_digest, versions_here
    from smallbatch.protocol.run import PROTOCOL

    code = hashlib.sha256("".join(map(code_digest, ENTRY)).encode()).hexdigest()
    found = {"protocol": str(PROTOCOL), "smallbatch's code": code[:_DIGITS]}
    found |= versions_here()
    found["variables"] = " ".join(sorted(choices_here())) or "none"
    if digest := model_digest(study):
        own = hashlib.sha256(digest.encode()).hexdigest()
        found[f"model {study.model} with its files"] = own[:_DIGITS]
    return found


def check(wanted: Mapping[str, str], here: Mapping[str, str], node: str) -> None:
    """Refuse to train where other code or libraries would give other numbers.

    Raises:
        UserError: Something differs; the line names what is here and what is wanted.
    """
    for name, value in wanted.items():
        if name == _OF_GPUS and name not in here:
            continue
        if here.get(name) != value:
            raise UserError(
                f"{node}: {name}: found {here.get(name, 'none')}, wanted {value} as where the "
                "column was submitted; install the same there"
            )
