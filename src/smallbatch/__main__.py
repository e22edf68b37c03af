"""`python -m smallbatch` is the `smallbatch` command."""

from smallbatch.cli.main import main

main(prog_name="smallbatch")
