"""The tested splits of a model's cells: how many clusters there are, and what speaks for them."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any, NamedTuple

import numpy as np
import pandas as pd
from scvi import REGISTRY_KEYS

from scgmvae import checks
from scgmvae.clustering.examined_groups import examine_groups
from scgmvae.clustering.group_sums import GroupSums, sums_by_group, welch_test
from scgmvae.clustering.growing import grow
from scgmvae.clustering.split_tree import STRENGTH, SplitTree
from scgmvae.data import validation
from scgmvae.data.categories import names_of
from scgmvae.data.matrices import read_rows
from scgmvae.data.modalities import panels_of
from scgmvae.data.normalization import on_log_scale
from scgmvae.model.populations import PopulationsMixin

if TYPE_CHECKING:
    from collections.abc import Iterator

    from numpy.typing import NDArray
    from scipy import sparse

__all__ = ["ClusterTree", "SplitsMixin"]

BLOCK = 16_384
"""Number of cells whose counts are read at once."""


class ClusterTree(NamedTuple):
    """The tested splits as trees of other packages."""

    linkage: NDArray[np.float64]
    """scipy's linkage matrix of the components, (K − 1, 4), with the strength from which on each
    split is made as its height."""
    names: NDArray[np.str_]
    """Names of the components, (K,), the leaves of the tree."""
    newick: str
    """The tree in Newick format, with the strength of each split."""


class SplitsMixin(PopulationsMixin):
    """The methods ``split_table``, ``split_tree``, ``cut`` and ``test_partition``."""

    split_tree_: dict[str, NDArray] | None
    """The tree of the tested splits, whose leaves are the components; ``None`` without one."""

    # ---------------------------------------------------------------------- cells → tree

    def _grown_tree(
        self, rows: NDArray[np.integer], z: NDArray[np.float32], n_leaves: int | None, seed: int
    ) -> tuple[SplitTree, NDArray[np.int64]]:
        """Tree of the tested splits of some cells, and the leaf of each of them, (n,)."""
        return grow(
            z.astype(float),
            lambda some: self._encoder_of(rows[some]),
            [level[rows] for level in self._levels().values()],
            sums_of=lambda leaf: self._sums_by_group(rows, leaf),
            is_gene=self._is_gene,
            n_leaves=n_leaves,
            seed=seed,
        )

    @property
    def _is_gene(self) -> NDArray[np.bool_]:
        """Which features are genes, of which a split needs more than a few, (G,)."""
        names, sizes = zip(*self._kinds, strict=True)
        is_gene = [name not in ("protein", "bernoulli", "gaussian") for name in names]
        return np.repeat(is_gene if len(names) > 1 else [True], sizes)

    def _split_tree(self) -> SplitTree:
        """The tree of tested splits."""
        self._check_mixture()
        if self.split_tree_ is None:
            raise RuntimeError(
                "The model has no tested splits: its components come from labels, a guide_key, "
                "or a start other than 'tested'. test_partition(...) tests its clusters."
            )
        return SplitTree.of_arrays(self.split_tree_)

    def _split_findings(self) -> list[str]:
        """What is to be said of the splits: that some repeat from type to type."""
        if self.split_tree_ is None:
            return []
        tree = SplitTree.of_arrays(self.split_tree_)
        n_repeated = int((tree.is_repeated & (tree.strength >= STRENGTH)).sum())
        if not n_repeated:
            return []
        return [
            "Most types are divided in the same directions of gene space, as by a batch, a donor "
            f"or a treatment that was not told: {n_repeated} of the {tree.n_splits} splits repeat "
            "so (split_table() names them), and make no clusters by default. If a column of obs "
            "explains them, set up the data anew with it as batch_key or among the "
            "categorical_covariate_keys."
        ]

    # --------------------------------------------------------------------- tree → users

    def split_table(self, n_genes: int = 5) -> pd.DataFrame:
        r"""Table of the tested splits, from all cells down to the components.

        A split is the weakest cut of its cells in two, in the graph of the neighbours that they
        share in z. T is the weight of the edges across it over that expected by chance. It is
        compared with the weakest cuts of cells that the model draws from one Gaussian in z, at the
        depths and under the conditions of the real cells.

        Parameters
        ----------
        n_genes
            Number of genes to name for each side; 0 names none.

        Returns
        -------
        DataFrame with a row per split: ``above``, the split that it divides a side of; ``left``
        and ``right``, the components on its sides; ``n_left`` and ``n_right``, their numbers of
        cells; ``t``; ``null``, the mean T of one population; ``strength``, 1 − T / null, from 0
        (one population) to 1 (apart); ``height``, the strength down to which :meth:`cut` makes it;
        ``p``, the probability of a T as small in one population;
        for each categorical condition ``<condition>_levels``, how many of its levels have cells
        on both sides, and ``t_without_<condition>``, T where the levels are moved onto each other
        (a split whose T is large then stands if the levels with cells on both sides show it);
        ``is_repeated``, whether most types are divided in the same directions of gene space, as by
        a batch that was not told (a split that was put above one of those has the ``t``, ``null``
        and ``p`` of cells whose batches were moved onto each other); ``is_of_few_genes``, whether
        its sides are alike but for three genes, as B cells of either light chain are (such a
        split, and one that is repeated, counts 0.4 of its strength); ``is_of_one_level``, whether
        at most one level of a condition has cells on both sides, although others have enough for
        some (such a split counts 0.8 of its strength); ``is_made``, whether the present clusters
        follow it; ``genes_left`` and ``genes_right``, the genes that are higher
        on that side, by Welch's t of log(1 + counts per 10,000).

        Raises
        ------
        RuntimeError
            If the model has no trained components, no tested splits, or no data.

        Examples
        --------
        >>> table = model.split_table(n_genes=2)
        >>> table.columns[:5].tolist()
        ['above', 'left', 'right', 'n_left', 'n_right']
        """
        checks.check_whole(0, n_genes=n_genes)
        tree = self._split_tree()
        source = self._validate_anndata()
        component = self._posteriors(source)["log_proba"].argmax(1)
        table = self._table_of(tree, component)
        if n_genes and tree.n_splits:
            rows = np.arange(len(component))
            leaf_sums = self._sums_by_group(rows, component, self.module.n_components)
            for name, own in (("left", 0), ("right", 1)):
                table[f"genes_{name}"] = [
                    ", ".join(self._genes_of_side(tree, split, own, leaf_sums, n_genes))
                    for split in range(tree.n_splits)
                ]
        return table

    def _table_of(self, tree: SplitTree, component: NDArray[np.integer]) -> pd.DataFrame:
        """The table of the splits, without genes, given the component of each cell."""
        names = self.component_names
        n_cells = np.bincount(component, minlength=len(names))
        clusters = self._clusters_of_components()
        above = np.full(tree.n_splits, -1)
        for split, children in enumerate(tree.children):
            above[children[children >= 0]] = split
        sides = [tree.leaves_of(split) for split in range(tree.n_splits)]
        table = pd.DataFrame(
            {
                "above": above,
                "left": [", ".join(names[left]) for left, _ in sides],
                "right": [", ".join(names[right]) for _, right in sides],
                "n_left": [int(n_cells[left].sum()) for left, _ in sides],
                "n_right": [int(n_cells[right].sum()) for _, right in sides],
                "t": tree.t,
                "null": tree.null,
                "strength": tree.strength,
                "height": tree.height,
                "p": tree.p,
            },
            index=pd.RangeIndex(tree.n_splits, name="split"),
        )
        for number, condition in enumerate(self._setup.categories):
            table[f"{condition}_levels"] = tree.n_levels[:, number]
            table[f"t_without_{condition}"] = tree.t_moved[:, number]
        made = [not np.isin(clusters[left], clusters[right]).any() for left, right in sides]
        return table.assign(
            is_repeated=tree.is_repeated,
            is_of_few_genes=tree.is_of_few_genes,
            is_of_one_level=tree.is_of_one_level,
            is_made=np.array(made, dtype=bool),
        )

    def _clusters_of_components(self) -> NDArray[np.int64]:
        """Cluster of each component, (K,), −1 where it is dropped."""
        if self.component_clusters_ is None:
            return np.arange(self.module.n_components)
        return self.component_clusters_

    def _sums_by_group(
        self, rows: NDArray[np.integer], group: NDArray[np.integer], n_groups: int | None = None
    ) -> GroupSums:
        """Sums of x over the groups of some cells, (n,). Counts are log-normalised."""
        n_groups = n_groups or int(group.max()) + 1
        blocks = self._expression_blocks(rows)
        sums = sums_by_group(blocks, group, n_groups, self.module.n_input)
        share = self._measured_share(rows, group, n_groups)
        return sums if share is None else sums.of_measured(share)

    def _measured_share(
        self, rows: NDArray[np.integer], group: NDArray[np.integer], n_groups: int
    ) -> NDArray[np.float64] | None:
        """Share of the cells of each group in which each feature was measured, (K, G).

        ``None`` where all were measured in all cells.
        """
        panels = panels_of(self.adata)
        if panels is None:
            return None
        code, table = panels
        n = np.zeros((n_groups, len(table)))
        np.add.at(n, (group, code[rows]), 1)
        return n @ table / np.maximum(n.sum(1, keepdims=True), 1)

    def _expression_blocks(
        self, rows: NDArray[np.integer]
    ) -> Iterator[tuple[NDArray[np.int64], sparse.csr_matrix]]:
        """Places in ``rows``, ascending, and x of the cells there. Counts are log-normalised."""
        x = self.adata_manager.get_from_registry(REGISTRY_KEYS.X_KEY)
        for some in np.split(np.arange(len(rows)), range(BLOCK, len(rows), BLOCK)):
            part = read_rows(x, rows[some])
            yield some, on_log_scale(part, self._kinds)

    def _genes_of_side(
        self, tree: SplitTree, split: int, own: int, leaf_sums: GroupSums, n_genes: int
    ) -> NDArray[np.str_]:
        """Names of the genes that are highest on one side of a split."""
        sides = tree.leaves_of(split)
        genes = self._highest_genes(sides[own], sides[1 - own], leaf_sums, n_genes)
        return self._setup.gene_names[genes]

    def _highest_genes(
        self,
        side: NDArray[np.integer],
        other: NDArray[np.integer],
        sums: GroupSums,
        n_genes: int,
    ) -> NDArray[np.int64]:
        """Numbers of the genes that are highest in some groups beside others, by Welch's t.

        Of several modalities there are as many features of each.
        """
        t, _ = welch_test(sums, side, other)
        ends = np.cumsum([size for _, size in self._kinds])
        best = np.concatenate(
            [
                end - len(part) + np.argsort(-part, kind="stable")[:n_genes]
                for end, part in zip(ends, np.split(t, ends[:-1]), strict=True)
            ]
        )
        return best[t[best] > 0]

    def split_tree(self) -> ClusterTree:
        """The tested splits as a tree for scipy and for phylogenetic packages.

        Returns
        -------
        ``linkage`` of the components as scipy has it, with the strengths as heights down to which
        :meth:`cut` makes the splits: that of a split is at most the height of the one above it and
        at least seven tenths of the strength of one below it, and one that repeats from type to
        type, or rests on few genes, has 0.4 of its strength, one of a single level of a condition
        0.8; their ``names``; and the tree in ``newick`` format, with the strength of each split
        as it is.

        Raises
        ------
        RuntimeError
            If the model has no trained components, or no tested splits.

        Examples
        --------
        >>> tree = model.split_tree()
        >>> len(tree.linkage) == len(tree.names) - 1
        True
        """
        tree = self._split_tree()
        names = self.component_names[: tree.n_splits + 1]
        return ClusterTree(tree.linkage, names, tree.newick(names.tolist()))

    # --------------------------------------------------------------------- tree → clusters

    def cut(self, strength: float | None = None, *, n: int | None = None) -> None:
        """Make coarser or finer clusters of the tested splits, and write them.

        The model stays as it is: its components are the finest groups of the tree, and clusters
        are groups of components. :meth:`predict` and ``obs["scgmvae"]`` have the clusters,
        ``obs["scgmvae_fine"]`` the components.

        Parameters
        ----------
        strength
            Least strength, in (0, 1], of a split that is made. ``None`` is 0.55. Lower values give
            states within types; up to 0.4 they also give splits that repeat from type to type, or
            rest on few genes, which count 0.4 of their strength.
        n
            Number of clusters, in place of ``strength``: the strongest splits are made.

        Raises
        ------
        RuntimeError
            If the model has no trained components, no tested splits, or no data.
        ValueError
            If both are given, or one is out of range.

        Examples
        --------
        >>> model.cut(n=2)
        >>> model.cut(strength=0.45)
        """
        tree = self._split_tree()
        if n is not None and strength is not None:
            raise ValueError(
                f"Give strength or n, not both; received strength={strength} and n={n}."
            )
        if n is not None:
            checks.check_whole(1, n=n)
            if n > tree.n_splits + 1:
                raise ValueError(
                    f"n must be at most {tree.n_splits + 1}, the number of components, but it is "
                    f"{n}. Make a model with n_components={n} for more clusters."
                )
        if strength is not None and not 0 < strength <= 1:
            raise ValueError(f"strength must be in (0, 1], but it is {strength}.")
        self._validate_anndata()
        validation.check_key_added(self._setup.arguments)
        posteriors = self._posteriors_to_judge()
        self._cut(posteriors, strength, n)
        self._write_to_own_data(posteriors)

    def _cut(
        self,
        posteriors: dict[str, NDArray],
        strength: float | None = None,
        n: int | None = None,
    ) -> None:
        """Make clusters of the tree, given the posteriors of the model's own cells."""
        tree = self._split_tree()
        if n is None:
            made = tree.height >= (STRENGTH if strength is None else strength)
        else:
            made = tree.strongest(n)
        component = posteriors["log_proba"].argmax(1)
        n_cells = np.bincount(component, minlength=self.module.n_components)
        clusters = np.arange(self.module.n_components)
        # a tree of few cells has fewer leaves than there are components: the others are empty
        clusters[: tree.n_splits + 1] = tree.clusters(made)
        self._set_clusters(clusters, n_cells)

    def _evidence(self) -> NDArray[np.float64]:
        """How sure it is that each cluster is one of its own, (M,): 1 − p of its splits."""
        evidence = super()._evidence()
        if self.split_tree_ is None:
            return evidence
        tree, clusters = SplitTree.of_arrays(self.split_tree_), self._clusters_of_components()
        for split in range(tree.n_splits):
            left, right = (set(clusters[side]) - {-1} for side in tree.leaves_of(split))
            if not left & right:
                for cluster in left | right:
                    evidence[cluster] = min(evidence[cluster], 1 - tree.p[split])
        return evidence

    def _settings(self) -> dict[str, Any]:
        """Settings of the annotation, with the tree where there is one."""
        settings = super()._settings()
        if self.module.mixture_started and self.split_tree_ is not None:
            tree = SplitTree.of_arrays(self.split_tree_)
            settings["newick"] = tree.newick(self.component_names.tolist())
        return settings

    # ------------------------------------------------------------------- given clusters

    def test_partition(
        self,
        key: str,
        *,
        strength: float | None = None,
        key_added: str | None = None,
        seed: int = 0,
    ) -> pd.DataFrame:
        """Test the groups of any partition of the cells, such as Leiden's.

        Each group is tested inside: is it one population, or does it hide several? And it is
        tested against the group beside it: does one population explain both? The tests are those
        of :meth:`split_table`, in the z of this model.

        Parameters
        ----------
        key
            obs column of the groups. Cells without a group are left out.
        strength
            Least strength of a border between two groups that are not the same, in (0, 1];
            ``None`` is 0.55.
        key_added
            obs column to write the groups to after merging those that one population explains;
            ``None`` writes nothing.
        seed
            Seed of the draws.

        Returns
        -------
        DataFrame with a row per group: ``n_cells``; ``inside_strength``, ``inside_p`` and
        ``inside_smaller``, strength and p of the weakest cut inside, and how many cells are on
        its smaller side; ``hides_more``, whether that cut is a split; ``nearest``, the group that
        it is closest to, ``border_strength`` and ``border_p`` of the border between them;
        ``merged``, its name after merging. Values are missing where a group has too few cells, or
        is apart from all others.

        Raises
        ------
        KeyError
            If there is no such column.
        RuntimeError
            If the model is not trained, or has no data.
        ValueError
            If no cell has a group, or ``strength`` is out of range.

        Examples
        --------
        >>> table = model.test_partition("component", key_added="component_merged")
        >>> table["hides_more"].tolist()
        [False, False, False]
        """
        self._check_if_trained(warn=False)
        source = self._validate_anndata()
        validation.check_columns(source, is_whole=False, key=key)
        checks.check_seed(seed)
        strength = STRENGTH if strength is None else strength
        if not 0 < strength <= 1:
            raise ValueError(f"strength must be in (0, 1], but it is {strength}.")
        if key_added is not None:
            validation.check_key_added(self._setup.arguments, key_added)
        groups = source.obs[key].astype("category").cat.remove_unused_categories()
        names = np.array(names_of(pd.Series(groups.cat.categories)), dtype=object)
        if not len(names):
            raise ValueError(f"Groups of cells are tested, but no cell of {key!r} has one.")
        codes = groups.cat.codes.to_numpy().astype(np.int64)
        tests = examine_groups(
            self._posteriors(source)["z_loc"].astype(float),
            codes,
            self._encoder_of,
            list(self._levels().values()),
            strength=strength,
            seed=seed,
        )
        merged = pd.Series(names).groupby(tests.merged).transform("+".join).to_numpy()
        if key_added is not None:
            of_cells = pd.Series(merged[codes], index=source.obs_names).where(codes >= 0)
            source.obs[key_added] = of_cells.astype("category")
        inside = [None if cut is None else cut.evidence for cut in tests.inside]
        return pd.DataFrame(
            {
                "n_cells": np.bincount(codes[codes >= 0], minlength=len(names)),
                "inside_strength": [np.nan if e is None else max(e.strength, 0.0) for e in inside],
                "inside_p": [np.nan if e is None else e.p for e in inside],
                "inside_smaller": [
                    0 if cut is None else int(cut.cut.side.sum()) for cut in tests.inside
                ],
                "hides_more": [
                    cut is not None and cut.is_split and cut.evidence.strength >= strength
                    for cut in tests.inside
                ],
                "nearest": [names[group] if group >= 0 else None for group in tests.nearest],
                "border_strength": [
                    np.nan if e is None else max(e.strength, 0.0) for e in tests.border
                ],
                "border_p": [np.nan if e is None else e.p for e in tests.border],
                "merged": merged,
            },
            index=pd.Index(names, name=key),
        )
