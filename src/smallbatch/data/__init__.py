"""Data sets: from a source to uint8 arrays under ``data/prepared/<dataset>``, and back.

``prepare.prepare`` writes a prepared data set and ``prepared.load_prepared`` reads it. The
sources behind ``prepare`` decode only the images that the configuration selects.
"""
