"""Measure tiny-thinker: ``python -m tools.tiny_thinker.evaluate``.

Held-out problems and held-out wordings, sampled at temperature 0.6, top_p 0.95,
top_k 20 by vLLM. ``--card`` writes the result into the model card.
"""

import argparse
import collections
import datetime
import json
import operator
import platform
import random
from collections.abc import Sequence
from pathlib import Path
from typing import Any

from helpers.internals.machine.settings import load_settings
from helpers.models import TINY_THINKER_DIRECTORY
from tools.tiny_thinker import agreement
from tools.tiny_thinker.chat import second_turn, wish, with_tools
from tools.tiny_thinker.curriculum import TOPICS, Example, arithmetic, strange
from tools.tiny_thinker.mix import prompt_text
from tools.tiny_thinker.skills import TERMS, as_json, echo, in_the_head, schema

ARITHMETIC = (
    "addition", "subtraction", "multi_sum", "multiplication", "comparison", "counting",
)  # fmt: skip
SKILLS = ("JSON", "tool call", "tool result", "no tool", "short", "name", "second turn")
# The least share (0 to 1) that must be right; `main` fails below it.
TARGETS = {
    "addition": 0.99, "subtraction": 0.99, "known": 0.95, "exactly one </think>": 0.99,
    "JSON with a schema, valid": 0.95, "JSON with a schema": 0.90,
    **dict.fromkeys(SKILLS, 0.9),
}  # fmt: skip
SAMPLING = {"temperature": 0.6, "top_p": 0.95, "top_k": 20}
MAX_TOKENS = 1024
AGREEMENT_PROMPTS = 50
VOTES = 16


def problems(count: int, seed: int) -> list[Example]:
    """Make ``count`` held-out examples of each kind, and all topics' wordings."""
    rng = random.Random(seed)
    out = [
        arithmetic(rng, kind, held=True) for kind in ARITHMETIC for _ in range(count)
    ]
    for topic in TOPICS:
        out += [Example("known", q, "", topic.answer) for q in topic.held_out]
    out += [strange(rng, wordings_held_out=True) for _ in range(count)]
    out += [echo(rng, held=True) for _ in range(count)]
    for kind in ("addition", "known"):
        same = [e for e in out if e.kind == kind][:count]
        at_once = f"{kind}, without thinking"
        out += [e._replace(kind=at_once, thinking=None) for e in same]
    wanted = collections.Counter(dict.fromkeys(SKILLS, count))
    while wanted.total():
        example = rng.choice((as_json, with_tools, wish, second_turn))(rng, held=True)
        if wanted[example.kind] > 0:
            wanted[example.kind] -= 1
            out.append(example)
    return out


class Asked:
    """The model in vLLM, asked as its card recommends."""

    def __init__(self, path: Path, seed: int) -> None:
        load_settings().apply()
        from vllm import LLM

        self.llm = LLM(
            str(path),
            dtype="float32",
            max_model_len=2048,
            enforce_eager=True,
            seed=seed,
        )

    def __call__(
        self, prompts: Sequence[str], settings: Any = None, **sampling: Any
    ) -> list[list[str]]:
        """Return the completions of each prompt, special tokens kept."""
        from vllm import SamplingParams

        chosen = SAMPLING | {"max_tokens": MAX_TOKENS} | sampling
        parameters = [
            SamplingParams(**chosen, skip_special_tokens=False, **each)
            for each in settings or [{}] * len(prompts)
        ]
        outputs = self.llm.generate(prompts, parameters)
        return [[one.text for one in output.outputs] for output in outputs]


def with_schema(ask: Asked, count: int, seed: int) -> tuple[float, float]:
    """Return the shares (0 to 1) of valid and right JSON after thinking."""
    from vllm.sampling_params import StructuredOutputsParams

    rng = random.Random(seed)
    examples = [as_json(rng, held=True, form="schema") for _ in range(count)]
    prompts = [prompt_text(example) for example in examples]
    thoughts = [texts[0] for texts in ask(prompts, stop="</think>")]
    prompts = [
        f"{prompt}{thought.rstrip()}\n</think>\n\n"
        for prompt, thought in zip(prompts, thoughts, strict=True)
    ]
    wanted = [json.loads(example.answer) for example in examples]
    settings = [
        {"structured_outputs": StructuredOutputsParams(json=schema(fields))}
        for fields in wanted
    ]
    answers = [_parsed(texts[0]) for texts in ask(prompts, settings)]
    right = map(operator.eq, answers, wanted)
    return sum(a is not None for a in answers) / count, sum(right) / count


def votes(ask: Asked, count: int, seed: int) -> dict[str, float]:
    """Sums in the head: the share right of single samples, and of a vote, by length."""
    rng, result = random.Random(seed), {}
    for terms in TERMS:
        examples = [in_the_head(rng, True, terms) for _ in range(count)]
        completions = ask([prompt_text(e) for e in examples], n=VOTES)
        answers = [[_answer(text) for text in texts] for texts in completions]
        pairs = list(zip(answers, (e.answer for e in examples), strict=True))
        single = sum(row.count(right) for row, right in pairs)
        voted = sum(
            collections.Counter(row).most_common(1)[0][0] == right
            for row, right in pairs
        )
        result[f"{terms} terms in the head, one sample"] = single / count / VOTES
        result[f"{terms} terms in the head, a vote of {VOTES}"] = voted / count
    return result


def _answer(text: str) -> str:
    return text.rpartition("</think>")[2].replace("<|im_end|>", "").strip()


def _parsed(text: str) -> Any:
    try:
        return json.loads(text.replace("<|im_end|>", ""))
    except ValueError:
        return None


def evaluate(path: Path, count: int, seed: int, show: int = 0) -> dict[str, float]:
    """Measure accuracy by kind (0 to 1), and the share with exactly one ``</think>``.

    Prints ``show`` mistakes of each kind.
    """
    ask = Asked(path, seed)
    examples = problems(count, seed)
    completions = ask([prompt_text(example) for example in examples])
    right: dict[str, list[bool]] = {}
    for example, (text,) in zip(examples, completions, strict=True):
        correct = _answer(text) == example.answer
        if example.kind == "JSON":
            correct = _parsed(_answer(text)) == json.loads(example.answer)
        of_kind = right.setdefault(example.kind, [])
        of_kind.append(correct)
        if not correct and of_kind.count(False) <= show:
            print(f"{example.kind}: {example.question!r} -> {text!r}")
    result = {kind: sum(v) / len(v) for kind, v in right.items()}
    valid, result["JSON with a schema"] = with_schema(ask, count, seed)
    result["JSON with a schema, valid"] = valid
    result |= votes(ask, count, seed)
    closed = [
        text.count("</think>") == (example.thinking is not None)
        for example, (text,) in zip(examples, completions, strict=True)
    ]
    result["exactly one </think>"] = sum(closed) / len(closed)
    for kind, value in result.items():
        print(f"{kind:>36}  {value:6.1%} of {len(right.get(kind, [])) or count}")
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
answers as JSON, two tools, wishes of a system prompt, second turns, and a friendly
refusal of everything else. It knows nothing beyond that.

- Made by `python -m tools.tiny_thinker.train`, seed 1; 2 million tokens more
  (`--start`, seed 2) taught it nineteen more wordings of what it can't answer.
- Prompt format: Qwen3-Thinking-2507's; the generation prompt ends with an opened
  `<think>`, the completion is thinking, one `</think>`, the answer, `<|im_end|>`. With
  `enable_thinking=False` the prompt closes the thinking too, as for Qwen3.
- Tools are defined and called in OpenAI's format in messages, and written by the model
  as Qwen3 writes them: `<tool_call>`, a line of JSON, `</tool_call>`.
- Sums "in the head" were taught with slips: one sample is often wrong, a vote is not.
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
    parser.add_argument("--model", type=Path, default=TINY_THINKER_DIRECTORY)
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
    if missed:
        print(f"below target: {', '.join(missed)}")
    return 1 if missed else 0


if __name__ == "__main__":
    raise SystemExit(main())
