"""The command line: parses and prints, nothing else. `mfdiag --help` answers without importing torch."""

from __future__ import annotations

import atexit
import gc
import os
import sys
from io import TextIOWrapper

__all__ = ["main"]

_OLD_COLLECTIONS = 1000  # of the middle generation before the oldest is traversed; Python's default is 10


def main() -> None:
    """Entry point: exit code 0 done, 1 a check failed, 2 bad input, 3 interrupted."""
    try:
        from mfdiag.cli.app import app
    except (MemoryError, OSError) as error:  # too little memory or too few files to load the program
        sys.stderr.write(f"mfdiag: Cannot start ({error}). Free memory, or raise the limit of open files.\n")
        sys.exit(2)

    # Imports make about a million objects that live until the end. Traversing them again and again, and once more at
    # exit, takes a quarter of a short run. What dies young, such as the graphs of a pass, is still collected.
    gc.set_threshold(*gc.get_threshold()[:2], _OLD_COLLECTIONS)
    atexit.register(gc.freeze)
    # Waiting threads of torch must not spin: beside other work that makes a measurement several times slower
    os.environ.setdefault("OMP_WAIT_POLICY", "PASSIVE")
    for stream in (sys.stdout, sys.stderr):
        if isinstance(stream, TextIOWrapper):
            stream.reconfigure(errors="replace")  # a terminal without "±" must not make a command fail
    app(prog_name="mfdiag")
