"""What vLLM's `SamplingParams` become of presets, and of values to be converted."""

import json

import numpy as np

from helpers.sampling import PRESETS, preset, sampling_params


def error_of(call, *args, **kwargs):
    try:
        call(*args, **kwargs)
    except Exception as error:
        return [type(error).__name__, str(error)]


presets = {name: preset(name) for name in PRESETS}
changed = preset("thinking", max_tokens=7, seed=3)
converted = sampling_params({"seed": "7", "top_k": np.int64(5), "stop": None})
result = {
    "presets": {
        name: [p.temperature, p.top_p, p.top_k, p.max_tokens]
        for name, p in presets.items()
    },
    "changed": [changed.max_tokens, changed.seed, changed.temperature],
    "converted": [converted.seed, converted.top_k, converted.temperature],
    "refused": [
        error_of(preset, "thinking", temperature=-1),
        error_of(sampling_params, {"seed": 1.5}),
        error_of(sampling_params, {"temprature": 1}),
    ],
}
print("\n" + json.dumps(result))
