"""What trainings, model files and checkpoints survive: random settings, and faults put in.

    python benchmarks/soak.py [--seed 0]

*Trainings*: settings drawn at random, from one gene to sixty, one cell in a minibatch, genes
without a count, sums of a cell from 1 to 10^7, learning rates up to 1e-2. One is intact if it ends
with finite parameters and results, or is refused beforehand with a ValueError; a training that
stops with a FloatingPointError is counted as stopped. Half as many trainings are of two or three
modalities, whose cells may lack all but the first.

*Faults*: processes killed in training and while saving, files cut off and with a bit flipped,
disks that are full, gradients that are not finite. Each is detected if an error comes (or, after a
kill, a whole model is found), clear if the error says what is wrong, and intact if the model in
memory and the model on disk are what they were, or what an unbroken training gives.
"""

from __future__ import annotations

import argparse
import multiprocessing
import os
import resource
import shutil
import signal
import tempfile
import time
import warnings
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path

import numpy as np
import pandas as pd
import torch
from anndata import AnnData
from common import set_threads, write
from lightning.pytorch.callbacks import Callback
from mudata import MuData
from scipy import sparse

import scgmvae
from scgmvae.compat import mudata_contained

COUNTS = {"nb", "zinb", "poisson"}
STARTS = ("leiden", "kmeans", "gmm")
QUIET = {"accelerator": "cpu", "enable_progress_bar": False}
TRAINING = QUIET | {"max_epochs": 3, "pretrain_epochs": 3, "batch_size": 64, "seed": 0}
NETWORK = {"n_hidden": 32, "n_latent": 5, "n_components": 3}

Row = dict[str, object]


# --------------------------------------------------------------------------------- trainings


def random_data(rng: np.random.Generator, likelihood: str, n_cells: int | None = None) -> AnnData:
    """Cells of a few groups at a random scale, some genes and cells of which have nothing."""
    n_cells = n_cells or int(rng.choice([12, 40, 120]))
    n_genes = int(rng.choice([1, 2, 10, 60]))
    group = rng.integers(3, size=n_cells)
    profile = rng.gamma(0.3, size=(3, n_genes)) + 1e-3
    if likelihood in COUNTS:
        depth = 10 ** rng.uniform(-0.5, 7) * rng.gamma(2, size=(n_cells, 1))
        rate = depth * profile[group] / profile.sum(1)[group, None]
        x = rng.poisson(rate * rng.gamma(1, size=rate.shape)).astype(np.float32)
        x[:, rng.random(n_genes) < 0.2] = 0
        empty = x.sum(1) == 0  # cells that are refused
        x[empty, rng.integers(n_genes, size=empty.sum())] = 1
    elif likelihood == "bernoulli":
        x = (rng.random((n_cells, n_genes)) < profile[group] / profile.max()).astype(np.float32)
    else:
        scale = 10 ** rng.uniform(-4, 4)
        x = (scale * (profile[group] + rng.normal(size=(n_cells, n_genes)))).astype(np.float32)
    obs = pd.DataFrame(
        {
            "batch": rng.choice(["a", "b", "c"], n_cells),
            "type": np.where(
                rng.random(n_cells) < 0.5, np.array(["p", "q", "r"])[group], "unknown"
            ),
            "age": rng.normal(40, 10, n_cells),
        },
        index=[f"cell_{i}" for i in range(n_cells)],
    )
    return AnnData(sparse.csr_matrix(x) if rng.random() < 0.5 else x, obs)


def random_training(seed: int) -> Row:
    rng = np.random.default_rng(seed)
    likelihood = str(rng.choice(["nb", "nb", "zinb", "poisson", "bernoulli", "gaussian"]))
    prior = str(rng.choice(["dirichlet", "dirichlet", "mixture", "normal", "none"]))
    adata = random_data(rng, likelihood)
    setup = {
        "batch_key": rng.choice(["batch", None]),
        "labels_key": rng.choice(["type", None]) if prior in ("dirichlet", "mixture") else None,
        "continuous_covariate_keys": [None, ["age"]][rng.integers(2)],
    }
    n_components = int(rng.integers(1, 51))
    settings = {
        "n_latent": int(rng.integers(1, 51)),
        "n_latent_w": int(rng.integers(1, 21)),
        "n_hidden": int(rng.choice([4, 32, 128])),
        "n_layers": int(rng.integers(0, 3)),
        "n_components": None if rng.random() < 0.2 else int(np.clip(n_components, 3, adata.n_obs)),
        "dispersion": str(rng.choice(["gene", "gene-batch"])),
    }
    if likelihood not in ("nb", "zinb"):
        del settings["dispersion"]
    learning_rate = float(10 ** rng.uniform(-4, -2))
    training = {
        "max_epochs": int(rng.integers(1, 8)),
        "pretrain_epochs": int(rng.integers(0, 8)),
        "batch_size": int(rng.choice([1, 16, 128])),
        "plan_kwargs": {"lr": learning_rate},
        "start": "leiden" if settings["n_components"] is None else str(rng.choice(STARTS)),
    }

    def make() -> scgmvae.SCGMVAE:
        scgmvae.SCGMVAE.setup_anndata(adata, **setup)
        return scgmvae.SCGMVAE(adata, likelihood=likelihood, prior=prior, **settings)

    return trained(seed, make, training)


def random_joint_training(seed: int) -> Row:
    """A training of several modalities, whose cells may lack some."""
    rng = np.random.default_rng(seed)
    kinds = ("nb", "protein", "bernoulli", "gaussian", "poisson")
    likelihoods = rng.choice(kinds, size=int(rng.integers(2, 4)), replace=False).tolist()
    n_cells = int(rng.choice([12, 40, 120]))
    parts, modalities = {}, {}
    for i, likelihood in enumerate(likelihoods):
        as_counts = "nb" if likelihood == "protein" else likelihood
        part = random_data(rng, as_counts, n_cells)
        part.var_names = [f"{likelihood}_{j}" for j in range(part.n_vars)]
        keeps = rng.random(n_cells) < rng.choice([1, 0.7])
        keeps[:] |= i == 0  # every cell is in one
        parts[f"m{i}"], modalities[f"m{i}"] = part[keeps].copy(), likelihood
    with mudata_contained():
        mdata = MuData(parts)
    first = parts["m0"].obs.loc[mdata.obs_names]
    mdata.obs["batch"], mdata.obs["type"] = first["batch"], first["type"]
    setup = {"batch_key": rng.choice(["batch", None]), "labels_key": rng.choice(["type", None])}
    settings = {
        "n_latent": int(rng.integers(1, 21)),
        "n_hidden": int(rng.choice([4, 32])),
        "n_layers": int(rng.integers(0, 3)),
        "n_components": None if rng.random() < 0.2 else int(rng.integers(3, 9)),
        "hidden_share": float(rng.choice([0, 0.03, 0.9])),
        "dispersion": str(rng.choice(["gene", "gene-batch"])),
        "prior": str(rng.choice(["dirichlet", "dirichlet", "mixture"])),
    }
    training = {
        "max_epochs": int(rng.integers(1, 8)),
        "pretrain_epochs": int(rng.integers(0, 8)),
        "batch_size": int(rng.choice([1, 16, 128])),
        "plan_kwargs": {"lr": float(10 ** rng.uniform(-4, -2))},
    }

    def make() -> scgmvae.SCGMVAE:
        scgmvae.SCGMVAE.setup_mudata(mdata, modalities=modalities, **setup)
        return scgmvae.SCGMVAE(mdata, **settings)

    return trained(seed, make, training)


def trained(seed: int, make: Callable[[], scgmvae.SCGMVAE], training: dict[str, object]) -> Row:
    """How making and training a model ended, and whether all that is left is finite."""
    outcome, error = "finished", ""
    try:
        model = make()
    except ValueError as refusal:
        return {"seed": seed, "outcome": "refused", "error": str(refusal), "intact": True}
    try:
        model.train(seed=seed, **QUIET, **training)
    except FloatingPointError as stop:
        outcome, error = "stopped", str(stop)
    except ValueError as refusal:
        outcome, error = "refused", str(refusal)
    except Exception as failure:  # which is what is looked for
        outcome, error = "failed", f"{type(failure).__name__}: {failure}"
    intact = outcome != "failed" and is_finite(model)
    if outcome == "finished":
        obsm = model.adata.obsm
        intact &= all(np.isfinite(np.asarray(obsm[key])).all() for key in obsm)
        has_bound = model.module.prior != "none"
        intact &= not has_bound or bool(np.isfinite(float(model.get_elbo())))
    return {"seed": seed, "outcome": outcome, "error": error, "intact": bool(intact)}


def is_finite(model: scgmvae.SCGMVAE) -> bool:
    return all(bool(torch.isfinite(value).all()) for value in model.module.state_dict().values())


# ----------------------------------------------------------------------------------- faults


def new_model(seed: int = 0) -> scgmvae.SCGMVAE:
    adata = scgmvae.datasets.synthetic_counts(300, 50, n_components=3, seed=seed)
    return scgmvae.SCGMVAE(adata, **NETWORK)


def same(one: scgmvae.SCGMVAE, other: scgmvae.SCGMVAE) -> bool:
    states = one.module.state_dict(), other.module.state_dict()
    return states[0].keys() == states[1].keys() and all(
        torch.equal(value, states[1][name]) for name, value in states[0].items()
    )


def load(folder: Path) -> scgmvae.SCGMVAE:
    with warnings.catch_warnings():
        warnings.filterwarnings("ignore", message="No data were saved")
        return scgmvae.SCGMVAE.load(folder, accelerator="cpu")


def outcome(kind: str, detected: bool, message: str | None, intact: bool, *words: str) -> Row:
    """Row of a fault; ``message`` is that of the error, ``None`` where none is due."""
    clear = message is None or all(word in message for word in words)
    return {"fault": kind, "detected": detected, "clear": clear, "intact": bool(intact)}


def message_of(call: Callable[[], object], errors: tuple[type[Exception], ...]) -> str | None:
    """What the error of a call says; ``None`` if there is none. Other errors are not caught."""
    try:
        call()
    except errors as error:
        return str(error)
    return None


def killed(target: Callable, *arguments: object, after: float, sign: Path) -> None:
    """Run a function in a process, and kill that some seconds after it has given a sign."""
    # not forked: numba's threads do not outlive that
    process = multiprocessing.get_context("spawn").Process(target=target, args=arguments)
    process.start()
    while not sign.exists() and process.is_alive():
        time.sleep(0.01)
    time.sleep(after)
    if process.is_alive():
        os.kill(process.pid, signal.SIGKILL)
    process.join()


def train_with_checkpoints(folder: Path) -> None:
    torch.set_num_threads(1)
    new_model().train(checkpoint_dir=folder, checkpoint_every=1, **TRAINING)


def killed_training(rng: np.random.Generator, folder: Path, whole: scgmvae.SCGMVAE) -> Row:
    run = folder / "run"
    seconds = rng.uniform(0, 1.2)
    killed(train_with_checkpoints, run, after=seconds, sign=run / "model.json")
    model = new_model()
    error = message_of(lambda: model.train(resume_from=run), (ValueError, OSError))
    return outcome("training killed, resumed", error is None, None, same(model, whole))


def save_for_ever(folders: list[Path], folder: Path) -> None:
    models = [load(path) for path in folders]
    while True:
        for model in models:
            model.save(folder, overwrite=True)


def killed_saving(rng: np.random.Generator, folder: Path, whole: scgmvae.SCGMVAE) -> Row:
    other = new_model()  # with its first weights
    place, folders = folder / "model", [folder / "whole", folder / "other"]
    for model, path in zip((whole, other), folders, strict=True):
        model.save(path)
    after = rng.uniform(0, 0.3)
    killed(save_for_ever, folders, place, after=after, sign=place / "model.json")
    found = load(place)
    return outcome("save killed", True, None, same(found, whole) or same(found, other))


def damaged(rng: np.random.Generator, folder: Path, whole: scgmvae.SCGMVAE, kind: str) -> Row:
    place = folder / "model"
    whole.save(place, save_anndata=True)
    file = rng.choice(sorted(place.iterdir()))
    content = bytearray(file.read_bytes())
    where = int(rng.integers(len(content)))
    if kind == "file cut off":
        file.write_bytes(content[:where])
    elif kind == "bit flipped":
        content[where] ^= 1 << int(rng.integers(8))
        file.write_bytes(content)
    else:
        file.unlink()
    error = message_of(lambda: load(place), (ValueError,))
    words = ("is missing", "no model.json")
    clear = error is not None and (
        "is damaged" in error or "has format" in error or any(word in error for word in words)
    )
    row = outcome(kind, error is not None, error or "", is_finite(whole))
    return row | {"clear": clear}


@contextmanager
def largest_file(n_bytes: int) -> Iterator[None]:
    """No file can grow beyond a size, as on a full disk."""
    limits = resource.getrlimit(resource.RLIMIT_FSIZE)
    resource.setrlimit(resource.RLIMIT_FSIZE, (n_bytes, limits[1]))
    try:
        yield
    finally:
        resource.setrlimit(resource.RLIMIT_FSIZE, limits)


def full_disk_in_save(rng: np.random.Generator, folder: Path, whole: scgmvae.SCGMVAE) -> Row:
    place, elsewhere = folder / "model", folder / "elsewhere"
    whole.save(place)
    sizes = [path.stat().st_size for path in place.iterdir()]
    with largest_file(int(rng.integers(1, max(sizes)))):
        error = message_of(lambda: whole.save(place, overwrite=True), (OSError,))
    whole.save(elsewhere)
    intact = same(load(place), whole) and same(load(elsewhere), whole)
    return outcome("disk full in save", error is not None, error, intact, "could not be saved")


def full_disk_in_training(rng: np.random.Generator, folder: Path, whole: scgmvae.SCGMVAE) -> Row:
    run, model = folder / "run", new_model()
    epoch = int(rng.integers(1, 6))

    class Fill(Callback):
        def on_train_epoch_end(self, trainer, plan):
            if trainer.current_epoch == epoch:
                limits = resource.getrlimit(resource.RLIMIT_FSIZE)
                resource.setrlimit(resource.RLIMIT_FSIZE, (1000, limits[1]))

    with largest_file(resource.RLIM_INFINITY):
        error = message_of(
            lambda: model.train(
                checkpoint_dir=run, checkpoint_every=1, callbacks=[Fill()], **TRAINING
            ),
            (OSError,),
        )
    usable = bool(np.isfinite(model.get_latent_representation()).all())
    resumed = new_model()
    resumed.train(resume_from=run)
    intact = usable and same(resumed, whole)
    return outcome("disk full in training", error is not None, error, intact, "could not be saved")


def spoilt_gradient(rng: np.random.Generator, folder: Path, whole: scgmvae.SCGMVAE) -> Row:
    step, model = int(rng.integers(5, 30)), new_model()

    class Spoil(Callback):
        def on_before_optimizer_step(self, trainer, plan, optimizer):
            if trainer.global_step == step:
                gradients = [p.grad for p in plan.module.parameters() if p.grad is not None]
                gradient = gradients[rng.integers(len(gradients))]
                gradient.view(-1)[rng.integers(gradient.numel())] = np.nan

    def train():
        model.train(callbacks=[Spoil()], **TRAINING)

    error = message_of(train, (FloatingPointError,))
    usable = is_finite(model) and bool(np.isfinite(model.get_latent_representation()).all())
    words = (f"epoch {step // 5 + 1}", "gradient", "cell_", "plan_kwargs")
    return outcome("gradient not finite", error is not None, error, usable, *words)


FAULTS = {
    "training killed": (killed_training, 10),
    "save killed": (killed_saving, 10),
    "file cut off": (damaged, 30),
    "bit flipped": (damaged, 60),
    "file missing": (damaged, 10),
    "disk full in save": (full_disk_in_save, 10),
    "disk full in training": (full_disk_in_training, 5),
    "gradient not finite": (spoilt_gradient, 15),
}


def faults(seed: int, short: bool) -> list[Row]:
    whole = new_model()
    whole.train(**TRAINING)
    rows = []
    for number, (kind, (inject, times)) in enumerate(FAULTS.items()):
        for i in range(1 if short else times):
            rng = np.random.default_rng([seed, number, i])
            folder = Path(tempfile.mkdtemp(prefix="soak-"))
            arguments = (rng, folder, whole) + ((kind,) if inject is damaged else ())
            try:
                rows.append(inject(*arguments))
            finally:
                shutil.rmtree(folder)
        print(f"{kind}: {times if not short else 1} done", flush=True)
    return rows


# ------------------------------------------------------------------------------ the table


def main() -> None:
    parser = argparse.ArgumentParser(description="What trainings and files survive.")
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument("--trainings", type=int, default=200)
    parser.add_argument("--out", type=Path, default=Path(__file__).parent / "results")
    parser.add_argument("--short", action="store_true")
    args = parser.parse_args()
    set_threads(1)
    warnings.simplefilter("ignore")
    start = time.perf_counter()
    injected = pd.DataFrame(faults(args.seed, args.short))
    n_trainings = 6 if args.short else args.trainings
    first = args.seed * 10_000
    rows = [random_training(first + i) | {"of": ""} for i in range(n_trainings)]
    several = {"of": " of several modalities"}
    rows += [random_joint_training(first + i) | several for i in range(n_trainings // 2)]
    trainings = pd.DataFrame(rows)
    for row in trainings[trainings.outcome != "finished"].itertuples():
        print(f"training {row.seed}{row.of} {row.outcome}: {row.error}")
    table = injected.groupby("fault", sort=False).agg(
        tried=("intact", "size"),
        detected=("detected", "sum"),
        clear=("clear", "sum"),
        intact=("intact", "sum"),
    )
    for (of, name), rows in trainings.groupby(["of", "outcome"]):
        n = len(rows)
        table.loc[f"random training{of} {name}"] = [
            n,
            n,
            n - (name == "failed") * n,
            rows.intact.sum(),
        ]
    print(table.to_string())
    rows = table.reset_index(names="what")
    seconds = round(time.perf_counter() - start)
    write(args.out / "soak.json", rows, script="soak.py", short=args.short, seconds=seconds)
    if not (table.intact == table.tried).all() or not (table.clear == table.tried).all():
        raise SystemExit("Not all is intact.")


if __name__ == "__main__":
    main()
