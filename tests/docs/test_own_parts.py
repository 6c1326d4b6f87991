"""What the tutorial on parts of one's own says of the contract suites is true: its parts, its plugin, its command."""

import os
import re
import shlex
import subprocess
import sys
from pathlib import Path

HOME = Path(__file__).parents[2]


def test_the_parts_of_the_tutorial_pass_the_suites(tmp_path):
    page = (HOME / "docs" / "tutorials" / "12_your_own_parts.md").read_text()
    cells = re.findall(r"^```\{code-cell\} ipython3\n(.*?)^```", page, re.DOTALL | re.MULTILINE)
    parts = [cell for cell in cells if cell.startswith(("import", "@jax.jit", "def "))]
    assert len(parts) == 4
    own = "".join(parts).replace("import matplotlib.pyplot as plt\n", "")
    (tmp_path / "mine.py").write_text(own)
    (plugin,) = re.findall(r"^```python\n(.*?)^```", page, re.DOTALL | re.MULTILINE)
    (tmp_path / "my_suite.py").write_text(plugin)
    (command,) = re.findall(r"^```bash\n(.*?)^```", page, re.DOTALL | re.MULTILINE)
    words = shlex.split(command.replace("\\\n", " ").replace("PYTHONPATH=. python", sys.executable))
    files = [f"tests/contracts/test_{family}.py" for family in ("heuristics", "selections", "posteriors")]
    words = [word for given in words for word in (files if "{" in given else [given])]  # as a shell expands it
    environment = os.environ | {"PYTHONPATH": f"{HOME}{os.pathsep}{tmp_path}"}
    words += ["-rA", "-n", "0", "-p", "no:cacheprovider"]
    run = subprocess.run(words, cwd=HOME, env=environment, capture_output=True, text=True, check=False)
    assert run.returncode == 0, run.stdout[-3000:]
    counts = {
        name: len(re.findall(rf"PASSED .*\[{name}", run.stdout)) for name in ("resolved", "coin", "gaussian_means")
    }
    assert all(counts.values()), counts  # each was asked something
