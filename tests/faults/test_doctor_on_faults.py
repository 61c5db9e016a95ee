"""The doctor names planted faults, and finds nothing critical in a healthy model; all of them are in docs/doctor.md."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path

import pytest
from cases import TUNING, Case, train_case
from healthy import HEALTHY
from planted import FAULTS

from mfdiag.diagnosis.candidate import load_candidate
from mfdiag.diagnosis.diagnosis import Diagnosis, diagnose
from mfdiag.diagnosis.examination import ExaminationOptions, examine
from mfdiag.diagnosis.training_log import read_log
from mfdiag.measures.run.subject import SubjectOptions

CASES = {case.name: case for case in (*FAULTS, *HEALTHY)}


def diagnosed(case: Case, folder: Path) -> Diagnosis:
    brief = replace(case, changes={**case.changes, "steps": 500})
    (entry,) = train_case(brief, "mlp", TUNING[:1], folder)
    candidate = load_candidate(folder / entry["path"], SubjectOptions(), say=lambda note: None)
    options = ExaminationOptions(budget=1000.0, samples=256, effects=False, log=read_log(folder / entry["log"]))
    return diagnose(examine(candidate, options, say=lambda note: None))


@pytest.mark.parametrize("name", ["data_scale-severe", "ema_never_updated-plain"])
def test_planted_faults_are_named(name: str, tmp_path: Path) -> None:
    codes = [entry.finding.code for entry in diagnosed(CASES[name], tmp_path).findings]
    assert set(codes[:2]) & set(CASES[name].expected), codes


def test_a_healthy_model_has_no_critical_finding(tmp_path: Path) -> None:
    findings = diagnosed(CASES["plain-plain"], tmp_path).findings
    assert "critical" not in [entry.detection.severity for entry in findings]
