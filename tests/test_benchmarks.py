"""The benchmarks run: each in its short form, on simulated data."""

import json
import subprocess
import sys
from pathlib import Path

import pytest

BENCHMARKS = Path(__file__).parent.parent / "benchmarks"


@pytest.mark.parametrize(
    ("script", "result", "n_rows"),
    [
        pytest.param("quality.py", "quality-simulated.json", 2, id="quality"),
        pytest.param("start.py", "start.json", 12, id="start"),
        pytest.param("recipe.py", "recipe.json", 2, id="recipe"),
    ],
)
def test_a_benchmark_writes_its_rows_with_machine_and_versions(script, result, n_rows, tmp_path):
    command = [sys.executable, script, "--short", "--out", str(tmp_path)]
    run = subprocess.run(command, cwd=BENCHMARKS, capture_output=True, text=True, check=False)
    assert run.returncode == 0, run.stderr[-2000:]
    written = json.loads((tmp_path / result).read_text())
    assert len(written["rows"]) == n_rows
    assert all(0 <= row["ACC"] <= 1 for row in written["rows"])
    assert written["machine"]["versions"]["scgmvae"]
    assert written["short"] is True
