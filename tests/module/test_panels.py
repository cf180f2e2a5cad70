"""Tables of panels, and what follows from them."""

import torch

from scgmvae.module.panels import Panels, PanelTable, with_each_alone

RANGES = [(0, 3), (3, 5)]
HOLDS = [[1, 1, 1, 1, 1], [1, 0, 1, 0, 0], [0, 0, 0, 1, 1]]


def test_what_follows_from_a_table():
    holds, typical = torch.tensor(HOLDS, dtype=torch.bool), torch.arange(1.0, 6.0)
    table = PanelTable.of(holds, RANGES, typical)
    assert table.has.tolist() == [[True, True], [True, False], [False, True]]
    assert table.is_partial == (True, False)
    assert table.depth.tolist() == [[6.0, 9.0], [4.0, 0.0], [0.0, 9.0]]
    panels = Panels(torch.tensor([2, 0]), table)
    assert panels.has().tolist() == [[False, True], [True, True]]
    assert panels.mask(3, 5).tolist() == [[True, True], [True, True]]


def test_a_table_is_made_once_and_again_where_what_it_is_of_changes():
    holds, typical = torch.tensor(HOLDS, dtype=torch.bool), torch.ones(5)
    table = PanelTable.of(holds, RANGES, typical)
    assert PanelTable.of(holds, RANGES, typical) is table
    typical.mul_(2)
    assert PanelTable.of(holds, RANGES, typical).depth[0].tolist() == [6.0, 4.0]
    holds[0, 3:] = False
    assert PanelTable.of(holds, RANGES, typical).has[0].tolist() == [True, False]


def test_what_inference_made_is_not_trained_with():
    holds, typical = torch.tensor(HOLDS, dtype=torch.bool), torch.ones(5)
    with torch.inference_mode():
        assert PanelTable.of(holds, RANGES, typical).depth.is_inference()
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
