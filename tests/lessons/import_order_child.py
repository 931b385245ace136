"""Import transformers before the loading code; what is warned of, and printed?"""

import json
import sys
import warnings

import transformers  # noqa: F401

with warnings.catch_warnings(record=True) as caught:
    warnings.simplefilter("always")
    from helpers import FastLanguageModel
    from helpers.loading import FastLanguageModel as again

told = [w for w in caught if w.category.__name__ == "ImportOrderWarning"]
result = {
    "messages": [str(warning.message) for warning in told],
    "same": FastLanguageModel is again,
    "unsloth": "unsloth" in sys.modules,
}
print()
print(json.dumps(result))
