"""The numbers that a notebook's text quotes are those of the recorded files."""

import json
import statistics

import pytest
from notebook_gates import ROOT, cells

from helpers import load_figures
from tools.compare_engines_child import mixed
from tools.engines import Job

NOTEBOOKS = ROOT / "notebooks"


def text_of(name: str) -> str:
    path = next(NOTEBOOKS.glob(f"{name}_*.ipynb"))
    return " ".join(" ".join(c.source.split()) for _, c in cells(path, "markdown"))


def claims_on_engines() -> list[str]:
    engines = {one.name: one for one in load_figures("h200")}
    bare, fp8 = engines["vLLM, bare, 16-bit"], engines["vLLM, bare, FP8"]
    generate = engines["transformers generate, 16-bit"]
    four, sixteen = (
        [engines[f"Unsloth fast_generate, {bits}"].throughput(n) for n in (1, 8, 64)]
        for bits in ("4-bit", "16-bit")
    )
    at_64, in_mixed = (
        f"{value:,.0f}"
        for value in (bare.throughput(64), statistics.median(bare.mixed[64]))
    )
    return [
        f"a prompt gets {bare.throughput(1):.0f} tokens a second from vLLM",
        f"and {generate.throughput(1):.0f} from `generate`",
        f"from {at_64} tokens/s to {in_mixed}",
        f"steps at {statistics.median(generate.mixed[64]):.0f} tokens/s",
        f"{fp8.throughput(1):.0f} tokens/s instead of {bare.throughput(1):.0f}",
        f"{fp8.throughput(256):,.0f} instead of {bare.throughput(256):,.0f}",
        f"({four[0]:.0f} tokens/s against {sixteen[0]:.0f})",
        f"8 prompts at {100 * four[1] / sixteen[1]:.0f} % of the speed of 16 bits",
        f"64 at {100 * four[2] / sixteen[2]:.0f} %",
    ]


def claims_on_a_step() -> list[str]:
    steps = json.loads((NOTEBOOKS / "figures" / "steps.json").read_text())["steps"]
    matrices = {n: step["parts_ms"]["matrices"] for n, step in steps.items()}
    speed = 256_000 / steps["256"]["step_ms"]
    return [
        f"8.05 GB in {matrices['1']:.2f} ms",
        f"hardly longer, {matrices['64']:.1f} ms",
        f"{matrices['256']:.1f} ms now",
        f"Attention takes {steps['256']['parts_ms']['attention']:.1f} ms",
        f"{steps['256']['prefill_share']:.0%} of the whole run".replace("%", " %"),
        f"alone would make {round(speed, -2):,.0f}",
    ]


def claims_on_lengths() -> list[str]:
    _, answers = mixed(Job("", ""), 64)
    record = json.loads((NOTEBOOKS / "figures" / "matrix.json").read_text())
    one, many = (statistics.median(record["milliseconds"][n]) for n in ("1", "512"))
    return [
        f"has {max(answers)} tokens",
        f"together have {sum(answers):,} tokens: on average "
        f"{sum(answers) / max(answers):.0f} of 64",
        f"printed {512 * one / many:.0f}",
    ]


def test_12_quotes_what_was_recorded():
    record = json.loads((NOTEBOOKS / "figures" / "serving.json").read_text())
    off = [record["measured"][n] / x - 1 for n, x in record["predicted"].items()]
    foretold, seen = (record[f"{name}_knee"] for name in ("predicted", "measured"))
    more = f"made {100 * min(off):.0f} to {100 * max(off):.0f} % more than was foretold"
    assert more in text_of("12")
    assert f"at {seen:.0f} where {foretold:.0f} were foretold" in text_of("12")


def test_07_13_and_06_quote_what_other_precisions_cost():
    engines = {one.name: one for one in load_figures("h200")}
    bits, fp8, cache, gptq = (
        engines[f"vLLM, bare, {kind}"]
        for kind in ("16-bit", "FP8", "FP8, FP8 cache", "GPTQ")
    )
    sizes = sorted(bits.tokens_per_second)
    lost = {n: 100 - 100 * gptq.throughput(n) / bits.throughput(n) for n in sizes}
    assert [round(lost[n]) for n in (1, 8, 32)] == [4, 5, 3] and round(lost[256]) == 19
    assert "cost 3 to 5 % up to 32 prompts and 19 % for 256" in text_of("07")
    lost = [100 - 100 * cache.throughput(n) / fp8.throughput(n) for n in sizes]
    assert (round(min(lost)), round(max(lost))) == (3, 6)
    assert "makes each bar 3 to 6 % shorter" in text_of("13")
    one, many = (f"{cache.throughput(n):,.0f}" for n in (1, 256))
    without_one, without_many = (f"{fp8.throughput(n):,.0f}" for n in (1, 256))
    said = f"{one} tokens/s for {without_one} at one prompt, {many} for {without_many}"
    assert f"{said} at 256" in text_of("06")


@pytest.mark.parametrize(
    "claims", [claims_on_engines, claims_on_a_step, claims_on_lengths]
)
def test_03_quotes_what_was_recorded(claims):
    text = text_of("03")
    assert [claim for claim in claims() if claim not in text] == []


def test_a_recorded_step_is_named_to_its_last_part():
    steps = json.loads((NOTEBOOKS / "figures" / "steps.json").read_text())["steps"]
    assert set(steps) == {"1", "64", "256"}
    assert min(step["named"] for step in steps.values()) >= 0.95
