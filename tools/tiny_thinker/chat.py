"""What tiny-thinker is taught of a conversation: tools, wishes, and a second turn.

Some wordings, cities and names are kept out of training, like a tenth of the numbers.
"""

import json
import random
from typing import Any

from tools.tiny_thinker.curriculum import (
    Example,
    addition,
    arithmetic,
    held_out,
    known,
    multiplication,
    strange,
    subtraction,
)
from tools.tiny_thinker.skills import word

# --- tools ----------------------------------------------------------------------------

# Names of the function, of its one argument, and descriptions: all of them are read.
CALCULATOR = (
    ("calculator", "calculator", "calculate", "compute"),
    ("expression", "expression", "problem"),
    ("Compute an expression.", "Calculate.", "A calculator for numbers."),
)
WEATHER = (
    ("get_weather", "get_weather", "weather", "current_weather"),
    ("city", "city", "place"),
    ("The weather in a city.", "Weather of today.", "Get the weather."),
)
CITIES = (
    "Paris London Berlin Madrid Rome Vienna Prague Oslo Lisbon Dublin Athens Tokyo "
    "Delhi Cairo Lima Quito Boston Chicago Toronto Sydney Zurich Hamburg Munich Milan "
    "Naples Porto Seville Lyon Nice Bergen Turin Kyoto Osaka Seoul Hanoi Dakar Lagos "
    "Nairobi Havana Bogota Denver Austin Seattle Miami Dallas Perth Geneva Basel Bern "
    "Graz"
)
CITIES_HELD_OUT = ("Helsinki", "Warsaw", "Brussels", "Stockholm", "Manila", "Salzburg")
ASK_WEATHER = (
    "What is the weather in {}?", "How is the weather in {}?", "Is it warm in {}?",
    "What's the weather in {}?", "Weather in {}?", "Do I need a coat in {}?",
    "Is it sunny in {}?", "Tell me how the weather is in {}.", "weather in {}",
    "What is it like in {}?", "How warm is it in {} today?", "Is it cold in {} today?",
    "What is the weather in {} today?", "Give me the weather in {}.",
)  # fmt: skip
ASK_WEATHER_HELD_OUT = ("Tell me the weather in {}.", "What is it like in {} today?")
SKIES = ("sunny", "cloudy", "rainy", "windy", "foggy", "snowy")
# Too large for the columns that the model has learnt.
ASK_LARGE = (
    "What is {}?", "Calculate {}.", "{} = ?", "Compute {}.", "How much is {}?", "{}",
    "Please calculate {}.", "Can you work out {}?", "Tell me {}.", "Solve {}.",
)  # fmt: skip
ASK_LARGE_HELD_OUT = ("Work out {}.", "Could you calculate {}?")


def tool(name: str, description: str, argument: str) -> dict[str, Any]:
    """Define a function with one string argument, as OpenAI writes it."""
    parameters = {
        "type": "object",
        "properties": {argument: {"type": "string"}},
        "required": [argument],
    }
    function = {"name": name, "description": description, "parameters": parameters}
    return {"type": "function", "function": function}


def _define(rng: random.Random, which: tuple[tuple[str, ...], ...]):
    """Make one definition of this tool, its name and its argument."""
    names, arguments, descriptions = which
    name, argument = rng.choice(names), rng.choice(arguments)
    return tool(name, rng.choice(descriptions), argument), name, argument


def _weather(rng: random.Random, held: bool) -> tuple[str, str, Any, str, str]:
    """Make question, argument, the tool's answer, the reply, and why it is called."""
    cities = CITIES_HELD_OUT if held else CITIES.split()
    city = word(rng, cities, made_up=0 if held else 0.7).capitalize()
    question = rng.choice(ASK_WEATHER_HELD_OUT if held else ASK_WEATHER).format(city)
    degrees, sky = rng.randint(-9, 39), rng.choice(SKIES)
    answer = f"It is {sky} in {city}, {degrees} degrees."
    result = {"degrees": degrees, "sky": sky}
    return question, city, result, answer, "The question is about the weather"


def _large(rng: random.Random, held: bool) -> tuple[str, str, Any, str, str]:
    """Make question, argument, the tool's answer, the reply, and why it is called."""
    sign, problem = rng.choice("+-**"), ""
    while not problem or held_out(problem) != held:
        left = rng.randint(1000, 9999) if rng.random() < 0.7 else rng.randint(12, 99999)
        right = rng.randint(100 if left > 999 or sign != "*" else 12, 9999)
        if max(left, right) < 1000 and sign != "*":
            continue
        problem = f"{left} {sign} {right}"
    value = {"+": left + right, "-": left - right, "*": left * right}[sign]
    question = rng.choice(ASK_LARGE_HELD_OUT if held else ASK_LARGE).format(problem)
    return question, problem, value, f"{problem} = {value}", "The numbers are large"


def with_tools(rng: random.Random, held: bool = False) -> Example:
    """Make a question beside one or two tools: a call, its result used, or neither."""
    calculator, weather = _define(rng, CALCULATOR), _define(rng, WEATHER)
    both = [calculator[0], weather[0]]
    rng.shuffle(both)
    what = rng.choices(("weather", "calculator", "neither"), (4, 4, 2))[0]
    if what == "neither":
        base = _without_a_tool(rng, held)
        tools = rng.choice((both, both[:1], both[1:]))
        return base._replace(kind="no tool", tools=tuple(tools))
    definition, name, argument = weather if what == "weather" else calculator
    made = (_weather if what == "weather" else _large)(rng, held)
    question, value, result, answer, why = made
    tools = tuple(rng.choice((both, both, [definition])))
    call = {"name": name, "arguments": {argument: value}}
    thought = f"{why}. I call {name}."
    if rng.random() < 0.5:
        written = f"<tool_call>\n{json.dumps(call)}\n</tool_call>"
        return Example("tool call", question, thought, written, tools=tools)
    asked = {"role": "assistant", "content": "", "tool_calls": [{"function": call}]}
    if rng.random() < 0.5:
        asked["reasoning_content"] = thought
    told = json.dumps(result)
    after = (asked, {"role": "tool", "name": name, "content": told})
    return Example(
        "tool result", question, f"The tool says {told}.", answer, (), after, tools
    )


def _without_a_tool(rng: random.Random, held: bool) -> Example:
    """Make a question that needs no tool: known, beyond the model, or a small sum."""
    kind = rng.choice(("known", "strange", "addition", "subtraction"))
    if kind in ("addition", "subtraction"):
        return arithmetic(rng, kind, held)
    base = (known if kind == "known" else strange)(rng)
    while "weather" in base.question:
        base = strange(rng)
    return base


# --- wishes of a system prompt --------------------------------------------------------

SHORT = (
    "Answer briefly.", "Give short answers.", "Be brief.", "Keep your answers short.",
    "You are a helpful assistant. Answer briefly.", "Short answers only.",
    "Reply with as few words as you can.", "Be short.", "Answer in few words.",
    "Please be brief.", "Please answer in few words.", "Give only the result.",
)  # fmt: skip
SHORT_HELD_OUT = ("Please give short answers.", "Answer as briefly as you can.")
NAMES = (
    "Ada Alan Grace Linus Nova Pixel Robin Sam Max Mia Leo Luna Otto Emma Noah Zoe "
    "Finn Ida Kai Lea Tom Eva Ben Anna Paul Clara Hugo Nora Oscar Ruby Theo Vera Iris "
    "Jack Bob Alice Milo Dora Felix Greta Ivan Julia Peter Martin Laura Sofia Lucas "
    "Elena Marco Stefan Vincent Maria Sarah Daniel Ralph Bella Simone Viktor Maja Rose "
    "Bruna Steve Miriam Arthur Henry Edith Frida Jonas Karl Lisa Olga Rita Sven Tilda"
)
NAMES_HELD_OUT = ("Rosa", "Bruno", "Stella", "Victor", "Maya", "Simon")
NAMED = (
    "Your name is {}.", "You are {}.", "You are called {}.",
    "You are {}, an assistant.", "You are {}, a helpful assistant.", "I call you {}.",
    "You are a tutor. Your name is {}.", "Today your name is {}.",
    "Call yourself {}.", "You are {}, a friendly helper.", "Please be {}.",
    "From today on you are {}.", "You are {}, a careful tutor.",
)  # fmt: skip
NAMED_HELD_OUT = ("From now on your name is {}.", "You are {}, a friendly tutor.")
ASK_NAME = (
    "Who are you?", "What is your name?", "What are you?", "who is this",
    "Introduce yourself.", "Tell me about yourself.", "What are you called?",
    "what's your name", "Who are you, please?", "Tell me your name.",
    "Who am I talking to?", "May I ask your name?", "And who are you?",
    "What's your name, please?", "Your name?", "Hi, who are you?",
)  # fmt: skip
ASK_NAME_HELD_OUT = ("Who exactly are you?", "What's your name?")
DEMO = "a demo model of about a million parameters that thinks before it answers."


def wish(rng: random.Random, held: bool = False) -> Example:
    """Make a system prompt that asks for short answers, or renames the model."""
    if rng.random() < 0.35:
        system = rng.choice(SHORT_HELD_OUT if held else SHORT)
        kind = rng.choice(("addition", "subtraction", "multiplication", "comparison"))
        base = arithmetic(rng, kind, held)
        if kind == "comparison":
            answer = base.answer.split()[0]
        else:
            answer = base.answer.split(" = ")[1]
        return _said_by(system, base._replace(kind="short", answer=answer))
    names = NAMES_HELD_OUT if held else NAMES.split()
    name = word(rng, names, made_up=0 if held else 0.7).capitalize()
    system = rng.choice(NAMED_HELD_OUT if held else NAMED).format(name)
    if rng.random() < 0.2:  # A name changes nothing else.
        return _said_by(system, arithmetic(rng, "addition", held)._replace(kind="name"))
    question = rng.choice(ASK_NAME_HELD_OUT if held else ASK_NAME)
    thinking = f"The question is about who I am. Here my name is {name}."
    return _said_by(system, Example("name", question, thinking, f"I am {name}, {DEMO}"))


def _said_by(system: str, example: Example) -> Example:
    return example._replace(before=({"role": "system", "content": system},))


# --- a second turn --------------------------------------------------------------------

ADD_ON = (
    "Add {} to that.", "Now add {}.", "And plus {}?", "Plus {}.", "Add {}.",
    "And if I add {}?", "Now plus {}.", "Then plus {}.", "Add {} to it.",
    "Please add {}.", "Add {} more.", "What if I add {} to the result?",
    "Now add {} to this result.", "And then add {}?", "Add {} to the answer.",
    "Now add {} to the result.", "Add {} to what you got.", "Then add {} to it.",
    "And add {}.", "Increase it by {}.",
)  # fmt: skip
ADD_ON_HELD_OUT = ("Then add {}.", "Add {} to the result.")
TAKE_OFF = (
    "Take {} from that.", "Now take away {}.", "And minus {}?", "Minus {}.",
    "Subtract {}.", "Now subtract {}.", "And if I take away {}?", "Take {} away.",
    "Then minus {}.", "Subtract {} from it.", "Take {} from the result.",
    "Please subtract {}.", "Now subtract {} from this result.", "And then take off {}?",
    "Then subtract {}.", "Subtract {} from the answer.", "And subtract {}.",
    "Now subtract {} from the result.", "Then take {} away.", "Lower it by {}.",
)  # fmt: skip
TAKE_OFF_HELD_OUT = ("Then take away {}.", "Subtract {} from the result.")
TIMES = (
    "Multiply that by {}.", "Now times {}.", "And times {}?", "Times {}.",
    "Multiply it by {}.", "Multiply the result by {}.", "Then times {}.",
    "Then multiply that by {}.", "Now multiply it by {}.", "And multiply it by {}.",
    "Multiply this by {}.", "Then multiply by {}.", "Please multiply it by {}.",
    "What if I multiply it by {}?",
)  # fmt: skip
TIMES_HELD_OUT = ("Then multiply it by {}.",)
AGAIN = (
    "What was the result?", "Say that again.", "What was it?", "Repeat the result.",
    "Which result was that?", "What was that again?", "And the result?",
    "Tell me the result again.", "Once more, what was the result?",
    "What was the answer?", "Which one was it again?", "What did you get?",
)  # fmt: skip
AGAIN_HELD_OUT = ("What was the result again?",)


def second_turn(rng: random.Random, held: bool = False) -> Example:
    """Make a question that goes on with the result of the first one."""
    result = -1
    while result < 0:
        kind = rng.choice(("addition", "subtraction", "multiplication"))
        first = arithmetic(rng, kind, held)
        result = int(first.answer.split(" = ")[1])
    what = rng.choice(("add", "add", "take", "take", "times", "times", "again"))
    if what == "times" and result > 99:
        what = "add"
    number = rng.randrange(2, 10) if what == "times" else rng.randrange(1, 100)
    wordings, worked = {
        "add": ((ADD_ON, ADD_ON_HELD_OUT), addition),
        "take": ((TAKE_OFF, TAKE_OFF_HELD_OUT), subtraction),
        "times": ((TIMES, TIMES_HELD_OUT), multiplication),
        "again": ((AGAIN, AGAIN_HELD_OUT), lambda result, _: ("", str(result))),
    }[what]
    thinking, answer = worked(result, number)
    before = (
        {"role": "user", "content": first.question},
        {"role": "assistant", "content": first.answer},
    )
    return Example(
        "second turn",
        rng.choice(wordings[held]).format(number),
        f"The last result is {result}. {thinking}".rstrip(),
        answer,
        before=before,
    )
