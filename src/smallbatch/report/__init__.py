"""Figures, tables and the page, from what `analysis` computes."""
