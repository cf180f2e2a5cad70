"""The short forms of the benchmarks of images, and of what was made with images, run through."""

import pytest


@pytest.mark.parametrize(
    ("script", "results"),
    [
        pytest.param("estimators.py", {"estimators": (4, None)}, id="estimators"),
        pytest.param(
            # one task of each kind
            "images.py --tasks mnist-20 mnist-100 fashion-10pct vae cifar speed",
            {
                "images-mnist-20": (1, "ACC"),
                "images-mnist-100": (1, "ACC"),
                "images-fashion-10pct": (1, "ACC"),
                "images-vae": (2, None),
                "images-cifar": (2, None),
                "images-speed": (1, None),
            },
            id="images",
        ),
        pytest.param(
            "studies/image_start.py",
            {
                "image_start-fashion": (24, "ACC"),
                "image_start-mnist": (24, "ACC"),
                "image_start-mnist-uneven": (24, "ACC"),
            },
            id="image_start",
        ),
        pytest.param(
            "dual.py",
            {
                "dual-separation": (4, "sectors"),
                "dual-interactions": (3, "sectors"),
                "dual-strengths": (4, "sectors"),
            },
            id="dual",
        ),
        pytest.param(
            "studies/ambient.py",
            {"ambient-10pct": (4, "specificity"), "ambient-20pct": (4, "specificity")},
            id="ambient",
        ),
    ],
)
def test_a_benchmark_writes_its_rows_with_machine_and_versions(script, results, check_benchmark):
    check_benchmark(script, results)
