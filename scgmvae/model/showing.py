"""Display of a model: as text in a console, as a table in a notebook."""

from __future__ import annotations

from html import escape
from typing import TYPE_CHECKING

from scgmvae.model.registration import Registration

if TYPE_CHECKING:
    from collections.abc import Mapping, Sequence

__all__ = ["Showing", "table_of"]

CELL = "text-align: left; vertical-align: top; padding: 0.2em 1em 0.2em 0.2em"
"""Style of the table's cells: Jupyter aligns them right, and plain pages leave no gaps."""


class Showing(Registration):
    """``repr`` and the table that notebooks show."""

    def __repr__(self) -> str:
        # scvi-tools prints here, so a notebook would show the text above the table
        return self.summary_string

    def _repr_html_(self) -> str:
        if self.module is None:
            calls = ["model.train(datamodule=datamodule)"]
            return table_of(type(self).__name__, {"data": "none until it is trained"}, calls)
        rows = {"data": self._data_shown()} | self._rows_shown()
        rows["settings"] = ", ".join(
            f"{name}={value!r}"
            for name, value in self._module_kwargs.items()
            if value is not None and name != "image_shape"
        )
        return table_of(type(self).__name__, rows, self._calls_shown())

    # ------------------------------------------------------------ what each model fills in

    def _rows_shown(self) -> dict[str, str]:
        """Name → text of the rows between data and settings."""
        raise NotImplementedError

    def _calls_shown(self) -> Sequence[str]:
        """Code that can be called next."""
        raise NotImplementedError

    def _places_shown(self) -> list[str]:
        """Place of the values in the data."""
        layer = self._setup.layer
        return ["X" if layer is None else f"layer {layer}"]

    def _epochs_shown(self) -> str:
        """Number of epochs of the training; the model must have a history."""
        return str(len(self.history["elbo_train"]))

    # --------------------------------------------------------------------------- the parts

    def _matrix_shown(self) -> str:
        """Size of the data, as far as it is known."""
        shape = self._module_kwargs["image_shape"]
        n = "" if self.adata is None else f"{self.adata.n_obs:,} "
        if shape is None:
            return f"{n}cells × {len(self.get_var_names()):,} genes"
        return f"{n}images of {' × '.join(map(str, shape))}"

    def _data_shown(self) -> str:
        shown = ", ".join([self._matrix_shown(), *self._places_shown()])
        return f"not loaded; {shown}" if self.adata is None else shown

    def _training_shown(self) -> str:
        if not self.is_trained_:
            return "not trained"
        epochs = f"epochs: {self._epochs_shown()}; " if self.history else ""
        return f"trained; {epochs}seed {self.seed_}"


def table_of(title: str, rows: Mapping[str, str], calls: Sequence[str]) -> str:
    """HTML table without colours of its own, so that it suits light and dark notebooks.

    Parameters
    ----------
    title
        Title above the table.
    rows
        Name → text of each row. Any text is shown as it is, never as markup.
    calls
        Code that the last row shows.
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
