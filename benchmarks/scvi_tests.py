"""Which of scvi-tools' own tests of SCVI pass when SCGMVAE takes its place.

    pip download --no-deps --no-binary :all: scvi-tools==1.4.2
    tar xf scvi_tools-1.4.2.tar.gz
    python benchmarks/scvi_tests.py scvi_tools-1.4.2

The version must be the one that is installed. The tests are run twice, of SCVI and with
``from scgmvae import SCGMVAE as SCVI`` in place of its import. One that needs a GPU or a package
that is not there is skipped.
"""

from __future__ import annotations

import argparse
import subprocess
import sys
import tempfile
from pathlib import Path
from xml.etree import ElementTree

import pandas as pd
import scvi
from common import write

TEST_FILE = Path("tests/model/test_scvi.py")
IMPORTS = {
    "SCVI": "from scvi.model import SCVI",
    "SCGMVAE": "from scgmvae import SCGMVAE as SCVI",
}


def outcomes(source: Path, import_line: str) -> dict[str, str]:
    """Test → what came out of it, for the tests with another import."""
    text = (source / TEST_FILE).read_text()
    if IMPORTS["SCVI"] not in text:
        raise ValueError(f"{source / TEST_FILE} does not have the line {IMPORTS['SCVI']!r}.")
    # beside the original, because its tests import from one another
    changed = source / TEST_FILE.with_name("test_in_its_place.py")
    changed.write_text(text.replace(IMPORTS["SCVI"], import_line))
    with tempfile.TemporaryDirectory() as folder:
        report = Path(folder) / "report.xml"
        options = ["-q", "-p", "no:cacheprovider", "-W", "ignore", f"--junit-xml={report}"]
        try:
            subprocess.run(
                [sys.executable, "-m", "pytest", *options, changed.relative_to(source)],
                cwd=source,
                stdout=subprocess.DEVNULL,
            )
        finally:
            changed.unlink()
        cases = ElementTree.parse(report).iter("testcase")
        return {case.get("name"): _outcome(case) for case in cases}


def _outcome(case: ElementTree.Element) -> str:
    found = {child.tag for child in case}
    if "skipped" in found:
        return "skipped"
    return "failed" if found & {"failure", "error"} else "passed"


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.split("\n")[0])
    parser.add_argument("source", type=Path, help="folder of the unpacked scvi-tools")
    parser.add_argument("--out", type=Path, default=Path(__file__).parent / "results")
    args = parser.parse_args()
    source = args.source.resolve()
    table = pd.DataFrame({name: outcomes(source, line) for name, line in IMPORTS.items()})
    rows = table.rename_axis("test").reset_index()
    write(args.out / f"scvi_tests-{scvi.__version__}.json", rows, script="scvi_tests.py")
    print(table[(table["SCGMVAE"] == "failed")].to_string())
    print(table.apply(pd.Series.value_counts).fillna(0).astype(int).to_string())


if __name__ == "__main__":
    main()
