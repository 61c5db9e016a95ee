"""Puts this folder on the import path, for `helpers`; one thread for each pytest worker; no clock in hypothesis."""

import os

from hypothesis import settings

settings.register_profile("suite", deadline=None)  # a busy machine is no fault of the code
settings.load_profile("suite")
os.environ.setdefault("OMP_NUM_THREADS", "1")  # read when torch is imported, after this
