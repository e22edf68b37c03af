"""The entry point of the `smallbatch` command, also as `python -m smallbatch`."""

from smallbatch.cli import door


def main() -> None:
    """Run the command; see :mod:`smallbatch.cli.door` for how it ends."""
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
