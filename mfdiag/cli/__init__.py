"""The command line: parses and prints, nothing else. `mfdiag --help` answers without importing torch."""

from __future__ import annotations

import os
import sys
from io import TextIOWrapper

__all__ = ["main"]


def main() -> None:
    """Entry point: exit code 0 done, 1 a check failed, 2 bad input, 3 interrupted."""
    from mfdiag.cli.app import app

    # Waiting threads of torch must not spin: beside other work that makes a measurement several times slower
    os.environ.setdefault("OMP_WAIT_POLICY", "PASSIVE")
    for stream in (sys.stdout, sys.stderr):
        if isinstance(stream, TextIOWrapper):
            stream.reconfigure(errors="replace")  # a terminal without "±" is no reason to fail
    app(prog_name="mfdiag")
