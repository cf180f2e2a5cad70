"""The same seed gives the same result to the last bit, and nothing draws from global states."""

import json
import os
import re
import subprocess
import sys
from pathlib import Path

import matplotlib.pyplot as plt
import numpy as np
import pandas as pd
import pytest
import torch
from small import NETWORK, TRAINING
from states import digest, parts_of, random_states

from scgmvae import SCGMVAE, DualVAE, datasets, metrics, pl
from scgmvae.model.seeded import drawing_from

TESTS = Path(__file__).parents[1]
SETUP = {"batch_key": "batch", "labels_key": "label", "continuous_covariate_keys": ["age"]}
LENGTH = {"max_epochs": 2, "pretrain_epochs": 1, "start": "kmeans"}


def small_counts():
    adata = datasets.synthetic_counts(90, 25, n_components=4, n_batches=2, seed=3)
    adata.obs["age"] = np.linspace(-1, 1, 90)
    adata.obs["label"] = np.where(np.arange(90) % 4 > 0, "unknown", adata.obs["component"])
    return adata


def made(seed=5):
    """A model trained on small counts, without labels for most."""
    adata = small_counts()
    SCGMVAE.setup_anndata(adata, **SETUP)
    model = SCGMVAE(adata, n_components=6, **NETWORK)
    model.train(seed=seed, **(TRAINING | LENGTH))
    return model


def made_dual(seed=5):
    adata = datasets.two_photon(12, seed=1, image_shape=(12, 12))
    model = DualVAE(adata, n_latent_foreground=4)
    model.train(1, seed=seed, enable_progress_bar=False, accelerator="cpu")
    return model


READINGS = {
    "predict": lambda model: model.predict(soft=True),
    "latent": lambda model: model.get_latent_representation(),
    "latent_draw": lambda model: model.get_latent_representation(give_mean=False),
    "novelty": lambda model: model.get_novelty(),
    "aggregated": lambda model: model.get_aggregated_posterior().mean,
    "elbo": lambda model: model.get_elbo(return_mean=False),
    "elbo_terms": lambda model: model.get_elbo_terms(),
    "marginal_ll": lambda model: model.get_marginal_ll(n_mc_samples=3),
    "reconstruction": lambda model: model.get_reconstruction(),
    "reconstruction_error": lambda model: float(
        model.get_reconstruction_error()["reconstruction_loss"]
    ),
    "expression": lambda model: model.get_normalized_expression(n_samples=2),
    "expression_overall": lambda model: model.get_normalized_expression(
        n_samples_overall=20, return_numpy=True
    ),
    "parameters": lambda model: model.get_likelihood_parameters(),
    "correlations": lambda model: model.get_feature_correlation_matrix(n_samples=2),
    "predictive": lambda model: model.posterior_predictive_sample().todense(),
    "differential": lambda model: model.differential_expression(groupby="batch", silent=True),
    "sample": lambda model: parts_of(model.sample(12)),
    "sample_component": lambda model: parts_of(model.sample(4, "component_0", {"age": 0.5})),
    "counterfactual_z": lambda model: parts_of(
        model.predict_counterfactual(conditions={"batch": "batch_1"}, n_samples=2)
    ),
    "counterfactual_w": lambda model: parts_of(
        model.predict_counterfactual(conditions={"batch": "batch_1"}, via="w")
    ),
    "decoded": lambda model: model.decode(np.zeros((1, 5)), {"batch": "batch_0", "age": 0.0}),
    "components": lambda model: model.decode_components(2, {"batch": "batch_0", "age": 0.0}),
    "similarity": lambda model: model.component_similarity(),
    "table": lambda model: model.component_table(),
    "merged": lambda model: list(model.merge_components(5, method="elbo")),
    "annotated": lambda model: model.adata.obs["scgmvae"].tolist(),
}


def fingerprints():
    """Of all that a training and the readings after it give."""
    model, dual = made(), made_dual()
    found = {f"trained {name}": value for name, value in parts_of(model).items()}
    found |= {f"dual {name}": value for name, value in parts_of(dual).items()}
    found |= {name: digest(read(model)) for name, read in READINGS.items()}
    # scvi-tools gives every AnnData an identity at random, which is in uns and in the registry
    return {name: value for name, value in found.items() if not re.search("uuid|registry", name)}


@pytest.fixture(scope="module")
def first():
    return fingerprints()


@pytest.fixture(scope="module")
def model():
    return made()


@pytest.fixture(scope="module")
def dual():
    return made_dual()


@pytest.fixture(scope="module")
def of_images():
    model = SCGMVAE(datasets.digits()[:40].copy(), n_hidden=8, n_latent=2, n_components=3)
    model.train(**(TRAINING | LENGTH))
    return model


@pytest.fixture(autouse=True)
def no_figures_left():
    yield
    plt.close("all")


def test_the_same_again_in_one_process(first):
    torch.rand(7), np.random.rand(3)  # noqa: NPY002, another state than the first time
    assert fingerprints() == first


def test_the_same_again_in_another_process(first):
    path = [str(TESTS), *sys.path]
    script = "import json, test_determinism; print(json.dumps(test_determinism.fingerprints()))"
    run = subprocess.run(
        [sys.executable, "-W", "ignore", "-c", script],
        cwd=Path(__file__).parent,
        # sets have another order there
        env=os.environ | {"PYTHONHASHSEED": "123", "PYTHONPATH": os.pathsep.join(path)},
        capture_output=True,
        text=True,
        check=False,
    )
    assert run.returncode == 0, run.stderr[-2000:]
    assert json.loads(run.stdout.splitlines()[-1]) == first


def test_another_seed_gives_another_result(first):
    other = parts_of(made(seed=6))
    weights = [name for name in other if "weight" in name and name.startswith("parameter")]
    assert weights
    assert all(other[name] != first[f"trained {name}"] for name in weights if "norms" not in name)


DRAWS = {
    "latent": lambda model, seed: model.get_latent_representation(give_mean=False, seed=seed),
    "elbo": lambda model, seed: model.get_elbo(seed=seed),
    "elbo_terms": lambda model, seed: model.get_elbo_terms(seed=seed),
    "marginal_ll": lambda model, seed: model.get_marginal_ll(n_mc_samples=3, seed=seed),
    "expression": lambda model, seed: model.get_normalized_expression(seed=seed),
    "predictive": lambda model, seed: model.posterior_predictive_sample(seed=seed).todense(),
    "sample": lambda model, seed: parts_of(model.sample(12, seed=seed)),
    "counterfactual": lambda model, seed: parts_of(
        model.predict_counterfactual(conditions={"age": 1.0}, seed=seed)
    ),
}


@pytest.mark.parametrize("draw", DRAWS.values(), ids=DRAWS)
def test_draws_follow_their_seed(model, draw):
    one, again, other = (digest(draw(model, seed)) for seed in (1, 1, 2))
    assert one == again != other


def test_draws_of_one_reading_differ_where_another_method_makes_them(model):
    # as differential expression does, for each of the groups by itself
    rows = np.flatnonzero(model.adata.obs["batch"] == "batch_0")[:4]
    with drawing_from(0):
        one, other = (
            model.get_normalized_expression(indices=rows, return_numpy=True) for _ in range(2)
        )
    assert not np.array_equal(one, other)
    alone = [model.get_normalized_expression(indices=rows, return_numpy=True) for _ in range(2)]
    np.testing.assert_array_equal(*alone)
    np.testing.assert_array_equal(alone[0], one)


def reads(name):
    return lambda get: READINGS[name](get("model"))


PUBLIC = {
    "synthetic_counts": lambda get: datasets.synthetic_counts(20, 10, seed=1),
    "synthetic_multiome": lambda get: datasets.synthetic_multiome(20, 10, 100, seed=1),
    "blobs": lambda get: datasets.blobs(5),
    "two_photon": lambda get: datasets.two_photon(3, image_shape=(12, 12)),
    "digits": lambda get: datasets.digits(),
    "pbmc68k_reduced": lambda get: datasets.pbmc68k_reduced(),
    "images_to_anndata": lambda get: datasets.images_to_anndata(np.zeros((2, 3, 3)), ["a", "b"]),
    "set_up": lambda get: SCGMVAE.setup_anndata(small_counts(), **SETUP),
    "SCGMVAE": lambda get: SCGMVAE(small_counts(), n_components=3),
    "DualVAE": lambda get: DualVAE(datasets.two_photon(3, image_shape=(12, 12))),
    "train": lambda get: made(),
    "train_dual": lambda get: made_dual(),
    **{name: reads(name) for name in READINGS},
    "annotate": lambda get: get("model").annotate(key_added="other"),
    "differential_abundance": lambda get: get("model").differential_abundance(sample_key="batch"),
    "save": lambda get: get("model").save(get("tmp_path") / "model", save_anndata=True),
    "load": lambda get: (
        get("model").save(get("tmp_path") / "model", save_anndata=True),
        SCGMVAE.load(get("tmp_path") / "model"),
    ),
    "load_query_data": lambda get: SCGMVAE.load_query_data(small_counts(), get("model")),
    "dual_foreground": lambda get: get("dual").get_foreground(),
    "dual_latent": lambda get: get("dual").get_latent_representation(which="background"),
    "dual_elbo": lambda get: get("dual").get_elbo(),
    "dual_terms": lambda get: get("dual").get_elbo_terms(),
    "dual_marginal": lambda get: get("dual").get_marginal_ll(n_mc_samples=2),
    "dual_annotate": lambda get: get("dual").annotate(),
    "clustering_scores": lambda get: metrics.clustering_scores([1, 1, 2], [0, 0, 1]),
    "type_recovery": lambda get: metrics.type_recovery([1, 1, 2], [0, 0, 1]),
    "calibration_error": lambda get: metrics.calibration_error(["a"], pd.DataFrame({"a": [0.9]})),
    "pl_training": lambda get: pl.training(get("model")),
    "pl_components": lambda get: pl.components(get("model")),
    "pl_latent": lambda get: pl.latent(get("of_images"), "component"),
    "pl_latent_tsne": lambda get: pl.latent(get("model"), "batch", method="tsne"),
    "pl_latent_of_some": lambda get: pl.latent(get("of_images"), n_cells=10),
    "pl_reconstructions": lambda get: pl.reconstructions(get("of_images"), n_images=2),
    "pl_manifold": lambda get: pl.manifold(get("of_images"), n=2),
    "pl_samples": lambda get: pl.samples(get("of_images"), 2),
}


@pytest.mark.parametrize("call", PUBLIC.values(), ids=PUBLIC)
def test_global_random_states_stay_as_they_are(request, call):
    for name in ("model", "dual", "of_images"):
        request.getfixturevalue(name)
    before = random_states()
    call(request.getfixturevalue)
    assert random_states() == before


def test_a_failing_reading_gives_the_random_states_back(model):
    before = random_states()
    with pytest.raises(ValueError, match="is none. Known are: 'batch_0'"):
        model.get_normalized_expression(transform_batch="batch_9")
    assert random_states() == before
    # and the next one has draws of its own seed again
    assert digest(model.get_elbo(seed=3)) == digest(model.get_elbo(seed=3))
