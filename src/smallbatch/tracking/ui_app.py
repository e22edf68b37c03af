"""What `smallbatch ui` becomes, and what its worker runs: MLflow, for who has the token alone.

Loopback keeps other machines out, but no other user of this one.
"""

from __future__ import annotations

import os
import sys
from typing import cast

from smallbatch.tracking import gate, locations
from smallbatch.tracking.serving import UI_QUIET, UI_TOKEN, end_with_launcher, serve


def create_app() -> gate.App:
    """MLflow's application, confined to tracking."""
    token = os.environ.pop(UI_TOKEN)
    end_with_launcher()
    from mlflow.server.fastapi_app import app
    from mlflow.server.security import get_allowed_hosts

    locations.refuse_locations()
    tracking = gate.tracking_alone(cast("gate.App", app))
    return gate.known_hosts_alone(gate.holders_alone(tracking, token), get_allowed_hosts())


if __name__ == "__main__":
    serve(
        "smallbatch.tracking.ui_app:create_app",
        int(sys.argv[1]),
        sys.argv[2:],
        quiet=UI_QUIET in os.environ,
    )
