"""The `stacked` engine, which computes many runs of a column together, each in its own lane."""

from smallbatch.engines.lanes.trainer import lane_bytes, train_lanes

__all__ = ["lane_bytes", "train_lanes"]
