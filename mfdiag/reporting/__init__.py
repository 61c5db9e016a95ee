"""What tables show, in words."""

from mfdiag.reporting.findings import Findings, findings

__all__ = ["Findings", "findings"]
