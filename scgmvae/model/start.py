"""What a training starts from: the cells that are partitioned, their partition and its names.

:mod:`scgmvae.train.start` fits the module to them.
"""

from __future__ import annotations

from typing import TYPE_CHECKING

import numpy as np
import torch
from scipy import sparse
from scvi import REGISTRY_KEYS
from torch import Tensor

from scgmvae.clustering.labels import Spread, partition_by_labels, without_levels
from scgmvae.clustering.partition import Start, by_size, initial_partition, log_normalized_pcs
from scgmvae.clustering.split_tree import STRENGTH
from scgmvae.data.images import pixel_scale
from scgmvae.data.matrices import column_means, is_on_disk, read_rows
from scgmvae.data.minibatches import CELLS_IN_MEMORY
from scgmvae.data.modalities import all_panels_of
from scgmvae.data.registry import label_codes
from scgmvae.model.splits import SplitsMixin
from scgmvae.train.cells import cells_to_start_from
from scgmvae.train.recipe import Recipe, recipe_for
from scgmvae.train.start import (
    Started,
    start_decoder,
    start_decoders,
    start_mixture,
)

if TYPE_CHECKING:
    from numpy.typing import NDArray

    from scgmvae.data.matrices import Matrix

__all__ = ["StartMixin"]

N_FOR_LEVELS = 4096
"""Number of cells by which background and foreground of proteins are told apart at the start."""


class StartMixin(SplitsMixin):
    """The start of a module, and of its mixture, from the cells of the model."""

    mixture_started_: bool
    """Whether the mixture is the prior of z, as it is from the start of the joint stage on."""

    @property
    def _recipe(self) -> Recipe:
        """Defaults for the kind of data."""
        return recipe_for(self.module.image_shape)

    def _start_module(self, rows: NDArray[np.integer]) -> None:
        """Set decoder bias, typical counts and scale of size factors by the training cells."""
        x = self.adata_manager.get_from_registry(REGISTRY_KEYS.X_KEY)
        mean = column_means(x, rows) * pixel_scale(self.adata_manager)
        if self.modalities_ is None:
            start_decoder(self.module, mean)
        else:
            mean = self._start_decoders(x, mean, rows)
        if self.module.is_count:
            self.module.typical_counts.copy_(torch.as_tensor(mean))
        if self.module.use_size_factor:
            factors = self.adata_manager.get_from_registry(REGISTRY_KEYS.SIZE_FACTOR_KEY)
            mean_factor = factors[rows].astype(float).mean()
            self.module.size_scale.fill_(mean.sum() / mean_factor)

    def _start_decoders(
        self, x: Matrix, mean: NDArray[np.float64], rows: NDArray[np.integer]
    ) -> NDArray[np.float64]:
        """Set the decoders of several modalities; means over the cells that have each, (G,)."""
        code, table = all_panels_of(self.adata)
        share = np.bincount(code[rows], minlength=len(table)) @ table / len(rows)
        mean = mean / np.maximum(share, 1 / len(rows))
        some = np.sort(np.random.default_rng(0).permutation(rows)[:N_FOR_LEVELS])
        values = sparse.csr_matrix(read_rows(x, some))
        start_decoders(self.module, mean, values, table[code[some]])
        return mean

    def _start_mixture(
        self, rows: NDArray[np.integer], start: Start, guide_key: str | None, seed: int
    ) -> Started:
        """Start the components from a partition of the training cells."""
        labels, chosen = label_codes(self.adata_manager), rows
        if guide_key is None:
            x = self.adata_manager.get_from_registry(REGISTRY_KEYS.X_KEY)
            chosen = cells_to_start_from(
                rows,
                labels,
                tests_splits=start == "tested",
                on_disk=is_on_disk(x),
                seed=seed,
            )
        posteriors = self._posteriors(indices=chosen)
        spread, tree = self._partition(chosen, posteriors["z_loc"], start, guide_key, seed)
        partition = spread.component
        n_found = max(self.module.n_labels, int(partition.max()) + 1)
        self.n_components_ = self.n_components_ or n_found
        guide = partition if spread.proba is None else self._of_all_components(spread.proba)
        start_mixture(
            self.module,
            self._training_cells(chosen),
            posteriors,
            torch.from_numpy(partition),
            self.n_components_,
            None if spread.proba is None else torch.from_numpy(guide),
        )
        guide = self._guide_of_all(rows, chosen, guide)
        self.mixture_started_ = True  # checkpoints that are saved from now on need it
        self.module.train()
        return Started(guide, tree)

    def _of_all_components(self, proba: NDArray[np.float32]) -> NDArray[np.float32]:
        """Probabilities of all K components, (n, K), of which the last ones may have no cell."""
        return np.pad(proba, ((0, 0), (0, self.n_components_ - proba.shape[1])))

    def _guide_of_all(
        self, rows: NDArray[np.integer], chosen: NDArray[np.integer], guide: NDArray
    ) -> NDArray:
        """Codes (n,) or probabilities (n, K) of all cells; those outside of ``rows`` have none.

        Training cells that were not chosen follow the classifier that was fitted to the others.
        """
        is_soft = guide.ndim == 2
        of_all = np.full((self.adata.n_obs, *guide.shape[1:]), 0 if is_soft else -1, guide.dtype)
        of_all[chosen] = guide
        others = np.setdiff1d(rows, chosen)
        labels = label_codes(self.adata_manager)
        for part in np.split(others, range(CELLS_IN_MEMORY, len(others), CELLS_IN_MEMORY)):
            if not len(part):
                continue
            log_proba, label = self._posteriors(indices=part)["log_proba"], labels[part]
            is_known = label >= 0
            if is_soft:
                of_all[part] = np.exp(log_proba)
                of_all[part[is_known]] = np.eye(guide.shape[1])[label[is_known]]
            else:
                of_all[part] = np.where(is_known, label, log_proba.argmax(1))
        return of_all

    def _training_cells(self, rows: NDArray[np.integer]) -> dict[str, Tensor]:
        """The training cells as one minibatch, with x only where the classifier sees it."""
        x_key = REGISTRY_KEYS.X_KEY
        loader = self._make_data_loader(self.adata, rows, batch_size=1024)
        tensors = {key: values[rows] for key, values in loader.fields.items()}
        tensors[x_key] = torch.empty(len(rows), 0)
        if self.module.classifier_input == "zx":
            tensors[x_key] = torch.cat([part[x_key] for part in loader])
        return tensors | loader.shared

    def _partition(
        self,
        rows: NDArray[np.integer],
        z: NDArray[np.float32],
        start: Start,
        guide_key: str | None,
        seed: int,
    ) -> tuple[Spread, dict[str, NDArray] | None]:
        """Starting components of training cells, (n,), and the tree of splits they come from.

        The first components are those of the labels.
        """
        tree, straight = None, self._recipe.straight
        labels = label_codes(self.adata_manager)[rows]
        if (labels >= 0).all():  # nothing is left to be partitioned
            return Spread(labels, None), None
        if guide_key is not None:
            column = self.adata.obs[guide_key].iloc[rows].astype("category")
            groups = by_size(column.cat.codes.to_numpy())
        elif start == "tested":
            groups, tree = self._tested_groups(rows, z, seed)
            groups = by_size(groups)
        else:
            x = self._to_partition(rows, z, seed)
            groups = initial_partition(x, self.n_components_, start, seed, straight)
        if not self.module.n_labels:
            return Spread(groups, None), tree
        spread = partition_by_labels(
            self._to_spread_labels(rows, z, groups, seed),
            groups,
            labels,
            self.module.n_labels,
            self.n_components_,
            straight,
            seed,
        )
        return spread, tree

    def _tested_groups(
        self, rows: NDArray[np.integer], z: NDArray[np.float32], seed: int
    ) -> tuple[NDArray[np.int64], dict[str, NDArray] | None]:
        """Leaves of the tree of tested splits and the tree; with labels its clusters alone."""
        n_labels = self.module.n_labels
        tree, leaf = self._grown_tree(rows, z, None if n_labels else self.n_components_, seed)
        if n_labels:
            return tree.clusters(tree.height >= STRENGTH)[leaf], None
        return leaf, dict(vars(tree))

    def _to_partition(
        self, rows: NDArray[np.integer], z: NDArray[np.float32], seed: int
    ) -> NDArray[np.floating]:
        """What groups are computed from where splits are not tested."""
        return z if self.module.has_conditions else self._pcs_of_counts(rows, seed, otherwise=z)

    def _to_spread_labels(
        self,
        rows: NDArray[np.integer],
        z: NDArray[np.float32],
        groups: NDArray[np.int64],
        seed: int,
    ) -> NDArray[np.floating]:
        """What labels are spread by: z, and principal components in which conditions are alike.

        Principal components hold what the types of a few labels differ in and z has no room for.
        """
        pcs = self._pcs_of_counts(rows, seed, otherwise=z)
        if pcs is z:
            return z
        levels = [level[rows] for level in self._levels().values()]
        pcs = without_levels(pcs, groups, levels)
        return np.hstack([x / max(x.std(), 1e-6) for x in (z, pcs)])

    def _pcs_of_counts(
        self, rows: NDArray[np.integer], seed: int, *, otherwise: NDArray[np.float32]
    ) -> NDArray[np.floating]:
        """Principal components of log-normalised counts in memory; of all else what is given."""
        counts = self.adata_manager.get_from_registry(REGISTRY_KEYS.X_KEY)
        is_large = is_on_disk(counts) and len(rows) > CELLS_IN_MEMORY
        if is_large or not self.module.is_count or self.modalities_ is not None:
            return otherwise
        return log_normalized_pcs(read_rows(counts, rows), seed=seed)
