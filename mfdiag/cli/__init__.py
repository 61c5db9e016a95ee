"""The command line: parses and prints, nothing else. `mfdiag --help` answers without importing torch."""

from __future__ import annotations

import sys

__all__ = ["main"]


def main() -> None:
    """Entry point: exit code 0 done, 1 a check failed, 2 bad input, 3 interrupted."""
    from mfdiag.cli.app import app
    from mfdiag.errors import MfdiagError

    try:
        app()
    except MfdiagError as error:
        print(f"mfdiag: {error}", file=sys.stderr)
        sys.exit(2)
    except KeyboardInterrupt:
        print("mfdiag: interrupted; finished checkpoints are saved, go on with --resume.", file=sys.stderr)
        sys.exit(3)
    except BrokenPipeError:  # stdout was closed, as by `| head`
        sys.stderr.close()
        sys.exit(0)
