"""Where the levels of a condition mix, in one table."""

import numpy as np
import pandas as pd
import pytest

from scgmvae.metrics import mixing_by_group, mixing_of_cells
from scgmvae.model.integration import _table_of, _verdicts

COLUMNS = ["condition", "group", "level", "n_cells", "share", "expected", "mixing", "verdict"]


def test_the_table_has_the_mixing_of_each_level_in_each_group(trained):
    table = trained.integration_table("component", n_neighbors=10)
    assert table.columns.tolist() == COLUMNS
    obs, z = trained.adata.obs, trained.get_latent_representation()
    assert table["condition"].unique().tolist() == list(trained._setup.categories)
    for condition, rows in table.groupby("condition"):
        of_cells = mixing_of_cells(z, obs[condition], obs["component"], 10)
        by_group = mixing_by_group(z, obs[condition], obs["component"], 10)
        for row in rows.itertuples():
            inside = (obs["component"] == row.group) & (obs[condition] == row.level)
            assert row.n_cells == inside.sum()
            assert row.share == pytest.approx(row.n_cells / (obs["component"] == row.group).sum())
            assert row.expected == pytest.approx((obs[condition] == row.level).mean())
            assert row.mixing == pytest.approx(of_cells[inside.to_numpy()].mean())
        weighted = rows.groupby("group")[["mixing", "n_cells"]].apply(
            lambda own: np.average(own["mixing"], weights=own["n_cells"])
        )
        pd.testing.assert_series_equal(weighted, by_group, check_names=False)
        assert rows["n_cells"].sum() == trained.adata.n_obs


def test_without_labels_the_groups_are_the_clusters(trained):
    table = trained.integration_table()
    cells = table[table["condition"] == table["condition"].iloc[0]].groupby("group")["n_cells"]
    counts = pd.Series(trained.predict()).value_counts()
    assert cells.sum().to_dict() == counts.to_dict()


def verdicts(shift, nearest=None):
    """Verdicts of two groups of two levels, of which the second level is moved in the second."""
    rng = np.random.default_rng(0)
    z, levels = rng.standard_normal((400, 2)), np.tile(["a", "b"], 200)
    groups = np.repeat(["x", "y"], 200)
    z[(groups == "y") & (levels == "b")] += shift
    table = _table_of(groups, levels, mixing_of_cells(z, levels, groups))
    return _verdicts(table, nearest or {})


@pytest.mark.parametrize(
    ("shift", "verdict"), [(0.0, "mixed"), (1.4, "partly mixed"), (5.0, "apart")]
)
def test_the_verdict_follows_the_mixing(shift, verdict):
    assert verdicts(shift) == ["mixed", "mixed", verdict, verdict]


def test_a_type_of_one_level_is_told_from_one_that_is_divided():
    groups = np.repeat(["x", "y", "z"], 100)
    levels = np.concatenate([["a"] * 100, ["b"] * 100, ["a", "b"] * 50])
    table = _table_of(groups, levels, np.full(300, np.nan))
    nearest = {"x": "y", "y": "x", "z": "x"}
    assert _verdicts(table, nearest)[:2] == ["divided from y", "divided from x"]
    assert _verdicts(table, {})[:2] == ["this level alone"] * 2
    # next to a cluster that has both levels, it is a type of its own
    assert _verdicts(table, dict.fromkeys("xyz", "z"))[:2] == ["this level alone"] * 2
    assert _verdicts(table, nearest)[2:] == ["nothing beside it"] * 2


def test_most_cells_of_a_group_are_of_the_level_that_most_cells_are_of():
    levels = np.where(np.arange(2000) % 16 == 0, "small", "big")  # 6 % at random
    groups = np.repeat(["x", "y"], 1000)
    table = _table_of(groups, levels, np.full(2000, 1.0))
    assert _verdicts(table, {"x": "y", "y": "x"}) == ["mixed"] * 4


def test_a_type_of_a_rare_batch_is_its_own_beside_one_that_has_its_share_of_it():
    groups = np.repeat(["0", "1", "own"], [1000, 1000, 60])
    levels = np.where(np.arange(2060) % 25 == 0, "rare", "usual")  # 4 %
    levels[2000:] = "rare"
    table = _table_of(groups, levels, np.full(2060, 1.0))
    verdicts = _verdicts(table, {"0": "1", "1": "0", "own": "0"})
    assert verdicts[-1] == "this level alone"


def test_few_cells_have_no_verdict():
    levels = np.repeat(["a", "b"], [60, 4])
    table = _table_of(np.full(64, "x"), levels, np.linspace(0, 1, 64))
    assert table["share"].tolist() == [60 / 64, 4 / 64]
    assert _verdicts(table, {}) == ["partly mixed", "too few cells"]


def test_cells_without_a_label_are_left_out(trained):
    trained.adata.obs["some"] = trained.adata.obs["component"].astype(object)
    trained.adata.obs.loc[trained.adata.obs_names[:100], "some"] = None
    table = trained.integration_table("some")
    del trained.adata.obs["some"]
    assert table.groupby("condition")["n_cells"].sum().eq(trained.adata.n_obs - 100).all()


def test_a_model_without_conditions_says_how_to_name_them(counts, make_model, train):
    model = train(make_model(counts.copy(), {}, n_components=2))
    with pytest.raises(ValueError, match="without any. Name them in setup_anndata: batch_key"):
        model.integration_table()


def test_a_column_without_labels_is_refused(trained):
    trained.adata.obs["none"] = pd.Series(None, trained.adata.obs_names, dtype=object)
    with pytest.raises(ValueError, match="in the obs column 'none' no cell has one"):
        trained.integration_table("none")
    del trained.adata.obs["none"]


def test_wrong_arguments_are_refused(trained):
    with pytest.raises(KeyError, match="'kind'"):
        trained.integration_table("kind")
    with pytest.raises(ValueError, match="n_neighbors"):
        trained.integration_table(n_neighbors=0)


def test_a_batch_without_an_effect_leaves_z_as_it_is(counts, make_model, train):
    adata = counts.copy()
    adata.obs["half"] = np.random.default_rng(0).permutation(np.tile(["a", "b"], 150))

    def z_of(setup, seed):
        model = train(make_model(adata, setup), max_epochs=15, pretrain_epochs=15, seed=seed)
        return model.get_latent_representation()

    without, of_halves, of_another_seed = z_of({}, 0), z_of({"batch_key": "half"}, 0), z_of({}, 1)
    assert np.abs(of_halves - without).mean() < 0.1 * without.std()
    assert np.abs(of_another_seed - without).mean() > without.std()
