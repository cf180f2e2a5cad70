"""How a model shows itself: as text in a console, as a table in a notebook."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from html import escape

from scvi.data import _constants as scvi_constants

__all__ = ["ShowingMixin", "epochs_of", "table_of"]

CELL = "text-align: left; vertical-align: top; padding: 0.2em 1em 0.2em 0.2em"
"""Of the cells, which Jupyter sets to the right, and a plain page without gaps."""


class ShowingMixin:
    """``repr`` and the table that notebooks show."""

    def __repr__(self) -> str:
        # scvi-tools prints here, so a notebook would show the text above the table
        return self.summary_string

    def _repr_html_(self) -> str:
        rows = {"data": self._data_shown()} | self._rows_shown()
        rows["settings"] = ", ".join(
            f"{name}={value!r}"
            for name, value in self._module_kwargs.items()
            if value is not None and name != "image_shape"
        )
        return table_of(type(self).__name__, rows, self._calls_shown())

    def _rows_shown(self) -> dict[str, str]:
        """Name → text of the rows between data and settings."""
        raise NotImplementedError

    def _calls_shown(self) -> Sequence[str]:
        """What can be called next."""
        raise NotImplementedError

    def _data_shown(self) -> str:
        layer = self.registry_[scvi_constants._SETUP_ARGS_KEY]["layer"]
        parts = ["X" if layer is None else f"layer {layer}"]
        if getattr(self, "modality_", None) is not None:
            parts.append(f"modality {self.modality_}")
        shape = self._module_kwargs["image_shape"]
        of_each = f"{len(self.get_var_names()):,} genes"
        if shape is not None:
            of_each = " × ".join(map(str, shape))
        n = "" if self.adata is None else f"{self.adata.n_obs:,} "
        what = f"{n}cells × {of_each}" if shape is None else f"{n}images of {of_each}"
        if getattr(self, "label_codes_", None) is not None:
            return f"{'' if self.adata is None else 'a sample, '}{what}, of a data module"
        if self.adata is None:
            return f"not loaded; {what}, {', '.join(parts)}"
        return f"{what}, {', '.join(parts)}"

    def _training_shown(self) -> str:
        if not self.is_trained_:
            return "not trained"
        epochs = f"epochs: {epochs_of(self)}; " if self.history else ""
        return f"trained; {epochs}seed {self.seed_}"


def epochs_of(model: ShowingMixin) -> str:
    """How long a model was trained, by stages where it has some; it must have a history."""
    n_epochs = len(model.history["elbo_train"])
    if not getattr(model.module, "has_mixture", False):
        return str(n_epochs)
    n_joint = len(model.history.get("kl_y_train", ()))
    return f"{n_epochs - n_joint} of pretraining, {n_joint} joint"


def table_of(title: str, rows: Mapping[str, str], calls: Sequence[str]) -> str:
    """A table as HTML without colours, which are the notebook's, light or dark.

    Parameters
    ----------
    title
        Above the table.
    rows
        Name → text. Any text is shown as it is, never as markup.
    calls
        Code, in a last row.
    """
    shown = {name: escape(text) for name, text in rows.items()}
    shown["go on with"] = "<br/>".join(f"<code>{escape(call)}</code>" for call in calls)
    body = "".join(
        f'<tr><th scope="row" style="{CELL}">{escape(name)}</th>'
        f'<td style="{CELL}">{text}</td></tr>'
        for name, text in shown.items()
    )
    # a page without a doctype would give tables a colour of their own
    table = f'<table style="color: inherit"><tbody>{body}</tbody></table>'
    return f"<div><strong>{escape(title)}</strong>{table}</div>"
