"""What a training shows while it runs."""

import logging
import re
import subprocess
import sys
import warnings

import pytest
from lightning.pytorch.callbacks import Callback, TQDMProgressBar
from small import QUICK

from scgmvae.train import progress
from scgmvae.train.quiet import quiet

SHOWN = QUICK | {"enable_progress_bar": True}


@pytest.fixture
def adata(counts):
    return counts.copy()


@pytest.fixture
def terminal(monkeypatch):
    """Somebody watches."""
    monkeypatch.setattr(progress, "_is_watched", lambda: True)


def test_a_file_has_one_line_per_stage_and_the_result(adata, make_model, train, capsys):
    train(make_model(adata), max_epochs=2, pretrain_epochs=3, enable_progress_bar=True)
    out, err = capsys.readouterr()
    first, second, third, found = err.splitlines()
    assert re.fullmatch(r"1/3 learning the embedding: 3 epochs, \d+ s, ELBO -[\d.]+", first)
    assert re.fullmatch(r"2/3 finding clusters: \d+ s", second)
    assert re.fullmatch(r"3/3 fitting the mixture: 2 epochs, \d+ s, ELBO -[\d.]+", third)
    assert found == "3 clusters in 300 cells, in adata.obs['scgmvae']"
    assert out == ""


@pytest.mark.usefixtures("terminal")
def test_a_terminal_has_one_bar_that_names_the_stages(adata, make_model, train, capsys):
    train(make_model(adata), max_epochs=2, pretrain_epochs=2, enable_progress_bar=True)
    shown = capsys.readouterr().err
    places = [shown.index(name) for name in ("1/3 learning", "2/3 finding", "3/3 fitting")]
    assert places == sorted(places)
    assert "4/4 epochs" in shown
    assert re.search(r"ELBO -[\d.]+\]", shown)
    assert shown.splitlines()[-1] == "3 clusters in 300 cells, in adata.obs['scgmvae']"


@pytest.mark.parametrize(
    "hidden", [{"enable_progress_bar": False}, {"progress_bar_refresh_rate": 0}]
)
def test_nothing_is_shown_where_nothing_is_asked_for(adata, make_model, train, capsys, hidden):
    train(make_model(adata), **(SHOWN | hidden))
    assert "".join(capsys.readouterr()) == ""


def test_a_further_training_has_one_stage(adata, make_model, train, capsys):
    model = train(make_model(adata), **QUICK)
    train(model, max_epochs=1, pretrain_epochs=None, enable_progress_bar=True)
    stage, found = capsys.readouterr().err.splitlines()
    assert stage.startswith("fitting the mixture: 1 epoch, ")
    assert found.startswith("3 clusters in 300 cells")


def test_a_model_without_a_mixture_has_one_stage(adata, make_model, train, capsys):
    train(
        make_model(adata, prior="normal"),
        max_epochs=2,
        pretrain_epochs=0,
        enable_progress_bar=True,
    )
    stage, found = capsys.readouterr().err.splitlines()
    assert stage.startswith("learning the embedding: 2 epochs, ")
    assert found == "Embedding of 300 cells, in adata.obsm['X_scgmvae']"


@pytest.mark.usefixtures("terminal")
def test_an_error_closes_the_bar(adata, make_model, train, capsys):
    class Stop(Exception):
        pass

    class Fails(Callback):
        def on_train_epoch_end(self, trainer, pl_module):
            raise Stop

    with pytest.raises(Stop):
        train(make_model(adata), **SHOWN, callbacks=[Fails()])
    assert capsys.readouterr().err.endswith("\n")


@pytest.mark.parametrize(
    "other", [{"simple_progress_bar": False}, {"callbacks": [TQDMProgressBar()]}]
)
def test_bars_of_lightning_are_still_to_be_had(adata, make_model, train, capsys, other):
    train(make_model(adata), **SHOWN, **other)
    assert "clusters in" not in "".join(capsys.readouterr())


class Messages(logging.Handler):
    """The messages of a logger."""

    def __init__(self):
        super().__init__()
        self.heard = []

    def emit(self, record):
        self.heard.append(record.getMessage())


@pytest.fixture
def log():
    """Lightning's log, whatever its level was, and what comes through."""
    logger, messages = logging.getLogger("lightning.pytorch.utilities.rank_zero"), Messages()
    level = logger.level
    logger.setLevel(logging.INFO)
    logger.addHandler(messages)
    yield logger, messages.heard
    logger.removeHandler(messages)
    logger.setLevel(level)


def test_only_messages_that_are_known_are_left_out(log):
    logger, heard = log
    with pytest.warns(UserWarning) as seen, quiet():
        logger.info("GPU available: False, used: False")
        logger.info("`Trainer.fit` stopped: `max_epochs=3` reached.")
        logger.info("Restoring states")
        warnings.warn("`isinstance(treespec, LeafSpec)` is deprecated, use", stacklevel=1)
        warnings.warn("something else", stacklevel=1)
    assert heard == ["Restoring states"]
    assert [str(warning.message) for warning in seen] == ["something else"]
    logger.info("GPU available: False, used: False")
    assert len(heard) == 2


SCRIPT = """
import torch
import scgmvae
n_threads = torch.get_num_threads()
adata = scgmvae.datasets.synthetic_counts(150, 40, n_components=3, component_scale=3.0, seed=0)
scgmvae.SCGMVAE.setup_anndata(adata)
model = scgmvae.SCGMVAE(adata, n_components=3)
model.train(max_epochs=2, pretrain_epochs=2)
assert torch.get_num_threads() == n_threads  # the first call of numba would hand back all cores
"""


def test_a_script_prints_nothing_but_its_stages():
    run = subprocess.run(
        [sys.executable, "-c", SCRIPT], capture_output=True, text=True, check=True, timeout=300
    )
    assert run.stdout == ""
    lines = run.stderr.splitlines()
    assert [line.split(":")[0] for line in lines[:-1]] == [
        "1/3 learning the embedding",
        "2/3 finding clusters",
        "3/3 fitting the mixture",
    ]
    assert lines[-1] == "3 clusters in 150 cells, in adata.obs['scgmvae']"
