"""What tests of refused input share: faulty data, and that every call is made twice.

Each function changes the AnnData that it is given, and returns it.
"""

from scipy import sparse

# Whoever runs a cell of a notebook again must be told again: a refused call is made twice.
TWICE = range(2)


def with_matrix(adata, x):
    """The data with another matrix."""
    adata.X = x
    return adata


def with_value(adata, value):
    """The data with a value in place of the count of cell 3 and gene 4."""
    x = adata.X.toarray()
    x[3, 4] = value
    return with_matrix(adata, sparse.csr_matrix(x))


def without_counts(adata):
    """The data with a cell, that in row 7, that has no counts."""
    x = adata.X.toarray()
    x[7] = 0
    return with_matrix(adata, sparse.csr_matrix(x))


def with_column(adata, name, values):
    """The data with an obs column, new or in place of another."""
    adata.obs[name] = values
    return adata


def with_one_entry(adata, column, row, value):
    """The data with another value in one row of an obs column."""
    values = adata.obs[column].astype(object)
    values.iloc[row] = value
    return with_column(adata, column, values)


def with_two_cells_of_one_name(adata):
    """The data with ``twice`` as the name of the first two cells."""
    adata.obs_names = ["twice", "twice", *adata.obs_names[2:]]
    return adata


def with_two_genes_of_one_name(adata):
    """The data with ``twice`` as the name of the first two genes."""
    adata.var_names = ["twice", "twice", *adata.var_names[2:]]
    return adata
