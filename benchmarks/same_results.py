"""Fingerprints of trainings, by which a change that must not change results is checked.

    OMP_NUM_THREADS=1 python benchmarks/same_results.py before.json
    OMP_NUM_THREADS=1 python benchmarks/same_results.py after.json --compare before.json

Each line of the file is the SHA-256 of one result: weights, history, what is written into the
AnnData, and what the methods that read a model return. The trainings cover every prior,
likelihood and kind of data once. Fingerprints belong to one machine and one set of versions,
because another processor rounds differently, so the file is not kept with the code: write it
before a change and compare afterwards. Only public names are used, so that the script runs on
both sides of a change. The exit code is 1 where anything differs.
"""

from __future__ import annotations

import argparse
import hashlib
import json
import re
import sys
import tempfile
import time
from collections.abc import Callable, Mapping
from pathlib import Path

import anndata as ad
import lightning.pytorch as pl
import numpy as np
import pandas as pd
import torch
from anndata import AnnData
from scipy import sparse
from torch.utils.data import DataLoader

from scgmvae import SCGMVAE, DualVAE, datasets

MODELS = Path(__file__).parents[1] / "tests" / "models"
NETWORK = {"n_hidden": 32, "n_latent": 5, "n_latent_w": 4}
LENGTH = {"max_epochs": 3, "pretrain_epochs": 2, "batch_size": 64}
MACHINE = {"accelerator": "cpu", "enable_progress_bar": False}
NOT_KEPT = re.compile("uuid|version|_scvi_manager|date")
"""What differs between two runs of the same code: identities that scvi-tools draws, versions."""


def digest(value: object) -> str:
    """SHA-256 of a value, its types and shapes included."""
    if isinstance(value, torch.Tensor):
        value = value.detach().cpu().numpy()
    if sparse.issparse(value):
        value = value.toarray()
    if isinstance(value, pd.Series):
        value = value.to_frame()
    if isinstance(value, pd.DataFrame):
        columns = [(str(name), value[name].astype(object).to_numpy()) for name in value]
        value = (value.index.to_numpy(dtype=object), columns)
    elif isinstance(value, Mapping):
        kept = [(str(k), v) for k, v in value.items() if not NOT_KEPT.search(str(k))]
        value = [(name, digest(item)) for name, item in sorted(kept, key=lambda pair: pair[0])]
    if isinstance(value, np.ndarray) and value.dtype.kind in "biufc":
        content = f"{value.dtype}{value.shape}".encode() + np.ascontiguousarray(value).tobytes()
    elif isinstance(value, list | tuple | np.ndarray):
        content = repr([digest(item) for item in value]).encode()
    else:
        content = f"{type(value).__name__}{value!r}".encode()
    return hashlib.sha256(content).hexdigest()


def parts_of_data(adata: AnnData) -> dict[str, object]:
    """The parts of an AnnData by their names."""
    parts = {"X": adata.X[:], "obs": adata.obs, "var": adata.var}
    for name in ("obsm", "layers", "uns"):
        parts |= {f"{name}[{key!r}]": value for key, value in getattr(adata, name).items()}
    return {name: value for name, value in parts.items() if "_scvi" not in name}


READINGS: dict[str, Callable[[SCGMVAE], object]] = {
    "predict": lambda model: model.predict(soft=True),
    "components": lambda model: model.predict(soft=True, components=True),
    "z": lambda model: model.get_latent_representation(return_dist=True),
    "draw of z": lambda model: model.get_latent_representation(give_mean=False),
    "w": lambda model: model.get_latent_representation(return_dist=True, which="w"),
    "novelty": lambda model: model.get_novelty(),
    "ELBO": lambda model: model.get_elbo(return_mean=False),
    "terms": lambda model: model.get_elbo_terms(),
    "log likelihood": lambda model: model.get_marginal_ll(n_mc_samples=30, return_mean=False),
    "reconstruction": lambda model: model.get_reconstruction(),
    "expression": lambda model: model.get_normalized_expression(n_samples=2),
    "predictive": lambda model: model.posterior_predictive_sample().todense(),
    "sample": lambda model: parts_of_data(model.sample(12)),
    "component table": lambda model: model.component_table(),
    "similarity": lambda model: model.component_similarity(),
    "decoded components": lambda model: model.decode_components(2),
    "summary": lambda model: (repr(model), model._repr_html_()),
    "merged by entropy": lambda model: list(model.merge_components(method="entropy")),
    "merged by ELBO": lambda model: list(model.merge_components(2, method="elbo")),
    "names": lambda model: (model.component_names, model.cluster_names),
}


def read(model: SCGMVAE | DualVAE) -> dict[str, object]:
    """All that a trained model says, by name; a refusal counts as an answer."""
    found = {f"weight {name}": value for name, value in model.module.state_dict().items()}
    found |= {f"history {name}": value for name, value in (model.history or {}).items()}
    found["init_params_"] = model.init_params_
    if isinstance(model, SCGMVAE):
        for name, reading in READINGS.items():
            try:
                found[name] = reading(model)
            except (NotImplementedError, RuntimeError, ValueError, TypeError) as error:
                found[name] = f"{type(error).__name__}: {error}"
    else:
        found |= {"summary": repr(model), "terms": model.get_elbo_terms()}
        found["log likelihood"] = model.get_marginal_ll(n_mc_samples=10, return_mean=False)
    found |= {f"adata.{name}": value for name, value in parts_of_data(model.adata).items()}
    return found


def counts(n_obs: int = 300, seed: int = 0) -> AnnData:
    """Simulated counts with every kind of column."""
    adata = datasets.synthetic_counts(
        n_obs, 60, n_components=4, n_batches=2, component_scale=2.0, seed=seed
    )
    every = np.arange(n_obs)
    adata.obs["age"] = np.linspace(-1, 1, n_obs)
    adata.obs["donor"] = np.array(["a", "b", "c"])[every % 3]
    adata.obs["size"] = 1 + every % 5 / 5
    adata.obs["label"] = np.where(every % 4 > 0, "unknown", adata.obs["component"].astype(str))
    return adata


def trained(
    adata: AnnData,
    setup: Mapping[str, object] | None = None,
    training: Mapping[str, object] | None = None,
    **settings: object,
) -> SCGMVAE:
    """A model, set up and trained."""
    if setup is not None:
        SCGMVAE.setup_anndata(adata, **setup)
    model = SCGMVAE(adata, **(NETWORK | settings))
    model.train(**(LENGTH | MACHINE | (training or {})))
    return model


def with_conditions() -> SCGMVAE:
    """Labels for some, all kinds of conditions, and a counterfactual."""
    setup = {
        "batch_key": "batch",
        "labels_key": "label",
        "categorical_covariate_keys": ["donor"],
        "continuous_covariate_keys": ["age"],
    }
    model = trained(counts(), setup, {"balance_key": "label"})
    for via in ("x", "z", "w"):
        other = model.predict_counterfactual(conditions={"batch": "batch_1"}, via=via)
        model.adata.obsm[f"rate via {via}"] = other.layers["rate"]
    return model


def of_every_setting() -> SCGMVAE:
    """What is not the default, as far as it goes together."""
    return trained(
        counts(),
        {"batch_key": "batch", "size_factor_key": "size"},
        {"start": "kmeans", "plan_kwargs": {"n_samples": 2, "monte_carlo_kl": True}},
        n_components=5,
        n_layers=2,
        likelihood="zinb",
        dispersion="gene-batch",
        component_weights="uniform",
        dirichlet_posterior="network",
        classifier_input="zx",
        condition_prior="learned",
    )


def validated() -> SCGMVAE:
    """A training that looks at validation cells."""
    adata = datasets.blobs(200, seed=1)
    plan = {
        "reduce_lr_on_plateau": True,
        "lr_patience": 1,
        "lr_scheduler_metric": "elbo_validation",
    }
    how = {"early_stopping": True, "plan_kwargs": plan, "max_epochs": 6}
    return trained(adata, None, how, likelihood="gaussian", n_components=3)


def resumed() -> SCGMVAE:
    """A training that goes on from a checkpoint, and then once more."""
    with tempfile.TemporaryDirectory() as folder:
        path = Path(folder) / "checkpoint"
        trained(counts(), training={"checkpoint_dir": path, "max_steps": 15, "max_epochs": 4})
        model = SCGMVAE(counts(), **NETWORK)
        model.train(resume_from=path, **MACHINE)
        model.train(max_epochs=1, **MACHINE)
        model.save(Path(folder) / "model", save_anndata=True)
        loaded = SCGMVAE.load(Path(folder) / "model")
        model.adata.obsm["z, loaded"] = loaded.get_latent_representation()
    return model


def query() -> SCGMVAE:
    """Cells of a new batch on a reference."""
    reference = trained(counts(), {"batch_key": "batch"}, n_components=4)
    new = counts(100, seed=1)
    new.obs["batch"] = "new"
    model = SCGMVAE.load_query_data(new[:, ::-1].copy(), reference)
    model.train(max_epochs=2, **MACHINE)
    return model


def on_disk() -> SCGMVAE:
    """Counts that are read from a file."""
    with tempfile.TemporaryDirectory() as folder:
        counts().write_h5ad(Path(folder) / "counts.h5ad")
        adata = ad.read_h5ad(Path(folder) / "counts.h5ad", backed="r")
        training = {"datasplitter_kwargs": {"cells_in_memory": 128}}
        model = trained(adata, training=training, n_components=4)
        model.adata = adata.to_memory()
    return model


class Minibatches(pl.LightningDataModule):
    """A data module of one AnnData with batches and labels, described as scvi-tools does it."""

    def __init__(self, adata: AnnData):
        super().__init__()
        self.adata = adata
        batches, labels = (adata.obs[key].astype("category").cat for key in ("batch", "component"))
        self.codes = np.stack([batches.codes, labels.codes], axis=1).astype(np.int64)
        fields = {
            "X": {"n_obs": adata.n_obs, "n_vars": adata.n_vars, "column_names": adata.var_names},
            "batch": {
                "categorical_mapping": np.array(batches.categories[::-1]),
                "original_key": "batch",
            },
            "labels": {
                "categorical_mapping": np.array(labels.categories),
                "original_key": "component",
                "unlabeled_category": labels.categories[0],
            },
        }
        self.registry = {
            "setup_method_name": "setup_datamodule",
            "setup_args": {},
            "field_registries": {
                key: {"state_registry": state, "data_registry": {}, "summary_stats": {}}
                for key, state in fields.items()
            },
        }

    def train_dataloader(self) -> DataLoader:
        """Minibatches of 60 cells in order."""
        x = torch.from_numpy(self.adata.X.toarray())
        codes = torch.from_numpy(self.codes)
        batch = {"X": x, "batch": codes[:, :1], "labels": codes[:, 1:]}
        rows = range(0, self.adata.n_obs, 60)
        return DataLoader([{k: v[i : i + 60] for k, v in batch.items()} for i in rows], None)


def of_data_module() -> SCGMVAE:
    """Minibatches that a data module makes."""
    module = Minibatches(counts())
    model = SCGMVAE(registry=module.registry, **NETWORK)
    model.train(datamodule=module, max_epochs=3, pretrain_epochs=2, **MACHINE)
    proba = model.predict(dataloader=module.train_dataloader(), soft=True)
    model.adata.obsm["proba of a dataloader"] = proba.set_index(model.adata.obs_names)
    return model


def images(**settings: object) -> SCGMVAE:
    """Scanned digits, with labels for some."""
    adata = datasets.digits()[:300].copy()
    adata.obs["some"] = np.where(np.arange(300) % 3, "unknown", adata.obs["label"].astype(str))
    setup = {"labels_key": "some"} if settings else None
    training = {"plan_kwargs": {"distortion": 0.5}}
    return trained(adata, setup, training, **({"n_hidden": (24, 16)} | settings))


def saved(name: str) -> SCGMVAE:
    """A model that was saved in a former format."""
    return SCGMVAE.load(MODELS / name)


def dual(**settings: object) -> DualVAE:
    """Foreground and background."""
    adata = datasets.two_photon(40, seed=1, image_shape=(12, 18))
    if settings:
        adata.X = np.rint(10 * np.abs(adata.X))
    model = DualVAE(adata, n_latent_foreground=4, **settings)
    model.train(3, seed=2, **MACHINE)
    return model


TRAININGS: dict[str, Callable[[], SCGMVAE | DualVAE]] = {
    "defaults": lambda: trained(counts()),
    "conditions and labels": with_conditions,
    "every setting": of_every_setting,
    "VAE": lambda: trained(counts(), {"batch_key": "batch"}, prior="normal"),
    "linear autoencoder": lambda: trained(counts(), prior="none", n_layers=0),
    "GMVAE": lambda: trained(
        counts(), None, {"start": "gmm"}, prior="mixture", likelihood="poisson", n_components=4
    ),
    "guided": lambda: trained(counts(), None, {"guide_key": "donor"}),
    "validated": validated,
    "resumed": resumed,
    "query": query,
    "on disk": on_disk,
    "data module": of_data_module,
    "images": images,
    "images, convolutions": lambda: images(encoder="conv", n_components=12),
    "format 1": lambda: saved("format_1"),
    "format 2": lambda: saved("format_2"),
    "dual": dual,
    "dual, counts": lambda: dual(
        likelihood="poisson", encoder="conv", interaction="gated", window=4, blur=1.0
    ),
}


def main() -> None:
    """Train, write the fingerprints, and compare them."""
    parser = argparse.ArgumentParser(description=__doc__.split("\n")[0])
    parser.add_argument("path", type=Path, help="file to write the fingerprints to")
    parser.add_argument("--compare", type=Path, help="fingerprints of before the change")
    arguments = parser.parse_args()
    torch.set_num_threads(1)
    found: dict[str, str] = {}
    for name, train in TRAININGS.items():
        start = time.perf_counter()
        results = read(train())
        found |= {f"{name}: {part}": digest(value) for part, value in results.items()}
        print(f"{name}: {len(results)} results, {time.perf_counter() - start:.1f} s", flush=True)
        torch.set_num_threads(1)  # scikit-learn hands all cores back
    arguments.path.write_text(json.dumps(found, indent=1))
    if arguments.compare is None:
        return
    before = json.loads(arguments.compare.read_text())
    changed = [name for name in before | found if before.get(name) != found.get(name)]
    print(f"{len(found) - len(changed)} of {len(found)} results are the same.")
    if changed:
        sys.exit("Changed:\n" + "\n".join(changed))


if __name__ == "__main__":
    main()
