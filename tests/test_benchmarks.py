"""The benchmarks run: each in its short form, on simulated data."""

import json
from pathlib import Path

import numpy as np
import pandas as pd
import pytest

BENCHMARKS = Path(__file__).parent.parent / "benchmarks"


@pytest.mark.parametrize(
    ("script", "results"),
    [
        pytest.param("quality.py", {"quality-simulated": (2, "ACC")}, id="quality"),
        pytest.param(
            "tested.py",
            {
                "tested-one": (4, "is_split"),
                "tested-power": (4, "found"),
                "tested-types": (4, "ARI"),
                "tested-truth": (8, "ARI"),
                "tested-donors": (8, "ARI"),
                "tested-depth": (4, "ARI"),
                "tested-cost": (1, None),
            },
            id="tested",
        ),
        pytest.param("studies/start.py", {"start": (12, "ACC")}, id="start"),
        pytest.param("studies/small_data.py", {"small_data": (25, "ARI")}, id="small_data"),
        pytest.param(
            "studies/repeated_splits.py",
            {"repeated_splits": (2, "between donors")},
            id="repeated_splits",
        ),
        pytest.param("studies/recipe.py", {"recipe": (2, "ACC")}, id="recipe"),
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
        pytest.param("linear.py", {"linear": (2, None)}, id="linear"),
        pytest.param(
            "speed.py",
            {
                "speed-steps": (3, None),
                "speed-parts": (8, None),
                "speed-likelihood": (24, None),
                "speed-predict": (2, None),
                "speed-growth": (4, None),
                "speed-fit": (2, None),
            },
            id="speed",
        ),
        pytest.param(
            "studies/merging.py --tasks pbmc3k", {"merging-pbmc3k": (4, "ARI")}, id="merging"
        ),
        pytest.param(
            "likelihood.py --tasks pbmc3k", {"likelihood-pbmc3k": (1, None)}, id="likelihood"
        ),
        pytest.param("peers.py", {"peers-simulated": (12, "ACC")}, id="peers"),
        pytest.param("soak.py", {"soak": (9, None)}, id="soak"),
        pytest.param("imports.py", {"imports": (3, None)}, id="imports"),
    ],
)
def test_a_benchmark_writes_its_rows_with_machine_and_versions(script, results, check_benchmark):
    if script == "integration.py":
        pytest.importorskip("scib_metrics")
    check_benchmark(script, results)


def test_merged_rows_replace_those_of_the_same_method_and_seed(tmp_path, monkeypatch):
    monkeypatch.syspath_prepend(str(BENCHMARKS))
    from common import merge

    path = tmp_path / "rows.json"
    merge(path, [{"method": "a", "seed": 0, "ACC": 0.5}], ["method", "seed"], script="x.py")
    rows = [{"method": "a", "seed": 0, "ACC": 0.7}, {"method": "b", "seed": 0, "ACC": 0.6}]
    table = merge(path, rows, ["method", "seed"], script="x.py")
    assert table[["method", "ACC"]].values.tolist() == [["a", 0.7], ["b", 0.6]]
    assert json.loads(path.read_text())["rows"] == table.to_dict("records")


def test_the_page_and_the_agreement_of_seeds_come_from_the_files(tmp_path, monkeypatch):
    monkeypatch.syspath_prepend(str(BENCHMARKS))
    from common import write
    from page import over_sets, page
    from stability import agreement

    methods = ("PCA + Leiden 0.5", "scgmvae")
    # the seeds of the one cut four cells across each other, those of the other agree
    for method, second in zip(methods, ([0, 1, 0, 1], [1, 1, 0, 0]), strict=True):
        for seed, codes in enumerate(([0, 0, 1, 1], second)):
            np.save(tmp_path / f"pbmc4k~{method}~found~{seed}.npy", np.array(codes))
    rows = [
        {
            "method": method,
            "K": "found",
            "seed": seed,
            **dict.fromkeys(("ACC", "purity", "NMI"), 0.5),
            "ARI": ari + 0.01 * seed,
            "n_clusters": n_clusters,
            "n_labels": 4,
            "smallest": 10,
            "n_recovered": 3,
            "seconds": 1.0,
            "peak_mb": 900.0,
        }
        for method, n_clusters, ari in zip(methods, (3, 5), (0.5, 0.75), strict=True)
        for seed in range(2)
    ]
    write(tmp_path / "peers-pbmc4k.json", pd.DataFrame(rows))
    agreed = agreement(tmp_path).set_index("method")["ARI"]
    assert agreed["scgmvae"] == 1
    assert agreed["PCA + Leiden 0.5"] == pytest.approx(-0.5)  # as two crossed halves of four
    write(tmp_path / "stability.json", agreement(tmp_path))
    means = over_sets(tmp_path)
    assert means.index.tolist() == ["**scgmvae**, K found", "PCA + Leiden 0.5, K found"]
    np.testing.assert_allclose(means["mean"], [0.755, 0.505])
    np.testing.assert_allclose(means["error of K"], 0.25)  # one of four too many, and too few
    text = page(tmp_path)
    assert "| **scgmvae**, K found | 0.755 | 0.755 | 0.250 |" in text
    assert "| 0.755 ± 0.007 |" in text


def test_tests_of_scvi_are_run_in_both_places(tmp_path, monkeypatch, capsys):
    monkeypatch.syspath_prepend(str(BENCHMARKS))
    import scvi
    import scvi_tests

    (tmp_path / "tests" / "model").mkdir(parents=True)
    (tmp_path / scvi_tests.TEST_FILE).write_text(
        "import pytest\n"
        "from scvi.model import SCVI\n"
        "def test_name():\n    assert SCVI.__name__ == 'SCVI'\n"
        "def test_save():\n    assert callable(SCVI.save)\n"
        "@pytest.mark.skip\n"
        "def test_gpu():\n    assert False\n"
    )
    monkeypatch.setattr("sys.argv", ["scvi_tests.py", str(tmp_path), "--out", str(tmp_path)])
    scvi_tests.main()
    written = json.loads((tmp_path / f"scvi_tests-{scvi.__version__}.json").read_text())
    assert written["rows"] == [
        {"test": "test_name", "SCVI": "passed", "SCGMVAE": "failed"},
        {"test": "test_save", "SCVI": "passed", "SCGMVAE": "passed"},
        {"test": "test_gpu", "SCVI": "skipped", "SCGMVAE": "skipped"},
    ]
    assert [path.name for path in (tmp_path / "tests" / "model").iterdir()] == ["test_scvi.py"]
    assert "test_name" in capsys.readouterr().out
