"""Two families with what Qwen3-MoE lacks, served by sglang with lsg's plugin: benchmarks/served.py does all.

gpt-oss has expert biases, clamped and interleaved gates, attention sinks and windows; GLM-4.7 a shared
expert, a sigmoid router with correction biases, and a routed_scaling_factor.
"""

import json
import subprocess
import sys
from pathlib import Path

import pytest

pytestmark = pytest.mark.server
PROGRAM = Path(__file__).resolve().parents[2] / "benchmarks" / "served.py"


def test_families_with_other_experts_than_qwens(tmp_path):
    out, models = tmp_path / "served.json", ("GLM-4.7", "gpt-oss-120b")
    chosen = [argument for model in models for argument in ("--model", model)]
    command = [sys.executable, str(PROGRAM), *chosen, "--formats", "1", "--out", str(out)]
    subprocess.run([*command, "--logs", str(tmp_path)], check=False)
    cases = json.loads(out.read_text())["cases"]
    assert [case["model"] for case in cases] == list(models)
    for case in cases:
        assert case["state"] == "served", (tmp_path / f"{case['model']}_{case['format']}.log").read_text()[
            -3000:
        ]
