"""Puts this folder on the import path, for `helpers`; one thread for each worker; hypothesis without clock and dice."""

import os

import pytest
from hypothesis import settings

# a busy machine is no fault of the code, and a change is judged on the same examples as the one before it;
# HYPOTHESIS_PROFILE=search looks for new ones
settings.register_profile("suite", deadline=None, derandomize=True)
settings.register_profile("search", deadline=None)
settings.load_profile(os.environ.get("HYPOTHESIS_PROFILE", "suite"))
os.environ.setdefault("OMP_NUM_THREADS", "1")  # read when torch is imported, after this

# Minutes of clusters, browsers, trainings and every shipped card. `make test` leaves them out, so that a change is
# judged in time; `make test-slow` runs them, and must pass before a release.
SLOW = (
    "tests/cli/test_cli_cards.py::test_measured_by_the_commands",
    "tests/cli/test_cli_hostile.py",
    "tests/cli/test_cli_machine.py",
    "tests/cli/test_cli_ranks.py",
    "tests/cli/test_cli_ray.py",
    "tests/cli/test_cli_train.py::test_the_quick_experiment_runs",
    "tests/diagnosis/test_identify_command.py::test_an_exported_program_has_no_card_but_the_remedy_that_is_named",
    "tests/diagnosis/test_order.py::test_an_exchange_of_times_is_refuted_by_the_intervals",
    "tests/diagnosis/test_training_log.py::test_every_format_gives_the_same_loss",
    "tests/docs/test_gallery.py",
    "tests/faults/test_doctor_on_faults.py",
    "tests/figures/test_figure_files.py::test_every_figure_with_data_is_saved_as_svg_pdf_and_png",
    "tests/figures/test_odd_results.py",
    "tests/integrations",
    "tests/reporting/test_browser.py",
)


def pytest_collection_modifyitems(items: list[pytest.Item]) -> None:
    """Marks the slow tests."""
    for item in items:
        if item.nodeid.startswith(SLOW):
            item.add_marker(pytest.mark.slow)
