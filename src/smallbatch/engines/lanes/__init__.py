"""The `stacked` engine: the runs of a column computed together, each in a lane of its own."""

from smallbatch.engines.lanes.trainer import lane_bytes, train_lanes

__all__ = ["lane_bytes", "train_lanes"]
