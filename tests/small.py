"""Settings with which a test can afford to train a model."""

# Small networks and minibatches: many steps in the few epochs that a test can afford.
NETWORK = {"n_hidden": 32, "n_latent": 5, "n_latent_w": 4}
TRAINING = {
    "max_epochs": 2,
    "pretrain_epochs": 2,
    "batch_size": 64,
    "accelerator": "cpu",
    "enable_progress_bar": False,
}
# Where a model only has to be trained, however badly.
QUICK = TRAINING | {"max_epochs": 1, "pretrain_epochs": 1, "start": "kmeans"}
