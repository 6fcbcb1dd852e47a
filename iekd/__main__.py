"""`python -m iekd` is the command `iekd`."""

from iekd.cli import main

if __name__ == "__main__":
    raise SystemExit(main())
