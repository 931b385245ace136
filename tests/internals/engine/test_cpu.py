from pathlib import Path

from child import run_child


def test_an_import_of_unsloth_that_fails_says_why(tmp_path: Path) -> None:
    """Not "cannot import name", as an AttributeError in it became."""
    found = run_child("broken_unsloth", str(tmp_path))
    assert found["kind"] == "EngineUnavailableError"
    assert "no attribute 'an_attribute_it_lacks'" in found["said"]
