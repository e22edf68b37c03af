"""The entry point of the `smallbatch` command, also as `python -m smallbatch`."""

import sys


def main() -> None:
    """Run the command; see :mod:`smallbatch.cli.door` for how it ends."""
    from smallbatch.namesake import clash

    if (line := clash()) is not None:  # whatever else is imported may be of the other project
        print(f"Error: {line}", file=sys.stderr)
        sys.exit(2)
    from smallbatch.cli import door

    door.install()
    code: object = 0
    try:
        from smallbatch.cli.main import main as command

        command(prog_name="smallbatch")
    except SystemExit as end:
        code = end.code
    except BaseException as error:  # noqa: BLE001 - a fault while the command is imported, too
        code = door.leave_because_of(error)
    door.close(code)


if __name__ == "__main__":
    main()
