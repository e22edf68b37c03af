"""What a server of MLflow needs to run no code of the folder that it is started in."""

from __future__ import annotations

import os

OWN_CODE_ALONE = {
    "PYTHONSAFEPATH": "1",  # MLflow starts `python -m uvicorn`, which starts its workers
    "UVICORN_APP_DIR": os.devnull,  # else uvicorn puts the folder on the path by itself
}
"""Variables for the environment of the server; its first process needs `python -P` as well."""
