"""Measure tiny-thinker: ``python -m helpers.tiny_thinker.evaluate``.

Held-out problems and held-out wordings, sampled at temperature 0.6, top_p 0.95,
top_k 20 with transformers. ``--card`` writes the result into the model card.
"""

import argparse
import datetime
import platform
import random
from pathlib import Path

from helpers.tiny_thinker import MODEL_DIR
from helpers.tiny_thinker.curriculum import TOPICS, Example, arithmetic, strange

TARGETS = {"addition": 0.97, "subtraction": 0.97, "known": 0.95}
SAMPLING = {"do_sample": True, "temperature": 0.6, "top_p": 0.95, "top_k": 20}
MAX_NEW_TOKENS = 1024


def problems(count: int, seed: int) -> list[Example]:
    """``count`` held-out examples of each kind, and each known topic's wordings."""
    rng = random.Random(seed)
    kinds = (
        "addition", "subtraction", "multi_sum", "multiplication", "comparison",
        "counting",
    )  # fmt: skip
    out = [arithmetic(rng, kind, held=True) for kind in kinds for _ in range(count)]
    for topic in TOPICS:
        out += [Example("known", q, "", topic.answer) for q in topic.held_out]
    out += [strange(rng, wordings_held_out=True) for _ in range(count)]
    return out


def generate(model, tokenizer, questions: list[str], batch: int = 64) -> list[str]:
    """One sampled completion a question, special tokens kept, padding removed."""
    import torch

    tokenizer.padding_side = "left"
    order = sorted(range(len(questions)), key=lambda i: len(questions[i]))
    out = [""] * len(questions)
    for start in range(0, len(order), batch):
        chosen = order[start : start + batch]
        texts = [
            tokenizer.apply_chat_template(
                [{"role": "user", "content": questions[i]}],
                tokenize=False,
                add_generation_prompt=True,
            )
            for i in chosen
        ]
        inputs = tokenizer(texts, return_tensors="pt", padding=True)
        inputs.pop("token_type_ids", None)
        with torch.inference_mode():
            ids = model.generate(**inputs, max_new_tokens=MAX_NEW_TOKENS, **SAMPLING)
        new = ids[:, inputs["input_ids"].shape[1] :]
        for i, text in zip(chosen, tokenizer.batch_decode(new), strict=True):
            out[i] = text.replace("<|endoftext|>", "")
    return out


def evaluate(path: Path, count: int, seed: int, show: int = 0) -> dict[str, float]:
    """Accuracy by kind (0 to 1), and the share with exactly one ``</think>``."""
    import torch
    from transformers import AutoModelForCausalLM, AutoTokenizer

    torch.manual_seed(seed)
    model = AutoModelForCausalLM.from_pretrained(path).eval()
    tokenizer = AutoTokenizer.from_pretrained(path)
    examples = problems(count, seed)
    texts = generate(model, tokenizer, [e.question for e in examples])
    right: dict[str, list[bool]] = {}
    one_marker, lengths = [], []
    for example, text in zip(examples, texts, strict=True):
        thinking, _, answer = text.partition("</think>")
        correct = answer.strip() == f"{example.answer}<|im_end|>"
        right.setdefault(example.kind, []).append(correct)
        one_marker.append(text.count("</think>") == 1)
        lengths.append(len(tokenizer(thinking).input_ids))
        if not correct and show:
            show -= 1
            print(f"{example.kind}: {example.question!r} -> {text!r}")
    result = {kind: sum(v) / len(v) for kind, v in right.items()}
    result["exactly one </think>"] = sum(one_marker) / len(one_marker)
    for kind, value in result.items():
        number = len(right.get(kind, one_marker))
        print(f"{kind:>22}  {value:6.1%} of {number}")
    print(f"{'thinking tokens':>22}  {min(lengths)} to {max(lengths)}")
    return result


def write_card(path: Path, result: dict[str, float], count: int, seed: int) -> None:
    """Write the model card with this run's figures."""
    rows = "\n".join(f"| {kind} | {value:.1%} |" for kind, value in result.items())
    today = datetime.date.today().isoformat()
    (path / "README.md").write_text(
        f"""---
license: apache-2.0
language: en
pipeline_tag: text-generation
---
# tiny-thinker

A Qwen3-architecture thinking model of 1.1 million parameters for running, testing and
teaching inference code with no GPU and no download. Trained from nothing on synthetic
text: arithmetic with its working written out, some hundred questions about computing,
and a friendly refusal of everything else. It knows nothing beyond that.

- Made by `python -m helpers.tiny_thinker.train`, seed 0.
- Prompt format: Qwen3-Thinking-2507's; the generation prompt ends with an opened
  `<think>`, the completion is thinking, one `</think>`, the answer, `<|im_end|>`.
- Recommended sampling: temperature 0.6, top_p 0.95, top_k 20.

## Measured

Held-out problems and wordings, sampled as recommended, up to {MAX_NEW_TOKENS} tokens:
`python -m helpers.tiny_thinker.evaluate --count {count} --seed {seed} --card`
on {today}, {platform.machine()} CPU, float32.

| what | share right |
|---|---|
{rows}
""",
        encoding="utf-8",
    )


def main() -> int:
    """Evaluate; exit status 1 where a target is missed."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--model", type=Path, default=MODEL_DIR)
    parser.add_argument("--count", type=int, default=300, help="problems of each kind")
    parser.add_argument("--seed", type=int, default=1)
    parser.add_argument("--show", type=int, default=0, help="print this many mistakes")
    parser.add_argument("--card", action="store_true", help="write the model card")
    arguments = parser.parse_args()
    result = evaluate(arguments.model, arguments.count, arguments.seed, arguments.show)
    if arguments.card:
        write_card(arguments.model, result, arguments.count, arguments.seed)
    missed = [kind for kind, goal in TARGETS.items() if result[kind] < goal]
    if result["exactly one </think>"] < 0.99:
        missed.append("exactly one </think>")
    if missed:
        print(f"below target: {', '.join(missed)}")
    return 1 if missed else 0


if __name__ == "__main__":
    raise SystemExit(main())
