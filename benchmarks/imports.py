"""Time of importing scgmvae with scvi-tools, and of the help of the command line.

    python benchmarks/imports.py

Both imports are in one process, one after the other; the help is a process of its own. A new
process for every repeat; medians. Processor seconds are counted, as other work may keep the
machine busy.
"""

from __future__ import annotations

import argparse
import subprocess
import sys
from pathlib import Path

import pandas as pd
from common import write

IMPORTS = """
import time
begin = time.process_time()
import scvi
with_scvi = time.process_time()
from scgmvae import SCGMVAE, datasets, metrics, pl
print(with_scvi - begin, time.process_time() - begin)
"""
HELP = """
import time
from scgmvae.cli import main
try:
    main(["--help"])
finally:
    print()
    print(time.process_time())
"""


def processor_seconds() -> dict[str, float]:
    """Of new processes: ``import scvi``, that and scgmvae, and ``scgmvae --help``."""
    with_scvi, with_both = _last_line(IMPORTS).split()
    seconds = {"import scvi": with_scvi, "import scgmvae": with_both}
    return {k: float(v) for k, v in (seconds | {"scgmvae --help": _last_line(HELP)}).items()}


def _last_line(script: str) -> str:
    run = subprocess.run(
        [sys.executable, "-c", script], check=True, capture_output=True, text=True
    )
    return run.stdout.splitlines()[-1]


def measure(repeats: int) -> pd.DataFrame:
    runs = pd.DataFrame([processor_seconds() for _ in range(repeats)])
    ratios = runs.div(runs["import scvi"], axis=0)
    return pd.DataFrame({"seconds": runs.median(), "ratio": ratios.median()}).rename_axis("what")


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.split("\n")[0])
    parser.add_argument("--repeats", type=int, default=7)
    parser.add_argument("--out", type=Path, default=Path(__file__).parent / "results")
    parser.add_argument("--short", action="store_true")
    args = parser.parse_args()
    table = measure(1 if args.short else args.repeats).reset_index()
    write(args.out / "imports.json", table, script="imports.py", short=args.short)
    print(table.round(3).to_string(index=False))


if __name__ == "__main__":
    main()
