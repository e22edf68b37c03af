"""Where on an MLflow server the experiments of some studies are."""

from __future__ import annotations

from typing import TYPE_CHECKING

from smallbatch.tracking.experiment import runs_page
from smallbatch.tracking.store import open_store, plain_errors
from smallbatch.tracking.uri import TrackingUri

if TYPE_CHECKING:
    from collections.abc import Iterable


def experiment_links(names: Iterable[str]) -> dict[str, str]:
    """The addresses of experiments on the server that MLFLOW_TRACKING_URI names.

    Args:
        names: Of experiments, ``<dataset>/<study>``.

    Returns:
        The address in MLflow's UI by name, without user and password; of experiments that the
        server does not have there is none, and none at all if the store is no server.

    Raises:
        UserError: The URI cannot be used, or the server does not answer.
    """
    uri = TrackingUri.parse()
    if uri.kind != "server":
        return {}
    with plain_errors(uri):
        client = open_store(uri).client
        found = {name: client.get_experiment_by_name(name) for name in names}
    return {
        name: f"{uri.store}/{runs_page(each)}"
        for name, each in found.items()
        if each is not None and each.lifecycle_stage == "active"
    }
