"""A copy in GPTQ's layout, checked by vLLM, which answers with it."""

from pathlib import Path

import pytest
from child import run_child

from tools.quantise import GROUP, PER_WORD, ZERO, quantise

ROOT = Path(__file__).resolve().parents[2]


def test_values_come_back_from_the_words() -> None:
    import torch

    weight = torch.randn(16, 2 * GROUP, generator=torch.Generator().manual_seed(0))
    parts = quantise(weight)
    words = parts["qweight"]
    assert words.shape == (2 * GROUP // PER_WORD, 16) and words.dtype == torch.int32
    shifts = torch.arange(0, 32, 4)
    values = ((words[:, None] >> shifts[:, None]) & 15).reshape(2 * GROUP, 16) - ZERO
    scales = parts["scales"].repeat_interleave(GROUP, 0)
    assert ((values * scales).T - weight).abs().max() <= scales.max() / 2 + 1e-6


def test_a_shape_that_has_no_whole_groups_is_refused() -> None:
    import torch

    with pytest.raises(ValueError, match="16 x 100"):
        quantise(torch.zeros(16, 100))


def test_vllm_answers_with_the_copy(tmp_path) -> None:
    variables = {"VLLM_CPU_KVCACHE_SPACE": "1", "PYTHONPATH": str(ROOT)}
    found = run_child("quantise", str(tmp_path), **variables)
    assert found["text"].endswith("15 + 27 = 42"), found["text"]
