"""Puts tests/ on the path, so that every test can import `checkpoints`."""

import sys
from pathlib import Path

sys.path.append(str(Path(__file__).parent))
