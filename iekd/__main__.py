"""`python -m iekd` is the command `iekd`."""

from iekd.cli.main import main

if __name__ == "__main__":
    raise SystemExit(main())
