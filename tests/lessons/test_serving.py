"""A real server on the embedded model: what clients get, and that it ends."""

import asyncio
import json
import os
import shutil
import socket
from collections.abc import Iterator
from pathlib import Path
from unittest import mock

import httpx
import numpy as np
import openai
import psutil
import pytest
from child import run_child
from safetensors.numpy import load_file, save_file

from helpers.internals.engine.exceptions import ModelLoadError
from helpers.internals.machine.settings import Settings
from helpers.models import TINY_THINKER_DIRECTORY
from helpers.serving import Server, serve, serve_command

RANK = 4
CLIENTS = 64
LONGEST = 3500  # tokens: seconds of streaming, and within the context


def write_adapter(folder: Path) -> Path:
    """An adapter of noise, for the queries of each layer."""
    config = json.loads((TINY_THINKER_DIRECTORY / "config.json").read_text())
    wide, heads = config["hidden_size"], config["num_attention_heads"]
    tall = heads * config["head_dim"]
    noise, weights = np.random.default_rng(0), {}
    for layer in range(config["num_hidden_layers"]):
        name = f"base_model.model.model.layers.{layer}.self_attn.q_proj.lora"
        weights[f"{name}_A.weight"] = noise.normal(size=(RANK, wide))
        weights[f"{name}_B.weight"] = noise.normal(size=(tall, RANK))
    weights = {name: matrix.astype(np.float32) for name, matrix in weights.items()}
    save_file(weights, folder / "adapter_model.safetensors")
    adapter = {"peft_type": "LORA", "r": RANK, "lora_alpha": RANK}
    adapter |= {"target_modules": ["q_proj"], "task_type": "CAUSAL_LM"}
    adapter |= {"base_model_name_or_path": str(TINY_THINKER_DIRECTORY)}
    (folder / "adapter_config.json").write_text(json.dumps(adapter))
    return folder


@pytest.fixture(scope="module")
def server(tmp_path_factory) -> Iterator[Server]:
    """One for all tests here, with an adapter called "noise"; the last one stops it."""
    adapter = write_adapter(tmp_path_factory.mktemp("adapter"))
    options = {"enable_lora": True, "max_lora_rank": 8}
    options["lora_modules"] = [f"noise={adapter}"]
    with (
        mock.patch.dict(os.environ, DEVICE="cpu"),  # and takes back what is set in it
        serve("tiny-thinker", reasoning_parser="qwen3", **options) as server,
    ):
        yield server


@pytest.fixture
def client(server) -> Iterator[openai.OpenAI]:
    options = {"max_retries": 0, "timeout": 120}
    with openai.OpenAI(base_url=server.url, api_key=server.key, **options) as client:
        yield client


def metric(server: Server, name: str) -> float:
    """The value of one of the server's own figures."""
    text = httpx.get(server.url.replace("/v1", "/metrics"), trust_env=False).text
    return sum(
        float(line.split()[-1])
        for line in text.splitlines()
        if line.startswith(f"vllm:{name}{{")
    )


def user(text: str) -> list[dict[str, str]]:
    return [{"role": "user", "content": text}]


def begin_stream(server: Server, client: openai.OpenAI) -> openai.Stream:
    """A stream of `LONGEST` tokens, the first of which has come."""
    stream = client.completions.create(
        model=server.model,
        prompt="1 + 1",
        max_tokens=LONGEST,
        stream=True,
        extra_body={"ignore_eos": True},
    )
    next(stream)
    return stream


def post(server: Server, key: str | None, **sent: object) -> httpx.Response:
    """What a chat with this key answers; `sent` is httpx's `json` or `content`."""
    headers = {"Content-Type": "application/json"}
    headers |= {"Authorization": f"Bearer {key}"} if key else {}
    address = f"{server.url}/chat/completions"
    return httpx.post(address, headers=headers, timeout=60, trust_env=False, **sent)


def test_thinking_comes_apart_from_the_answer(server, client):
    answer = client.chat.completions.create(
        model=server.model, messages=user("What is 475 + 327?"), temperature=0
    )
    message = answer.choices[0].message
    assert "carry" in message.reasoning and "802" in message.content


def test_the_key_is_shown_nowhere(server):
    family = psutil.Process(server.pid).children(recursive=True)
    flags = [word for process in family for word in process.cmdline()]
    assert server.key not in " ".join([repr(server), server.log.read_text(), *flags])


def test_only_this_machine_can_reach_it(server):
    family = psutil.Process(server.pid).children(recursive=True)
    listening = [
        connection.laddr.ip
        for process in family
        for connection in process.net_connections("inet")
        if connection.status == psutil.CONN_LISTEN
    ]
    assert listening and set(listening) == {"127.0.0.1"}


def test_a_port_in_use_is_an_error_at_once():
    with (
        socket.create_server(("127.0.0.1", 0)) as taken,
        pytest.raises(OSError, match="in use"),
    ):
        serve("tiny-thinker", port=taken.getsockname()[1])


async def ask_all(server: Server, names: list[str]) -> list[str]:
    """What each of `names` answers to a sum of its own, all asked at once."""
    options = {"max_retries": 0, "timeout": 300}
    async with openai.AsyncOpenAI(
        base_url=server.url, api_key=server.key, **options
    ) as client:
        asked = [
            client.chat.completions.create(
                model=name,
                messages=user(f"What is {n + 11} + {2 * n + 30}?"),
                temperature=0,
                max_tokens=300,
            )
            for n, name in enumerate(names)
        ]
        return [one.choices[0].message.content for one in await asyncio.gather(*asked)]


def test_64_clients_at_once_get_their_own_answers(server):
    answers = asyncio.run(ask_all(server, [server.model] * CLIENTS))
    own = [f"{n + 11} + {2 * n + 30} = " for n in range(CLIENTS)]
    assert [sum_ in text for sum_, text in zip(own, answers, strict=True)] == (
        [True] * CLIENTS
    )


def test_an_adapter_does_not_reach_those_who_did_not_ask_for_it(server):
    """vLLM's CPU build gave plain prompts the adapter of another in their batch."""
    alone = asyncio.run(ask_all(server, [server.model] * 8))
    mixed = asyncio.run(ask_all(server, [server.model, "noise"] * 4))
    assert mixed[::2] == alone[::2]
    assert not {*mixed[1::2]} & {*alone}


def test_log_probabilities_of_a_prompt_are_given_beside_other_requests(server, client):
    """vLLM's CPU build ended the engine, where it takes adapters."""
    asked = {"max_tokens": 1, "extra_body": {"prompt_logprobs": 0}}
    answer = client.completions.create(
        model="noise", prompt=["What is 4 + 5?", "1 + 1"], **asked
    )
    assert all(choice.prompt_logprobs for choice in answer.choices)


CHAT = {"messages": user("What is 4 + 5?"), "max_tokens": 4}
BAD_SCHEMA = {"name": "x", "schema": {"type": "nonsense"}}
STATUS = {
    "as it should be": (200, {}),
    "a field that nobody knows": (200, {"no_such": 1}),
    "a wrong name": (404, {"model": "gpt-5"}),
    "too long a prompt": (400, {"messages": user("one two three " * 3000)}),
    "too many tokens": (400, {"max_tokens": 100_000}),
    "a temperature below zero": (400, {"temperature": -1}),
    "no messages": (400, {"messages": []}),
    "no such type in a schema": (
        400,
        {"response_format": {"type": "json_schema", "json_schema": BAD_SCHEMA}},
    ),
}


@pytest.mark.parametrize("what", STATUS)
def test_status_of_a_request_with(server, what):
    status, change = STATUS[what]
    answer = post(server, server.key, json={"model": server.model, **CHAT, **change})
    assert answer.status_code == status, answer.text
    assert status == 200 or answer.json()["error"]["message"]


def test_broken_json_and_a_wrong_key_are_refused(server):
    broken = post(server, server.key, content=b'{"model": "t')
    refused = [post(server, key, json=CHAT) for key in (None, "guessed")]
    statuses = [answer.status_code for answer in (broken, *refused)]
    assert statuses == [400, 401, 401]


@pytest.mark.parametrize(
    ("path", "status"),
    [("health", 200), ("metrics", 200), ("version", 200), ("v1/models", 401)],
)
def test_status_without_a_key_of(server, path, status):
    address = server.url.replace("v1", path)
    assert httpx.get(address, trust_env=False).status_code == status


def test_a_client_that_goes_away_is_not_written_for(server, client):
    """The request ends when its client has gone, long before its tokens are made."""
    before = metric(server, "generation_tokens_total")
    stream = begin_stream(server, client)
    assert metric(server, "num_requests_running") == 1
    stream.close()
    while metric(server, "num_requests_running"):
        server.check()
    assert metric(server, "generation_tokens_total") - before < LONGEST


def test_kernels_that_are_killed_leave_nothing():
    """One while its server loads, one in mid-stream."""
    kills = run_child("killed_kernels", "2", timeout=600)["kills"]
    assert [kill["moment"] for kill in kills] == ["loading", "streaming"]
    assert all(kill["processes"] >= 2 for kill in kills)
    assert [(kill["left"], kill["port"]) for kill in kills] == [([], False)] * 2


def test_a_stream_ends_when_the_server_is_stopped(server, client):
    """It ends as if it were whole, with an error part, or breaks; it never hangs."""
    family = psutil.Process(server.pid).children(recursive=True)
    parts = iter(begin_stream(server, client))
    server.stop()
    assert not psutil.wait_procs(family, 0)[1]
    try:
        count = sum(1 for _ in parts)
    except openai.APIError:  # in the stream, or a broken connection
        count = 0
    assert count < LONGEST - 1


def test_weights_that_lack_a_tensor_are_not_served(tmp_path, monkeypatch):
    monkeypatch.setenv("DEVICE", "cpu")
    folder = Path(shutil.copytree(TINY_THINKER_DIRECTORY, tmp_path / "mine"))
    weights = load_file(folder / "model.safetensors")
    del weights["model.layers.1.self_attn.q_proj.weight"]
    save_file(weights, folder / "model.safetensors", {"format": "pt"})
    with pytest.raises(ModelLoadError, match=r"Missing: model.layers.1.self_attn.q_p"):
        serve(folder)


GPU = {"device": "cuda", "gpu_memory_utilization": 0.5, "max_seq_length": 512}


def words(model: str | Path, in_4bit: bool = True, **options: object) -> list[str]:
    command = serve_command(model, Settings(**GPU, load_in_4bit=in_4bit), **options)
    return command[command.index("serve") + 1 :]


def folder_with(path: Path, **config: object) -> Path:
    (path / "config.json").write_text(json.dumps(config))
    return path


def test_a_server_on_a_gpu_quantises_as_unsloth_does(tmp_path: Path) -> None:
    folder = folder_with(tmp_path, model_type="qwen3")
    flags = ["--max-model-len", "512", "--gpu-memory-utilization", "0.5"]
    assert words(folder, in_4bit=False) == [str(folder), *flags]
    quantised = [*flags, "--quantization", "bitsandbytes"]
    assert words(folder) == [str(folder), *quantised]
    assert words(folder, quantization="fp8")[-1] == "fp8"
    assert words("Qwen/Qwen3-4B") == ["Qwen/Qwen3-4B", *quantised]


@pytest.mark.parametrize(
    "name",
    ["unsloth/Qwen3-4B-unsloth-bnb-4bit", "Qwen/Qwen3-4B-FP8", "org/Model-AWQ"],
)
def test_it_leaves_weights_that_are_quantised(name: str, tmp_path: Path) -> None:
    assert "--quantization" not in words(name)
    folder = folder_with(tmp_path, quantization_config={"quant_method": "fp8"})
    assert "--quantization" not in words(folder)
