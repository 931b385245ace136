"""A batch on the real engine: in order, parsed, and unharmed by its bad prompts."""

import json
import os
import subprocess
import sys

import pytest

from helpers.batch import BatchResult, run_batch
from helpers.models import MODELS, TINY_THINKER
from helpers.thinking import unfinished_hint

ROOM = 512  # Tokens that the engine is loaded for.
CHILD = """
import contextlib, copy, dataclasses, io, json, os, signal
from helpers.batch import run_batch
from helpers.loading import FastLanguageModel

model, tokenizer = FastLanguageModel.from_pretrained(
    "tiny-thinker", max_seq_length=512, fast_inference=True
)
from tokenizers.processors import TemplateProcessing
from vllm import SamplingParams

engine = model.vllm_engine
core = engine.llm_engine
seen = []
enqueue = engine.enqueue
def spying(prompt, params, **kwargs):
    seen.append([prompt["prompt_token_ids"], params])
    return enqueue(prompt, params, **kwargs)
engine.enqueue = spying

result = {}
def run(name, *args, **kwargs):
    printed = io.StringIO()
    del seen[:]
    with contextlib.redirect_stderr(printed):
        rows = run_batch(*args, **kwargs)
    result[name] = {
        "rows": [dataclasses.asdict(row) for row in rows],
        "truncated": [row.truncated for row in rows],
        "printed": printed.getvalue(),
        "ids": [ids for ids, _ in seen],
        "params": [
            {k: getattr(p, k) for k in ("temperature", "top_p", "top_k", "max_tokens")}
            for _, p in seen
        ],
    }

greedy = SamplingParams(temperature=0, max_tokens=200)
untouched = copy.deepcopy(greedy)
user = lambda text: [{"role": "user", "content": text}]
good = ["What is 7 + 5?", "What is recursion?", "What is 12 + 23 + 34?", "hello"]
run("good", model, good, greedy, progress=False)

texts = [
    tokenizer.apply_chat_template(user(p), tokenize=False, add_generation_prompt=True)
    for p in good
]
result["direct"] = [
    tokenizer.decode(output.outputs[0].token_ids, skip_special_tokens=False)
    for output in model.fast_generate(texts, copy.deepcopy(greedy))
]

run("kinds", engine, [
    user(good[0]),
    {"id": "b", "prompt": good[1]},
    {"id": 3, "messages": user(good[2]), "sampling_params": {"max_tokens": 9}},
    {"prompt": user(good[3]), "sampling_params": SamplingParams(max_tokens=1)},
], greedy, tokenizer=tokenizer)

bad = {
    "empty": "",
    "blank": [{"role": "user", "content": "  "}],
    "no messages": [],
    "type": 5,
    "message": ["hello"],
    "content": [{"role": "user", "content": 5}],
    "key": {"promt": "hello"},
    "both": {"prompt": "hello", "messages": user("hello")},
    "neither": {"id": 1},
    "long": "word " * 2000,
    "name": {"prompt": "hello", "sampling_params": {"temprature": 1}},
    "range": {"prompt": "hello", "sampling_params": {"temperature": -1}},
    "value": {"prompt": "hello", "sampling_params": {"max_tokens": "many"}},
    "params": {"prompt": "hello", "sampling_params": "creative"},
    "several": {"prompt": "hello", "sampling_params": SamplingParams(n=2)},
    "engine": {"prompt": "hello", "sampling_params": {"logprobs": 3}},
}
mixed = [prompt for pair in zip(bad.values(), good * 4) for prompt in pair]
run("mixed", model, mixed, greedy)
result["bad"] = list(bad)
result["untouched"] = greedy == untouched

run("default", model, good[:1], progress=False)
run("override", model, good[:1], {"max_tokens": 3}, progress=False)
run("empty", model, [], progress=False)

llama = copy.deepcopy(tokenizer)
llama.bos_token = "<|endoftext|>"
llama.chat_template = "{{ bos_token }}" + tokenizer.chat_template
llama.backend_tokenizer.post_processor = TemplateProcessing(
    single="<|endoftext|> $A", special_tokens=[("<|endoftext|>", llama.bos_token_id)]
)
text = llama.apply_chat_template(user("hello"), tokenize=False)
result["start_token"] = llama.bos_token_id
result["of_text"] = llama(text)["input_ids"].count(llama.bos_token_id)
run("llama", model, ["hello"], greedy, tokenizer=llama, progress=False)

def error_of(*args, **kwargs):
    try:
        run_batch(model, *args, **kwargs)
    except Exception as error:
        return [type(error).__name__, str(error)]

no_template = copy.deepcopy(tokenizer)
no_template.chat_template = None
result["errors"] = {
    "n": error_of(good, SamplingParams(n=2)),
    "name": error_of(good, {"temprature": 1}),
    "template": error_of(good, tokenizer=no_template),
}

owner, name = core.output_processor, "process_outputs"
real, calls = getattr(owner, name), [0]
def signalling(*args, **kwargs):
    calls[0] += 1
    if calls[0] == 5:
        os.kill(os.getpid(), signal.SIGINT)
    return real(*args, **kwargs)
setattr(owner, name, signalling)
step = core.step
try:
    run("interrupted", model, good * 3, greedy, progress=False)
except KeyboardInterrupt:
    result["steps"] = calls[0]
setattr(owner, name, real)
result["left"] = core.get_num_unfinished_requests()
result["same_step"] = core.step == step
run("again", model, good, greedy, progress=False)
print(json.dumps(result, default=str))
"""


@pytest.fixture(scope="module")
def child() -> dict:
    """What happened in one Python that loads the engine once for all tests."""
    done = subprocess.run(
        [sys.executable, "-c", CHILD],
        capture_output=True,
        text=True,
        env={**os.environ, "DEVICE": "cpu", "LOG_LEVEL": "error"},
        timeout=300,
    )
    assert done.returncode == 0, done.stderr
    assert done.stderr == ""
    (line,) = done.stdout.splitlines()
    return json.loads(line)


def without_place(rows: list[dict]) -> list[dict]:
    place = {"index", "prompt"}
    return [{k: v for k, v in row.items() if k not in place} for row in rows]


def test_results_are_those_of_the_engine_parsed_and_in_order(child: dict) -> None:
    rows = child["good"]["rows"]
    assert [row["index"] for row in rows] == [0, 1, 2, 3]
    assert len({row["tokens"] for row in rows}) > 1  # They did not end together.
    for row, text in zip(rows, child["direct"], strict=True):
        thinking, _, response = text.partition("</think>")
        assert row["complete"] and row["error"] is None
        assert row["thinking"] == thinking.strip()
        assert row["response"] == response.removesuffix("<|im_end|>").strip()
        assert row["finish_reason"] == "stop"


def test_tokens_are_counted_by_part(child: dict) -> None:
    good = child["good"]
    for row, ids in zip(good["rows"], good["ids"], strict=True):
        assert row["prompt_tokens"] == len(ids)
        assert row["thinking_tokens"] > 0
        parts = row["thinking_tokens"] + row["response_tokens"]
        assert row["tokens"] == parts + 1  # The end marker is in neither.


def test_chats_and_dicts_are_prompts_with_ids_and_parameters(child: dict) -> None:
    good, kinds = child["good"]["rows"], child["kinds"]
    rows = kinds["rows"]
    assert [row["id"] for row in rows] == [None, "b", 3, None]
    assert [row["response"] for row in rows[:2]] == [r["response"] for r in good[:2]]
    assert [row["tokens"] for row in rows[2:]] == [9, 1]
    assert [p["temperature"] for p in kinds["params"]] == [0, 0, 0, 1]
    assert kinds["truncated"] == [False, False, True, True]
    assert rows[2]["response"] is None and not rows[2]["complete"]


@pytest.mark.parametrize(
    ("name", "reason"),
    [
        ("empty", "prompt is empty"),
        ("blank", "prompt is empty"),
        ("no messages", "prompt is empty"),
        ("type", "of type int"),
        ("message", "'hello'"),
        ("content", "chat template refuses"),
        ("key", "unknown key promt"),
        ("both", "either messages or prompt"),
        ("neither", "either messages or prompt"),
        ("long", f"loaded for {ROOM}"),
        ("name", "temprature"),
        ("range", "non-negative"),
        ("value", "'max_tokens': 'many'"),
        ("params", "not str"),
        ("several", "list the prompt 2 times"),
        ("engine", "max allowed: 0"),
    ],
)
def test_a_bad_prompt_says_what_is_wrong(child: dict, name: str, reason: str) -> None:
    row = child["mixed"]["rows"][2 * child["bad"].index(name)]
    assert reason in row["error"]
    assert row["response"] is None and not row["complete"] and row["tokens"] == 0


def test_bad_prompts_change_nothing_for_the_others(child: dict) -> None:
    answered = child["mixed"]["rows"][1::2]
    assert len(answered) == len(child["bad"]) == 16
    assert without_place(answered) == without_place(child["good"]["rows"] * 4)


def test_the_bar_counts_prompts_tokens_and_cut_ones(child: dict) -> None:
    assert " 4/4 " in child["kinds"]["printed"]
    assert "tokens/s, 2 truncated" in child["kinds"]["printed"]
    assert " 32/32 " in child["mixed"]["printed"]
    assert child["good"]["printed"] == ""


def test_the_default_is_what_the_authors_recommend(child: dict) -> None:
    recommended = {
        k: MODELS[TINY_THINKER].sampling[k] for k in ("temperature", "top_p")
    }
    (params,) = child["default"]["params"]
    assert recommended.items() < params.items()
    assert params["max_tokens"] == 2048
    (params,) = child["override"]["params"]
    assert recommended.items() < params.items()
    assert params["max_tokens"] == 3


def test_the_callers_parameters_stay_as_they_were(child: dict) -> None:
    assert child["untouched"]


def test_no_prompts_give_no_results(child: dict) -> None:
    assert child["empty"]["rows"] == []


def test_a_template_that_writes_the_start_token_gives_one(child: dict) -> None:
    assert child["of_text"] == 2
    (ids,) = child["llama"]["ids"]
    assert ids.count(child["start_token"]) == 1


@pytest.mark.parametrize(
    ("name", "reason"),
    [("n", "n=2"), ("name", "temprature"), ("template", "no chat template")],
)
def test_what_is_bad_for_all_prompts_is_raised(
    child: dict, name: str, reason: str
) -> None:
    kind, message = child["errors"][name]
    assert kind == "ValueError"
    assert reason in message


def test_after_an_interrupt_the_next_batch_gives_its_own_results(child: dict) -> None:
    assert child["steps"] >= 5
    assert "interrupted" not in child
    assert child["left"] == 0
    assert child["same_step"]
    assert child["again"]["rows"] == child["good"]["rows"]


def test_a_model_without_vllm_says_how_to_load_one() -> None:
    with pytest.raises(TypeError, match="fast_inference=True"):
        run_batch(object(), ["hello"])


def test_one_prompt_is_not_taken_for_a_list_of_them() -> None:
    with pytest.raises(TypeError, match=r"\[prompt\]"):
        run_batch(object(), "hello")
    with pytest.raises(TypeError, match=r"\[messages\]"):
        run_batch(object(), [{"role": "user", "content": "hello"}])


def test_the_repr_is_short_and_says_what_to_do() -> None:
    cut = BatchResult(2, "word " * 9999, "a", "Well", tokens=9, finish_reason="length")
    assert "id='a'" in repr(cut) and "raise max_tokens" in repr(cut)
    assert len(repr(cut)) < 200
    ended = BatchResult(2, "", thinking="Well", tokens=9, finish_reason="stop")
    assert unfinished_hint("stop") in repr(ended)
    assert "max_tokens" not in repr(ended)
    assert repr(BatchResult(0, "", error="empty")) == "BatchResult(0, error='empty')"
