"""The fuzzer: damaged files and odd values through the command line; see docs/reliability.md."""
