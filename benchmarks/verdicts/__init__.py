"""How often verdicts are false where a statement is exactly at its boundary, by simulation."""
