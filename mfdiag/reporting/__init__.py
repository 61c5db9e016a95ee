"""What tables show: in words, and as one page."""

from mfdiag.reporting.findings import Findings, findings
from mfdiag.reporting.page import write_page

__all__ = ["Findings", "findings", "write_page"]
