"""Puts this folder on the import path, for `helpers`; one thread for each worker; hypothesis without clock and dice."""

import os

from hypothesis import settings

# a busy machine is no fault of the code, and a change is judged on the same examples as the one before it;
# HYPOTHESIS_PROFILE=search looks for new ones
settings.register_profile("suite", deadline=None, derandomize=True)
settings.register_profile("search", deadline=None)
settings.load_profile(os.environ.get("HYPOTHESIS_PROFILE", "suite"))
os.environ.setdefault("OMP_NUM_THREADS", "1")  # read when torch is imported, after this
