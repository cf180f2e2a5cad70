"""Training and reading from data modules of scvi-tools, with their own registries."""

from types import SimpleNamespace

import lightning.pytorch as pl
import numpy as np
import pytest
import torch
from lightning.pytorch.callbacks import Callback
from scvi.dataloaders import MappedCollectionDataModule, TileDBDataModule
from sklearn.metrics import adjusted_rand_score
from small import NETWORK
from torch.utils.data import DataLoader

from scgmvae import SCGMVAE
from scgmvae.data import datamodules

LENGTH = {"max_epochs": 12, "pretrain_epochs": 12}
QUIET = {"accelerator": "cpu", "enable_progress_bar": False}


class Mapped(torch.utils.data.Dataset):
    """What lamindb makes of a collection: rows of a matrix, and codes of columns of obs."""

    def __init__(self, adata, obs_keys):
        self.adata, self.n_obs, self.n_vars = adata, adata.n_obs, adata.n_vars
        self.var_joint = adata.var_names
        keys = [obs_keys] if isinstance(obs_keys, str) else obs_keys or ()
        self.encoders, self.columns = {}, {}
        for key in keys:
            column = adata.obs[key]
            if column.dtype.kind == "f":
                self.columns[key] = column.to_numpy(np.float32)
                continue
            names = list(dict.fromkeys(column.astype(str)))[::-1]  # in no order to speak of
            self.encoders[key] = {name: code for code, name in enumerate(names)}
            self.columns[key] = column.astype(str).map(self.encoders[key]).to_numpy()

    def __len__(self):
        return self.n_obs

    def __getitem__(self, row):
        x = self.adata.X[row].toarray().ravel()
        return {"X": x} | {key: values[row] for key, values in self.columns.items()}

    def get_merged_labels(self, key):
        return self.adata.obs[key].to_numpy()


class Collection:
    """A collection of one AnnData."""

    def __init__(self, adata):
        self.adata = adata

    def mapped(self, obs_keys, parallel):
        return Mapped(self.adata, obs_keys)


class OfCollection(MappedCollectionDataModule):
    """scvi-tools' data module over such a collection, without lamindb."""

    def __init__(self, adata, batch_key="batch", **kwargs):
        make = MappedCollectionDataModule.__init__.__wrapped__
        collections = {"collection": Collection(adata)}
        if "validation" in kwargs:
            collections["collection_val"] = Collection(kwargs.pop("validation"))
        make(self, **collections, batch_key=batch_key, parallel=False, **kwargs)


class OfQuery(TileDBDataModule):
    """scvi-tools' data module of a query, without tiledbsoma."""

    def __init__(self, adata, **kwargs):
        self.adata = adata
        TileDBDataModule.__init__.__wrapped__(self, self, **kwargs)

    def obs(self, column_names):
        return self

    def concat(self):
        return self

    def to_pandas(self):
        return self.adata.obs.copy()

    def obs_joinids(self):
        return self.adata.obs_names

    def var_joinids(self):
        return self.adata.var_names

    def setup(self, stage=None):
        self.is_set_up = True

    def val_dataloader(self):
        return None

    def train_dataloader(self):
        assert self.is_set_up

        def collate(rows):
            return self.adata.X[rows].toarray(), self.adata.obs.iloc[rows].copy()

        return DataLoader(range(self.adata.n_obs), 64, shuffle=True, collate_fn=collate)


class Own(pl.LightningDataModule):
    """A user's own data module: whole minibatches of a matrix, with a registry of another."""

    def __init__(self, adata, loader=None, **columns):
        super().__init__()
        self.registry = OfCollection(adata, **columns).registry
        if loader is None:
            loader = DataLoader(self.minibatches(adata), batch_size=None)
        self.loader = loader

    @staticmethod
    def minibatches(adata, size=60):
        codes = Mapped(adata, "batch").columns["batch"]
        return [
            {
                "X": torch.from_numpy(adata.X[i : i + size].toarray()),
                "batch": torch.from_numpy(codes[i : i + size]),
            }
            for i in range(0, adata.n_obs, size)
        ]

    def train_dataloader(self):
        return self.loader


class Record(Callback):
    """Guide, label and x of the minibatches of every step."""

    def __init__(self):
        self.batches = []

    def on_train_batch_start(self, trainer, pl_module, batch, batch_idx):
        self.batches.append({"epoch": trainer.current_epoch} | batch)


@pytest.fixture(scope="module")
def cells(counts):
    """``counts`` with a label for half of the cells, and further columns."""
    adata = counts.copy()
    names = np.array(["a", "b", "c"])[adata.obs["component"].cat.codes]
    adata.obs["label"] = np.where(np.arange(300) % 2 == 0, names, "none")
    adata.obs["donor"] = np.array(["x", "y", "z"])[np.arange(300) % 3]
    adata.obs["age"] = np.linspace(-1, 1, 300)
    return adata


@pytest.fixture
def small_samples(monkeypatch):
    """Samples of no more cells than two minibatches of 64."""
    monkeypatch.setattr(datamodules, "CELLS_IN_MEMORY", 128)


def model_for(datamodule, **settings):
    return SCGMVAE(registry=datamodule.registry, **(NETWORK | {"n_components": 3} | settings))


def trained_by(datamodule, settings=None, **arguments):
    model = model_for(datamodule, **(settings or {}))
    model.train(datamodule=datamodule, **(LENGTH | QUIET | arguments))
    return model


def agreement(cells, names):
    return adjusted_rand_score(cells.obs["component"], names)


@pytest.fixture(scope="module")
def datamodule(cells):
    return OfCollection(cells, batch_size=64)


@pytest.fixture(scope="module")
def model(datamodule):
    """A model trained from a data module; only to be read."""
    return trained_by(datamodule)


# ---------------------------------------------------------------------------------- training


def test_training_finds_the_components(model, datamodule, cells):
    names = model.predict(dataloader=datamodule.inference_dataloader())
    assert names.shape == (300,)
    assert agreement(cells, names) > 0.95
    assert len(model.history["elbo_train"]) == 24


def test_results_of_a_dataloader_are_those_of_an_anndata(model, datamodule, cells):
    own = cells.copy()

    def close(read, **kwargs):
        of_loader = read(dataloader=datamodule.inference_dataloader(), **kwargs)
        np.testing.assert_allclose(of_loader, read(own, **kwargs), rtol=1e-4, atol=1e-5)
        return of_loader

    assert close(model.get_latent_representation).shape == (300, 5)
    close(model.get_latent_representation, which="w")
    soft = close(model.predict, soft=True)
    assert list(soft.index) == list(range(300))
    novelty = close(model.get_novelty)  # what a loader brings is judged as new cells are
    assert (novelty > 0.99).mean() < 0.06
    assert 0 <= model.get_novelty().min() < 0.1
    # one draw of z for each cell in the bound, and many in the likelihood
    reads = {model.get_elbo: {}, model.get_marginal_ll: {"n_mc_samples": 100}}
    for read, how in reads.items():
        of_loader = float(read(dataloader=datamodule.inference_dataloader(), **how))
        assert of_loader == pytest.approx(float(read(own, batch_size=64, **how)), rel=0.01)
    model.annotate(own)
    assert own.obs["scgmvae"].tolist() == list(soft.columns[soft.to_numpy().argmax(1)])


@pytest.mark.parametrize(
    "columns",
    [
        {"batch_key": None},
        {"label_key": "label", "unlabeled_category": "none"},
        {"label_key": "label", "unlabeled_category": "elsewhere"},
        {"categorical_covariate_keys": ["donor", "label"], "continuous_covariate_keys": ["age"]},
    ],
    ids=["no_batches", "labels", "all_labelled", "covariates"],
)
def test_the_sample_is_of_the_cells_and_their_columns(cells, columns):
    datamodule = OfCollection(cells, shuffle=False, **columns)
    model = trained_by(datamodule, {"n_components": 4}, max_epochs=1, pretrain_epochs=1)
    sample, setup = model.adata, model.registry["setup_args"]
    np.testing.assert_array_equal(sample.X.toarray(), cells.X.toarray())
    assert sample.var_names.tolist() == cells.var_names.tolist()
    assert setup["batch_key"] == columns.get("batch_key", "batch")
    assert setup["labels_key"] == columns.get("label_key")
    for key in {setup["batch_key"], setup["labels_key"]} - {None}:
        assert sample.obs[key].tolist() == cells.obs[key].tolist()
    for j, key in enumerate(setup["categorical_covariate_keys"] or ()):
        names = Mapped(cells, key).columns[key]  # scvi-tools' registry has the codes for names
        assert sample.obs[key].tolist() == names.tolist()
        codes = sample.obsm["_scvi_extra_categorical_covs"].iloc[:, j]
        assert codes.tolist() == names.tolist()
    if "continuous_covariate_keys" in columns:
        np.testing.assert_allclose(sample.obs["age"], cells.obs["age"], rtol=1e-6)
    assert model.summary_stats.n_batch == (1 if columns.get("batch_key", 0) is None else 2)
    terms = float(model.get_elbo(dataloader=datamodule.inference_dataloader()))
    assert terms == pytest.approx(float(model.get_elbo()), rel=0.02)


def test_columns_of_a_query_are_joined_and_their_codes_kept(cells):
    datamodule = OfQuery(
        cells, batch_column_names=["batch", "donor"], label_keys=["label"], unlabeled_category="b"
    )
    model = trained_by(datamodule, {"n_components": 4})
    # the module's labels are a, b, c and none, and b stands for no label
    assert model.component_names.tolist()[:3] == ["a", "c", "none"]
    assert model.label_codes_ == (0, 3, 1, 2)
    assert model.summary_stats.n_batch == 6
    assert set(model.adata.obs["batch"]) == {f"batch_{i}//{j}" for i in (0, 1) for j in "xyz"}
    labels = datamodule.inference_dataloader()
    assert set(model.predict(dataloader=labels)) <= {"a", "c", "none"}


@pytest.mark.usefixtures("small_samples")
def test_other_cells_are_guided_by_the_start(cells):
    steps = Record()
    datamodule = OfCollection(cells, batch_size=64, label_key="label", unlabeled_category="none")
    model = trained_by(datamodule, callbacks=[steps])
    assert model.adata.n_obs == 128
    joint = [batch for batch in steps.batches if "guide" in batch]
    assert {batch["epoch"] for batch in joint} == set(range(12, 24))
    proba, label = (torch.cat([b[key] for b in joint]).numpy() for key in ("guide", "labels"))
    label, guide = label.ravel(), proba.argmax(1)
    assert len(guide) == 12 * 300
    np.testing.assert_allclose(proba.sum(1), 1, rtol=1e-5)
    is_labelled = label < 3
    np.testing.assert_array_equal(proba[is_labelled].max(1), 1)
    assert is_labelled.mean() == 0.5
    np.testing.assert_array_equal(guide[is_labelled], label[is_labelled])
    # each x is that of a cell, whose component is known
    x = torch.cat([batch["X"].to_dense() for batch in joint]).numpy()
    cell = {row.tobytes(): i for i, row in enumerate(cells.X.toarray())}
    component = cells.obs["component"].to_numpy()[[cell[row.tobytes()] for row in x]]
    assert adjusted_rand_score(component[~is_labelled], guide[~is_labelled]) > 0.9
    predicted = model.predict(dataloader=datamodule.inference_dataloader())
    names = cells.obs["component"].astype(str).str[-1].map({"0": "a", "1": "b", "2": "c"})
    assert (predicted == names).mean() > 0.95


def test_components_are_found_and_merged(cells):
    datamodule = Own(cells)
    model = trained_by(datamodule, {"n_components": None}, pretrain_epochs=20)
    assert model.component_clusters_ is not None
    assert len(model.component_table()) == len(model.cluster_names)
    loader = datamodule.train_dataloader()
    components = model.predict(dataloader=loader, components=True)
    assert agreement(cells, components) > 0.95
    assert model.predict(dataloader=loader, soft=True).shape == (300, len(model.cluster_names))


def test_values_of_another_kind_are_dense(cells):
    other = cells.copy()
    other.X.data = np.log1p(other.X.data)
    datamodule = Own(other)
    with pytest.raises(ValueError, match="no count matrix"):
        trained_by(datamodule)
    model = model_for(datamodule)
    with pytest.raises(ValueError, match="no count matrix"):
        model.train(datamodule=datamodule, **QUIET)
    assert model.adata is None
    model = trained_by(datamodule, {"likelihood": "gaussian"})
    assert isinstance(model.adata.X, np.ndarray)
    assert agreement(cells, model.predict(dataloader=datamodule.train_dataloader())) > 0.9


def test_minibatches_can_be_sparse_and_without_codes(cells):
    dense = [{"X": part["X"]} for part in Own.minibatches(cells)]
    loader = DataLoader(dense, batch_size=None)
    missing = (None, 0, torch.empty(0), np.empty(0))
    for likelihood in ("nb", "gaussian"):  # one reads sparse x, the other dense
        model = trained_by(
            Own(cells, loader, batch_key=None),
            {"likelihood": likelihood},
            max_epochs=1,
            pretrain_epochs=1,
        )
        z = model.get_latent_representation(dataloader=dense)
        assert z.shape == (300, 5)
        for layout in (torch.Tensor.to_sparse_csr, torch.Tensor.to_sparse_coo, np.asarray):
            other = [
                {"X": layout(part["X"]), "batch": batch}
                for part, batch in zip(dense, [*missing, torch.zeros(60)], strict=True)
            ]
            np.testing.assert_allclose(
                model.get_latent_representation(dataloader=other), z, atol=1e-5
            )
    one = [{"X": dense[0]["X"][:1], "batch": 0}]  # which is missing, not the code of one cell
    np.testing.assert_allclose(model.get_latent_representation(dataloader=one), z[:1], atol=1e-5)


def test_minibatches_can_be_arrays(model, cells):
    tensors = Own.minibatches(cells)
    arrays = [{key: values.numpy() for key, values in part.items()} for part in tensors]
    z = model.get_latent_representation(dataloader=tensors)
    np.testing.assert_allclose(model.get_latent_representation(dataloader=arrays), z, atol=1e-6)
    first = [part | {"batch": np.zeros(60, dtype=np.uint8)} for part in arrays]
    assert abs(model.get_latent_representation(dataloader=first) - z).max() > 0.01


def test_conditions_are_read_from_codes_of_any_shape(model):
    one_hot = model.module._conditions(torch.tensor([1, 0, 1]), None, None)[0][0]
    assert one_hot.tolist() == [[0, 1], [1, 0], [0, 1]]


@pytest.fixture(scope="module")
def labelled(cells):
    """A model whose labels have other codes than the data module's, and its data module."""
    columns = {"batch_column_names": ["batch"], "label_keys": ["label"]}
    datamodule = OfQuery(cells, unlabeled_category="b", **columns)
    model = trained_by(datamodule, {"n_components": 4}, max_epochs=2, pretrain_epochs=2)
    return model, datamodule


@pytest.mark.parametrize(
    ("name", "before"),
    [
        ("get_elbo", {"batch_size": None}),
        ("get_marginal_ll", {"n_mc_samples": 2, "batch_size": None, "return_mean": False}),
        (
            "get_normalized_expression",
            {
                "transform_batch": None,
                "gene_list": None,
                "library_size": 1,
                "n_samples": 1,
                "n_samples_overall": None,
            },
        ),
        ("get_latent_library_size", {"give_mean": False, "batch_size": None}),
    ],
)
def test_a_dataloader_by_position_is_one_by_name(labelled, name, before):
    model, datamodule = labelled
    assert model.label_codes_ == (0, 3, 1, 2)
    read, minibatches = getattr(model, name), list(datamodule.inference_dataloader())
    by_name = read(dataloader=minibatches, **before)
    by_position = read(None, None, *before.values(), minibatches)
    assert np.isfinite(np.asarray(by_name)).all()
    np.testing.assert_array_equal(by_position, by_name)


def test_the_same_seed_gives_the_same_model(model, datamodule):
    state = torch.get_rng_state()
    again = trained_by(datamodule)
    torch.testing.assert_close(torch.get_rng_state(), state)
    other = trained_by(datamodule, seed=1)

    def weights(model):
        return torch.cat([values.ravel() for values in model.module.parameters()])

    assert torch.equal(weights(again), weights(model))
    assert not torch.equal(weights(other), weights(model))


def test_training_goes_on_after_loading(model, datamodule, cells, tmp_path):
    model.save(tmp_path / "model")
    loaded = SCGMVAE.load(tmp_path / "model", adata=False)
    loader = datamodule.inference_dataloader()
    before = model.predict(dataloader=loader)
    assert loaded.predict(dataloader=loader).tolist() == before.tolist()
    with pytest.raises(ValueError, match="was made for a data module"):
        loaded.train()
    for _ in range(2):
        loaded.train(2, datamodule=datamodule, **QUIET)
    assert len(loaded.history["elbo_train"]) == 28
    assert adjusted_rand_score(before, loaded.predict(dataloader=loader)) > 0.9


def test_an_anndata_with_new_batches_is_a_query(model, cells):
    query = cells[:100].copy()
    query.obs["batch"] = "new"
    mapped = SCGMVAE.load_query_data(query, model)
    mapped.train(2, batch_size=50, **QUIET)
    assert adjusted_rand_score(cells.obs["component"][:100], mapped.predict()) > 0.9


def test_validation_cells_are_those_of_the_data_module(cells):
    train, held_out = (cells[cells.obs["donor"] != "z"], cells[cells.obs["donor"] == "z"])
    datamodule = OfCollection(
        train.copy(), validation=held_out.copy(), batch_size=50, shuffle=False
    )
    model = trained_by(datamodule, early_stopping=True)
    assert np.isfinite(model.history["elbo_validation"].to_numpy(float)).all()
    assert model.adata.n_obs == train.n_obs


# ---------------------------------------------------------------------------------- refusals


@pytest.mark.parametrize(
    "argument",
    [
        {"guide_key": "label"},
        {"balance_key": "label"},
        {"train_size": 0.8},
        {"batch_size": 32},
        {"datasplitter_kwargs": {"cells_in_memory": 100}},
        {"checkpoint_dir": "there"},
        {"resume_from": "there"},
    ],
    ids=lambda argument: next(iter(argument)),
)
def test_what_chooses_cells_or_keeps_places_is_refused(datamodule, argument):
    name = next(iter(argument))
    with pytest.raises(ValueError, match=f"train got datamodule and {name}. Leave out {name}"):
        model_for(datamodule).train(datamodule=datamodule, **argument)


def test_a_model_has_one_source_of_cells(datamodule, model, trained, cells):
    with pytest.raises(ValueError, match="made of an AnnData and trains on that"):
        trained.train(datamodule=datamodule)
    with pytest.raises(TypeError, match="must be a LightningDataModule .* but it is a list"):
        model.train(datamodule=[])
    ages = cells.copy()
    ages.obs["time"] = ages.obs["age"]
    of_ages = model_for(OfCollection(ages, continuous_covariate_keys=["age", "time"]))
    of_both = model_for(OfCollection(ages, categorical_covariate_keys=["donor", "label"]))
    for made, other in (
        (model, OfCollection(cells[:, ::-1].copy())),
        (model, OfCollection(cells[cells.obs["batch"] == "batch_0"].copy())),
        (model, OfCollection(ages, continuous_covariate_keys=["age"])),
        (of_ages, OfCollection(ages, continuous_covariate_keys=["time", "age"])),
        (of_both, OfCollection(ages, categorical_covariate_keys=["label", "donor"])),
    ):
        with pytest.raises(ValueError, match="must have the genes, labels and conditions"):
            made.train(datamodule=other)
    with pytest.raises(ValueError, match="A dataloader brings its cells with it"):
        model.predict(cells, dataloader=datamodule.inference_dataloader())


def test_more_components_than_cells_are_refused(datamodule):
    with pytest.raises(ValueError, match=r"the number of cells \(300\)"):
        model_for(datamodule, n_components=301)


def test_validation_cells_must_be_there(datamodule, cells):
    for module in (datamodule, Own(cells)):
        with pytest.raises(ValueError, match="has no val_dataloader"):
            model_for(module).train(datamodule=module, early_stopping=True, **QUIET)


def test_a_loader_must_have_a_length(cells):
    class Stream(torch.utils.data.IterableDataset):
        def __iter__(self):
            return iter(Own.minibatches(cells))

    datamodule = Own(cells, DataLoader(Stream(), batch_size=None))
    with pytest.raises(ValueError, match="must have a length"):
        model_for(datamodule).train(datamodule=datamodule, **QUIET)


def test_a_minibatch_of_one_cell_is_an_error(cells):
    datamodule = OfCollection(cells[:129].copy(), batch_size=64)
    model = model_for(datamodule)
    with pytest.raises(ValueError, match="made one of a single cell. Let it drop the last"):
        model.train(datamodule=datamodule, **QUIET)
    assert not model.is_trained_


@pytest.mark.usefixtures("small_samples")
def test_values_that_are_not_finite_are_placed(cells):
    bad = cells.copy()
    bad.X[200, 3] = np.inf
    datamodule = OfCollection(bad, batch_size=64, shuffle=False)
    with pytest.raises(FloatingPointError, match=r"step 4 .* are rows \[8, .*\] of the minibatch"):
        model_for(datamodule).train(datamodule=datamodule, **QUIET)


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"X": np.zeros((4, 59))}, r"must have the 60 genes .* 'X' is \(4, 59\)"),
        ({"batch": None}, r"'batch' as a tensor \(4, 1\), but it is missing"),
        ({"batch": np.zeros(3)}, r"'batch' as a tensor \(4, 1\), but its shape is \(3,\)"),
        ({"batch": [0, 1, 2, 0]}, "codes 'batch' .* from 0 to 1, but one is 2"),
        ({"batch": [0, -1, 1, 0]}, "codes 'batch' .* but one is -1"),
        ({"labels": [0, 1, 4, -1]}, "codes 'labels' .* from 0 to 3, but one is 4"),
        ({"extra_categorical_covs": 0}, r"_categorical_covs' as a tensor \(4, 1\), but it is mi"),
        ({"extra_categorical_covs": [0, 3, 0, 0]}, "_categorical_covs' .* to 2, but one is 3"),
        (
            {"extra_continuous_covs": torch.empty(0)},
            r"_continuous_covs' as a .* but it is missing",
        ),
    ],
)
def test_minibatches_must_be_those_of_the_model(cells, change, message):
    model = model_for(
        OfCollection(
            cells,
            label_key="label",
            unlabeled_category="none",
            categorical_covariate_keys=["donor"],
            continuous_covariate_keys=["age"],
        ),
        n_components=4,
    )
    minibatch = {
        "X": np.zeros((4, 60)),
        "batch": np.array([0, 1, 1, 0]),
        "labels": [0, 3, 1, -1],
        "extra_categorical_covs": [0, 1, 2, 0],
        "extra_continuous_covs": np.zeros(4),
    }
    read = datamodules.tensors_of(model._layout(), minibatch)
    assert read["batch"].tolist() == [[0], [1], [1], [0]]
    assert read["extra_categorical_covs"].tolist() == [[0], [1], [2], [0]]
    with pytest.raises(ValueError, match=message):
        datamodules.tensors_of(model._layout(), minibatch | change)


def test_a_dataloader_must_bring_cells(model, datamodule):
    spent = iter(datamodule.inference_dataloader())
    assert len(model.predict(dataloader=spent)) == 300
    for nothing in ([], spent):
        with pytest.raises(ValueError, match="the dataloader brought no minibatch"):
            model.predict(dataloader=nothing)


def test_tables_speak_of_the_data_module(model, datamodule, tmp_path):
    fresh = model_for(datamodule)._repr_html_()
    assert "cells × 60 genes, of a data module" in fresh and "not loaded" not in fresh
    assert "model.train(datamodule=datamodule)" in fresh and "SCGMVAE.load" not in fresh
    own = model._repr_html_()
    assert f"a sample, {model.adata.n_obs} cells × 60 genes, of a data module" in own
    model.save(tmp_path / "model")
    loaded = SCGMVAE.load(tmp_path / "model", adata=False)._repr_html_()
    assert "model.predict(dataloader=dataloader)" in loaded and "predict(adata)" not in loaded


def test_several_devices_are_refused(datamodule):
    minibatches = datamodules.ForeignMinibatches(
        datamodule, model_for(datamodule)._layout(), False
    )
    minibatches.trainer = SimpleNamespace(world_size=2)
    with pytest.raises(NotImplementedError, match="one device, but there are 2"):
        minibatches.setup("fit")


@pytest.mark.parametrize(
    "read",
    [
        pytest.param(lambda model: model.device, id="device"),
        pytest.param(lambda model: model.registry, id="registry"),
        pytest.param(lambda model: model.component_names, id="names"),
        pytest.param(lambda model: model.train_indices, id="rows"),
        pytest.param(lambda model: model.get_var_names(), id="genes"),
        pytest.param(lambda model: model.view_registry(), id="view"),
        pytest.param(lambda model: model.to_device("cpu"), id="to_device"),
    ],
)
def test_a_model_that_waits_for_its_data_says_so(read):
    with pytest.raises(AttributeError, match=r"before it is made, which train\(datamodule=...\)"):
        read(SCGMVAE())


@pytest.mark.parametrize(
    ("settings", "error", "message"),
    [
        ({"prior": "other"}, ValueError, "prior must be one of.*'other'"),
        ({"n_latent": 0}, ValueError, "n_latent must be an integer of at least 1"),
        ({"n_components": -1}, ValueError, "n_components must be an integer from 1"),
        ({"likelihood": "other"}, ValueError, "likelihood must be one of"),
        ({"other": 1}, TypeError, "'other'"),
    ],
    ids=str,
)
def test_settings_of_a_model_that_waits_are_checked_at_once(settings, error, message):
    with pytest.raises(error, match=message):
        SCGMVAE(**settings)
    assert "made when it is trained" in repr(SCGMVAE(n_components=5))
