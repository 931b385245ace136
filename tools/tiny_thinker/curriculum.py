"""What tiny-thinker is taught: problems with their working written out, and facts.

Everything is made from a seeded generator; nothing is downloaded. A fixed tenth of the
arithmetic problems and some wordings of every question are kept out of training, for
:mod:`tools.tiny_thinker.evaluate`; :mod:`tools.tiny_thinker.mix` has all the kinds.
"""

import random
import zlib
from pathlib import Path
from typing import Any, NamedTuple

HERE = Path(__file__).parent
PLACES = ("ones", "tens", "hundreds", "thousands", "ten thousands")
ASK = (
    "What is {}?", "what is {}", "Explain {}.", "Explain {} in simple terms.",
    "Can you explain {}?", "Tell me about {}.", "Define {}.", "What does {} mean?",
    "what's {}?", "Please explain {}.", "Describe {}.", "How does {} work?",
    "I want to know what {} is.", "Do you know what {} is?", "Explain {} to me.",
)  # fmt: skip
ASK_HELD_OUT = (
    "Could you explain {}?", "Please tell me what {} is.", "What is {}, please?",
    "Tell me what {} is.",
)  # fmt: skip
MATH_ASK = (
    "What is {}?", "what is {}", "{}", "{} = ?", "Calculate {}.", "Compute {}.",
    "How much is {}?", "What is {}? Show your thinking.", "{}?", "Solve {}.",
    "What is {}? Show your working.", "Please calculate {}.", "What's {}?",
    "Can you work out {}?", "Think step by step: what is {}?", "{} =",
    "I want to know what {} is.", "Do you know what {} is?", "Tell me {}.",
    "Find {}.", "Could you find {}?", "Show me how to do {}.",
)  # fmt: skip
MATH_ASK_HELD_OUT = ("Tell me what {} is.", "Could you calculate {}?", "Work out {}.")
STRANGE = (
    "What is the capital of {}?", "Write a poem about {}.", "Who is {}?",
    "Where is {}?", "Tell me a story about {}.", "How do I cook {}?",
    "Translate {} into French.", "What is {}?", "Explain {}.", "Tell me about {}.",
    "What is the weather in {}?", "When was {} born?", "Write an essay about {}.",
    "How far away is {}?", "Do you like {}?", "What colour is {}?", "{}", "{}?",
    "Should I buy {}?", "Who invented {}?", "What is the history of {}?",
    "Give me three facts about {}.", "Write code for {}.", "How old is {}?",
    "Explain {} in simple terms.", "Can you explain {}?", "What does {} mean?",
    "Can you write a letter to {}?", "Can you draw {}?", "Can you sing about {}?",
    "Could you write a story about {}?", "Write a song for {}.", "Joke about {}.",
    "Where can I buy {}?", "Where can I see {}?", "Where do I find {}?",
    "Where can we go to learn about {}?", "How can I get to {}?", "Where was {} made?",
    "Which {} is the best?", "Is {} expensive?", "Are you afraid of {}?",
    "What do people say about {}?", "Do you know {}?", "I love {}.", "Help me with {}.",
)  # fmt: skip
STRANGE_HELD_OUT = (
    "Who wrote {}?", "Can you write a song about {}?", "Where can I find {}?",
    "What do you think of {}?",
)  # fmt: skip
NOUNS = (
    "France Germany Japan Brazil Paris London bread cheese pasta soup love war "
    "peace football tennis chess music jazz a violin the piano Mozart Einstein "
    "Newton Shakespeare Napoleon Rome Egypt the moon Mars the sun a star a tree "
    "roses a dog my cat elephants a horse the ocean rivers mountains snow rain "
    "summer winter coffee tea wine chocolate an apple bananas cars a bicycle trains "
    "airplanes money taxes the law history poetry painting films Hamlet dinosaurs "
    "medicine the heart blood a virus sleep dreams happiness school my homework the "
    "president elections a house gardening furniture shoes fashion a telephone "
    "television photography astronomy chemistry biology economics philosophy "
    "religion Canada India China Spain Italy Madrid Berlin Tokyo insurance cooking "
    "knitting fishing hiking swimming a ship bridges castles dragons wizards "
    "pirates robots aliens volcanoes earthquakes deserts gold silver diamonds oil "
    "plastic glass wood paper a pen clocks time travel Monday Christmas"
)
DEMO_ANSWER = (
    "That is beyond me: I am a tiny demo model. I can add, subtract, multiply small "
    "numbers, compare, count, and explain some words of computing."
)
ONSETS = (
    "b c d f g h j k l m n p qu r s t v w x y z br ch cl cr dr fr gl gr kr pl pr sh sk "
    "sl sm sn sp st str sw th tr"
)
VOWELS = "a a e e i i o o u y ai au ea ee ie io oo ou"
CODAS = "b ck d f g k l ll m n n nd ng nk nn nt p r r rg rk rn rt s s sk ss st t tt x z"


class Example(NamedTuple):
    """One exchange: the question, the working, the answer, and what kind it is.

    ``before`` and ``after`` are the messages around the question, ``tools`` what the
    model may call. ``thinking`` is None where the prompt switches thinking off.
    """

    kind: str
    question: str
    thinking: str | None
    answer: str
    before: tuple[dict[str, Any], ...] = ()
    after: tuple[dict[str, Any], ...] = ()
    tools: tuple[dict[str, Any], ...] = ()


class Topic(NamedTuple):
    """A question that the model knows, in its training and its held-out wordings."""

    name: str
    wordings: tuple[str, ...]
    held_out: tuple[str, ...]
    answer: str


def _phrases() -> list[str]:
    words, out = NOUNS.split(), []
    while words:
        take = 2 if words[0] in {"a", "an", "the", "my", "time"} else 1
        out.append(" ".join(words[:take]))
        del words[:take]
    return out


def _topics() -> list[Topic]:
    topics = []
    for line in (HERE / "knowledge.txt").read_text("utf-8").splitlines():
        name, answer = (part.strip() for part in line.split("|"))
        topics.append(
            Topic(
                name,
                tuple(ask.format(name) for ask in ASK),
                tuple(ask.format(name) for ask in ASK_HELD_OUT),
                answer,
            )
        )
    for line in (HERE / "conversation.txt").read_text("utf-8").splitlines():
        asked, held, name, answer = (part.strip() for part in line.split("|"))
        topics.append(
            Topic(
                name,
                tuple(w.strip() for w in asked.split(" ; ")),
                tuple(w.strip() for w in held.split(" ; ")),
                answer,
            )
        )
    return topics


TOPICS = _topics()
PHRASES = _phrases()


def held_out(problem: str) -> bool:
    """Tell if this arithmetic problem belongs to the tenth that is never trained on."""
    return zlib.crc32(problem.encode()) % 10 == 0


def made_up_word(rng: random.Random) -> str:
    """Make up a word: whoever copies it can't have learnt it by heart."""
    parts = []
    for _ in range(rng.choice((1, 2, 2, 2, 3))):
        parts += [rng.choice(ONSETS.split()), rng.choice(VOWELS.split())]
        if rng.random() < 0.7:
            parts.append(rng.choice(CODAS.split()))
    return "".join(parts)


def _columns(a: int, b: int) -> str:
    """Write the working of ``a + b``, column by column from the right."""
    x, y = str(a)[::-1], str(b)[::-1]
    lines, carry = [], 0
    for i in range(max(len(x), len(y))):
        p, q = (int(s[i]) if i < len(s) else 0 for s in (x, y))
        total = p + q + carry
        lines.append(
            f"{PLACES[i]}: {p} + {q} + {carry} = {total}, "
            f"write {total % 10}, carry {total // 10}"
        )
        carry = total // 10
    if carry:
        lines.append(f"the last carry is {carry}")
    return "\n".join(lines)


def _borrow(a: int, b: int) -> str:
    """Write the working of ``a - b``, ``a >= b``, column by column from the right."""
    x, y = str(a)[::-1], str(b)[::-1]
    lines, borrow = [], 0
    for i in range(len(x)):
        p, q = (int(s[i]) if i < len(s) else 0 for s in (x, y))
        need = q + borrow
        if p < need:
            lines.append(
                f"{PLACES[i]}: {q} + {borrow} = {need}, {p} is less, "
                f"{p + 10} - {need} = {p + 10 - need}, borrow 1"
            )
            borrow = 1
        else:
            lines.append(
                f"{PLACES[i]}: {q} + {borrow} = {need}, {p} is enough, "
                f"{p} - {need} = {p - need}, borrow 0"
            )
            borrow = 0
    return "\n".join(lines)


def addition(a: int, b: int) -> tuple[str, str]:
    """Make thinking and answer of ``a + b``."""
    return (
        f"I add {a} and {b}.\n{_columns(a, b)}\nSo {a} + {b} = {a + b}.",
        f"{a} + {b} = {a + b}",
    )


def _compare(a: int, b: int) -> str:
    """Compare two numbers in writing: how many digits, then from the left."""
    digits = len(str(a)), len(str(b))
    steps = [f"{a} has {digits[0]}, {b} has {digits[1]}"]
    if digits[0] == digits[1]:
        for p, q in zip(str(a), str(b), strict=True):
            steps.append(f"{p} {'=' if p == q else '<' if p < q else '>'} {q}")
            if p != q:
                break
    sign = "=" if a == b else "<" if a < b else ">"
    return f"Digits: {', '.join(steps)}, so {a} {sign} {b}."


def subtraction(a: int, b: int) -> tuple[str, str]:
    """Make thinking and answer of ``a - b``, which may be negative."""
    if a >= b:
        return (
            f"I take {b} from {a}. {_compare(a, b)}\n{_borrow(a, b)}\n"
            f"So {a} - {b} = {a - b}.",
            f"{a} - {b} = {a - b}",
        )
    return (
        f"I take {b} from {a}. {_compare(a, b)} The result is negative: I take {a} "
        f"from {b}.\n{_borrow(b, a)}\nSo {a} - {b} = -{b - a}.",
        f"{a} - {b} = -{b - a}",
    )


def multi_sum(terms: list[int]) -> tuple[str, str]:
    """Make thinking and answer of a sum of terms, one addition after another."""
    total, lines = terms[0], ["I add one number after the other."]
    for done, term in enumerate(terms[1:], start=2):
        left = " + ".join(map(str, terms[done:])) or "nothing"
        lines.append(
            f"Now {total} + {term}, left: {left}.\n{_columns(total, term)}\n"
            f"That makes {total + term}."
        )
        total += term
    return "\n".join(lines), f"The sum is {total}."


def multiplication(a: int, b: int) -> tuple[str, str]:
    """Make thinking and answer of ``a * b``: one digit of ``a`` at a time."""
    digits = str(a)[::-1]
    lines, carry = [], 0
    for i, digit in enumerate(digits):
        product = int(digit) * b
        total = product + carry
        lines.append(
            f"{PLACES[i]}: {digit} * {b} = {product}, {product} + {carry} = {total}, "
            f"write {total % 10}, carry {total // 10}"
        )
        carry = total // 10
    if carry:
        lines.append(f"the last carry is {carry}")
    steps = "\n".join(lines)
    return (
        f"I multiply {a} by {b}.\n{steps}\nSo {a} * {b} = {a * b}.",
        f"{a} * {b} = {a * b}",
    )


def comparison(a: int, b: int, ask_larger: bool) -> tuple[str, str]:
    """Make thinking and answer of which of two numbers is larger or smaller."""
    pick = max(a, b) if ask_larger else min(a, b)
    word = "larger" if ask_larger else "smaller"
    return f"{_compare(a, b)} The {word} one is {pick}.", f"{pick} is {word}."


def counting(first: int, last: int) -> tuple[str, str]:
    """Make thinking and answer of counting from ``first`` to ``last``."""
    return (
        f"I start at {first}, add 1 each time, and stop at {last}.",
        ", ".join(str(n) for n in range(first, last + 1)),
    )


def known(rng: random.Random) -> Example:
    """Make a question that the model knows, with a thought that names its topic."""
    topic = rng.choice(TOPICS)
    question = rng.choice(topic.wordings)
    if rng.random() < 0.25:
        question = _vary(question, rng)
    thinking = f"The question is about {topic.name}. I know this one."
    return Example("known", question, thinking, topic.answer)


def strange(rng: random.Random, wordings_held_out: bool = False) -> Example:
    """Make a question that is out of scope."""
    if rng.random() < 0.5:
        thing = rng.choice(PHRASES)
    else:
        thing = made_up_word(rng)
        if rng.random() < 0.4:
            thing = thing.capitalize()
    ask = rng.choice(STRANGE_HELD_OUT if wordings_held_out else STRANGE)
    thinking = (
        "This is not one of the things that I was taught. I am a tiny demo model, so I "
        "say what I can do."
    )
    question = ask.format(thing)
    if not wordings_held_out and rng.random() < 0.25:
        question = _vary(question, rng)
    return Example("strange", question, thinking, DEMO_ANSWER)


def _vary(question: str, rng: random.Random) -> str:
    """Write the same question as people type it: lower case, no full stop, a please."""
    return rng.choice(
        (
            question.lower(),
            question.rstrip("?."),
            f"Hi, {question[0].lower()}{question[1:]}",
            f"{question} Please.",
            f"{question} Thanks!",
        )
    )


def _number(rng: random.Random, digits: int = 3) -> int:
    size = rng.randint(1, digits)
    return rng.randrange(10 ** (size - 1) if size > 1 else 0, 10**size)


def arithmetic(rng: random.Random, kind: str, held: bool = False) -> Example:
    """Make a problem of one kind, from the training or from the held-out problems."""
    while True:
        if kind == "addition":
            a, b = _number(rng), _number(rng)
            problem, (thinking, answer) = f"{a} + {b}", addition(a, b)
        elif kind == "subtraction":
            a, b = _number(rng), _number(rng)
            if a < b and rng.random() < 0.7:
                a, b = b, a
            problem, (thinking, answer) = f"{a} - {b}", subtraction(a, b)
        elif kind == "multi_sum":
            terms = [
                _number(rng, 2) for _ in range(rng.choice((3, 3, 3, 4, 4, 5, 6, 8)))
            ]
            problem, (thinking, answer) = " + ".join(map(str, terms)), multi_sum(terms)
        elif kind == "multiplication":
            a, b = _number(rng, 2), _number(rng, 1)
            problem, (thinking, answer) = f"{a} * {b}", multiplication(a, b)
        elif kind == "comparison":
            a, b, larger = _number(rng), _number(rng), rng.random() < 0.6
            if a == b:
                continue
            problem = f"{a} or {b}"
            thinking, answer = comparison(a, b, larger)
        else:
            a = _number(rng, 2)
            b = a + rng.choice((3, 4, 5, 6, 7, 8, 9, 10, 12, 15, 20))
            problem, (thinking, answer) = f"from {a} to {b}", counting(a, b)
        if held_out(problem) == held:
            break
    if kind == "comparison":
        words = ("larger", "bigger", "greater") if larger else ("smaller", "less")
        question = f"Which is {rng.choice(words)}, {problem}?"
    elif kind == "counting":
        question = rng.choice(("Count {}.", "count {}", "Please count {}."))
        question = question.format(problem)
    else:
        question = rng.choice(MATH_ASK_HELD_OUT if held else MATH_ASK)
        question = question.format(problem)
        if kind == "addition" and not held and rng.random() < 0.1:
            question = f"Add {a} and {b}."
        if kind == "multiplication" and rng.random() < 0.4:
            question = question.replace("*", rng.choice(("x", "times", "×")))
    return Example(kind, question, thinking, answer)
