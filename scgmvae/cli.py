"""The command line: ``scgmvae fit``, ``predict``, ``sample`` and ``info``.

A command returns its result as text, which alone goes to stdout; progress, warnings and whatever
packages print go to stderr. Errors of the data end in one line and exit code 1, wrong usage in 2.

What takes seconds to import is imported by the commands, so that help and version come at once.
"""

from __future__ import annotations

import json
import logging
import re
import sys
import warnings
from contextlib import redirect_stdout
from pathlib import Path
from typing import TYPE_CHECKING, Any, Literal

import click

import scgmvae
from scgmvae.distributions.families import LIKELIHOODS, OF_MODALITIES, Likelihood
from scgmvae.io.whole_files import check_target, whole_file

if TYPE_CHECKING:
    from collections.abc import Callable, Sequence

    from anndata import AnnData
    from mudata import MuData

__all__ = ["main"]

KEY = "scgmvae"
DATA_ERRORS = (ArithmeticError, KeyError, OSError, RuntimeError, ValueError)
"""Errors that the package raises if data or files do not suit."""

OPTIONS = {
    "batch_key": "--batch-key",
    "categorical_covariate_keys": "--covariate",
    "continuous_covariate_keys": "--continuous",
    "labels_key": "--labels-key",
    "layer": "--layer",
    "likelihood": "--likelihood",
    "modalities": "--modality",
    "max_epochs": "--epochs",
    "n_components": "--components",
    "pretrain_epochs": "--pretrain-epochs",
    "unlabeled_category": "--unlabeled",
}
"""Argument of Python, as the package's messages name it → option of the command line."""


class Command(click.Command):
    """A command whose returned text goes to stdout, and whose errors of data are one line."""

    def invoke(self, ctx: click.Context) -> None:
        """Run the command with the arguments that were given."""
        _ = scgmvae.SCGMVAE  # packages choose their levels when they are imported
        for name in ("lightning.pytorch", "scvi"):  # what they tell is for users of Python
            logging.getLogger(name).setLevel(logging.WARNING)
        try:
            with redirect_stdout(sys.stderr), warnings.catch_warnings():
                warnings.filterwarnings("ignore", module=r"lightning\.")
                warnings.showwarning = _say_warning  # type: ignore[assignment]  # the rest is unused
                result = super().invoke(ctx)
        except click.Abort:  # it is a RuntimeError too
            raise
        except DATA_ERRORS as error:
            # a KeyError's own text is the quoted message
            message = error.args[0] if isinstance(error, KeyError) and error.args else error
            raise click.ClickException(_in_options(" ".join(str(message).split()))) from error
        if result is not None:
            try:
                click.echo(result)
            except BrokenPipeError:  # whoever reads has had enough, which click knows how to end
                raise
            except OSError as error:
                raise click.ClickException(f"The result could not be written: {error}") from error


class Commands(click.Group):
    """The group of all commands."""

    command_class = Command


def _examples(*lines: str) -> str:
    """End of a help text; the first character keeps click from joining its lines."""
    return "\n".join(["\b", "Examples:", *(f"  {line}" for line in lines)])


def _in_options(message: str) -> str:
    """Message of the package in which arguments of Python are options of the command line."""
    message = message.replace("or None, which", "or left out, which")
    for argument, option in OPTIONS.items():
        message = message.replace(f"{argument}=...", option)
        message = re.sub(rf"\b{argument}=('[^']*'|\w+)", rf"{option} \1", message)
        if "_" in argument:  # the others are words of plain English as well
            message = re.sub(rf"\b{argument}\b", option, message)
    return message


def _say_warning(message: Warning | str, *args: object) -> None:
    _say(f"Warning: {_in_options(str(message))}")


def _say(text: str) -> None:
    click.echo(text, err=True)


# ----------------------------------------------------------------------------------- arguments

INPUT_FILE = click.Path(exists=True, dir_okay=False, path_type=Path)
MODEL_FOLDER = click.Path(exists=True, file_okay=False, path_type=Path)
OUTPUT = click.Path(path_type=Path)


def _new_file(ctx: click.Context, param: click.Parameter, path: Path | None) -> Path | None:
    kinds = (".html",) if param.name == "report" else (".h5ad", ".h5mu")
    if path is not None and path.suffix.lower() not in kinds:
        raise click.BadParameter(
            f"The file is of the kind {' or '.join(kinds)}, so its name must end so, but it is "
            f"{path.name!r}."
        )
    try:
        return path if path is None else check_target(path, ctx.params["force"], "--force")
    except (OSError, ValueError) as error:
        raise click.BadParameter(str(error)) from error


def _new_folder(ctx: click.Context, param: click.Parameter, path: Path | None) -> Path | None:
    if path is not None and path.exists() and (path.is_file() or not ctx.params["force"]):
        raise click.BadParameter(
            f"The folder must not exist yet, but {path} does. Give another, or --force."
        )
    return path


def _modalities(
    ctx: click.Context, param: click.Parameter, pairs: Sequence[str]
) -> dict[str, str]:
    names = [pair.partition("=")[0] for pair in pairs]
    if len(set(names)) < len(names):
        raise click.BadParameter("A modality has one likelihood, but one is named twice.")
    for name, pair in zip(names, pairs, strict=True):
        if not name or pair.partition("=")[2] not in OF_MODALITIES:
            raise click.BadParameter(
                f"A modality is NAME=LIKELIHOOD, as rna=nb is, with one of "
                f"{', '.join(OF_MODALITIES)}, but it is {pair!r}."
            )
    return dict(pair.split("=", 1) for pair in pairs)


def _conditions(
    ctx: click.Context, param: click.Parameter, pairs: Sequence[str]
) -> dict[str, str]:
    for pair in pairs:
        if "=" not in pair:
            raise click.BadParameter(
                f"A condition is COLUMN=VALUE, as condition=stimulated is, but it is {pair!r}."
            )
    values = dict(pair.split("=", 1) for pair in pairs)
    if len(values) < len(pairs):
        raise click.BadParameter("A condition has one value, but a column is named twice.")
    return values


def _force(command: Callable) -> Callable:
    # eager, because the checks of output paths need it
    return click.option(
        "--force", is_flag=True, is_eager=True, help="Replace outputs that exist."
    )(command)


def _seed(command: Callable) -> Callable:
    return click.option(
        "--seed",
        type=click.IntRange(0),
        default=0,
        show_default=True,
        help="Seed of all random numbers.",
    )(command)


def _read(path: Path, backed: Literal["r"] | None = None) -> AnnData | MuData:
    from scgmvae.io.cell_files import read_cells

    return read_cells(path, backed)


def _is_mudata(cells: AnnData | MuData) -> bool:
    return hasattr(cells, "mod")  # without importing mudata


def _check_kind(cells: AnnData | MuData, path: Path | None) -> None:
    """Raise ``UsageError`` if the name of an output does not say what will be in it."""
    kind = ".h5mu" if _is_mudata(cells) else ".h5ad"
    if path is not None and path.suffix.lower() != kind:
        raise click.UsageError(
            f"Of these cells the output is of the kind {kind}, but --out is {path.name!r}."
        )


def _write(cells: AnnData | MuData, path: Path) -> None:
    _check_kind(cells, path)
    with whole_file(path) as made:
        cells.write_h5mu(made) if _is_mudata(cells) else cells.write_h5ad(made)
    _say(f"Wrote {path}.")


def _as_json(content: dict[str, Any]) -> str:
    return json.dumps(content, indent=2, ensure_ascii=False, default=lambda value: value.tolist())


# ------------------------------------------------------------------------------------ commands


@click.group(
    cls=Commands,
    context_settings={"help_option_names": ["-h", "--help"]},
    epilog=_examples(
        "scgmvae fit counts.h5ad --batch-key batch --out annotated.h5ad --model model",
        "scgmvae predict model new.h5ad > clusters.csv",
        "scgmvae info model",
    ),
)
@click.version_option(package_name="scgmvae")
def main() -> None:
    """Embed, cluster and annotate single cells, or generate new ones, with one generative model.

    Results go to stdout, progress and warnings to stderr. Exit codes: 0 success, 1 problem with
    the data, 2 wrong usage.
    """


@main.command(
    epilog=_examples(
        "scgmvae fit counts.h5ad --out annotated.h5ad",
        "scgmvae fit counts.h5ad --batch-key batch --labels-key cell_type --layer counts \\",
        "    --components 20 --out annotated.h5ad --model model --report report.html",
    )
)
@click.argument("data", type=INPUT_FILE)
@click.option(
    "--layer", help="Layer that holds the raw counts.  [default: counts if there is one, else X]"
)
@click.option(
    "--modality",
    "modalities",
    multiple=True,
    callback=_modalities,
    help="NAME=LIKELIHOOD of a modality of an h5mu file, such as rna=nb, protein=protein or "
    "atac=bernoulli; may be repeated. All that are named are modelled together.",
)
@click.option("--batch-key", help="obs column of batches, whose effect the embedding leaves out.")
@click.option(
    "--labels-key",
    help="obs column of cell types that are known for all cells or some; the others are "
    "predicted.",
)
@click.option(
    "--unlabeled",
    default="unknown",
    show_default=True,
    help="What --labels-key says of a cell whose type is not known.",
)
@click.option(
    "--covariate",
    "covariates",
    multiple=True,
    help="obs column of a further condition in categories, such as a donor or treatment; may be "
    "repeated.",
)
@click.option(
    "--continuous",
    multiple=True,
    help="obs column of a condition that is a number, such as a dose; may be repeated.",
)
@click.option(
    "--components",
    type=click.IntRange(1),
    help="Number of clusters.  [default: found from the data]",
)
@click.option(
    "--likelihood",
    type=click.Choice(LIKELIHOODS),
    help="Distribution of the values of a cell: nb, zinb or poisson for counts, bernoulli for 0 "
    "and 1, gaussian for values of any size.  [default: nb]",
)
@click.option(
    "--epochs",
    type=click.IntRange(1),
    help="Passes over the cells in the last stage, which trains embedding and clusters "
    "together.  [default: 20 to 120, fewer the more cells]",
)
@click.option(
    "--pretrain-epochs",
    type=click.IntRange(0),
    help="Passes over the cells in the first stage, which learns the embedding alone.  [default: "
    "10 to 120, fewer the more cells]",
)
@_seed
@click.option(
    "--out",
    type=OUTPUT,
    callback=_new_file,
    help="h5ad or h5mu file to write: DATA with embedding, clusters and confidence.",
)
@click.option(
    "--model", "folder", type=OUTPUT, callback=_new_folder, help="Folder to save the model in."
)
@click.option(
    "--report",
    type=OUTPUT,
    callback=_new_file,
    help="HTML file to write, with figures, markers and what to look at.",
)
@click.option(
    "--interactive", is_flag=True, help="Let readers of the report explore cells and genes."
)
@_force
def fit(
    data: Path,
    layer: str | None,
    modalities: dict[str, str],
    batch_key: str | None,
    labels_key: str | None,
    unlabeled: str,
    covariates: Sequence[str],
    continuous: Sequence[str],
    components: int | None,
    likelihood: Likelihood | None,
    epochs: int | None,
    pretrain_epochs: int | None,
    seed: int,
    out: Path | None,
    folder: Path | None,
    report: Path | None,
    interactive: bool,
    force: bool,
) -> str:
    """Train a model on the counts in DATA.

    DATA is an h5ad file, the h5 file of counts that Cell Ranger (10x Genomics) writes, or an h5mu
    file with --modality. Prints a summary as JSON. With labels the clusters carry their names.
    """
    if out is None and folder is None and report is None:
        raise click.UsageError("Name at least one output: --out, --model or --report.")
    if interactive and report is None:
        raise click.UsageError("--interactive is about a report: name its file with --report.")
    outputs = [path.resolve() for path in (out, folder, report) if path is not None]
    if len(set(outputs)) < len(outputs):
        raise click.UsageError("--out, --model and --report must be different files.")
    adata = _read(data)
    _check_kind(adata, out)
    values = _set_up(
        adata,
        modalities,
        layer,
        batch_key=batch_key,
        labels_key=labels_key,
        unlabeled_category=unlabeled,
        categorical_covariate_keys=list(covariates) or None,
        continuous_covariate_keys=list(continuous) or None,
    )
    model = scgmvae.SCGMVAE(adata, n_components=components, likelihood=likelihood)
    _say(f"Training on {adata.n_obs:,} cells and {model.adata.n_vars:,} genes of {values}.")
    model.train(epochs, pretrain_epochs, seed=seed)
    if model.trainer.interrupted:
        _say("Training was interrupted, so nothing was written.")
        raise click.Abort
    if folder is not None:
        model.save(folder, overwrite=force)
        _say(f"Wrote {folder}.")
    if out is not None:
        _write(adata, out)
    if report is not None:
        import matplotlib as mpl

        mpl.use("Agg")  # no window opens
        model.report(report, overwrite=force, interactive=interactive)
        _say(f"Wrote {report}.")
    return _as_json(
        {
            "cells": adata.n_obs,
            "genes": model.adata.n_vars,
            "components": model.n_components_,
            "clusters": adata.obs[KEY].value_counts(sort=False).to_dict(),
            "elbo": -float(model.history["elbo_train"].iloc[-1, 0]),
            "seed": seed,
        }
    )


def _set_up(
    cells: AnnData | MuData, modalities: dict[str, str], layer: str | None, **setup: Any
) -> str:
    """Set the cells up, and say what the values are of."""
    from scgmvae.data.validation import default_layer

    is_mudata = _is_mudata(cells)
    if is_mudata != bool(modalities):
        there = f" It has {', '.join(cells.mod)}." if is_mudata else ""
        raise click.UsageError(
            "--modality names modalities of an h5mu file, and an h5mu file needs it, for example "
            f"--modality rna=nb --modality protein=protein.{there}"
        )
    if modalities:
        scgmvae.SCGMVAE.setup_mudata(cells, modalities=modalities, layer=layer, **setup)
        return ", ".join(modalities)
    layer = layer or default_layer(cells)
    scgmvae.SCGMVAE.setup_anndata(cells, layer=layer, **setup)
    return "X" if layer is None else f"layer {layer}"


@main.command(
    epilog=_examples(
        "scgmvae predict model new.h5ad > clusters.csv",
        "scgmvae predict model new.h5ad --out annotated.h5ad",
    )
)
@click.argument("folder", metavar="MODEL", type=MODEL_FOLDER)
@click.argument("data", type=INPUT_FILE)
@click.option(
    "--out", type=OUTPUT, callback=_new_file, help="h5ad or h5mu file to write, not the CSV."
)
@_force
def predict(folder: Path, data: Path, out: Path | None, force: bool) -> str | None:
    """Predict clusters, or labels, of new cells.

    The cells are those of DATA, an h5ad, h5mu or 10x h5 file, and MODEL is the folder of a saved
    model.

    Prints CSV: cell, cluster (the label where it carries one), component where components were
    merged, confidence and novelty. With --out an h5ad file is written instead, which has the
    embedding and all probabilities as well. DATA needs the genes and the obs columns of conditions
    that the model was trained with, and no labels.
    """
    model = scgmvae.SCGMVAE.load(folder, adata=False)
    if out is None:
        model._check_mixture()
    adata = _read(data)
    _check_kind(adata, out)
    model.annotate(adata, KEY)
    if out is not None:
        _write(adata, out)
        return None
    names = [KEY, f"{KEY}_fine", f"{KEY}_confidence", f"{KEY}_novelty"]
    table = adata.obs[[name for name in names if name in adata.obs]]
    return table.to_csv(index_label="cell").rstrip("\n")


@main.command(
    epilog=_examples(
        "scgmvae sample model -n 1000 --data counts.h5ad --out generated.h5ad",
        'scgmvae sample model -n 500 --component "B cell" --condition condition=stimulated \\',
        "    --data counts.h5ad --out generated.h5ad",
    )
)
@click.argument("folder", metavar="MODEL", type=MODEL_FOLDER)
@click.option("-n", "n", type=click.IntRange(1), required=True, help="Number of cells.")
@click.option(
    "--component",
    help="Cluster, label or component that the cells are of.  [default: drawn as often as in the "
    "data]",
)
@click.option(
    "--condition",
    "conditions",
    multiple=True,
    callback=_conditions,
    help="COLUMN=VALUE: condition that the cells are under; may be repeated.  [default: drawn "
    "from the data]",
)
@click.option(
    "--data",
    type=INPUT_FILE,
    help="h5ad file from whose cells total counts and conditions are drawn.",
)
@_seed
@click.option("--out", type=OUTPUT, callback=_new_file, required=True, help="h5ad file to write.")
@_force
def sample(
    folder: Path,
    n: int,
    component: str | None,
    conditions: dict[str, str],
    data: Path | None,
    seed: int,
    out: Path,
    force: bool,
) -> None:
    """Generate new cells.

    They come from MODEL, the folder of a saved model. Total counts and conditions are no part of
    the model, so they are drawn from cells, as a rule those of the training: --data names their
    file unless they were saved with the model.
    """
    with warnings.catch_warnings():
        warnings.filterwarnings("ignore", "No data were saved with the model")
        model = scgmvae.SCGMVAE.load(folder, adata=None if data is None else _read(data))
    if model.adata is None:
        raise click.UsageError("No data were saved with the model: name a file with --data.")
    _write(model.sample(n, component, conditions, seed=seed), out)


@main.command(epilog=_examples("scgmvae info model", "scgmvae info counts.h5ad"))
@click.argument("path", type=click.Path(exists=True, path_type=Path))
def info(path: Path) -> str:
    """Show what is in a file or model.

    PATH is the folder of a saved model, or an h5ad, h5mu or 10x h5 file. Prints JSON.
    """
    return _as_json(_model_info(path) if path.is_dir() else _data_info(path))


def _model_info(folder: Path) -> dict[str, Any]:
    model = scgmvae.SCGMVAE.load(folder, adata=False)
    saved_by = json.loads((folder / "model.json").read_text())["content"]["versions"]
    return {
        "kind": "model",
        "versions": saved_by,
        "genes": model.module.n_input,
        "components": model.component_names,
        "clusters": model.cluster_names,
        "labels": model._setup.label_names,
        "conditions": {name: list(v) for name, v in model._setup.categories.items()},
        "params": model._settings()["params"],
        "seed": model.seed_,
        "epochs": len(model.history["elbo_train"]) if model.history else 0,
    }


def _data_info(path: Path) -> dict[str, Any]:
    cells = _read(path, backed="r")
    if not _is_mudata(cells):
        return {"kind": "data"} | _cells_info(cells)
    return {
        "kind": "data",
        "cells": cells.n_obs,
        "modalities": {name: _cells_info(part) for name, part in cells.mod.items()},
        "obs": list(cells.obs),
        "annotated": KEY in cells.uns,
    }


def _cells_info(adata: AnnData) -> dict[str, Any]:
    from scgmvae.compat import named_layers
    from scgmvae.data.matrix_checks import holds_counts

    matrices = {"X": adata.X} | {f"layer {k}": v for k, v in named_layers(adata).items()}
    return {
        "cells": adata.n_obs,
        "genes": adata.n_vars,
        "matrices": {
            name: "counts" if holds_counts(matrix) else "no counts"
            for name, matrix in matrices.items()
            if matrix is not None
        },
        "obs": {
            name: f"{column.nunique()} categories"
            if column.dtype.kind == "O"
            else str(column.dtype)
            for name, column in adata.obs.items()
        },
        "obsm": list(adata.obsm),
        "annotated": KEY in adata.uns,
    }
