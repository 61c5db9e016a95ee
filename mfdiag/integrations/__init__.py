"""`mfdiag.Monitor` in the loops of other libraries: one file each, imported only by who uses that library."""
