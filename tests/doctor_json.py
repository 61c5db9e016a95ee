"""A doctor.json with all that its format allows, for pages that show it."""

from __future__ import annotations

from typing import Any

DOCTOR: dict[str, Any] = {
    "verdict": "Something is wrong: the tangent is noisy.\nUse the averaged weights as tangent.",
    "healthy": False,
    "checkpoint": "eight_gaussians/step_12000.safetensors",
    "seconds": 41.5,
    "noise": "Noise equals signal at a batch of 407 [248, 668].",
    "findings": [
        {
            "code": "tangent_noise",
            "severity": "critical",
            "title": "The tangent <causes> most of the noise",
            "evidence": [
                {
                    "quantity": "variance",
                    "value": 700.0,
                    "ci_low": 640.0,
                    "ci_high": 760.0,
                    "expected": "below 300",
                    "where": "t in [0.4, 0.6]",
                }
            ],
            "summary": "Nearly all of the variance is the tangent's.",
            "certainty": "beyond doubt",
            "where": "t in [0.4, 0.6]",
            "why": "The conditional velocity varies more than the velocity.",
            "remedies": [
                {
                    "action": "Use the EMA tangent",
                    "option": "mfdiag: loss: {estimator: ema_tangent}; py-meanflow: --tangent ema",
                    "effect": {"quantity": "variance_ratio", "value": 0.63, "ci_low": 0.58, "ci_high": 0.69},
                    "cost": "one forward pass per step",
                }
            ],
        },
        {"code": "heavy_tail", "severity": "warning", "title": "Few samples dominate", "evidence": []},
        {
            "code": "short_ema",
            "severity": "note",
            "title": "The average is short",
            "remedies": [{"action": "Wait", "effect": {"quantity": "ratio", "value": 1, "ci_low": 0.01, "ci_high": 9}}],
        },
    ],
    "not_checked": [{"code": "stale_ema", "reason": "The file has no averaged weights."}],
}
