"""What 13 works out, against vLLM's own manager of blocks and recorded figures."""

import ast
import itertools
import json
import math
import random
import statistics
from collections import Counter, defaultdict
from typing import Any

import numpy as np
import pytest
from notebook_gates import ROOT, cells

from helpers.schedule import Schedule
from tools.settings_grid import LIMITS

NOTEBOOK = ROOT / "notebooks" / "13_faster_still.ipynb"


def functions_of(name: str) -> dict[str, Any]:
    """Compile the cell that defines a function, without running anything else."""
    source = next(
        c.source for _, c in cells(NOTEBOOK, "code") if f"def {name}" in c.source
    )
    kinds = (ast.FunctionDef, ast.Assign)
    found = [node for node in ast.parse(source).body if isinstance(node, kinds)]
    space = {"itertools": itertools, "math": math, "defaultdict": defaultdict}
    space |= {"Counter": Counter, "DRAFTED": 4}
    exec(compile(ast.Module(found, []), name, "exec"), space)
    return space


def found_by_vllm(prompts: list, answers: list, blocks: int, size: int) -> list[int]:
    """Give each request its blocks and take them back, as vLLM's scheduler does."""
    import torch
    from vllm import SamplingParams
    from vllm.utils.hashing import sha256
    from vllm.v1.core.kv_cache_manager import KVCacheManager
    from vllm.v1.core.kv_cache_utils import get_request_block_hasher, init_none_hash
    from vllm.v1.kv_cache_interface import (
        FullAttentionSpec,
        KVCacheConfig,
        KVCacheGroupSpec,
    )
    from vllm.v1.request import Request

    init_none_hash(sha256)
    spec = FullAttentionSpec(
        block_size=size, num_kv_heads=1, head_size=1, dtype=torch.float32
    )
    manager = KVCacheManager(
        KVCacheConfig(blocks + 1, [], [KVCacheGroupSpec(["layer"], spec)]),
        max_model_len=10_000,
        scheduler_block_size=size,
        hash_block_size=size,
    )
    found = []
    for number, (prompt, answer) in enumerate(zip(prompts, answers, strict=True)):
        request = Request(
            str(number),
            list(prompt),
            SamplingParams(max_tokens=answer),
            None,
            block_hasher=get_request_block_hasher(size, sha256),
        )
        held, hits, *_ = manager.get_computed_blocks(request)
        found.append(hits)
        rest = len(prompt) - hits
        assert manager.allocate_slots(request, rest, hits, held) is not None
        request.num_computed_tokens = len(prompt)
        for token in range(answer - 1):
            request.append_output_token_ids(-1 - number * 10_000 - token)
            assert manager.allocate_slots(request, 1) is not None
            request.num_computed_tokens += 1
        manager.free(request)
    return found


def workload(numbers: random.Random) -> tuple[list, list, int, int]:
    """Prompts that share beginnings, and a cache that holds some of them."""
    size = numbers.choice([1, 2, 4])
    tree = [
        [numbers.randrange(9) for _ in range(numbers.randrange(12))] for _ in "12345"
    ]
    prompts, answers = [], []
    for _ in range(numbers.randrange(2, 25)):
        parts = numbers.choices(tree, k=numbers.randrange(1, 4))
        prompts.append([*itertools.chain(*parts), numbers.randrange(3)])
        answers.append(numbers.randrange(1, 8))
    longest = max(len(p) + a for p, a in zip(prompts, answers, strict=True))
    blocks = math.ceil(longest / size) + numbers.randrange(12)
    return prompts, answers, blocks, size


def test_what_is_found_in_the_prefix_cache_is_worked_out_exactly() -> None:
    cached_tokens = functions_of("cached_tokens")["cached_tokens"]
    numbers, hits = random.Random(0), 0
    for _ in range(1000):
        prompts, answers, blocks, size = workload(numbers)
        found = found_by_vllm(prompts, answers, blocks, size)
        assert list(cached_tokens(prompts, answers, blocks, size)) == found
        hits += sum(found)
    assert hits > 1000


@pytest.mark.parametrize(
    ("answer", "counts"),
    [
        # Drafts are right up to the end.
        ([3, 4, 5, 6, 7, 8, 9], {"steps": 1, "drafts": 1, "drafted": 4}),
        # Nothing was there before.
        ([90, 91, 92, 93, 94, 95], {"steps": 1, "drafts": 0, "drafted": 0}),
    ],
)
def test_lookup_is_replayed(answer: list[int], counts: dict) -> None:
    replay = functions_of("replay")["replay"]
    found = replay([1, 2, 3, 4, 5, 6, 7, 8, 9, 1, 2], answer)
    assert {name: found[name] for name in counts} == counts


def recorded(name: str) -> dict:
    return json.loads((ROOT / "notebooks" / "figures" / f"{name}.json").read_text())


def test_13_quotes_what_was_recorded() -> None:
    text = " ".join(" ".join(c.source.split()) for _, c in cells(NOTEBOOK, "markdown"))
    speed = {
        (length, size): statistics.median(cell["tokens_per_second"])
        for length, by_size in recorded("speculation")["acceptance"].items()
        for size, cell in by_size.items()
    }
    alone = {length: f"{speed[length, '1']:.0f}" for length in ("none", *"345")}
    (limit,) = {
        round(one["limit"]["1"])
        for one in recorded("h200")["engines"]
        if one["row"] == "vllm"
    }
    claims = [
        f"goes from {alone['none']} tokens/s to {alone['3']} with three tokens a step",
        f"line allows {limit} without drafts: three tokens a step stay below it, "
        f"four reach {alone['4']}, five {alone['5']}",
        f"at {alone['3']} a second are {3000 / speed['3', '1']:.1f} ms a step",
        f"even five make {speed['5', '256']:,.0f} tokens/s",
    ]
    grows, gains = {}, {}
    for size, name in (("4B", "eagle"), ("8B", "eagle_8b")):
        found = recorded(name)
        plain, head = (
            statistics.median(found["acceptance"][length]["1"]["tokens_per_second"])
            for length in ("none", "3")
        )
        line = found["limit"]["1"]
        grows[size], gains[size] = 3 / head - 1 / plain, head / plain
        claims.append(
            f"| Qwen3-{size} | {plain:.0f} | {line:.0f} | {head:.0f} "
            f"| {100 * head / line:.0f} % |"
        )
    claims += [
        f"1.7 times as fast if they are looked up, {gains['4B']:.1f} times if a head",
        f"gains more, {gains['8B']:.1f} times against {gains['4B']:.1f}",
        f"becomes {1000 * grows['8B']:.1f} ms longer, that of the smaller one "
        f"{1000 * grows['4B']:.1f} ms",
    ]
    assert grows["8B"] < grows["4B"]
    eager = recorded("steps_eager")["steps"]
    busy = {n: one["step_ms"] - one["parts_ms"]["gaps"] for n, one in eager.items()}
    claims += [
        f"works for {busy['1']:.1f} of a step's {eager['1']['step_ms']:.1f} ms",
        f"waits for {eager['256']['parts_ms']['gaps']:.0f} of "
        f"{eager['256']['step_ms']:.0f} ms",
    ]
    assert [claim for claim in claims if claim not in text] == []
    gain = {key: speed[key] / speed["none", key[1]] for key in speed}
    assert gain["2", "8"] < 1.1 and round(gain["3", "8"], 1) == 1.5
    assert gain["2", "64"] < 1 < gain["3", "64"]
    assert gain["4", "256"] < 1 < gain["5", "256"] and round(gain["3", "1"], 1) == 1.7


def test_the_settings_that_13_works_out_are_the_best_of_the_grid() -> None:
    """Within 3 % on each mix, from the three jobs of the fit alone."""
    grid = recorded("settings")

    def features(lengths: dict, job: dict) -> list[int]:
        engine = Schedule(**{name: job[name] for name in LIMITS})
        steps = engine.simulate(lengths["prompts"], lengths["answers"]).steps
        return [len(steps), sum(s.tokens for s in steps), sum(s.context for s in steps)]

    fit = [features(job, job) for job in grid["fit"]]
    costs = np.linalg.solve(fit, [min(job["seconds"]) for job in grid["fit"]])
    offs, chosen, worst, spread, again = [], [], [], [], []
    for mix in grid["mixes"].values():
        said = [float(costs @ features(mix, job)) for job in mix["jobs"]]
        took = [min(job["seconds"]) for job in mix["jobs"]]
        chosen.append(took[said.index(min(said))] / min(took))
        offs += [a / b - 1 for a, b in zip(said, took, strict=True)]
        worst.append(max(took) / min(took))
        spread.append(max(said) / min(said))
        again += [max(job["seconds"]) / min(job["seconds"]) for job in mix["jobs"]]
    text = " ".join(" ".join(c.source.split()) for _, c in cells(NOTEBOOK, "markdown"))
    claims = [
        f"took at most {math.ceil(100 * max(chosen)) - 100} % longer than the best",
        f"took {min(worst):.1f} to {max(worst):.1f} times as long as the best",
        f"by the arithmetic it is {min(spread):.1f} to {max(spread):.1f} times",
        f"a job done again took up to {max(again):.1f} times as long",
    ]
    assert [claim for claim in claims if claim not in text] == []
    assert max(chosen) < 1.03 and statistics.median(map(abs, offs)) < 0.11
    reading = offs[9:18] + offs[27:36]  # documents and labels
    assert max(reading) < 0 and statistics.median(reading) < 1 / 1.2 - 1
