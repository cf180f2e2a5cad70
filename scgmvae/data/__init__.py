"""From an AnnData to minibatches: what is registered, checked and cut into tensors."""
