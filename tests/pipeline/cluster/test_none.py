"""Without a cluster nothing of one is imported."""

from __future__ import annotations

import json
import subprocess
import sys

PROGRAM = """
import json, sys
import smallbatch.cli.main, smallbatch.execution.column, smallbatch.placement.placement
import smallbatch.execution.workers, smallbatch.pipeline.experiments, smallbatch.tracking
print(json.dumps(sorted(sys.modules)))
"""


def test_what_trains_here_imports_nothing_of_a_cluster() -> None:
    output = subprocess.check_output([sys.executable, "-c", PROGRAM], text=True)
    modules = json.loads(output)
    assert "smallbatch.pipeline.tracked" in modules
    assert not [it for it in modules if it.startswith(("smallbatch.pipeline.cluster", "ray"))]
