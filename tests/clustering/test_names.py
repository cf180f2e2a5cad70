"""Tests of clustering.names: what components and clusters are called."""

import numpy as np
import pytest

from scgmvae.clustering.names import Clustering


@pytest.mark.parametrize(
    ("clustering", "clusters", "components"),
    [
        pytest.param(Clustering(3), ["0", "1", "2"], ["0", "1", "2"], id="not merged"),
        pytest.param(
            Clustering(5, clusters=np.array([1, 0, 0, 2, -1])),
            ["0", "1", "2"],
            ["1", "0a", "0b", "2", "dropped_a"],
            id="merged",
        ),
        pytest.param(
            Clustering(4, ["B", "T"], np.array([0, 1, 2, 2])),
            ["B", "T", "2"],
            ["B", "T", "2a", "2b"],
            id="labels",
        ),
        pytest.param(
            Clustering(3, ["1a"], np.array([0, 1, 1])),
            ["1a", "2"],
            ["1a", "2a", "2b"],
            id="a label like a part",
        ),
        pytest.param(
            Clustering(2, ["dropped_a"], np.array([0, -1])),
            ["dropped_a"],
            ["dropped_a", "dropped__a"],
            id="a label like what was dropped",
        ),
    ],
)
def test_a_component_has_the_name_of_its_cluster_and_a_letter(clustering, clusters, components):
    assert clustering.cluster_names.tolist() == clusters
    assert clustering.component_names.tolist() == components


def test_letters_go_on_after_z():
    names = Clustering(55, clusters=np.zeros(55, dtype=int)).component_names
    assert names[[0, 25, 26, 27, 51, 52, 54]].tolist() == [
        *("0a", "0z", "0aa", "0ab", "0az", "0ba", "0bc")
    ]
    assert len(set(names)) == 55


def test_a_cell_s_component_is_one_of_its_cluster():
    clustering = Clustering(3, clusters=np.array([0, 1, 0]))
    # the second component is the likeliest of all, but the other two together are likelier
    log_proba = np.log([[0.35, 0.4, 0.25], [0.1, 0.8, 0.1], [0.2, 0.3, 0.5]])
    assert clustering.log_proba(log_proba).argmax(1).tolist() == [0, 1, 0]
    assert clustering.component_of(log_proba).tolist() == [0, 1, 2]
    assert Clustering(3).component_of(log_proba).tolist() == [1, 1, 2]
