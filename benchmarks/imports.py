"""Time of ``import scgmvae``, which imports scvi-tools, as a multiple of that of ``import scvi``.

    python benchmarks/imports.py

Both in one process, one after the other, and a new process for every repeat; medians. Processor
seconds are counted, as other work may keep the machine busy.
"""

from __future__ import annotations

import argparse
import json
import subprocess
import sys
from pathlib import Path

import pandas as pd
from common import write

SCRIPT = """
import json, time
times = [time.process_time()]
import scvi
times.append(time.process_time())
import scgmvae
times.append(time.process_time())
print(json.dumps(times))
"""


def processor_seconds() -> dict[str, float]:
    """Of a new process: ``import scvi``, and what ``import scgmvae`` takes with it."""
    run = subprocess.run(
        [sys.executable, "-c", SCRIPT], check=True, capture_output=True, text=True
    )
    start, with_scvi, with_both = json.loads(run.stdout.splitlines()[-1])
    return {"scvi": with_scvi - start, "scgmvae": with_both - start}


def measure(repeats: int) -> pd.DataFrame:
    runs = pd.DataFrame([processor_seconds() for _ in range(repeats)])
    ratios = runs.div(runs["scvi"], axis=0)
    return pd.DataFrame({"seconds": runs.median(), "ratio": ratios.median()}).rename_axis(
        "package"
    )


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
