"""tiny-thinker: the thinking model of about a million parameters that ships here.

``curriculum`` makes the problems and the texts, ``train`` makes the weights from
nothing, ``evaluate`` measures them, ``model/`` is what those commands wrote.
"""

from pathlib import Path

MODEL_DIR = Path(__file__).parent / "model"
