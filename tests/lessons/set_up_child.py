"""Set a notebook up with each model that is named, and print what was found as JSON."""

import json
import os
import sys

from helpers import set_up

FIELDS = (
    "model_name",
    "load_in_4bit",
    "device",
    "device_name",
    "is_noise",
    "max_tokens",
    "text_model",
)

found = []
for name in sys.argv[1:]:
    os.environ["MODEL_NAME"] = name
    setup = set_up()
    found.append(
        {field: getattr(setup, field) for field in FIELDS}
        | {"sampling": dict(setup.sampling), "line": repr(setup)}
    )
print(json.dumps({"setups": found, "unsloth": "unsloth" in sys.modules}))
