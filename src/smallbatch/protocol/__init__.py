"""The paper's training protocol: runs, columns, schedule, stream of examples."""
