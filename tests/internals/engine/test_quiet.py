import nbformat
from nbclient import NotebookClient


def test_a_quiet_load_shows_no_progress_bar_in_a_notebook() -> None:
    code = """
from IPython.display import display
from helpers.internals.engine.quiet import quiet
from helpers.internals.machine.settings import Settings
with quiet(Settings()):
    display("a bar")
display("shown")
"""
    cell = nbformat.v4.new_code_cell(code)
    NotebookClient(nbformat.v4.new_notebook(cells=[cell])).execute()
    assert [output.data["text/plain"] for output in cell.outputs] == ["'shown'"]
