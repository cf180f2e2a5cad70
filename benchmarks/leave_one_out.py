"""Is a change of the defaults better also on a set that was not used to find it?"""

from __future__ import annotations

import pandas as pd

__all__ = ["gains", "left_out", "on_all_sets"]

JUDGED = ("CiLISI", "purity", "best ARI", "k-means ARI", "isolated F1", "rare F1", "own ARI")
"""Scores that a change is judged by."""


def on_all_sets(rows: pd.DataFrame) -> pd.DataFrame:
    """Rows of the settings that were tried on every set."""
    n_sets = rows.groupby("setting")["data"].transform("nunique")
    return rows[n_sets == rows["data"].nunique()]


def gains(rows: pd.DataFrame) -> pd.DataFrame:
    """What each change gains over the default on each set, the mean of the scores.

    Parameters
    ----------
    rows
        Rows with ``data``, ``setting`` and the scores; changes that not every set has are left
        out.

    Returns
    -------
    DataFrame, sets × changes.
    """
    rows = on_all_sets(rows)
    judged = rows.groupby(["data", "setting"], sort=False)[list(JUDGED)].mean()
    default = judged.xs("default", level="setting")
    gain = judged.sub(default, level="data").mean(axis=1).unstack("setting")
    return gain.drop(columns="default")


def left_out(rows: pd.DataFrame) -> pd.DataFrame:
    """For each set the change that is best on the others, and what it gains on both.

    Parameters
    ----------
    rows
        As in :func:`gains`.

    Returns
    -------
    DataFrame with a row per set: ``data``, ``change``, ``others``, the gain that chose it, and
    ``gain``, that on the set itself.
    """
    gain = gains(rows)
    found = []
    for data in gain.index:
        others = gain.drop(index=data).mean()
        change = others.idxmax()
        found.append((data, change, others[change], gain.loc[data, change]))
    return pd.DataFrame(found, columns=["data", "change", "others", "gain"])
