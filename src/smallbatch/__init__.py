"""Which mini-batch sizes train stably and which generalise, after Masters & Luschi 2018."""
