"""`python -m mfdiag` runs the command line."""

from mfdiag.cli import main

if __name__ == "__main__":
    main()
