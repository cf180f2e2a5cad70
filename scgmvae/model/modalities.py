"""What a joint model says of its modalities: imputed values, foreground, and what decides."""

from __future__ import annotations

from typing import TYPE_CHECKING

import numpy as np
import pandas as pd
import torch
from anndata import AnnData

from scgmvae import checks
from scgmvae.data import validation
from scgmvae.data.keys import FEATURE_MODALITY_KEY
from scgmvae.data.minibatches import stacked
from scgmvae.distributions.proteins import ProteinMixture
from scgmvae.model.decoding import DecodingMixin

if TYPE_CHECKING:
    from collections.abc import Sequence

    from mudata import MuData
    from numpy.typing import ArrayLike, NDArray
    from torch import Tensor

    from scgmvae.module.joint import JointCGMVAE

__all__ = ["ModalitiesMixin"]

VALUES_AT_A_TIME = 1 << 24
"""Largest number of values that are drawn at once."""
INTERVAL = (0.05, 0.95)
"""Shares of further draws that lie below the two bounds that are given."""


class ModalitiesMixin(DecodingMixin):
    """The methods of models of several modalities."""

    def impute(
        self,
        modality: str,
        adata: MuData | AnnData | None = None,
        *,
        given: str | Sequence[str] | None = None,
        indices: ArrayLike | None = None,
        n_samples: int = 25,
        seed: int = 0,
    ) -> AnnData:
        r"""Values of a modality that the cells are expected to have, by what is known of them.

        .. math:: z \sim q(z|x_\text{given},c), \quad x_m \sim p(x_m|z,c)

        Parameters
        ----------
        modality
            The modality to predict.
        adata
            Data with the features of the model; ``None`` is the model's own.
        given
            Modality, or modalities, that the prediction sees; ``None`` is all that a cell has.
        indices
            Rows to use.
        n_samples
            S, number of draws of each cell.
        seed
            Seed of the draws.

        Returns
        -------
        AnnData of cells × features of the modality. ``X``: expected values, counts at the depth
        of the cell, or at a typical one where the cell was not measured or ``given`` leaves the
        modality out. ``layers["lower"]`` and ``["upper"]``: between them nine further draws of
        ten lie, if there are 19 draws or more. Of the values of cells that the model was not
        trained on there are fewer (``docs/benchmarks.md``). Of proteins also
        ``layers["foreground"]``, the expected counts without the background, and
        ``layers["foreground_probability"]``.

        Raises
        ------
        RuntimeError
            If the model is untrained, or is not one of several modalities.
        ValueError
            If there is no such modality.

        References
        ----------
        Gayoso et al. 2021, "Joint probabilistic modeling of single-cell multi-omic data with
        totalVI" (denoised proteins).
        """
        module, number = self._joint_module(), self._modality_number(modality)
        checks.check_whole(1, n_samples=n_samples)
        checks.check_seed(seed)
        features = self._given_features(given)
        adata = self._validate_anndata(adata)
        rows = validation.rows_of(adata, indices)
        first, end = module.ranges[number]
        size = int(np.clip(VALUES_AT_A_TIME // (n_samples * (end - first)), 1, 1024))
        loader = self._make_data_loader(adata, rows, batch_size=size)
        if features is not None:
            loader.show_only(features)
        module.eval()
        with torch.inference_mode(), torch.random.fork_rng(range(torch.cuda.device_count())):
            torch.manual_seed(seed)
            found = stacked(self._drawn(tensors, number, n_samples) for tensors in loader)
        values, obs = found.pop("mean"), adata.obs.iloc[rows]
        return AnnData(
            values,
            obs=obs[validation.columns_of_user(obs)],
            var=adata.var.iloc[first:end].drop(columns=FEATURE_MODALITY_KEY),
            layers=found,
        )

    def _drawn(self, tensors: dict[str, Tensor], number: int, n_samples: int) -> dict[str, Tensor]:
        """Expected values of a modality, quantiles of draws, and of proteins the foreground."""
        tensors = {name: values.to(self.device) for name, values in tensors.items()}
        inputs = self.module._get_inference_input(tensors)
        outputs = self.module.inference(**inputs, n_samples=n_samples)
        given = self.module._get_generative_input(tensors, outputs)
        part = self.module.generative(**given, only_x=True)["px"].parts[number]

        def over_draws(values: Tensor) -> Tensor:
            return values.reshape(n_samples, *values.shape[-2:]).mean(0)

        drawn = part.sample().reshape(n_samples, *part.batch_shape[-2:])
        # between the usual quantiles of 25 draws 83 % of further ones lie; between these 90 %
        bounds = np.quantile(drawn.cpu().numpy(), INTERVAL, axis=0, method="weibull")
        lower, upper = torch.from_numpy(bounds).to(drawn)
        found = {"mean": over_draws(part.mean), "lower": lower, "upper": upper}
        if isinstance(part, ProteinMixture):
            found["foreground"] = over_draws(part.foreground)
            found["foreground_probability"] = over_draws(part.foreground_probs)
        return found

    def get_protein_foreground_probability(
        self,
        adata: MuData | AnnData | None = None,
        indices: ArrayLike | None = None,
        *,
        n_samples: int = 25,
        seed: int = 0,
    ) -> pd.DataFrame:
        """Probability that a cell carries a protein beyond the background, by its z.

        Parameters
        ----------
        adata
            Data with the features of the model; ``None`` is the model's own.
        indices
            Rows to use.
        n_samples
            Number of draws of z of each cell.
        seed
            Seed of the draws.

        Returns
        -------
        DataFrame, cells × proteins.

        Raises
        ------
        RuntimeError
            If the model is untrained, or has no modality with the likelihood ``"protein"``.
        """
        named = [m.name for m in self._joint_module().modalities if m.likelihood == "protein"]
        if not named:
            raise RuntimeError(
                "The model must have a modality with the likelihood 'protein', but those of its "
                f"modalities are {checks.listed([kind for kind, _ in self._kinds])}."
            )
        tables = []
        for name in named:
            imputed = self.impute(name, adata, indices=indices, n_samples=n_samples, seed=seed)
            tables.append(imputed.to_df(layer="foreground_probability"))
        return pd.concat(tables, axis=1)

    def get_modality_entropy(
        self, adata: MuData | AnnData | None = None, indices: ArrayLike | None = None
    ) -> pd.DataFrame:
        """How sure the component of each cell is, with and without each modality.

        Parameters
        ----------
        adata
            Data with the features of the model; ``None`` is the model's own.
        indices
            Rows to use.

        Returns
        -------
        DataFrame with a row per cell: entropy of q(y) in nats by ``"all"`` of its modalities, and
        without each of them, ``"without rna"`` for example. What a modality decides is how much
        larger the entropy is without it. It is missing where nothing else was measured.

        Raises
        ------
        RuntimeError
            If the model has no trained components, or is not one of several modalities.
        """
        names = [modality.name for modality in self._joint_module().modalities]
        self._check_mixture()
        adata = self._validate_anndata(adata)
        rows = validation.rows_of(adata, indices)
        table = {"all": self._entropy(adata, rows, names)}
        for name in names:
            others = [other for other in names if other != name]
            table[f"without {name}"] = self._entropy(adata, rows, others)
        return pd.DataFrame(table, index=adata.obs_names[rows])

    def _entropy(
        self, adata: AnnData, rows: NDArray[np.integer], given: Sequence[str]
    ) -> NDArray[np.float32]:
        """Entropy of q(y) of each cell by some of its modalities, NaN where it has none, (n,)."""
        posteriors = self._posteriors(adata, rows, given=given)
        log_proba = posteriors["log_proba"]
        entropy = -(np.exp(log_proba) * log_proba).sum(1)
        return np.where(np.isnan(posteriors["z_loc"][:, 0]), np.nan, entropy)

    def _joint_module(self) -> JointCGMVAE:
        """The module of several modalities."""
        self._check_if_trained(warn=False)
        if self.modalities_ is None:
            raise RuntimeError(
                "This is for models of several modalities. Set a MuData up with "
                "setup_mudata(mdata, modalities={'rna': 'nb', 'protein': 'protein'})."
            )
        return self.module
