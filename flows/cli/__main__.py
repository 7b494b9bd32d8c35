"""``python -m flows.cli``: the command line of whichever tree comes first on the path."""

from flows.cli import main

if __name__ == "__main__":
    main()
