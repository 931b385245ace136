import functools
import sys
import types

import nbformat
import pytest
from child import run_child
from nbclient import NotebookClient

from helpers.internals.engine.release import MemoryReport, release_model


@pytest.fixture
def namespace(monkeypatch: pytest.MonkeyPatch) -> dict:
    """The variables of an empty notebook or script."""
    main = types.ModuleType("__main__")
    vars(main).clear()
    monkeypatch.setitem(sys.modules, "__main__", main)
    return vars(main)


def test_release_of_a_transformers_model_names_what_holds_it(namespace):
    torch = pytest.importorskip("torch")
    namespace |= {"model": torch.nn.Linear(8, 8), "other": 1}
    report = release_model(namespace["model"])
    assert namespace == {"other": 1}
    assert (report.parameters, report.alive_parameters) == (2, 0)
    assert report.holders == ()

    namespace["model"] = torch.nn.Linear(8, 8)
    namespace["keep"] = [namespace["model"]]
    report = release_model(namespace["model"])
    assert (report.parameters, report.alive_parameters) == (2, 2)
    assert report.holders == ("the variable keep (a list)",)
    assert "Still held by the variable keep (a list)" in str(report)


def test_release_names_an_object_that_holds_the_model(namespace):
    torch = pytest.importorskip("torch")

    class Holder:
        pass

    holder = Holder()
    vars(holder)["model"] = torch.nn.Linear(8, 8)
    namespace["state"] = [holder]
    report = release_model(holder.model)
    assert report.holders == (f"an object of {__name__}.Holder",)


def test_release_forgets_a_model_that_a_notebook_has_shown():
    sources = [
        "class Model: ...\nmodel = Model()\nmodel",
        "from helpers.internals.engine.release import release_model\n"
        "print(release_model(model).holders)",
    ]
    cells = [nbformat.v4.new_code_cell(source) for source in sources]
    NotebookClient(nbformat.v4.new_notebook(cells=cells)).execute()
    assert cells[1].outputs[0].text == "()\n"


def test_release_deletes_a_wrapped_method_of_the_model(namespace):
    torch = pytest.importorskip("torch")
    model = torch.nn.Linear(8, 8)
    generate = functools.wraps(model.forward)(lambda: None)
    namespace |= {"model": model, "generate": generate}
    del model, generate
    report = release_model(namespace["model"])
    assert namespace == {} and report.alive_parameters == 0


def test_release_empties_a_traceback_that_holds_the_model(namespace):
    torch = pytest.importorskip("torch")

    def fail():
        model = torch.nn.Linear(8, 8)
        namespace["model"] = model
        raise ValueError

    with pytest.raises(ValueError) as caught:
        fail()
    report = release_model(namespace["model"])
    assert (report.alive_parameters, report.holders) == (0, ())
    assert caught.tb is not None  # Kept, without the variables.


def test_release_drops_the_launches_that_hold_views_of_4bit_weights(namespace):
    pytest.importorskip("torch")
    from bitsandbytes.nn import Linear4bit

    model = Linear4bit(128, 128, bias=False, quant_type="nf4").to("cpu")
    weight = model.weight
    # What unsloth.kernels.utils keeps with each weight that a GPU has used.
    launch = functools.partial(print, weight, weight.view(-1))
    weight.quant_state._unsloth_gemv_plan = [launch]
    namespace["model"] = model
    del model, weight, launch
    report = release_model(namespace["model"])
    assert (report.parameters, report.alive_parameters) == (1, 0), report


def test_release_names_a_generator_that_holds_the_model(namespace):
    torch = pytest.importorskip("torch")

    def layers():
        model = torch.nn.Linear(8, 8)
        namespace["model"] = model
        yield 1
        yield model

    generator = layers()
    next(generator)
    report = release_model(namespace["model"])
    assert report.holders == ("an object of builtins.generator layers",)
    assert isinstance(next(generator), torch.nn.Linear)  # It can go on.


def test_release_names_a_function_that_holds_the_model(namespace):
    torch = pytest.importorskip("torch")
    model = torch.nn.Linear(8, 8)
    report = release_model(model)
    assert report.holders == ("a local variable of a function that is still running",)
    assert report.alive_parameters == 2


def test_release_compares_with_the_level_before_the_load():
    report = MemoryReport("GPU memory", 9000, 3000, 10, 0, kept_mib=2000)
    assert report.freed_mib == 6000
    assert "2000 MiB more than before the load" in str(report)
    report = MemoryReport("GPU memory", 9000, 1010, 10, 0, kept_mib=10)
    assert "more than before" not in str(report)


@pytest.fixture(scope="module")
def cycles(tmp_path_factory: pytest.TempPathFactory) -> list[dict]:
    """Two loads and releases in one process, the second with a variable forgotten."""
    return run_child("release_engine", str(tmp_path_factory.mktemp("model")))["cycles"]


def test_release_of_a_compiled_engine_frees_every_parameter(
    cycles: list[dict],
) -> None:
    for cycle in cycles:
        assert cycle["hooks"][0] > 0, "nothing to release: it was not compiled"
        assert cycle["hooks"][1] == 0
        count, alive = cycle["parameters"]
        assert count > 10 and alive == 0
        assert cycle["variables"] == []
    assert [cycle["holders"] for cycle in cycles] == [
        [],
        ["the variable kept (a dict)"],
    ]


def test_an_engine_after_a_release_gives_the_same_tokens(cycles: list[dict]) -> None:
    first, second = (cycle["tokens"] for cycle in cycles)
    assert first == second
    assert len(first[0]) == 8


def test_release_forgets_the_pool_of_cuda_graphs(cycles: list[dict]) -> None:
    """On a GPU the next engine would capture its graphs into memory that is gone."""
    assert [cycle["graph_pool"] for cycle in cycles] == [None, None]
