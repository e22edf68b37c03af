"""The `smallbatch` command: parses, calls, prints."""
