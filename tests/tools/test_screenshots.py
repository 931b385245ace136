"""The README's pictures show the notebooks and the code of today."""

import json

from tools import screenshots


def test_the_pictures_show_what_is_here_now() -> None:
    shown = json.loads(screenshots.SHOWN.read_text())
    assert shown == screenshots.describe_pictures(), "run python -m tools.screenshots"


def test_the_pictures_are_there_and_in_the_readme() -> None:
    readme = (screenshots.ROOT / "README.md").read_text("utf-8")
    for name in screenshots.CHOSEN.values():
        picture = (screenshots.PICTURES / name).read_bytes()
        assert picture.startswith(b"\x89PNG") and f"(.github/{name})" in readme
