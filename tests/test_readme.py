"""The README's Python runs as it stands; one step of .ci/run does so with the compiler's settings that users have."""

import os
import re
import subprocess
import sys
from pathlib import Path

ROOT = Path(__file__).parents[1]


def test_the_code_of_the_readme_runs():
    blocks = re.findall(r"^```python\n(.*?)^```", (ROOT / "README.md").read_text(encoding="utf-8"), re.M | re.S)
    check = "assert infos.indices.tolist()[-1] == info.indices.tolist(), 'the scan is the Python loop'\n"
    check += "assert int(baal.pool.num_labelled(pool)) == 60 and many[1].indices.shape == (4, 3, 10)\n"
    environment = {name: value for name, value in os.environ.items() if name != "XLA_FLAGS"}
    environment |= {"PYTHONPATH": str(ROOT), "PYTHONWARNINGS": "error"}
    assert len(blocks) >= 2
    subprocess.run([sys.executable, "-c", "".join(blocks) + check], env=environment, check=True)
