"""No command imports pandas, which takes 0.2 s where it is installed: pyarrow does so for some conversions."""

import os
import subprocess
import sys

import pytest

pytestmark = pytest.mark.system

CSV = "time_ns,op,domain,block,size,address,site\n0,malloc,libc,1,100,4096,\n5,malloc,obj,2,24,,\n9,free,obj,2,,,\n"
PROGRAM = """
import sys
from typer.testing import CliRunner
from replay.__main__ import app

for command in sys.argv[1:]:
    result = CliRunner().invoke(app, command.split())
    assert result.exit_code == 0, result.output
"""


@pytest.fixture
def pandas_folder(tmp_path):
    """A folder with a package `pandas` that leaves a file when it is imported."""
    package = tmp_path / "modules" / "pandas"
    package.mkdir(parents=True)
    lines = ["import pathlib", "pathlib.Path(__file__).with_name('imported').touch()", "raise ImportError(__name__)"]
    (package / "__init__.py").write_text("\n".join(lines))
    return package


def test_no_command_imports_pandas(pandas_folder, tmp_path):
    (tmp_path / "trace.csv").write_text(CSV)
    commands = [
        "import trace.csv -o trace.parquet",
        "run trace.parquet --addresses addresses.parquet --out results --sample 1ns",
        "trace info trace.parquet --full",
        "trace head trace.parquet",
        "trace merge trace.parquet trace.csv -o merged.parquet",
        "check trace.parquet -t syscalls<=1000 --history history.parquet",
        "history history.parquet",
        "sweep trace.parquet --grid glibc.top_pad=0,4096 --out sweep --csv",
        "export trace.parquet --to parquet -o tables",
        "pins trace.parquet",
        "record -o recorded.parquet -c pass",
    ]
    environment = os.environ | {"PYTHONPATH": str(pandas_folder.parent)}
    subprocess.run([sys.executable, "-c", PROGRAM, *commands], cwd=tmp_path, env=environment, check=True)
    assert not (pandas_folder / "imported").exists()
