"""Data sets: from a source to uint8 arrays under ``data/prepared/<dataset>``, and back.

``prepare.prepare`` writes a prepared data set, and ``prepared.load_prepared`` reads it. Of a
source, only those images are decoded that the configuration selects.
"""
