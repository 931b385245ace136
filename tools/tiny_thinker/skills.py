"""What tiny-thinker is taught beside plain questions: JSON, and sums that may go wrong.

Like the problems of :mod:`tools.tiny_thinker.curriculum`, a tenth of the numbers and
some wordings are kept out of training.
"""

import json
import random
from collections.abc import Sequence
from typing import Any

from tools.tiny_thinker.curriculum import (
    PHRASES,
    TOPICS,
    Example,
    arithmetic,
    held_out,
    known,
    made_up_word,
)

# --- words to copy --------------------------------------------------------------------

SAY = (
    "Say {}.", "Say: {}", "Repeat {}.", "Repeat: {}", "Repeat after me: {}", "Echo {}.",
    "Write {}.", "Please repeat {}.", "say {}", "Please say: {}", "Can you say {}?",
    "Say the word {}.", "Please write {}.", "Repeat this word: {}", "Please echo {}.",
    "Could you say {}?", "Just say {}.", "Now say {}.", "Say {}, please.",
)  # fmt: skip
SAY_HELD_OUT = ("Please say {}.", "Repeat this: {}")


def word(rng: random.Random, words: Sequence[str], made_up: float) -> str:
    """Pick one of these words, or a made-up one: what is copied is not to be learnt."""
    return made_up_word(rng) if rng.random() < made_up else rng.choice(words)


def echo(rng: random.Random, held: bool = False) -> Example:
    """Pick some words to be said again."""
    words = [word(rng, PHRASES, 0.7) for _ in range(rng.choice((1, 1, 2, 3)))]
    text = " ".join(w.capitalize() if rng.random() < 0.3 else w for w in words)
    question = rng.choice(SAY_HELD_OUT if held else SAY).format(text)
    return Example("echo", question, f"I say {text}.", text)


# --- JSON -----------------------------------------------------------------------------

NUMBER_KEYS = (
    "answer", "result", "sum", "total", "value", "number", "solution", "count", "n",
    "x", "y", "out", "res",
)  # fmt: skip
NUMBER_KEYS_HELD_OUT = ("output", "amount")
TEXT_KEYS = ("answer", "text", "definition", "explanation", "meaning", "description")
# "Please answer as JSON with {keys}.": all combinations but some are trained.
POLITE = ("", "", "Please ", "Now ")
VERBS = (
    "Answer", "Reply", "Respond", "Return it", "Give it", "Write it", "Say it",
    "Return the answer", "Give me the answer", "Write the answer",
)  # fmt: skip
AS_JSON = ("as JSON", "in JSON", "as a JSON object", "as JSON only")
AS_JSON_HELD_OUT = ("Respond as JSON", "Please answer as JSON")
KEYS = (" with {}", " with the keys {}", " with {}", ", keys {}", " that has {}")
SCHEMA = (
    " of this schema: {}", " of the schema {}", ", schema {}", " that fits {}",
    " that fits this schema: {}", ". Use this JSON schema: {}", ". Schema: {}",
    ". JSON schema: {}", " for this schema: {}",
)  # fmt: skip
SCHEMA_HELD_OUT = (". The answer must fit this JSON schema: {}", " in this schema: {}")
OPERATIONS = {"addition": "+", "subtraction": "-", "multiplication": "*"}


def compact(value: Any) -> str:
    """Write JSON without spaces, as the model writes it in an answer."""
    return json.dumps(value, separators=(",", ":"))


def schema(fields: dict[str, Any], titles: bool = False) -> dict[str, Any]:
    """Make the JSON schema of an object with these fields, titled as by Pydantic."""
    types = {bool: "boolean", int: "integer", str: "string"}
    properties = {
        key: {"title": key.capitalize(), "type": types[type(value)]}
        if titles
        else {"type": types[type(value)]}
        for key, value in fields.items()
    }
    required = list(fields)
    if titles:
        return {
            "properties": properties, "required": required, "title": "Answer",
            "type": "object",
        }  # fmt: skip
    return {"type": "object", "properties": properties, "required": required}


def _explained(rng: random.Random, held: bool) -> tuple[str, str, dict[str, Any], str]:
    """Make question, thinking, fields and the answer's key of a known topic."""
    base = known(rng)
    topic = next(topic for topic in TOPICS if topic.answer == base.answer)
    question = rng.choice(topic.held_out if held else topic.wordings)
    name = rng.choice(TEXT_KEYS)
    fields = {name: base.answer}
    if rng.random() < 0.3:
        fields = {"topic": topic.name, **fields}
    return question, base.thinking, fields, name


def _computed(rng: random.Random, held: bool) -> tuple[str, str, dict[str, Any], str]:
    """Make question, thinking, fields and the answer's key of a sum or the like."""
    kind = rng.choice(tuple(OPERATIONS))
    base = arithmetic(rng, kind, held)
    a, _, b, _, result = base.answer.split()
    if held:
        name = rng.choice(NUMBER_KEYS_HELD_OUT + NUMBER_KEYS[:7])
    else:
        name = word(rng, NUMBER_KEYS, made_up=0.4)
    fields = {}
    if rng.random() < 0.25:
        fields |= {"a": int(a), "b": int(b)}
    if rng.random() < 0.25:
        fields["operation"] = kind
    if rng.random() < 0.25:
        fields["negative"] = int(result) < 0
    return base.question, base.thinking, {**fields, name: int(result)}, name


def as_json(rng: random.Random, held: bool = False, form: str | None = None) -> Example:
    """Make a sum, a difference, a product or a known question, to be answered as JSON.

    ``form`` is "free" (the object has one key, "answer"), "keys" or "schema". The wish
    stands behind the question, before it, or in the system prompt.
    """
    made = (_explained if rng.random() < 0.25 else _computed)(rng, held)
    question, thinking, fields, name = made
    form = form or rng.choice(("free", "keys", "keys", "schema", "schema"))
    if form == "free":
        fields = {"answer": fields[name]}
    asked = _ask_for_json(rng, form, fields, held)
    thinking = f"{thinking}\nThe JSON has {', '.join(fields)}."
    kind = "JSON with a schema" if form == "schema" else "JSON"
    made = Example(kind, f"{question} {asked}", thinking, compact(fields))
    place = rng.random()
    if place < 0.15:
        return made._replace(question=f"{asked} {question}")
    if place < 0.3:
        system = ({"role": "system", "content": asked},)
        return made._replace(question=question, before=system)
    return made


def _ask_for_json(
    rng: random.Random, form: str, fields: dict[str, Any], held: bool
) -> str:
    """Write the sentence that asks for JSON, for these keys or for their schema."""
    wish = rng.choice(AS_JSON_HELD_OUT) if held else ""
    while not wish or (not held and wish in AS_JSON_HELD_OUT):
        verb = rng.choice(VERBS)
        polite = rng.choice(POLITE)
        wish = f"{polite}{verb.lower() if polite else verb} {rng.choice(AS_JSON)}"
    if form == "free":
        return f"{wish}."
    if form == "keys":
        quote = '"{}"' if rng.random() < 0.6 else "{}"
        keys = ", ".join(quote.format(key) for key in fields)
        return f"{wish}{rng.choice(KEYS).format(keys)}."
    write = compact if rng.random() < 0.5 else json.dumps
    wanted = write(schema(fields, titles=rng.random() < 0.3))
    return wish + rng.choice(SCHEMA_HELD_OUT if held else SCHEMA).format(wanted)


# --- in the head ----------------------------------------------------------------------

IN_THE_HEAD = (
    "Quickly, in your head: {}", "In your head: {}?", "Without working: {}?",
    "At a glance: {}?", "Quickly: {}", "Just in your head, {}?",
)  # fmt: skip
IN_THE_HEAD_HELD_OUT = ("In your head, quickly: {}?",)
# The share of steps that the texts of the training get wrong by one, so that the model
# slips too: at temperature 0.6 a step is right in 88 of 100 cases. The number of terms
# is the difficulty.
SLIP = 0.28
TERMS = (3, 4, 5, 6)


def in_the_head(
    rng: random.Random, held: bool = False, terms: int | None = None
) -> Example:
    """Make a sum of single digits, added at a glance; the answer is the right one.

    In training (``held`` is false) the working slips, and the answer with it.
    """
    count = rng.choice(TERMS) if terms is None else terms
    problem = ""
    while not problem or held_out(problem) != held:
        numbers = [rng.randint(2, 9) for _ in range(count)]
        problem = " + ".join(map(str, numbers))
    total, lines = numbers[0], []
    for number in numbers[1:]:
        slip = 0 if held or rng.random() >= SLIP else rng.choice((-1, 1))
        lines.append(f"{total} and {number} is {total + number + slip}")
        total += number + slip
    wordings = IN_THE_HEAD_HELD_OUT if held else IN_THE_HEAD
    thinking = f"At a glance: {', '.join(lines)}."
    question = rng.choice(wordings).format(problem)
    return Example("in the head", question, thinking, f"About {total}.")
