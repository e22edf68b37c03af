"""Makes figures, tables and the report page from what `analysis` computes."""
