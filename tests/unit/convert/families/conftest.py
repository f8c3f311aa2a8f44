"""The float64 oracle of the kernel tests is the one for whole families too."""

import sys
from pathlib import Path

sys.path.append(str(Path(__file__).parents[3] / "kernels"))
