"""tiny-thinker: the thinking model of about a million parameters that ships here.

``model/`` is what ``python -m tools.tiny_thinker.train`` wrote.
"""

from pathlib import Path

MODEL_DIR = Path(__file__).parent / "model"
