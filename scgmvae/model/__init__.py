"""The models that users work with: they read an AnnData, train, and return or write results."""
