"""The tables of measured figures in README and documentation.

    python benchmarks/tables.py  # fills them in from benchmarks/results/

A page has ``<!-- table: NAME -->`` and ``<!-- end -->`` where a table belongs, and what is between
them is written here, with the command, versions and machine that made it: no figure in a table is
typed by hand.
"""

from __future__ import annotations

import json
import re
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import NamedTuple

import pandas as pd
from leave_one_out import left_out, on_all_sets
from page import SETS, mean_sd, named, over_sets, rows_of, table

ROOT = Path(__file__).parents[1]
RESULTS = ROOT / "benchmarks" / "results"
MARKED = re.compile(r"(<!-- table: (\S+) -->\n).*?(<!-- end -->)", re.DOTALL)

IN_SHORT = {
    "SCGMVAE, K found": "scgmvae, number of clusters found",
    "SCGMVAE, K given": "scgmvae, number of clusters given",
    "PCA + Leiden 0.5": "PCA + Leiden",
    "SCVI + Leiden 0.3": "SCVI + Leiden",
}
"""Methods of a table for readers in a hurry: Leiden at the resolution of the highest mean ARI."""


class Table(NamedTuple):
    """What a table shows of the rows of one or more files."""

    files: tuple[str, ...]
    by: Mapping[str, str]
    """Columns that tell its rows apart, and their titles."""
    figures: Mapping[str, tuple[str, int]]
    """Columns of figures, their titles and decimals: mean ± sd over the rows of a group."""
    keep: Callable[[pd.DataFrame], pd.DataFrame] = lambda rows: rows
    names_source: bool = True
    """Whether files, versions and machine stand below; elsewhere they do, for the same figures."""


def part_of_step(rows: pd.DataFrame) -> pd.DataFrame:
    """Parts of a step, with their share of it."""
    whole = rows.groupby("batch_size")["ms"].transform(
        lambda ms: ms[rows.loc[ms.index, "part"] == "all"].iloc[0]
    )
    return rows.assign(share=100 * rows["ms"] / whole)


def own_and_leiden(rows: pd.DataFrame) -> pd.DataFrame:
    """Rows of scgmvae, and of Leiden at its best resolution for them."""
    return rows[rows["method"].isin(["SCGMVAE", "PCA + Leiden 0.3"])]


LABELS = {"ACC": ("accuracy", 3), "macro_F1": ("macro F1", 3), "ECE": ("calibration error", 3)}
SOURCES = {"fg": ("foreground", 3), "bg": ("background", 3), "sectors": ("sectors", 3)}
DECODERS = SOURCES | {"log_px": ("log p(x)", 0), "gain": ("gain, nats", 1)}
NATS = {"loss": ("loss, nats per test image", 1), "reconstruction": ("reconstruction error", 1)}
STEPS = {"batch_size": "batch", "density": "density", "genes": "genes", "model": "model"}
SPEED = {"cells_per_s": ("cells per second", 0), "to_SCVI": ("times SCVI's", 2)}
AMBIENT = {"mse": ("mean squared error", 4), "specificity": ("specificity", 3)}
AMBIENT |= {"share": ("share found", 3), "share_r": ("its correlation with the truth", 2)}
EMBEDDING = {
    "CiLISI": ("CiLISI", 2),
    "least mixing": ("least mixing of a type", 2),
    "cLISI": ("cLISI", 2),
    "best ARI": ("best ARI", 3),
    "k-means ARI": ("k-means ARI", 3),
    "isolated F1": ("isolated F1", 2),
    "rare F1": ("rare F1", 2),
    "own ARI": ("ARI of own clusters", 3),
}
MODALITIES = {"method": "method", "K": "K", "clusters": "clusters by"}
PARTITION = {"ARI": ("ARI", 3), "NMI": ("NMI", 3), "n_clusters": ("number", 1)}
CHANGE = {
    "MMD": ("MMD", 3),
    "energy": ("energy", 3),
    "r": ("r, all genes", 3),
    "r top": ("r, top 100", 3),
    "direction": ("direction", 3),
    "overlap": ("overlap", 3),
}
CELLS = {
    "error": ("error of the means", 3),
    "R2 mean": ("R², means", 3),
    "R2 variance": ("R², variances", 3),
    "told apart": ("told apart", 2),
}
UNSEEN = {
    "AUROC": ("AUROC", 3),
    "new": ("unseen cells above 0.99", 2),
    "known": ("other cells above 0.99", 2),
}
ALONE = {"alone": ("other cells above 0.99, without unseen ones", 2)}
IN_EACH_TYPE = ("scgmvae via x", "linear model", "half of the real cells")

TABLES = {
    "tested-one": Table(
        ("tested-one",),
        {"cells": "one population", "method": "method"},
        {"is_split": ("share of sets with several clusters", 2), "n_clusters": ("number", 1)},
    ),
    "tested-power": Table(
        ("tested-power",),
        {"sizes": "sizes", "genes": "genes", "fold": "fold", "method": "method"},
        {
            "found": ("share of sets with both found", 2),
            "ARI": ("ARI", 3),
            "calibration error": ("calibration error", 3),
        },
        own_and_leiden,
    ),
    "tested-types": Table(
        ("tested-types",),
        {"types": "types", "method": "method"},
        {
            "error": ("error of K", 2),
            "ARI": ("ARI", 3),
            "n_clusters": ("clusters", 1),
            "calibration error": ("calibration error", 3),
        },
    ),
    "tested-truth": Table(
        ("tested-truth",),
        {"data": "data", "method": "method"},
        {
            "ARI": ("ARI", 3),
            "F1 rare": ("F1 of rare types", 2),
            "n_clusters": ("clusters", 1),
            "ARI of two seeds": ("ARI of two seeds", 3),
            "least mixing of a type": ("least mixing of a type", 2),
            "seconds": ("seconds", 0),
        },
    ),
    "tested-summary": Table(
        ("tested-truth",),
        {"method": "method"},
        {"ARI": ("mean ARI", 3), "F1 rare": ("F1 of rare types", 2)},
    ),
    "tested-readme": Table(
        ("tested-truth",),
        {"method": "method"},
        {"ARI": ("mean ARI", 2), "F1 rare": ("F1 of rare types", 2)},
        lambda rows: rows[rows["method"].isin(IN_SHORT)].replace({"method": IN_SHORT}),
        names_source=False,
    ),
    "tested-donors": Table(
        ("tested-donors",),
        {"data": "data", "told": "told", "method": "method"},
        {"n_clusters": ("clusters", 1), "ARI": ("ARI", 3)},
    ),
    "tested-depth": Table(
        ("tested-depth",),
        {"types": "types", "batch_key": "batch_key"},
        {
            "n_clusters": ("clusters", 1),
            "ARI": ("ARI", 3),
            "NMI with depth": ("NMI with depth", 3),
            "R2 of depth": ("R² of depth from z", 2),
        },
    ),
    "repeated-splits": Table(
        ("repeated_splits",),
        {"design": "five types in six donors"},
        {
            "between donors": ("splits between donors found", 2),
            "between types": ("splits between types taken for such", 2),
        },
    ),
    "tested-cost": Table(
        ("tested-cost",),
        {"n_obs": "cells"},
        {"splits": ("splits", 1), "seconds": ("seconds", 1)},
    ),
    **{
        f"differential-{task}": Table(
            (f"differential-{task}",),
            {"method": "method"},
            {"called": ("share of genes called", 3), "any": ("runs with a call", 2)}
            | ({"false": ("share that is false", 3), "found": ("found of 40", 2)} if told else {}),
        )
        for task, told in (("clusters", False), ("donors", False), ("power", True))
    },
    "concordance": Table(
        ("concordance",),
        {"method": "method"},
        {
            "AUCC": ("first 100 genes", 3),
            "AUCC, same cells": ("the same, same cells", 3),
        },
    ),
    "devices": Table(
        ("devices",),
        {"processes": "processes"},
        {"cells per second": ("cells per second", 0), "times one": ("times one process", 2)},
    ),
    "split-seeds": Table(
        ("split_seeds-default", "split_seeds-long", "split_seeds-wide"),
        {"training": "training", "strength": "strength"},
        {
            "same training": ("ARI, other draws", 3),
            "another training": ("ARI, another training", 3),
            "ARI": ("ARI with the types", 3),
            "F1 rare": ("F1 of rare types", 2),
            "n_clusters": ("clusters", 1),
        },
    ),
    "priors-likelihood": Table(
        ("priors-likelihood",),
        {
            "data": "data",
            "start": "start, dispersions",
            "precision of dispersions": "precision, dispersions",
            "prior of weights": "prior of weights",
        },
        {
            "held out": ("held out, nats", 1),
            "trained on": ("trained on, nats", 1),
            "ARI": ("ARI", 3),
            "n_clusters": ("clusters", 1),
        },
    ),
    "priors-embeddings": Table(
        ("priors-embeddings",),
        {"data": "data", "prior of weights": "prior of weights"},
        {
            "CiLISI": ("CiLISI", 2),
            "kBET": ("kBET", 2),
            "least mixing": ("least mixing", 2),
            "purity": ("purity", 3),
            "best ARI": ("best ARI", 3),
            "k-means ARI": ("k-means ARI", 3),
            "own ARI": ("own ARI", 3),
            "own clusters": ("own clusters", 1),
            "kept": ("null batch, kept", 2),
        },
    ),
    "default-cut": Table(
        ("default_cut",),
        {
            "cells": "cells in a test",
            "strength": "strength",
            "apart": "apart without 3 genes",
            "from below": "from below",
        },
        {
            "ARI": ("ARI", 3),
            "ARI of two seeds": ("ARI of two seeds", 3),
            "n_clusters": ("clusters", 1),
        },
    ),
    "untold-donors": Table(
        ("untold_donors",),
        {"data": "data", "below types": "donors below types"},
        {
            "ARI": ("ARI", 3),
            "n_clusters": ("clusters", 1),
            "splits": ("splits", 1),
            "repeated": ("repeated", 1),
        },
    ),
    "level-support": Table(
        ("level_support",),
        {
            "data": "data",
            "single batches": "single batches may show a split",
            "of one batch": "weight of a split of one batch",
        },
        {"ARI": ("ARI", 3), "n_clusters": ("clusters", 1), "splits": ("splits", 1)},
    ),
    "condition-start-null": Table(
        ("condition_start-null",),
        {"data": "data", "start": "weights of conditions drawn"},
        {"kept": ("neighbours kept", 2), "ARI of clusters": ("ARI of clusters", 2)},
    ),
    "condition-start": Table(
        ("condition_start-embeddings",),
        {"data": "data", "start": "weights of conditions drawn"},
        {
            "CiLISI": ("CiLISI", 2),
            "kBET": ("kBET", 2),
            "least mixing": ("least mixing of a type", 2),
            "purity": ("purity", 3),
            "best ARI": ("best ARI", 3),
            "own ARI": ("ARI of own clusters", 3),
        },
    ),
    "cells-in-test": Table(
        ("cells_in_test",),
        {"strength by 1,000 cells": "strength by 1,000 cells"},
        {
            "groups": ("groups", 0),
            "mean change": ("mean change by 2,500", 2),
            "largest change": ("largest change", 2),
            "least by 2,500": ("least by 2,500", 2),
            "largest by 2,500": ("largest by 2,500", 2),
            "seconds": ("seconds", 1),
            "seconds by 2,500": ("seconds by 2,500", 1),
        },
    ),
    "embedding-summary": Table(
        ("embedding-real", "embedding-simulated"),
        {"method": "method"},
        EMBEDDING,
    ),
    "embedding-real": Table(
        ("embedding-real",),
        {"data": "data", "method": "method"},
        EMBEDDING
        | {"kBET": ("kBET", 2), "purity": ("purity", 2), "CPU seconds": ("CPU seconds", 0)},
    ),
    "embedding-simulated": Table(
        ("embedding-simulated",),
        {"data": "design", "method": "method"},
        EMBEDDING | {"kBET": ("kBET", 2), "purity": ("purity", 2)},
    ),
    "embedding-null": Table(
        ("embedding-null",),
        {"data": "data", "method": "method"},
        {
            "kept": ("neighbours kept", 2),
            "kept by another seed": ("kept by another seed, no batches", 2),
        },
    ),
    "embedding-settings": Table(
        ("embedding-settings",),
        {"setting": "setting"},
        {name: figure for name, figure in EMBEDDING.items() if name != "cLISI"},
        on_all_sets,
    ),
    "embedding-left-out": Table(
        ("embedding-settings",),
        {"data": "set that is left out", "change": "best change on the others"},
        {"others": ("gain there", 3), "gain": ("gain on the set", 3)},
        left_out,
    ),
    "recipe": Table(
        ("recipe",),
        {"variant": "variant, pbmc4k"},
        {"ARI start": ("ARI of the start", 3), "ARI": ("ARI", 3), "kl_w": ("KL of w", 3)},
    ),
    "recipe-found": Table(
        ("recipe-found",),
        {"variant": "variant, pbmc4k, K found"},
        {"n_clusters": ("clusters", 1), "ARI start": ("ARI of the start", 3), "ARI": ("ARI", 3)},
    ),
    "labels": Table(
        ("labels-pbmc3k-5pct", "labels-pbmc3k-10pct", "labels-pbmc4k-10"),
        {"task": "data and labels", "method": "method"},
        LABELS,
    ),
    "transfer": Table(
        ("transfer-mice", "transfer-half", "transfer-plates"),
        {"query": "query", "method": "method"},
        LABELS,
    ),
    "unseen": Table(
        ("transfer-unseen", "transfer-other_batch"),
        {"data": "query", "method": "method"},
        UNSEEN,
    ),
    "unseen-types": Table(
        ("transfer-unseen", "transfer-other_batch"),
        {"data": "query", "type": "type", "method": "method"},
        UNSEEN,
        lambda rows: rows[rows["method"].isin(["scgmvae, novelty", "scgmvae, distance in z"])],
        names_source=False,
    ),
    "misfit": Table(("misfit",), {"data": "data", "setting": "setting"}, UNSEEN | ALONE),
    "label-start": Table(
        ("label_start",),
        {"data": "data", "spread_by": "spread by", "probabilities": "probabilities"},
        LABELS,
        lambda rows: rows[(rows["spread_by"] == "z, PCs") | (rows["probabilities"] == "both")],
    ),
    "labels-rare": Table(
        ("labels-rare",),
        {"method": "method"},
        {
            "types_found": ("types that lead a component, of 16", 1),
            "recall_smallest": ("recall of the smallest", 3),
            "ACC": ("accuracy", 3),
        },
    ),
    "counterfactual-kang": Table(("counterfactual-kang",), {"method": "method"}, CHANGE | CELLS),
    "counterfactual-short": Table(
        ("counterfactual-kang",),
        {"method": "method"},
        {
            name: (CHANGE | CELLS)[name]
            for name in ("MMD", "r", "direction", "overlap", "R2 variance")
        },
    ),
    "counterfactual-types": Table(
        ("counterfactual-kang",),
        {"held_out": "type", "n": "stimulated cells", "method": "method"},
        CHANGE,
        lambda rows: rows[rows["method"].isin(IN_EACH_TYPE)],
        names_source=False,
    ),
    "counterfactual-simulated": Table(
        ("counterfactual-simulated",),
        {"response": "response", "method": "method"},
        {"error": CELLS["error"]} | CHANGE,
    ),
    "counterfactual-settings": Table(
        ("counterfactual-settings",),
        {"data": "data", "setting": "setting"},
        {"error": CELLS["error"]} | CHANGE,
    ),
    "kang-supervised": Table(("kang-supervised",), {"method": "method"}, {"ACC": ("accuracy", 3)}),
    "kang-generation": Table(
        ("kang-generation",),
        {"method": "cells"},
        {
            "ACC_cell_type": ("type told", 3),
            "ACC_condition": ("condition told", 3),
            "AUC_real": ("AUC, real against generated", 3),
        },
    ),
    "mixing": Table(
        ("integration-mixing",),
        {"method": "method"},
        {"ARI": ("ARI", 3), "iLISI": ("iLISI", 3), "cLISI": ("cLISI", 3)},
    ),
    "conditions": Table(
        ("integration-conditions",),
        {"method": "prior of w"},
        {
            "ACC": ("accuracy", 3),
            "silhouette_w": ("silhouette of w by condition", 3),
            "silhouette_z": ("of z", 3),
        },
    ),
    **{
        f"multimodal-{task}": Table(
            (f"multimodal-{task}",),
            MODALITIES,
            PARTITION | mixing | {"CPU seconds": ("CPU seconds", 0)},
        )
        for task, mixing in (
            ("cite", {}),
            ("simulated", {}),
            (
                "mosaic",
                {
                    "mixing": ("mixing", 2),
                    "least mixing": ("least mixing of a type", 2),
                },
            ),
        )
    },
    "multimodal-imputation": Table(
        ("multimodal-imputation",),
        {"method": "method"},
        {
            "Pearson": ("correlation, mean of proteins", 3),
            "least Pearson": ("least of a protein", 3),
            "RMSE": ("root mean squared error", 3),
            "covered": ("share within bounds", 3),
        },
    ),
    "multimodal-speed": Table(
        ("multimodal-speed",),
        {"model": "model"},
        {
            "seconds per epoch": ("seconds per epoch", 2),
            "cells per second": ("cells per second", 0),
            "to RNA alone": ("times RNA alone", 2),
            "peak MB": ("peak MB", 0),
        },
    ),
    "merging": Table(
        tuple(f"merging-{name}" for name in (*SETS, "simulated")),
        {"data": "data", "resolution": "resolution", "criterion": "method", "stop": "stop"},
        {"n_clusters": ("clusters", 0), "n_labels": ("types", 0), "ARI": ("ARI", 3)},
    ),
    "cost": Table(
        ("cost",),
        {"what": "what", "cells": "cells"},
        {"seconds": ("seconds", 2), "ratio": ("ratio of the epochs", 2)},
    ),
    "speed-steps": Table(("speed-steps",), STEPS, SPEED),
    "speed-steps-2000": Table(
        ("speed-steps",),
        STEPS,
        SPEED,
        lambda rows: rows[(rows["genes"] == 2000) & (rows["density"] == 0.08)],
    ),
    "speed-parts": Table(
        ("speed-parts",),
        {"batch_size": "batch", "part": "part"},
        {"ms": ("ms", 1), "share": ("% of the step", 0)},
        part_of_step,
    ),
    "speed-draws": Table(
        ("speed-draws",),
        {"draws": "draws of 2,000 cells and 2,000 genes"},
        {"ms": ("milliseconds", 0), "times_faster": ("times faster", 1)},
    ),
    "batch-size": Table(
        ("batch_size",),
        {"cells": "cells", "minibatch": "minibatch"},
        {
            "ARI": ("ARI", 3),
            "n_clusters": ("clusters, of 20 types", 1),
            "elbo": ("bound of held-out cells, nats", 1),
            "minutes": ("processor minutes", 1),
        },
    ),
    "growth": Table(
        ("growth",),
        {"what": "what", "sizes": "sizes", "used": "used for"},
        {"measured": ("measured", 2), "foretold": ("foretold", 2), "error": ("error", 2)},
        lambda rows: rows[rows["used"] != "fitted"],
    ),
    "speed-likelihood": Table(
        ("speed-likelihood",),
        {"cells": "cells", "density": "density", "likelihood": "likelihood"},
        {"ms": ("ms", 1), "times_faster": ("times faster", 1)},
    ),
    "speed-predict": Table(
        ("speed-predict",),
        {"what": "what", "cells": "cells"},
        {"seconds": ("seconds", 2), "cells_per_s": ("cells per second", 0)},
    ),
    "speed-growth": Table(
        ("speed-growth",),
        {"x_in": "x in", "cells": "cells"},
        {
            "s_per_epoch": ("seconds per epoch", 2),
            "s_start": ("seconds of the start", 0),
            "peak_mb": ("peak MB", 0),
            "exponent": ("power of the cells", 2),
        },
    ),
    "speed-fit": Table(
        ("speed-fit",), {"method": "method"}, {"seconds": ("seconds", 0), "ARI": ("ARI", 3)}
    ),
    "dual": Table(
        ("dual-separation",),
        {"method": "method"},
        SOURCES | {"log_px": ("log p(x)", 0), "seconds": ("seconds", 0)},
    ),
    "dual-strengths": Table(("dual-strengths",), {"images": "images"}, SOURCES),
    "dual-interactions": Table(("dual-interactions",), {"interaction": "interaction"}, SOURCES),
    "dual-encoders": Table(
        ("dual-encoders",),
        {"images": "images", "encoder": "encoder"},
        SOURCES | {"log_px": ("log p(x)", 0), "seconds": ("seconds", 0)},
    ),
    "dual-decoders": Table(("dual-decoders",), {"decoder": "decoder"}, DECODERS),
    "dual-shaded": Table(("dual-shaded",), {"decoder": "decoder"}, DECODERS),
    "ambient": Table(
        ("ambient-10pct", "ambient-20pct"),
        {"data": "pool", "correction": "correction"},
        AMBIENT,
    ),
    "estimators": Table(
        ("estimators",),
        {"estimator": "estimator"},
        {
            "value": ("mean of −ELBO, nats", 2),
            "value_variance": ("variance of the value", 2),
            "gradient_variance": ("variance of the gradient", 2),
            "bias_in_standard_errors": ("largest bias, standard errors", 1),
        },
    ),
    "linear": Table(
        ("linear",),
        {"data": "data", "model": "model"},
        {
            "angle": ("angle, degrees", 2),
            "noise": ("noise variance, % off", 2),
            "nats": ("nats per cell", 3),
            "closed_nats": ("closed form", 3),
            "posterior": ("posterior mean, sd off", 3),
            "seconds": ("seconds", 0),
        },
    ),
    "images": Table(
        tuple(
            f"images-{name}"
            for name in ("mnist-10", "mnist-10-distorted", "mnist-20", "mnist-100", "mnist-5pct")
            + ("fashion-10", "fashion-20", "fashion-10pct", "fashion-all")
        ),
        {"data": "images"},
        {"ACC": ("accuracy", 3), "majority": ("by majority", 3), "seconds": ("seconds", 0)},
    ),
    "image-start": Table(
        ("image_start-fashion", "image_start-mnist", "image_start-mnist-uneven"),
        {"data": "images", "leiden": "Leiden", "resolution": "resolution"},
        {
            "ACC": ("ACC", 3),
            "modularity": ("modularity", 3),
            "evenness": ("evenness", 3),
            "seconds": ("seconds of Leiden", 0),
        },
    ),
    "tested-images": Table(
        ("tested_images-fashion", "tested_images-mnist"),
        {"data": "images", "told": "told", "start": "start"},
        {"ACC": ("ACC", 3), "n_groups": ("groups", 0), "seconds": ("seconds", 0)},
    ),
    "images-vae": Table(("images-vae",), {"data": "images", "n_latent": "dimensions of z"}, NATS),
    "images-speed": Table(
        ("images-speed",),
        {"method": "what"},
        {
            "VAE_seconds": ("VAE, seconds per epoch", 2),
            "cGMVAE_seconds": ("c*GMVAE, seconds per epoch", 2),
            "ratio": ("ratio", 2),
        },
    ),
    "images-cifar": Table(("images-cifar",), {"network": "network"}, NATS),
    "imports": Table(
        ("imports",),
        {"what": "what"},
        {"seconds": ("processor seconds", 2), "ratio": ("ratio", 3)},
    ),
}


def of_files(spec: Table, results: Path = RESULTS) -> pd.DataFrame:
    """The rows that a table is of, of all of its files."""
    parts = []
    for name in spec.files:
        rows = rows_of(results / f"{name}.json")
        parts.append(rows if "data" in rows else rows.assign(data=name.partition("-")[2]))
    return spec.keep(pd.concat(parts, ignore_index=True))


def together(rows: pd.DataFrame, by: list[str]) -> pd.DataFrame:
    """Rows in the order of the file, but those that differ in the last column alone together."""
    if len(by) == 1:
        return rows
    group = rows.groupby(by[:-1], sort=False, dropna=False).ngroup()
    return rows.loc[group.sort_values(kind="stable").index]


def made_of(spec: Table, results: Path = RESULTS) -> str:
    """Rows of strings, and a line with what made them."""
    rows = together(of_files(spec, results), list(spec.by))
    rows[list(spec.by)] = rows[list(spec.by)].astype(str)
    groups = rows.groupby(list(spec.by), sort=False)
    shown = pd.DataFrame(
        {
            title: groups[name].apply(mean_sd, digits)
            for name, (title, digits) in spec.figures.items()
        }
    )
    if "seed" in rows:
        shown["seeds"] = groups["seed"].nunique().astype(str)
    shown = shown.reset_index().rename(columns=spec.by).astype(str)
    source = f"{provenance(spec.files, results)}\n" if spec.names_source else ""
    return f"{table(shown.set_index(shown.columns[0]))}\n{source}"


def script_of(name: str) -> str:
    """Path of a script, in ``benchmarks/`` or ``benchmarks/studies/``, from the top folder."""
    folder = "benchmarks" if (ROOT / "benchmarks" / name).exists() else "benchmarks/studies"
    return f"{folder}/{name}"


def provenance(files: tuple[str, ...], results: Path = RESULTS) -> str:
    """Command, files, versions and machine; a line for each that differs."""
    made: dict[str, list[str]] = {}
    for name in files:
        content = json.loads((results / f"{name}.json").read_text())
        machine, script = content["machine"], script_of(content["script"])
        versions = [f"{p} {machine['versions'][p]}" for p in ("scgmvae", "scvi-tools", "torch")]
        line = (
            f"`python {script}` with {', '.join(versions)}, "
            f"Python {machine['python']}, {machine['system']}, {machine['cpus']} processors, "
            f"threads: {machine['threads']}, {machine['gpu'] or 'no GPU'}. "
            f"{content.get('note', '')}"
        ).strip()
        made.setdefault(line, []).append(f"`{name}.json`")
    return "\n".join(f"*{', '.join(names)}: {line}*" for line, names in made.items())


def peers(results: Path = RESULTS, told: str = "given") -> str:
    """Mean ARI over the data sets beside existing tools, and agreement between seeds."""
    wide = over_sets(results)
    agreement = named(rows_of(results / "stability.json"))
    agreement = agreement[agreement["data"].isin(SETS)].groupby("name")["ARI"].mean()
    shown = pd.DataFrame({"ARI": wide["mean"], "agreement between seeds": agreement})
    if told == "found":
        shown.insert(1, "error of K", wide["error of K"])
    shown = shown.loc[[name for name in wide.index if name.endswith(f", K {told}")]]
    shown.index = shown.index.str.removesuffix(f", K {told}")
    made = provenance((*(f"peers-{name}" for name in SETS), "stability"), results)
    return f"{table(shown.map('{:.3f}'.format).rename_axis(f'K {told}'))}\n{made}\n"


def filled(text: str, results: Path = RESULTS) -> str:
    """A page with the figures in its tables renewed; those never measured stay as they are."""

    def renewed(match: re.Match[str]) -> str:
        start, name, end = match.groups()
        if name.startswith("peers-"):
            return f"{start}{peers(results, name.removeprefix('peers-'))}{end}"
        if not any((results / f"{file}.json").exists() for file in TABLES[name].files):
            return match.group()  # what has not been measured yet has no figures to fill in
        return f"{start}{made_of(TABLES[name], results)}{end}"

    return MARKED.sub(renewed, text)


def pages() -> list[Path]:
    """Pages with tables to fill; what is built of them has copies."""
    written = [ROOT / "README.md", *sorted((ROOT / "docs").rglob("*.md"))]
    written = [path for path in written if "_build" not in path.relative_to(ROOT).parts]
    return [path for path in written if MARKED.search(path.read_text())]


def main() -> None:
    for path in pages():
        path.write_text(filled(path.read_text()))
        print(path.relative_to(ROOT))


if __name__ == "__main__":
    main()
