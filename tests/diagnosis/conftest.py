"""The command line for the tests of this folder."""

from __future__ import annotations

from cli.conftest import cli, save

__all__ = ["cli", "save"]
