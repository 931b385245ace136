"""Import Unsloth for this machine, and load vLLM's CPU engine behind a model.

In go settings, a plan or arguments; out come package, engine, or what is missing.
"""

import codecs
import dataclasses
import functools
import importlib.util
import inspect
import locale
import os
import sys
import warnings
from pathlib import Path
from typing import Any

from packaging.version import Version

from ...models import TINY_THINKER_DIRECTORY
from ..machine.devices import list_gpus, runs_cuda
from ..machine.settings import Settings
from ..machine.versions import find_version
from .errors import LoadPlan
from .exceptions import EngineUnavailableError, ImportOrderWarning, ModelLoadError
from .hub import find_snapshot
from .quiet import is_loud, quiet, quieten_packages
from .weights import adapter_config, read_json

# PyTorch's threads (GNU OpenMP) spin while they wait, against all else that runs:
# beside a second engine each made 575 tokens/s, and 1,350 to 1,780 with this.
CPU_VARIABLES = {
    "OMP_WAIT_POLICY": "PASSIVE",
    "GOMP_SPINCOUNT": "0",
    "NUMBA_NUM_THREADS": "1",  # Of vLLM's n-gram speculation.
    "VLLM_CPU_OMP_THREADS_BIND": "nobind",  # Else two engines share one core.
    # Compiling takes half a minute and a C++ compiler, and gains little.
    "TORCHDYNAMO_DISABLE": "1",
    "VLLM_USE_AOT_COMPILE": "0",
}


def take_engine_arguments(kwargs: dict[str, Any], loads_model: Any) -> dict[str, Any]:
    """Move what vLLM takes and `loads_model` does not out of `kwargs`; add defaults."""
    from vllm.engine.arg_utils import EngineArgs

    known = {field.name for field in dataclasses.fields(EngineArgs)}
    known -= inspect.signature(loads_model).parameters.keys()
    known -= {"gpu_memory_utilization", "quantization_config"}  # Unsloth ignores them.
    arguments = {"max_logprobs": 0, "enforce_eager": True}  # The first as on a GPU.
    # To read a prompt in chunks vLLM rewinds seeded generators; a CPU's can't be.
    arguments["enable_chunked_prefill"] = False
    if {"max_lora_rank", "max_loras"} & kwargs.keys():  # Adapters cost speed.
        arguments |= {"enable_lora": True, "max_lora_rank": 64}  # As in Unsloth's.
    arguments["seed"] = kwargs.get("random_state", 3407)
    arguments["trust_remote_code"] = kwargs.get("trust_remote_code", False)
    return arguments | {name: kwargs.pop(name) for name in known & kwargs.keys()}


def load_engine(plan: LoadPlan, dtype: Any, arguments: dict, which: dict) -> Any:
    """Load vLLM's CPU engine, a `vllm.LLM`; `which` are arguments of the Hub's."""
    from vllm import LLM
    from vllm.platforms import current_platform

    if not current_platform.is_cpu():
        way = "vLLM's CPU build (requirements/cpu.txt); else use fast_inference=False."
        raise EngineUnavailableError(f"fast_inference=True without a GPU needs {way}")
    if arguments.get("enable_lora"):
        patch_lora_for_plain_prompts()
    own = {"max_model_len": plan.max_seq_length, "use_tqdm_on_load": False}
    own["dtype"] = str(dtype).removeprefix("torch.")
    folder = find_snapshot(plan.path, **which) or plan.path
    return LLM(model=str(folder), **own | arguments)


@functools.cache
def patch_lora_for_plain_prompts() -> None:
    """Work around two bugs of vLLM's CPU engines that take adapters.

    A prompt without an adapter, marked by -1, was given the last one. And the adapter
    of the output layer ended the engine where `prompt_logprobs` give it more rows than
    requests: it is left out, as on a GPU.
    """
    from vllm.lora.ops.torch_ops import lora_ops
    from vllm.lora.punica_wrapper import punica_cpu

    shrink, wrapper = lora_ops.bgmv_shrink, punica_cpu.PunicaWrapperCPU
    add_logits = wrapper.add_lora_logits

    def bgmv_shrink(x: Any, weights: Any, y: Any, indices: Any, *scale: Any) -> None:
        shrink(x, weights, y, indices, *scale)
        y[indices < 0] = 0  # Zero adds nothing to the answer.

    def add_lora_logits(self: Any, y: Any, x: Any, *args: Any, **kwargs: Any) -> None:
        if x.view(-1, x.shape[-1]).shape[0] == len(self.sampler_indices):
            add_logits(self, y, x, *args, **kwargs)

    wrapper.add_lora_logits = add_lora_logits
    lora_ops.bgmv_shrink = punica_cpu.bgmv_shrink = bgmv_shrink


def require_packages(fast_inference: bool, load_in_4bit: bool) -> None:
    """Raise `EngineUnavailableError` where a load would miss a package."""
    import unsloth.import_fixes

    broken = getattr(unsloth.import_fixes, "VLLM_DISABLED_REASON", None)
    if fast_inference and (broken or importlib.util.find_spec("vllm") is None):
        problem = f"broken: {broken}" if broken else "not installed"
        way = "`make setup` installs it; fast_inference=False works without it."
        raise EngineUnavailableError(f"vLLM is {problem}. {way}")
    vllm = fast_inference and find_version("vllm")
    by_plugin = vllm and vllm >= Version("0.28")  # Its 4-bit code moved there.
    package = "vllm-bnb-plugin" if by_plugin else "bitsandbytes"
    if load_in_4bit and find_version(package) is None:
        way = f"`pip install {package}`, or a 16-bit model and LOAD_IN_4BIT=false."
        raise EngineUnavailableError(f"4-bit weights need {package}: {way}")


def refuse_for_engine(path: str) -> None:
    """Raise `ModelLoadError` for a folder that vLLM can't load alone, or on a CPU."""
    if config := adapter_config(path):
        base, rank = config["base_model_name_or_path"], config.get("r", "(its rank)")
        way = f"Load its model with fast_inference=True and max_lora_rank={rank} "
        way += f"({base}), pass lora_request=LoRARequest('name', 1, {path!r}), or load"
        raise ModelLoadError(
            f"{path} is an adapter. {way} both by fast_inference=False."
        )
    config = read_json(Path(path, "config.json"))
    if (config.get("quantization_config") or {}).get("quant_method") == "bitsandbytes":
        why = f"{path} is quantised by bitsandbytes, which vLLM can't run on a CPU"
        way = "load the model in 16 bits it was made from, or fast_inference=False."
        raise ModelLoadError(f"{why}: {way}")


_all_threads = 0  # PyTorch's own choice, once it is known.


def set_threads(plan: LoadPlan) -> None:
    """Give tiny-thinker on a CPU one thread, others all; OMP_NUM_THREADS wins."""
    global _all_threads
    import torch

    if plan.device == "cpu" and "OMP_NUM_THREADS" not in os.environ:
        _all_threads = _all_threads or torch.get_num_threads()
        tiny = plan.path == str(TINY_THINKER_DIRECTORY)  # Its work is too little.
        # vLLM replaces the public function by one that does nothing.
        torch._C.set_num_threads(1 if tiny else _all_threads)


def import_unsloth(settings: Settings) -> Any:
    """Import unsloth quietly, set up for this machine; warn if that comes too late."""
    if "unsloth" not in sys.modules:
        # Unsloth patches these; code that imported them before stays unpatched.
        if early := sorted({"transformers", "trl", "vllm"} & sys.modules.keys()):
            why = f"{', '.join(early)} imported before unsloth, which can't speed it up"
            way = "restart the kernel, and import FastLanguageModel first."
            warnings.warn(f"{why} now: {way}", ImportOrderWarning, stacklevel=2)
        settings.apply()
        on_cpu = settings.device == "cpu" or not (runs_cuda() and list_gpus())
        # With CI torch refuses operators whose outputs share memory: Unsloth has some.
        variables = {"TORCHINDUCTOR_ERROR_ON_CUSTOM_OP_ALIASING": "0"}
        os.environ |= variables | (CPU_VARIABLES if on_cpu else {}) | os.environ
        hide_unusable_extension()
    if codecs.lookup(locale.getencoding()).name == "ascii":
        way = "set LANG=C.UTF-8 or PYTHONUTF8=1 before Python starts."
        raise EngineUnavailableError(f"this locale reads UTF-8 files as ASCII: {way}")
    with quiet(settings):
        try:
            import unsloth
        except Exception as error:  # An AttributeError, where torch does not fit it.
            way = "After a stopped import restart the kernel, else `python -m helpers`"
            why = f"unsloth can't be imported ({error}). {way} says why."
            raise EngineUnavailableError(why) from error
    # Some releases of torch read only this, and not the variable.
    sys.modules["torch"]._functorch.config.error_on_custom_op_aliasing = False
    if not is_loud(settings):
        quieten_packages()
    return unsloth


def hide_unusable_extension() -> None:
    """Keep unsloth from `vllm._C` where that ends Python: without AVX-512 bfloat16."""
    spec = importlib.util.find_spec("vllm")
    folder = Path(spec.origin).parent if spec and spec.origin else Path()
    if any(folder.glob("_C_AVX2*")):
        import torch

        if not torch.cpu._is_avx512_bf16_supported():  # The condition of vLLM.
            sys.modules.setdefault("vllm._C", None)
