"""The terminal's verdict has at most ten lines of 80 columns, whatever was found."""

from __future__ import annotations

import pytest

from mfdiag.cli.doctor import _verdict
from mfdiag.diagnosis.diagnosis import Diagnosed, Diagnosis
from mfdiag.diagnosis.evidence import Evidence, Facts
from mfdiag.diagnosis.finding import Detection, all_findings
from mfdiag.diagnosis.remedies import remedy
from mfdiag.tables.check import conform
from mfdiag.tables.schema import TABLES


def diagnosis(codes: list[str], words: int, noise: str = "") -> Diagnosis:
    import pandas as pd

    names = [column.name for column in TABLES["doctor"].columns]
    evidence = Evidence(Facts("model"), conform("doctor", pd.DataFrame(columns=names)))
    sentence = " ".join(["number"] * words) + "."
    findings = [
        Diagnosed(
            all_findings()[code],
            Detection("critical", sentence, where=", ".join(["layer blocks.0.mlp"] * words)),
            [remedy(name, evidence) for name in all_findings()[code].remedies],
        )
        for code in codes
    ]
    return Diagnosis("runs/long/name/of/a/checkpoint.safetensors", findings, {}, 1.0, noise)


@pytest.mark.parametrize("words", [2, 12, 60, 200])
@pytest.mark.parametrize("count", [0, 1, 2, 3, 6])
def test_a_verdict_has_at_most_ten_lines_of_80_columns(count: int, words: int) -> None:
    codes = list(all_findings())[:count]
    lines = _verdict(diagnosis(codes, words, "Noise equals signal at a batch of 1,070."))
    assert len(lines) <= 10 and max(map(len, lines)) <= 80
    shown = sum(line[:1].isdigit() and line[1:3] == ". " for line in lines)
    assert shown >= min(count, 1)
    assert shown == count or lines[-1] == f"{count - shown} more in doctor.json."
