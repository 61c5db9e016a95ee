"""What tables show, in sentences and as one page."""

from mfdiag.reporting.findings import findings
from mfdiag.reporting.page import write_page
from mfdiag.reporting.sentences import Findings

__all__ = ["Findings", "findings", "write_page"]
