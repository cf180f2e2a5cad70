"""The benchmarks run: each in its short form, on simulated data."""

import json
import subprocess
import sys
from pathlib import Path

import pytest

BENCHMARKS = Path(__file__).parent.parent / "benchmarks"


@pytest.mark.parametrize(
    ("script", "results"),
    [
        pytest.param("quality.py", {"quality-simulated": (2, "ACC")}, id="quality"),
        pytest.param("start.py", {"start": (12, "ACC")}, id="start"),
        pytest.param("recipe.py", {"recipe": (2, "ACC")}, id="recipe"),
        pytest.param(
            "labels.py", {"labels-simulated": (5, "ACC"), "labels-rare": (2, "ACC")}, id="labels"
        ),
        pytest.param(
            "kang.py",
            {
                "kang-counterfactual": (16, "R2"),
                "kang-supervised": (4, "ACC"),
                "kang-generation": (3, "ACC_condition"),
            },
            id="kang",
        ),
        pytest.param(
            "integration.py",
            {
                "integration-mixing": (6, "iLISI"),
                "integration-query": (4, "ACC"),
                "integration-conditions": (2, "ACC"),
            },
            id="integration",
        ),
        pytest.param("cost.py", {"cost": (3, None)}, id="cost"),
        pytest.param("estimators.py", {"estimators": (4, None)}, id="estimators"),
        pytest.param(
            # one task of each kind
            "images.py --tasks mnist-20 mnist-100 vae cifar speed",
            {
                "images-mnist-20": (1, "ACC"),
                "images-mnist-100": (1, "ACC"),
                "images-vae": (2, None),
                "images-cifar": (2, None),
                "images-speed": (1, None),
            },
            id="images",
        ),
    ],
)
def test_a_benchmark_writes_its_rows_with_machine_and_versions(script, results, tmp_path):
    if script == "integration.py":
        pytest.importorskip("scib_metrics")
    command = [sys.executable, *script.split(), "--short", "--out", str(tmp_path)]
    run = subprocess.run(command, cwd=BENCHMARKS, capture_output=True, text=True, check=False)
    assert run.returncode == 0, run.stderr[-2000:]
    for name, (n_rows, score) in results.items():
        written = json.loads((tmp_path / f"{name}.json").read_text())
        assert len(written["rows"]) == n_rows
        assert score is None or all(0 <= row[score] <= 1 for row in written["rows"])
        assert written["machine"]["versions"]["scgmvae"]
        assert written["short"] is True


def test_merged_rows_replace_those_of_the_same_method_and_seed(tmp_path, monkeypatch):
    monkeypatch.syspath_prepend(str(BENCHMARKS))
    from common import merge

    path = tmp_path / "rows.json"
    merge(path, [{"method": "a", "seed": 0, "ACC": 0.5}], ["method", "seed"], script="x.py")
    rows = [{"method": "a", "seed": 0, "ACC": 0.7}, {"method": "b", "seed": 0, "ACC": 0.6}]
    table = merge(path, rows, ["method", "seed"], script="x.py")
    assert table[["method", "ACC"]].values.tolist() == [["a", 0.7], ["b", 0.6]]
    assert json.loads(path.read_text())["rows"] == table.to_dict("records")
