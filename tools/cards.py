"""Compute which model, precision and context suit a graphics card, and how fast it is.

Only the cards with a recorded file were run. Memory is that of `estimate_memory`. The
speed of the others is the measured one of `SCALED_FROM`, times their share of its
bandwidth: writing one token reads all weights once, so that bandwidth decides.
"""

from typing import NamedTuple

from helpers.internals.machine.devices import MIB
from helpers.models import MOST_OF_A_GPU, estimate_memory
from helpers.speed import load_figures

MODEL = "unsloth/Qwen3-4B-Thinking-2507-unsloth-bnb-4bit"
ENGINE = "Unsloth fast_generate"
LENGTH = 4096  # tokens of a conversation: the default of MAX_SEQ_LENGTH
BATCH_SIZES = (1, 8)
LEAST_HELD = 3  # conversations that must fit before 16 bits are taken


class Card(NamedTuple):
    """A card as its vendor describes it; all of its memory is taken to be free."""

    name: str
    memory_mib: int
    bandwidth: float  # GB/s
    recorded: str = ""  # the file in notebooks/figures of what was measured on it


# nvidia.com: the specifications of each card.
CARDS = (
    Card("GeForce RTX 4060", 8188, 272),
    Card("GeForce RTX 4070", 12_282, 504),
    Card("GeForce RTX 4080", 16_376, 717),
    Card("GeForce RTX 4090", 24_564, 1008),
    Card("H100 80GB HBM3", 81_559, 3350, "h100"),
    Card("H200", 143_771, 4800, "h200"),
)
SCALED_FROM = CARDS[-2]


def table() -> list[str]:
    """Return lines of Markdown: a row for each card."""
    sizes = " | ".join(f"tokens/s, {size} at once" for size in BATCH_SIZES)
    lines = [
        f"| your card | precision | longest context | {LENGTH:,} tokens, at once "
        f"| {sizes} |",
        "|---|---|---:|---:|---:|---:|",
    ]
    return lines + [row(card) for card in CARDS]


def row(card: Card) -> str:
    """Return the row of one card, measured on it or scaled."""
    free = card.memory_mib * MOST_OF_A_GPU
    whole, four = (estimate_memory(MODEL, LENGTH, 1, bits) for bits in (False, True))
    fits = whole.held_at_once(free) >= LEAST_HELD
    estimate, precision = (whole, "16-bit") if fits else (four, "4-bit")
    spec, source = estimate.model, card if card.recorded else SCALED_FROM
    room = int((free - estimate.fixed_mib) * MIB // spec.kv_bytes_per_token)
    figures = {one.name: one for one in load_figures(source.recorded)}
    measured, share = (
        figures[f"{ENGINE}, {precision}"],
        card.bandwidth / source.bandwidth,
    )
    speeds = [f"{measured.throughput(size) * share:,.0f}" for size in BATCH_SIZES]
    memory = round(card.memory_mib / 1024)
    cells = [
        f"{memory} GB ({card.name}, {card.bandwidth:,.0f} GB/s)",
        precision,
        f"{min(room // 1024 * 1024, spec.context_length):,}",
        f"{estimate.held_at_once(free):,}",
        *speeds,
    ]
    return f"| {' | '.join(cells)} |"
