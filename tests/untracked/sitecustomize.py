"""Read by every Python process that has this folder on its path: MLflow is left out of trainings.

The process to which a training tells its runs answers at once that all are logged, and imports
nothing; to begin it and to ask it stays as it is. So a training costs half the processor time, in
tests of something else.
"""

import json
import os
import sys

if "smallbatch.tracking.live_process" in sys.orig_argv:
    print('{"began": true}', flush=True)
    for line in sys.stdin:
        if json.loads(line)["kind"] == "finish":
            print('{"error": null}', flush=True)
    os._exit(0)
