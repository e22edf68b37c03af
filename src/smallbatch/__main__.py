"""`python -m smallbatch` is the `smallbatch` command."""

from smallbatch.cli import main

main(prog_name="smallbatch")
