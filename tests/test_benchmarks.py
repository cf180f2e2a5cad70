"""The benchmarks run: each in its short form, on simulated data."""

import json
from pathlib import Path

import numpy as np
import pandas as pd
import pytest

import scgmvae

BENCHMARKS = Path(__file__).parent.parent / "benchmarks"
NEEDS_SCIB = (
    "embedding.py", "integration.py", "studies/cells_in_test.py", "studies/condition_start.py",
    "studies/default_cut.py", "studies/level_support.py", "studies/priors.py",
    "studies/split_seeds.py", "studies/untold_donors.py",
)  # fmt: skip
"""Benchmarks whose scores need scib-metrics."""


@pytest.mark.parametrize(
    ("script", "results"),
    [
        pytest.param(
            "tested.py",
            {
                "tested-one": (6, "is_split"),
                "tested-power": (6, "found"),
                "tested-types": (6, "ARI"),
                "tested-truth": (10, "ARI"),
                "tested-donors": (12, "ARI"),
                "tested-depth": (4, "ARI"),
                "tested-cost": (1, None),
            },
            id="tested",
        ),
        pytest.param(
            "embedding.py",
            {
                "embedding-real": (None, "best ARI"),
                "embedding-simulated": (None, "best ARI"),
                "embedding-null": (None, "kept"),
                "embedding-settings": (2, "best ARI"),
            },
            id="embedding",
        ),
        pytest.param(
            "differential.py",
            {
                "differential-clusters": (6, "called"),
                "differential-donors": (5, "called"),
                "differential-power": (5, "found"),
            },
            id="differential",
        ),
        pytest.param("concordance.py", {"concordance": (22, "AUCC")}, id="concordance"),
        pytest.param("devices.py", {"devices": (2, None)}, id="devices"),
        pytest.param(
            "studies/split_seeds.py",
            {f"split_seeds-{task}": (4, "ARI") for task in ("default", "long", "wide")},
            id="split_seeds",
        ),
        pytest.param(
            "studies/priors.py",
            {"priors-likelihood": (2, "ARI"), "priors-embeddings": (2, "best ARI")},
            id="priors",
        ),
        pytest.param("studies/default_cut.py", {"default_cut": (18, None)}, id="default_cut"),
        pytest.param("studies/untold_donors.py", {"untold_donors": (2, "ARI")}, id="untold"),
        pytest.param(
            "studies/level_support.py", {"level_support": (3, "ARI")}, id="level_support"
        ),
        pytest.param("studies/cells_in_test.py", {"cells_in_test": (3, None)}, id="cells_in_test"),
        pytest.param(
            "studies/joint_encoders.py", {"joint_encoders": (5, "ARI")}, id="joint_encoders"
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
            "labels.py", {"labels-simulated": (6, "ACC"), "labels-rare": (2, "ACC")}, id="labels"
        ),
        pytest.param(
            "kang.py",
            {
                "kang-supervised": (4, "ACC"),
                "kang-generation": (3, "ACC_condition"),
            },
            id="kang",
        ),
        pytest.param(
            "counterfactual.py",
            {
                "counterfactual-kang": (8, "direction"),
                "counterfactual-simulated": (8, "overlap"),
                "counterfactual-settings": (6, "direction"),
            },
            id="counterfactual",
        ),
        pytest.param(
            "integration.py",
            {
                "integration-mixing": (6, "iLISI"),
                "integration-conditions": (2, "ACC"),
            },
            id="integration",
        ),
        pytest.param(
            "transfer.py",
            {
                "transfer-mice": (6, "ACC"),
                "transfer-half": (6, "ACC"),
                "transfer-plates": (6, "ACC"),
                "transfer-unseen": (5, "AUROC"),
                "transfer-other_batch": (10, "AUROC"),
            },
            id="transfer",
        ),
        pytest.param(
            "studies/label_start.py",
            {"label_start": (18, "ACC")},
            id="label_start",
        ),
        pytest.param(
            "studies/condition_start.py",
            {
                "condition_start-null": (3, "kept"),
                "condition_start-embeddings": (3, "best ARI"),
            },
            id="condition_start",
        ),
        pytest.param("studies/misfit.py", {"misfit": (8, "AUROC")}, id="misfit"),
        pytest.param("studies/batch_size.py", {"batch_size": (4, "ARI")}, id="batch_size"),
        pytest.param(
            "multimodal.py",
            {
                "multimodal-cite": (None, "NMI"),
                "multimodal-imputation": (None, None),
                "multimodal-simulated": (None, "NMI"),
                "multimodal-mosaic": (None, "NMI"),
                "multimodal-speed": (None, None),
            },
            id="multimodal",
        ),
        pytest.param("cost.py", {"cost": (3, None)}, id="cost"),
        pytest.param("growth.py", {"growth": (39, None)}, id="growth"),
        pytest.param("linear.py", {"linear": (2, None)}, id="linear"),
        pytest.param(
            "speed.py",
            {
                "speed-steps": (3, None),
                "speed-parts": (8, None),
                "speed-likelihood": (24, None),
                "speed-draws": (2, "not_zero"),
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
        pytest.param("soak.py", {"soak": (10, None)}, id="soak"),
        pytest.param("imports.py", {"imports": (3, None)}, id="imports"),
        pytest.param(
            "gpu.py",
            {
                "gpu-million": (1, "ARI"),
                "gpu-steps": (6, None),
                "gpu-parts": (8, None),
                "gpu-predict": (1, None),
            },
            id="gpu",
        ),
    ],
)
def test_a_benchmark_writes_its_rows_with_machine_and_versions(script, results, check_benchmark):
    if script in NEEDS_SCIB:
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


def test_an_embedding_is_scored_by_types_and_batches(monkeypatch):
    pytest.importorskip("scib_metrics")
    monkeypatch.syspath_prepend(str(BENCHMARKS))
    from embedding_scores import neighbors_kept, scores_of

    rng = np.random.default_rng(0)
    types = np.repeat(["a", "b", "c", "rare"], [300, 300, 290, 15])
    batches = np.array(["0", "1"])[rng.integers(2, size=len(types))]
    batches[types == "c"] = "0"  # an isolated type
    places = {"a": 0.0, "b": 10.0, "c": 20.0, "rare": 30.0}
    z = rng.standard_normal((len(types), 3))
    z[:, 0] += [places[name] for name in types]
    scores = scores_of(z, types, batches, 0)
    for name in ("best ARI", "purity", "isolated F1", "rare F1", "cLISI", "connectivity"):
        assert scores[name] > 0.95, name
    assert scores["CiLISI"] > 0.8 and scores["least mixing"] > 0.8
    apart = z + 15 * (batches == "1")[:, None] * [0, 1, 0]
    divided = scores_of(apart, types, batches, 0)
    assert divided["CiLISI"] < 0.1 and divided["kBET"] < 0.1 and divided["least mixing"] < 0.1
    assert divided["connectivity"] < scores["connectivity"] - 0.2
    none = scores_of(z, types, None, 0)
    assert "CiLISI" not in none and none["best ARI"] == scores["best ARI"]
    assert neighbors_kept(z, z) == 1
    assert neighbors_kept(z, rng.permutation(z)) < 0.2


def test_a_change_is_judged_on_the_set_that_did_not_choose_it(monkeypatch):
    monkeypatch.syspath_prepend(str(BENCHMARKS))
    from leave_one_out import JUDGED, gains, left_out

    of_setting = {"default": (0.5, 0.5, 0.5), "x": (0.9, 0.5, 0.5), "y": (0.4, 0.6, 0.6)}
    rows = pd.DataFrame(
        [
            {"data": data, "setting": setting, "seed": 0, **dict.fromkeys(JUDGED, values[place])}
            for setting, values in of_setting.items()
            for place, data in enumerate("abc")
        ]
    )
    rows.loc[len(rows)] = {"data": "a", "setting": "z", "seed": 0} | dict.fromkeys(JUDGED, 1.0)
    assert gains(rows).columns.tolist() == ["x", "y"]  # z was not tried on every set
    found = left_out(rows).set_index("data")
    assert found["change"].tolist() == ["y", "x", "x"]  # x is best wherever a helped to choose it
    np.testing.assert_allclose(found["gain"], [-0.1, 0, 0], atol=1e-12)
    np.testing.assert_allclose(found["others"], [0.1, 0.2, 0.2])


def test_simulated_cells_have_the_types_and_batches_of_their_design(monkeypatch):
    monkeypatch.syspath_prepend(str(BENCHMARKS))
    from simulators import SIMULATORS

    made = {name: make(np.random.default_rng(0)) for name, make in SIMULATORS.items()}
    held = {
        name: pd.crosstab(adata.obs["batch"], adata.obs["cell_type"])
        for name, adata in made.items()
    }
    assert (held["partly shared"] > 0).sum().sort_values().tolist() == [1, 2, 2, 2, 2, 3, 4, 4]
    assert held["rare in one"]["type 6"].tolist() == [0, 30, 0]
    depth = made["uneven depth"].obs.assign(n=np.asarray(made["uneven depth"].X.sum(1)).ravel())
    medians = depth.groupby("batch", observed=True)["n"].median()
    np.testing.assert_allclose(medians, [800, 2500, 8000], rtol=0.15)
    assert held["nested"].shape == (6, 6)
    again = SIMULATORS["nested"](np.random.default_rng(0))
    assert (again.X != made["nested"].X).nnz == 0


def test_types_respond_as_their_lineage_does(monkeypatch):
    monkeypatch.syspath_prepend(str(BENCHMARKS))
    from simulators import stimulated_types

    adata = stimulated_types(np.random.default_rng(0), 60, 180)
    n_cells = pd.crosstab(adata.obs["cell_type"], adata.obs["condition"])
    assert n_cells.shape == (8, 2)
    assert n_cells.to_numpy().min() >= 60 and n_cells.to_numpy().max() < 180
    shares = adata.X.toarray() / adata.X.sum(1)
    of_group = adata.obs["cell_type"].astype(str) + " " + adata.obs["condition"].astype(str)
    means = pd.DataFrame(1e4 * shares).groupby(of_group.to_numpy()).mean()
    changes = {
        k: np.log((means.loc[f"type {k} stimulated"] + 1) / (means.loc[f"type {k} control"] + 1))
        for k in range(8)
    }
    n_changed = {k: int((change.abs() > 0.7).sum()) for k, change in changes.items()}
    assert min(n_changed[k] for k in range(6)) > 15 > max(n_changed[6], n_changed[7])
    assert np.corrcoef(changes[0], changes[1])[0, 1] > np.corrcoef(changes[0], changes[3])[0, 1]


def test_distances_of_samples_have_the_values_of_their_definitions(monkeypatch):
    monkeypatch.syspath_prepend(str(BENCHMARKS))
    from counterfactual_scores import squared_distances

    a, b = np.zeros((2, 1)), np.full((2, 1), 3.0)
    mmd, energy = squared_distances(a, b, scale=1.0)
    assert mmd == pytest.approx(2 - 2 * np.exp(-4.5)) and energy == pytest.approx(6)
    rng = np.random.default_rng(0)
    of_same = [squared_distances(*rng.normal(size=(2, 20, 3)), scale=2.0) for _ in range(300)]
    errors = np.std(of_same, axis=0) / np.sqrt(300)
    assert (np.abs(np.mean(of_same, axis=0)) < 5 * errors).all()  # without bias, 0 in the mean


def test_predicted_cells_are_judged_by_the_cells_that_were_left_out(monkeypatch):
    monkeypatch.syspath_prepend(str(BENCHMARKS))
    from counterfactual_scores import Judge
    from sklearn.decomposition import PCA

    rng = np.random.default_rng(0)
    n_genes = 300
    shift = np.where(np.arange(n_genes) < 100, rng.choice([-1.0, 1.0], n_genes), 0.0)
    control, truth, right = (rng.normal(size=(120, n_genes)) + s for s in (0, shift, shift))
    others = np.stack([2 * shift, np.zeros(n_genes)])
    judge = Judge(control, truth, others, PCA(10).fit(np.concatenate([control, truth])))
    of_right, of_none = judge.scores(right), judge.scores(control)
    of_wrong = judge.scores(control - shift)
    assert abs(of_right["MMD"]) < 0.1 and abs(of_right["energy"]) < 0.1
    assert of_none["MMD"] == pytest.approx(1, abs=0.1) and of_wrong["MMD"] > 1.2
    assert of_right["direction"] > 0.99 and of_none["direction"] == 0
    assert of_wrong["direction"] < 0.01 and of_wrong["r"] < -0.8 < 0.8 < of_right["r"]
    assert np.isnan(of_none["r"]) and of_right["overlap"] > 0.95
    assert of_right["told apart"] == 1 and of_none["told apart"] == 0
    ceiling = judge.ceiling()
    assert abs(ceiling["MMD"]) < 0.1 and ceiling["overlap"] > 0.95
    silent = Judge(control, truth, others, judge.pca, responds=False).scores(right)
    assert np.isnan(silent["MMD"]) and silent["error"] == of_right["error"]


def test_a_set_is_added_to_the_benchmark_of_the_embedding(tmp_path, run_benchmark):
    pytest.importorskip("scib_metrics")
    rng = np.random.default_rng(0)
    adata = scgmvae.datasets.synthetic_counts(200, 60, n_components=2, n_batches=2, seed=0)
    adata.obs["kind"] = adata.obs["component"]
    adata.obs["plate"] = rng.integers(2, size=200)
    adata.write_h5ad(tmp_path / "atlas.h5ad")
    command = ["embedding.py", "--add", str(tmp_path / "atlas.h5ad")]
    command += ["--labels", "kind", "--batch", "plate", "--short", "--out", str(tmp_path)]
    run_benchmark(command)
    rows = json.loads((tmp_path / "embedding-real.json").read_text())["rows"]
    assert {row["data"] for row in rows} == {"atlas"}
    assert {"PCA", "SCVI", "scgmvae"} <= {row["method"] for row in rows}
    assert all(row["CiLISI"] is not None for row in rows)
