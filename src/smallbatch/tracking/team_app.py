"""What each worker of a team's server runs: MLflow with logins, and the rules that it lacks.

Artifacts lie below the server's own folder, and nothing else is opened; of MLflow's routes those
alone answer that tracking needs; and nobody without a login fills the server's memory.
"""

from __future__ import annotations

import os
from pathlib import Path
from typing import cast

from smallbatch.tracking import gate, locations
from smallbatch.tracking.serving import end_with_launcher

ARTIFACTS = "SMALLBATCH_TEAM_ARTIFACTS"


def create_app() -> gate.App:
    """MLflow's application with logins, confined to tracking and to the folder of artifacts."""
    end_with_launcher()
    from mlflow.server.auth import create_app as create_mlflow
    from mlflow.server.security import get_allowed_hosts

    locations.confine_repositories(Path(os.environ[ARTIFACTS]))
    locations.refuse_locations()
    app = cast("gate.App", create_mlflow())  # under uvicorn
    for secret in ("MLFLOW_AUTH_ADMIN_PASSWORD", "MLFLOW_FLASK_SERVER_SECRET_KEY"):
        os.environ.pop(secret, None)  # read by now
    tracking = gate.tracking_alone(gate.bounded_bodies(app, _is_login))
    return gate.known_hosts_alone(tracking, get_allowed_hosts())


def _is_login(header: str) -> bool:
    from mlflow.server.auth import store
    from werkzeug.datastructures import Authorization

    given = Authorization.from_header(header)
    if given is None or not given.username or not given.password:
        return False
    return store.authenticate_user(given.username, given.password)
