"""The model that users meet: an AnnData in, training, results out and written back."""
