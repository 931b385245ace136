from pathlib import Path

import pytest

from helpers.speed import load_figures
from tools import figures

ROOT = Path(__file__).resolve().parents[2]


def test_the_readme_says_what_was_recorded() -> None:
    recorded = load_figures(figures.RECORDED)
    _, written, _ = figures.between((ROOT / "README.md").read_text("utf-8"))
    assert written == figures.section(recorded), "run `make figures`"
    assert "NVIDIA H100" in written and "random weights" in written
    assert (ROOT / figures.PICTURE).read_bytes().startswith(b"\x89PNG")


def test_a_readme_without_the_section_is_an_error() -> None:
    with pytest.raises(ValueError, match="has no lines"):
        figures.between("# Fast inference notebooks\n")
