"""Puts this folder on the import path, for `helpers`; one thread for each pytest worker."""

import os

os.environ.setdefault("OMP_NUM_THREADS", "1")  # read when torch is imported, after this
