"""Do the engines write the same? ``python -m tools.tiny_thinker.agreement``.

Greedy completions of the same prompts from transformers, Unsloth and vLLM in 32-bit,
which must be equal token by token, and from Unsloth in 16-bit and in 4-bit, whose
rounding is allowed to change them: the share that it left equal is printed.
"""

import argparse
import json
import random
import subprocess
import sys
from pathlib import Path

from helpers.models import TINY_THINKER_DIRECTORY
from tools.tiny_thinker.mix import prompt_text, sample

MAX_TOKENS = 200
# Plain transformers has a process of its own, where Unsloth has patched nothing.
_PROCESSES = (("transformers",), ("unsloth", "vllm", "unsloth 16-bit", "unsloth 4-bit"))


def prompts(count: int, seed: int) -> list[str]:
    """Make ``count`` prompts as the chat template writes them, of all kinds."""
    rng = random.Random(seed)
    return [prompt_text(sample(rng)) for _ in range(count)]


def greedy(path: Path, engine: str, texts: list[str]) -> list[list[int]]:
    """Return one engine's greedy token ids, up to ``MAX_TOKENS`` for each prompt."""
    import torch

    if engine == "transformers":
        from transformers import AutoModelForCausalLM, AutoTokenizer

        model = AutoModelForCausalLM.from_pretrained(path, dtype=torch.float32).eval()
        tokenizer = AutoTokenizer.from_pretrained(path)
    else:
        from helpers.loading import FastLanguageModel

        model, tokenizer = FastLanguageModel.from_pretrained(
            str(path),
            max_seq_length=2048,
            load_in_4bit="4-bit" in engine,
            dtype=torch.bfloat16 if "16-bit" in engine else torch.float32,
            fast_inference=engine == "vllm",
        )
        FastLanguageModel.for_inference(model)
    if engine == "vllm":
        from vllm import SamplingParams

        sampling = SamplingParams(temperature=0, max_tokens=MAX_TOKENS)
        outputs = model.fast_generate(texts, sampling_params=sampling)
        return [list(output.outputs[0].token_ids) for output in outputs]
    tokenizer.padding_side = "left"
    inputs = tokenizer(texts, return_tensors="pt", padding=True).to(model.device)
    with torch.inference_mode():
        ids = model.generate(**inputs, max_new_tokens=MAX_TOKENS, do_sample=False)
    completions = ids[:, inputs["input_ids"].shape[1] :].tolist()
    return [[i for i in row if i != tokenizer.pad_token_id] for row in completions]


def compare(path: Path, count: int, seed: int) -> dict[str, float]:
    """Return the share (0 to 1) of completions like those of transformers."""
    completions: dict[str, list[list[int]]] = {}
    for engines in _PROCESSES:
        command = [
            sys.executable,
            "-m",
            "tools.tiny_thinker.agreement",
            "--model",
            str(path),
        ]
        command += ["--count", str(count), "--seed", str(seed), "--of", *engines]
        printed = subprocess.run(
            command, check=True, stdout=subprocess.PIPE, text=True
        ).stdout
        completions |= json.loads(printed.splitlines()[-1])
    reference = completions.pop("transformers")
    return {
        engine: sum(map(list.__eq__, rows, reference)) / count
        for engine, rows in completions.items()
    }


def main() -> int:
    """Compare; exit status 1 where vLLM or Unsloth in 32-bit differ."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--model", type=Path, default=TINY_THINKER_DIRECTORY)
    parser.add_argument("--count", type=int, default=50, help="prompts")
    parser.add_argument("--seed", type=int, default=21)
    parser.add_argument("--of", nargs="+", metavar="ENGINE", help="its tokens, as JSON")
    arguments = parser.parse_args()
    if arguments.of:
        texts = prompts(arguments.count, arguments.seed)
        print(json.dumps({e: greedy(arguments.model, e, texts) for e in arguments.of}))
        return 0
    shares = compare(arguments.model, arguments.count, arguments.seed)
    for engine, share in shares.items():
        print(f"{engine:>15}  {share:6.1%} of {arguments.count} as transformers")
    return 0 if shares["unsloth"] == shares["vllm"] == 1 else 1


if __name__ == "__main__":
    raise SystemExit(main())
