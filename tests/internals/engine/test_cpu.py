from pathlib import Path

from child import run_child


def test_an_import_of_unsloth_that_fails_says_why(tmp_path: Path) -> None:
    """Not "cannot import name", as an AttributeError in it became."""
    found = run_child("broken_unsloth", str(tmp_path))
    assert found["kind"] == "EngineUnavailableError"
    assert "no attribute 'an_attribute_it_lacks'" in found["said"]


def test_a_locale_of_ascii_is_named_as_the_cause(tmp_path: Path) -> None:
    plain = {"LC_ALL": "C", "PYTHONUTF8": "0", "PYTHONCOERCECLOCALE": "0"}
    found = run_child("broken_unsloth", str(tmp_path), **plain)
    assert "LANG=C.UTF-8" in found["said"]
