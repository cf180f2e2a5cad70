"""Do tested splits start a mixture of images better than Leiden? No mixture is trained here.

    SCGMVAE_DATA_DIR=... python benchmarks/studies/tested_images.py [--tasks fashion] [--seeds 0 1]

Both starts of the latent of one VAE, told K = 10, or 100 labels as *mnist-100* of ``images.py``.
ACC is how well the groups agree with the classes, one to one (labels: the share of the other
images that get the right one), *n_groups* the number of groups before labels name them, and
*seconds* what the start took after pretraining. Splits are tested on 20,000 images, of which all
figures of that start are; those of Leiden are of all images. A seed is one of the VAE's, and of
the draws.
"""

from __future__ import annotations

import sys
import time
from functools import partial
from pathlib import Path

import numpy as np
from sklearn.model_selection import train_test_split

from scgmvae.clustering.labels import partition_by_labels
from scgmvae.clustering.partition import by_size, initial_partition
from scgmvae.clustering.split_tree import STRENGTH
from scgmvae.metrics import clustering_scores
from scgmvae.train.cells import cells_to_start_from

sys.path.insert(0, str(Path(__file__).parents[1]))
from common import run_tasks
from image_start import K, pretrained
from images import LABEL, load

N_LABELLED = 100


def starts(seed: int, short: bool, *, name: str) -> list[dict[str, object]]:
    train, _ = load(name, short)
    model = pretrained(train, seed, short)
    z = model.get_latent_representation()
    classes = train.obs[LABEL].astype("category").cat.codes.to_numpy().astype(np.int64)
    everything = np.arange(train.n_obs)
    labelled, _ = train_test_split(
        everything, train_size=N_LABELLED, stratify=classes, random_state=seed
    )
    some = np.full(train.n_obs, -1)
    some[labelled] = classes[labelled]
    rows = []
    for told, labels in {"K = 10": np.full(train.n_obs, -1), "100 labels": some}.items():
        n_labels = int(labels.max()) + 1
        for start in ("leiden", "tested"):
            is_tested = start == "tested"
            chosen = cells_to_start_from(
                everything, labels, tests_splits=is_tested, on_disk=False, seed=seed
            )
            begin = time.perf_counter()
            if is_tested:
                tree, groups = model._grown_tree(chosen, z[chosen], None if n_labels else K, seed)
                if n_labels:
                    groups = tree.clusters(tree.height >= STRENGTH)[groups]
                groups = by_size(groups)
            else:
                groups = initial_partition(z[chosen], K, start, seed, straight=False)
            codes = groups
            if n_labels:
                known = labels[chosen]
                codes = partition_by_labels(z[chosen], groups, known, n_labels, K, False).component
            seconds = time.perf_counter() - begin
            row = {"told": told, "start": start, "seed": seed, "seconds": seconds}
            row["n_groups"] = len(np.unique(groups)) if is_tested else None
            hidden = labels[chosen] < 0
            right = codes == classes[chosen]
            scores = clustering_scores(classes[chosen], codes)
            row["ACC"] = float(right[hidden].mean()) if n_labels else scores["ACC"]
            rows.append(row)
    return rows


TASKS = {
    "fashion": partial(starts, name="fashion_mnist"),
    "mnist": partial(starts, name="mnist"),
}

if __name__ == "__main__":
    tasks = {task: (run, ["told", "start"]) for task, run in TASKS.items()}
    run_tasks("tested_images", __doc__.splitlines()[0], tasks)
