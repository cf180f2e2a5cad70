"""Data for examples, tests and benchmarks.

=========================  ===============================================================
:func:`pbmc68k_reduced`    real UMI counts of 700 blood cells, without a download
:func:`load`               an ``.h5ad`` or ``.h5mu`` file of a local collection, by its name
:func:`blobs`              Gaussian classes, the same in every condition up to a shift
:func:`synthetic_counts`   negative-binomial counts with known components, batches, conditions
:func:`synthetic_multiome` counts and open chromatin of the same cells, or of some of them
:func:`two_photon`         images of sharp sectors over diffuse light, both known
:func:`digits`             1,797 handwritten digits of 8 × 8 pixels, without a download
:func:`mnist`              70,000 handwritten digits of 28 × 28 pixels
:func:`fashion_mnist`      70,000 articles of clothing of 28 × 28 pixels
:func:`cifar10`            60,000 colour photographs of 32 × 32 pixels
:func:`images_to_anndata`  any array of images in the same form
=========================  ===============================================================

The simulators draw from their own generator, made from ``seed``; equal arguments give equal data.
Counts are neither filtered, normalised nor scaled: this is left to scanpy. Images are rows of
pixels, uint8 (v stands for v / 255), float32 in [0, 1] or, of microscopy, float32 in photons, of
the shape ``uns["image_shape"]``.

The environment variable ``SCGMVAE_DATA_DIR`` names a folder of local files; images that are not
there are downloaded once and kept in the user's cache.
"""

from scgmvae.datasets.images import cifar10, digits, fashion_mnist, images_to_anndata, mnist
from scgmvae.datasets.local import load, pbmc68k_reduced
from scgmvae.datasets.microscopy import two_photon
from scgmvae.datasets.multiome import synthetic_multiome
from scgmvae.datasets.simulated import blobs, synthetic_counts

__all__ = [
    "blobs",
    "cifar10",
    "digits",
    "fashion_mnist",
    "images_to_anndata",
    "load",
    "mnist",
    "pbmc68k_reduced",
    "synthetic_counts",
    "synthetic_multiome",
    "two_photon",
]
