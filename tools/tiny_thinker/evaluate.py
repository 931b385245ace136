"""Measure tiny-thinker: ``python -m tools.tiny_thinker.evaluate``.

Held-out problems and held-out wordings, sampled at temperature 0.6, top_p 0.95,
top_k 20 by vLLM. ``--card`` writes the result into the model card.
"""

import argparse
import datetime
import platform
import random
from pathlib import Path

from helpers.settings import load_settings
from helpers.tiny_thinker import MODEL_DIR
from tools.tiny_thinker import agreement
from tools.tiny_thinker.curriculum import TOPICS, Example, arithmetic, strange

TARGETS = {"addition": 0.97, "subtraction": 0.97, "known": 0.95}
SAMPLING = {"temperature": 0.6, "top_p": 0.95, "top_k": 20}
MAX_TOKENS = 1024
AGREEMENT_PROMPTS = 50


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


def generate(path: Path, questions: list[str], seed: int) -> list[str]:
    """One sampled completion a question by vLLM, special tokens kept."""
    load_settings().apply()
    from vllm import LLM, SamplingParams

    llm = LLM(
        str(path), dtype="float32", max_model_len=2048, enforce_eager=True, seed=seed
    )
    tokenizer = llm.get_tokenizer()
    prompts = [
        tokenizer.apply_chat_template(
            [{"role": "user", "content": question}],
            tokenize=False,
            add_generation_prompt=True,
        )
        for question in questions
    ]
    sampling = SamplingParams(
        **SAMPLING, max_tokens=MAX_TOKENS, skip_special_tokens=False
    )
    outputs = llm.generate(prompts, sampling)
    return [output.outputs[0].text for output in outputs]


def evaluate(path: Path, count: int, seed: int, show: int = 0) -> dict[str, float]:
    """Accuracy by kind (0 to 1), and the share with exactly one ``</think>``.

    Prints ``show`` mistakes of each kind.
    """
    from transformers import AutoTokenizer

    tokenizer = AutoTokenizer.from_pretrained(path)
    examples = problems(count, seed)
    texts = generate(path, [e.question for e in examples], seed)
    right: dict[str, list[bool]] = {}
    one_marker, lengths = [], []
    for example, text in zip(examples, texts, strict=True):
        thinking, _, answer = text.partition("</think>")
        correct = answer.strip() == example.answer
        of_kind = right.setdefault(example.kind, [])
        of_kind.append(correct)
        one_marker.append(text.count("</think>") == 1)
        lengths.append(len(tokenizer(thinking).input_ids))
        if not correct and of_kind.count(False) <= show:
            print(f"{example.kind}: {example.question!r} -> {text!r}")
    result = {kind: sum(v) / len(v) for kind, v in right.items()}
    result["exactly one </think>"] = sum(one_marker) / len(one_marker)
    for kind, value in result.items():
        number = len(right.get(kind, one_marker))
        print(f"{kind:>22}  {value:6.1%} of {number}")
    print(f"{'thinking tokens':>22}  {min(lengths)} to {max(lengths)}")
    return result


def write_card(path: Path, result: dict[str, float], count: int, seed: int) -> None:
    """Write the model card with this run's figures, and how far the engines agree."""
    rows = "\n".join(f"| {kind} | {value:.1%} |" for kind, value in result.items())
    shares = agreement.compare(path, AGREEMENT_PROMPTS, seed)
    engines = "\n".join(f"| {name} | {share:.0%} |" for name, share in shares.items())
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

- Made by `python -m tools.tiny_thinker.train`, seed 0.
- Prompt format: Qwen3-Thinking-2507's; the generation prompt ends with an opened
  `<think>`, the completion is thinking, one `</think>`, the answer, `<|im_end|>`.
- Recommended sampling: temperature 0.6, top_p 0.95, top_k 20.

## Measured

Held-out problems and wordings, sampled as recommended, up to {MAX_TOKENS} tokens:
`python -m tools.tiny_thinker.evaluate --count {count} --seed {seed} --card`
on {today}, {platform.machine()} CPU, float32.

| what | share right |
|---|---|
{rows}

The same run's greedy completions of {AGREEMENT_PROMPTS} prompts, held against those of
transformers in 32-bit, token by token (`python -m tools.tiny_thinker.agreement`
measures it alone); "unsloth" and "vllm" compute in 32-bit too, 4-bit is NF4:

| engine | share equal |
|---|---|
{engines}
""",
        encoding="utf-8",
    )


def main() -> int:
    """Evaluate; exit status 1 where a target is missed."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--model", type=Path, default=MODEL_DIR)
    parser.add_argument("--count", type=int, default=300, help="problems of each kind")
    parser.add_argument("--seed", type=int, default=1)
    parser.add_argument(
        "--show", type=int, default=0, help="print this many mistakes of each kind"
    )
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
