"""Tables of panels, and what follows from them."""

import gc

import torch

from scgmvae.module import panels
from scgmvae.module.panels import Panels, PanelTable, with_each_alone

RANGES = [(0, 3), (3, 5)]
HOLDS = [[1, 1, 1, 1, 1], [1, 0, 1, 0, 0], [0, 0, 0, 1, 1]]


def test_what_follows_from_a_table():
    holds, typical = torch.tensor(HOLDS, dtype=torch.bool), torch.arange(1.0, 6.0)
    table = PanelTable.of(holds, RANGES, typical)
    assert table.has.tolist() == [[True, True], [True, False], [False, True]]
    assert table.is_partial == (True, False)
    assert table.depth.tolist() == [[6.0, 9.0], [4.0, 0.0], [0.0, 9.0]]
    of_cells = Panels(torch.tensor([2, 0]), table)
    assert of_cells.has().tolist() == [[False, True], [True, True]]
    assert of_cells.mask(3, 5).tolist() == [[True, True], [True, True]]


def test_a_table_is_made_once_and_again_where_what_it_is_of_changes():
    holds, typical = torch.tensor(HOLDS, dtype=torch.bool), torch.ones(5)
    table = PanelTable.of(holds, RANGES, typical)
    assert PanelTable.of(holds, RANGES, typical).depth is table.depth
    assert PanelTable.of(holds, RANGES, typical.clone()).depth is not table.depth
    typical.mul_(2)
    assert PanelTable.of(holds, RANGES, typical).depth[0].tolist() == [6.0, 4.0]
    holds[0, 3:] = False
    assert PanelTable.of(holds, RANGES, typical).has[0].tolist() == [True, False]


def test_nothing_is_kept_of_a_tensor_that_is_gone():
    gc.collect()
    before = len(panels._FACTS), len(panels._WITH_EACH_ALONE)
    for _ in range(5):
        holds = torch.tensor(HOLDS, dtype=torch.bool)
        both = with_each_alone(holds, RANGES)
        PanelTable.of(both, RANGES, torch.ones(5))
    del holds, both
    gc.collect()
    assert (len(panels._FACTS), len(panels._WITH_EACH_ALONE)) == before


def test_depths_are_of_full_precision_under_autocast():
    holds, typical = torch.ones(1, 5, dtype=torch.bool), torch.full((5,), 200.6)
    with torch.autocast("cpu", torch.bfloat16):
        depth = PanelTable.of(holds, [(0, 5)], typical).depth
    torch.testing.assert_close(depth, torch.tensor([[1003.0]]))


def test_what_inference_made_is_not_trained_with():
    holds, typical = torch.tensor(HOLDS, dtype=torch.bool), torch.ones(5)
    with torch.inference_mode():
        assert PanelTable.of(holds, RANGES, typical).depth.is_inference()
        made = holds.clone()
    assert PanelTable.of(made, RANGES, typical).has.tolist()[0] == [True, True]
    assert not PanelTable.of(holds, RANGES, typical).depth.is_inference()


def test_each_modality_alone_is_below_the_table():
    holds = torch.tensor(HOLDS[:2], dtype=torch.bool)
    both = with_each_alone(holds, RANGES)
    assert both.int().tolist() == [
        *HOLDS[:2], [1, 1, 1, 0, 0], [1, 0, 1, 0, 0], [0, 0, 0, 1, 1], [0, 0, 0, 0, 0],
    ]  # fmt: skip
    assert with_each_alone(holds, RANGES) is both
    holds[1, 0] = False
    assert with_each_alone(holds, RANGES)[3].int().tolist() == [0, 0, 1, 0, 0]
