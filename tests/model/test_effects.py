"""What a condition does to each gene."""

from unittest.mock import patch

import numpy as np
import pytest
import torch
from anndata import AnnData
from scipy import sparse

import scgmvae
from scgmvae.data.conditions import resolved
from scgmvae.model.generation import shift_to_measured

N_GENES, CHANGED = 60, 8


@pytest.fixture(scope="module")
def fit():
    """A model of two types, of which the first answers to a treatment in eight genes."""
    rng = np.random.default_rng(0)
    n = 800
    kind, treated = rng.integers(2, size=n), rng.random(n) < 0.5
    log_mean = rng.normal(1.5, 0.7, N_GENES) + rng.normal(0, 1, (2, N_GENES))[kind]
    log_mean[:, :CHANGED] += 1.4 * (treated & (kind == 0))[:, None]
    x = rng.poisson(rng.gamma(10, np.exp(log_mean) / 10)).astype(np.float32)
    adata = AnnData(sparse.csr_matrix(x))
    adata.obs["kind"] = np.where(kind, "B", "A")
    adata.obs["treatment"] = np.where(treated, "drug", "none")
    scgmvae.SCGMVAE.setup_anndata(adata, categorical_covariate_keys=["treatment"])
    model = scgmvae.SCGMVAE(adata, n_components=2)
    model.train(30, 40, enable_progress_bar=False)
    return model


def test_the_type_that_answers_has_the_effect_and_the_other_has_none(fit):
    table = fit.effect_table("treatment", "drug", "none", groupby="kind")
    genes = fit.adata.var_names
    answering, silent = (
        rows.set_index("gene").loc[genes] for _, rows in table.groupby("group", sort=True)
    )
    changed, others = genes[:CHANGED], genes[CHANGED:]
    measured = answering.loc[changed, "measured"]
    np.testing.assert_allclose(measured, measured.mean(), atol=0.5)
    assert answering.loc[changed, "lfc"].mean() == pytest.approx(measured.mean(), abs=0.5)
    assert np.corrcoef(answering["lfc"], answering["measured"])[0, 1] > 0.9
    assert set(table[table["group"] == "A"]["gene"][:CHANGED]) == set(changed)
    assert answering.loc[others, "lfc"].abs().mean() < 0.6
    assert silent["lfc"].abs().max() < answering.loc[changed, "lfc"].min()
    assert ((table["low"] <= table["lfc"] + 0.1) & (table["lfc"] - 0.1 <= table["high"])).all()


def test_the_measured_change_is_that_of_the_counts(fit):
    table = fit.effect_table("treatment", "drug", "none", groupby="kind", n_samples=1)
    adata = fit.adata
    sums = {
        value: adata.X[((adata.obs["kind"] == "A") & (adata.obs["treatment"] == value)).to_numpy()]
        .sum(0)
        .A1
        for value in ("drug", "none")
    }
    scaled = [np.log2(s / s.sum() * 1e4 + 0.1) for s in sums.values()]
    found = table[table["group"] == "A"].set_index("gene").loc[adata.var_names, "measured"]
    np.testing.assert_allclose(found, scaled[0] - scaled[1], rtol=1e-5)


def test_numbers_are_matched_with_the_names_of_categories(make_model, train, counts):
    adata = counts.copy()
    adata.obs["dose"] = np.tile([0.0, 1.0], 150)
    model = train(make_model(adata, {"batch_key": "dose"}, n_components=2))
    table = model.effect_table("dose", 1, 0, groupby="component", n_samples=1)
    assert table["measured"].notna().all()
    assert table.equals(model.effect_table("dose", "1.0", 0.0, groupby="component", n_samples=1))


def test_the_reverse_is_the_reverse_where_the_same_cells_are_decoded(fit):
    there = fit.effect_table("treatment", "drug", "none", groupby="kind", seed=3)
    again = fit.effect_table("treatment", "drug", "none", groupby="kind", seed=3)
    assert there.equals(again)
    same = fit.effect_table("treatment", "none", "none", groupby="kind")
    assert (same["lfc"] == 0).all() and (same["low"] == 0).all()


def test_a_group_that_was_not_measured_has_a_prediction_alone(fit):
    adata = fit.adata
    adata.obs["part"] = np.where(
        (adata.obs["kind"] == "B") & (adata.obs["treatment"] == "drug"), None, adata.obs["kind"]
    )
    table = fit.effect_table("treatment", "drug", "none", groupby="part", n_samples=1)
    del adata.obs["part"]
    of_b = table[table["group"] == "B"]
    assert of_b["measured"].isna().all() and of_b["lfc"].notna().all()


def test_effects_are_read_at_the_nearest_cells_that_were_measured():
    near, far = torch.randn(15, 3), torch.randn(40, 3) + 50
    z = torch.full((2, 3), 0.25)
    shift = shift_to_measured(z, torch.cat([far, near]))
    torch.testing.assert_close(z + shift, near.mean(0).expand(2, 3))


def test_an_effect_of_a_type_is_that_at_cells_that_were_measured(fit):
    """Of the silent type nothing was measured under the drug that the other type was given."""
    adata = fit.adata[~((fit.adata.obs["kind"] == "A") & (fit.adata.obs["treatment"] == "drug"))]
    adata = adata.copy()
    scgmvae.SCGMVAE.setup_anndata(adata, categorical_covariate_keys=["treatment"])
    model = scgmvae.SCGMVAE(adata, n_components=2)
    model.train(10, 10, enable_progress_bar=False)
    table = model.effect_table("treatment", "drug", "none", groupby="kind", n_samples=200)
    lfc = table.pivot(index="gene", columns="group", values="lfc")
    # both types are decoded where type B was measured
    assert np.corrcoef(lfc["A"], lfc["B"])[0, 1] > 0.9


@pytest.mark.parametrize("n_measured", [14, 15])
def test_few_measured_cells_do_not_draw_all_others_to_them(make_model, train, counts, n_measured):
    adata = counts.copy()
    adata.obs["drug"] = np.where(np.arange(adata.n_obs) < n_measured, "yes", "no")
    model = train(make_model(adata, {"categorical_covariate_keys": ["drug"]}, n_components=2))
    measured = model._measured_under(resolved({"drug": "yes"}, model._setup), 0)
    if n_measured < 15:
        assert measured is None
    else:
        z = model.get_latent_representation()[:n_measured]
        np.testing.assert_allclose(measured, z, rtol=1e-4, atol=1e-5)


def test_effects_of_a_number_are_read_at_the_cells_own_z(make_model, train, counts):
    adata = counts.copy()
    adata.obs["dose"] = np.linspace(0, 1, adata.n_obs)
    model = train(make_model(adata, {"continuous_covariate_keys": ["dose"]}, n_components=2))
    with patch.object(type(model), "_measured_under", side_effect=AssertionError):
        table = model.effect_table("dose", 1.0, 0.0, groupby="component", n_samples=1)
    assert table["lfc"].abs().max() > 0


def test_values_that_are_no_counts_have_differences(make_model, train):
    adata = scgmvae.datasets.blobs(60, n_classes=2)
    setup = {"categorical_covariate_keys": ["condition"]}
    model = train(make_model(adata, setup, likelihood="gaussian", n_components=2), max_epochs=30)
    table = model.effect_table("condition", "condition_1", "condition_0", groupby="class")
    of_first = table[table["group"] == "class_0"].set_index("gene").loc[adata.var_names]
    x, is_class = adata.to_df(), (adata.obs["class"] == "class_0").to_numpy()
    means = x[is_class].groupby(adata.obs["condition"][is_class], observed=True).mean()
    np.testing.assert_allclose(
        of_first["measured"], means.loc["condition_1"] - means.loc["condition_0"], rtol=1e-4
    )
    assert np.corrcoef(of_first["lfc"], of_first["measured"])[0, 1] > 0.8


@pytest.mark.parametrize(
    ("arguments", "error", "message"),
    [
        pytest.param(("kind", "A", "B"), ValueError, "'kind' is no condition", id="column"),
        pytest.param(
            ("treatment", "other", "none"), ValueError, "'other' is no value", id="value"
        ),
    ],
)
def test_conditions_that_the_model_does_not_know_are_refused(fit, arguments, error, message):
    with pytest.raises(error, match=message):
        fit.effect_table(*arguments, groupby="kind")
    with pytest.raises(KeyError, match="groupby"):
        fit.effect_table("treatment", "drug", "none", groupby="no")
