"""The training examples: every kind in its proportion, in the context of a chat."""

import random
from pathlib import Path

from tools.tiny_thinker.chat import second_turn, wish, with_tools
from tools.tiny_thinker.curriculum import Example, arithmetic, known, strange
from tools.tiny_thinker.skills import as_json, echo, in_the_head

CHAT_TEMPLATE = (Path(__file__).parent / "chat_template.jinja").read_text("utf-8")
# Prompts of a system that ask for nothing: they change no answer.
SYSTEMS = (
    "You are a helpful assistant.",
    "You are a careful tutor.",
    "Be friendly.",
    "You help with sums and computing.",
)
ARITHMETIC = {
    "addition": 0.08, "subtraction": 0.11, "multi_sum": 0.035, "multiplication": 0.06,
    "comparison": 0.035, "counting": 0.055,
}  # fmt: skip
OTHERS = {
    known: 0.12, strange: 0.055, as_json: 0.12, with_tools: 0.10, wish: 0.08,
    second_turn: 0.09, in_the_head: 0.03, echo: 0.03,
}  # fmt: skip
MIX = {**ARITHMETIC, **OTHERS}
# Shares of the plain questions: in a context, and without thinking.
IN_CONTEXT, AT_ONCE = 0.08, 0.06
KINDS_AT_ONCE = ("addition", "subtraction", "comparison", "known", "strange")


def sample(rng: random.Random) -> Example:
    """Make one training example; the kinds come in the proportions of ``MIX``."""
    kind = rng.choices(list(MIX), list(MIX.values()))[0]
    example = arithmetic(rng, kind) if kind in ARITHMETIC else kind(rng)
    if example.before or example.tools:
        return example
    if example.kind in KINDS_AT_ONCE and rng.random() < AT_ONCE:
        example = example._replace(thinking=None)
    if rng.random() < IN_CONTEXT:
        example = example._replace(before=_unrelated(rng))
    return example


def _unrelated(rng: random.Random) -> tuple[dict[str, str], ...]:
    """Make a system prompt, earlier turns, or both, apart from the question."""
    messages = []
    if rng.random() < 0.5:
        messages.append({"role": "system", "content": rng.choice(SYSTEMS)})
    if not messages or rng.random() < 0.3:
        for _ in range(rng.choice((1, 1, 2))):
            kind = rng.choice(("addition", "subtraction", "comparison", "known"))
            turn = known(rng) if kind == "known" else arithmetic(rng, kind)
            messages.append({"role": "user", "content": turn.question})
            messages.append({"role": "assistant", "content": turn.answer})
    return tuple(messages)


def prompt_text(example: Example) -> str:
    """Write the prompt as the chat template does, up to the opened ``<think>``."""
    from transformers.utils.chat_template_utils import render_jinja_template

    asked = {"role": "user", "content": example.question}
    (text,), _ = render_jinja_template(
        [[*example.before, asked, *example.after]],
        tools=list(example.tools) or None,
        chat_template=CHAT_TEMPLATE,
        add_generation_prompt=True,
        enable_thinking=example.thinking is not None,
    )
    return text


def completion_text(example: Example) -> str:
    """Return the text that the model is to write after the prompt."""
    answer = f"{example.answer}<|im_end|>"
    if example.thinking is None:
        return answer
    return f"{example.thinking}\n</think>\n\n{answer}"
