"""Which mini-batch sizes train stably and which generalise, after Masters & Luschi 2018."""

DISTRIBUTION = "smallbatch-study"
"""What the package is installed as: `smallbatch` is another project on the public index."""
