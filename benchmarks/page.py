"""The page of the documentation that holds the comparison with existing tools.

    python benchmarks/page.py  # writes docs/peers.md

from the JSON files of ``peers.py``, ``stability.py`` and ``likelihood.py``: no figure in it is
typed by hand.
"""

from __future__ import annotations

import argparse
import json
from pathlib import Path

import numpy as np
import pandas as pd

SETS = ("pbmc3k", "pbmc4k", "mouse_bladder", "sc_mixology", "paul15")
"""Those that means are taken over; kang's types are known for some of its cells only."""

INTRODUCTION = """# scgmvae beside existing tools

This page compares scgmvae with PCA, SCVI, Leiden and k-means on labelled data sets. It is
written by `benchmarks/page.py` from `benchmarks/results/`: mean ± sd over seeds, every method
with the same settings on all data sets. *given* are methods that are told K, the number of
labelled types, *found* those that are not. The cut of the tree of scgmvae was chosen on these
data sets among others (see [Benchmarks](benchmarks.md)), and nothing of its peers was, so expect
less of a difference elsewhere. Labels of pbmc3k and pbmc4k come from graph clusterings, which
favour methods like Leiden. scgmvae and SCVI are told the batches of sc_mixology and the condition
of kang, PCA is not: much of the difference in the means comes from sc_mixology. SCVI was trained
for 100 epochs on nine tenths of the cells, its default share.
Seconds are processor seconds from counts to clusters, on a busy machine; those of scgmvae were
taken on another day than those of its peers.
"""


def rows_of(path: Path) -> pd.DataFrame:
    return pd.DataFrame(json.loads(path.read_text())["rows"])


def table(frame: pd.DataFrame) -> str:
    """A frame of strings as a table of markdown."""
    lines = [[frame.index.name or "", *frame.columns], ["---"] * (len(frame.columns) + 1)]
    lines += [[str(index), *row] for index, row in zip(frame.index, frame.to_numpy(), strict=True)]
    lines = [[cell.replace("|", "\\|") for cell in line] for line in lines]
    return "\n".join("| " + " | ".join(line) + " |" for line in lines) + "\n"


def mean_sd(values: pd.Series, digits: int = 3) -> str:
    values = values.dropna()
    if values.empty:
        return "–"
    sd = f" ± {values.std(ddof=1):.{digits}f}" if len(values) > 1 else ""
    return f"{values.mean():.{digits}f}{sd}"


def named(rows: pd.DataFrame) -> pd.DataFrame:
    """Rows with one name for method and what it was told."""
    name = rows["method"].where(rows["method"] != "scgmvae", "**scgmvae**")
    return rows.assign(name=name + ", K " + rows["K"])


def of_set(rows: pd.DataFrame) -> str:
    digits = {"ACC": 3, "purity": 3, "NMI": 3, "ARI": 3, "n_clusters": 1, "smallest": 0}
    digits |= {"n_recovered": 1, "seconds": 1, "peak_mb": 0}
    groups = named(rows).groupby("name", sort=False)
    columns = {column: groups[column].apply(mean_sd, digits=n) for column, n in digits.items()}
    titles = {"n_clusters": "clusters", "smallest": "smallest type recovered, cells"}
    titles |= {"n_recovered": "types recovered", "peak_mb": "peak MB"}
    frame = pd.DataFrame(columns | {"seeds": groups.size().astype(str)}).rename(columns=titles)
    return table(frame.rename_axis("method"))


def over_sets(results: Path) -> pd.DataFrame:
    """Mean ARI by method and data set, their mean, and the mean error of K."""
    parts = []
    for name in SETS:
        path = results / f"peers-{name}.json"
        if path.exists():
            parts.append(named(rows_of(path)).assign(data=name))
    rows = pd.concat(parts)
    rows["error"] = (rows["n_clusters"] - rows["n_labels"]).abs() / rows["n_labels"]
    wide = rows.pivot_table(index="name", columns="data", values="ARI", sort=False)
    wide["mean"] = wide.mean(axis=1, skipna=False)
    wide["error of K"] = rows.groupby(["name", "data"])["error"].mean().groupby("name").mean()
    return wide.sort_values("mean", ascending=False)


def page(results: Path) -> str:
    wide = over_sets(results).rename_axis("ARI")
    parts = [INTRODUCTION, "## All data sets\n"]
    parts.append("*error of K* is |clusters − types| / types, mean over the data sets.\n")
    parts.append(table(wide.map("{:.3f}".format)))
    for name in (*SETS, "kang"):
        path = results / f"peers-{name}.json"
        if path.exists():
            rows = rows_of(path)
            parts.append(f"## {name}: {rows['n_labels'].iloc[0]} types\n\n{of_set(rows)}")
    if (results / "stability.json").exists():
        agreement = named(rows_of(results / "stability.json"))
        agreement = agreement[agreement["data"].isin(SETS)]
        wide = agreement.pivot_table(index="name", columns="data", values="ARI", sort=False)
        wide["mean"] = wide.mean(axis=1)
        wide = wide.sort_values("mean", ascending=False).rename_axis("ARI between seeds")
        parts.append("## Agreement between seeds\n")
        parts.append("Mean adjusted Rand index of each two seeds' clusters; no labels are used.\n")
        parts.append(table(wide.map(lambda v: "–" if np.isnan(v) else f"{v:.3f}")))
    lines = []
    for name in SETS:
        path = results / f"likelihood-{name}.json"
        if path.exists():
            for told, group in rows_of(path).groupby("SCVI", sort=False):
                nats = {c: mean_sd(group[c], 1) for c in ("scgmvae_nats", "SCVI_nats")}
                nats |= {c: mean_sd(group[c], 2) for c in ("difference", "se")}
                lines.append({"data": f"{name}, SCVI {told}", **nats, "seeds": str(len(group))})
    if lines:
        parts.append("## Log likelihood of held-out cells\n")
        parts.append(
            "Nats per cell, importance sampling with 100 samples, a tenth of the cells held out; "
            "*difference* is scgmvae less SCVI, *se* its standard error over the cells "
            "(`benchmarks/likelihood.py`).\n"
        )
        titles = {"scgmvae_nats": "scgmvae", "SCVI_nats": "SCVI"}
        parts.append(table(pd.DataFrame(lines).set_index("data").rename(columns=titles)))
    return "\n".join(parts)


def main() -> None:
    root = Path(__file__).parent
    parser = argparse.ArgumentParser(description=__doc__.split("\n")[0])
    parser.add_argument("--results", type=Path, default=root / "results")
    parser.add_argument("--out", type=Path, default=root.parent / "docs" / "peers.md")
    args = parser.parse_args()
    args.out.write_text(page(args.results))
    print(over_sets(args.results).round(3).to_string())


if __name__ == "__main__":
    main()
