"""scvi-tools' search for settings, where its extra is installed."""

import json
import os
import subprocess
import sys

import pytest

SCRIPT = """
import json
import sys
from ray import tune
from scvi.autotune import run_autotune
import scgmvae

if __name__ == "__main__":
    adata = scgmvae.datasets.synthetic_counts(200, 40, n_components=3, seed=0)
    scgmvae.SCGMVAE.setup_anndata(adata)
    experiment = run_autotune(
        scgmvae.SCGMVAE,
        adata,
        metrics="elbo_validation",
        mode="min",
        search_space={
            "model_params": {"n_components": 3, "n_latent": tune.grid_search([2, 5])},
            "train_params": {"max_epochs": 2, "pretrain_epochs": 2, "start": "kmeans"},
        },
        num_samples=1,
        scheduler="fifo",
        searcher="random",
        resources={"cpu": 1},
        seed=0,
        logging_dir=sys.argv[1],
    )
    results = experiment.result_grid
    json.dump(
        {
            "errors": [str(error) for error in results.errors],
            "trials": [[trial.config, trial.metrics] for trial in results],
            "best": results.get_best_result("elbo_validation", "min").config,
        },
        open(sys.argv[1] + "/result.json", "w"),
        default=str,
    )
"""


@pytest.mark.slow
def test_settings_are_searched_by_the_bound_of_validation_cells(tmp_path):
    pytest.importorskip("ray", reason="scvi.autotune needs the extra [autotune]")
    (tmp_path / "script.py").write_text(SCRIPT)
    environment = {
        "PYTHONPATH": os.pathsep.join(sys.path),
        "OMP_NUM_THREADS": "1",
        "RAY_worker_niceness": "0",  # else a trial waits for minutes on a machine that is busy
    }
    done = subprocess.run(
        [sys.executable, "script.py", str(tmp_path)],
        cwd=tmp_path,
        env=os.environ | environment,
        capture_output=True,
        text=True,
        timeout=300,
    )
    assert done.returncode == 0, done.stderr[-3000:]
    result = json.loads((tmp_path / "result.json").read_text())
    assert result["errors"] == []
    bounds = {
        config["model_params"]["n_latent"]: metrics["elbo_validation"]
        for config, metrics in result["trials"]
    }
    assert set(bounds) == {2, 5}
    assert all(50 < bound < 500 for bound in bounds.values())
    assert result["best"]["model_params"]["n_latent"] == min(bounds, key=bounds.get)
    # two epochs of each stage were reported
    assert [metrics["training_iteration"] for _, metrics in result["trials"]] == [4, 4]
