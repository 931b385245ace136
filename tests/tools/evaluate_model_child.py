"""Measure the embedded model on a few held-out problems of each kind."""

import json

from helpers.models import TINY_THINKER_DIRECTORY
from tools.tiny_thinker import evaluate

print(json.dumps(evaluate.evaluate(TINY_THINKER_DIRECTORY, count=25, seed=11)))
