"""Networks and what they are built of: tensors in, tensors out.

Nothing here knows of AnnData, of scvi-tools' models or of the mixture's loss.
"""
