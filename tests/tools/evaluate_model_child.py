"""Measure the embedded model on a few held-out problems of each kind."""

import json

from helpers.tiny_thinker import MODEL_DIR
from tools.tiny_thinker import evaluate

print(json.dumps(evaluate.evaluate(MODEL_DIR, count=25, seed=11)))
