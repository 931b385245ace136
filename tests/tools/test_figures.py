from pathlib import Path

import pytest

from helpers.models import estimate_memory
from helpers.speed import load_figures
from tools import cards, figures

ROOT = Path(__file__).resolve().parents[2]


@pytest.mark.parametrize(("name", "word"), list(figures.SECTIONS))
def test_the_pages_say_what_was_recorded(name: str, word: str) -> None:
    lines = figures.SECTIONS[name, word](load_figures(figures.RECORDED))
    _, written, _ = figures.between((ROOT / name).read_text("utf-8"), word)
    assert written == "\n".join(lines), "run `make figures`"


def test_the_picture_is_there_and_the_device_is_named() -> None:
    assert (ROOT / figures.PICTURE).read_bytes().startswith(b"\x89PNG")
    results = (ROOT / "RESULTS.md").read_text("utf-8")
    assert "NVIDIA H200" in results and "random weights" in results


def test_a_page_without_the_section_is_an_error() -> None:
    with pytest.raises(ValueError, match="has no lines"):
        figures.between("# Fast inference notebooks\n", "table")


@pytest.mark.parametrize("card", [one for one in cards.CARDS if one.recorded])
def test_a_recorded_card_has_the_speeds_that_were_measured_on_it(card) -> None:
    engines = {one.name: one for one in load_figures(card.recorded)}
    engine, line = engines[f"{cards.ENGINE}, 16-bit"], cards.row(card)
    assert card.name in engine.device
    for size in cards.BATCH_SIZES:
        assert f"| {engine.throughput(size):,.0f} |" in line


def test_what_the_table_promises_a_card_fits_it() -> None:
    for card, line in zip(cards.CARDS, cards.table()[2:], strict=True):
        _, _, precision, context, held, *_ = (cell.strip() for cell in line.split("|"))
        in_4bit, free = precision == "4-bit", card.memory_mib * 0.9
        length, count = int(context.replace(",", "")), int(held)
        assert estimate_memory(cards.MODEL, length, 1, in_4bit).fits(free)
        all_at_once = estimate_memory(cards.MODEL, cards.LENGTH, count, in_4bit)
        assert all_at_once.total_mib <= free + 1
