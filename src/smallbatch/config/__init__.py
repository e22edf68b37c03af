"""The params file: read, checked, and the ready-made ones."""
