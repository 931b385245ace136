"""vLLM's engine: whether it can run here, and its CPU build behind a model."""

import codecs
import dataclasses
import functools
import importlib.util
import inspect
import locale
import os
import re
import sys
import types
import warnings
from collections.abc import Callable, Iterable
from pathlib import Path
from typing import Any

from ...models import TINY_THINKER
from ..machine.devices import list_gpus, runs_cuda
from ..machine.settings import Settings
from ..machine.versions import PATCHED_BY_UNSLOTH, lacks_plugin
from .errors import LoadPlan
from .exceptions import EngineUnavailableError, ImportOrderWarning, ModelLoadError
from .quiet import is_loud, quiet, quieten_packages
from .weights import adapter_config, hub_cache, link_models, read_json

# Where CI is set, torch refuses operators whose outputs share memory; Unsloth's
# compiled code has some.
_ALIASING = "TORCHINDUCTOR_ERROR_ON_CUSTOM_OP_ALIASING"
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

# Unsloth's own defaults for its engine on a GPU, and two that suit a CPU.
_ENGINE_DEFAULTS = {
    "disable_log_stats": True,
    "max_logprobs": 0,
    "max_num_seqs": 256,
    "enable_prefix_caching": True,
    "enforce_eager": True,  # Loads in seconds; compiling gains little on a CPU.
    # To read a prompt in chunks vLLM rewinds seeded generators; a CPU's can't be.
    "enable_chunked_prefill": False,
}
_STEP_TOKENS = 4096  # prompt tokens in one step of the CPU engine: vLLM's default
# Giving one of these lets the CPU engine take adapters, which costs speed. Unsloth's
# engine on a GPU always takes them; these are its defaults.
_LORA_DEFAULTS = {"max_lora_rank": 64, "max_loras": 1}
# vLLM has arguments of these names too; on a CPU Unsloth takes them and ignores them.
_IGNORED_ON_CPU = {"gpu_memory_utilization", "quantization_config"}


def take_engine_arguments(
    kwargs: dict[str, Any], loads_model: Callable[..., Any]
) -> dict[str, Any]:
    """Move the arguments that are vLLM's alone out of `kwargs`; add the defaults.

    Those are the fields of vLLM's `EngineArgs` that `loads_model`, which is Unsloth's
    `from_pretrained`, does not have.
    """
    from vllm.engine.arg_utils import EngineArgs

    known = {field.name for field in dataclasses.fields(EngineArgs)}
    known -= inspect.signature(loads_model).parameters.keys() | _IGNORED_ON_CPU
    arguments = dict(_ENGINE_DEFAULTS)
    if _LORA_DEFAULTS.keys() & kwargs.keys():
        arguments |= {"enable_lora": True, **_LORA_DEFAULTS}
    arguments["seed"] = kwargs.get("random_state", 3407)
    arguments["trust_remote_code"] = kwargs.get("trust_remote_code", False)
    taken = [name for name in kwargs if name in known]
    return arguments | {name: kwargs.pop(name) for name in taken}


def load_cpu_engine(
    folder: str | Path,
    dtype: Any,
    max_seq_length: int | None,
    arguments: dict[str, Any],
) -> Any:
    """Load vLLM's CPU engine, a `vllm.LLM`; raise `EngineUnavailableError` without."""
    try:
        from vllm import LLM
        from vllm.platforms import current_platform
    except (ImportError, OSError) as error:
        raise EngineUnavailableError(
            f"vLLM is installed but can't be imported ({error}). `python -m helpers` "
            "says what is wrong; fast_inference=False works without it."
        ) from error
    if not current_platform.is_cpu():
        raise EngineUnavailableError(
            "fast_inference=True without a GPU needs vLLM's CPU build, and another is "
            "installed. Use fast_inference=False, or install requirements/cpu.txt."
        )
    if arguments.get("enable_lora"):
        patch_lora_for_plain_prompts()
    # vLLM compiles its smaller functions as they are first called, which takes half a
    # minute and a C++ compiler.
    current_platform.simple_compile_backend = "eager"
    if max_seq_length is None:
        max_seq_length = read_json(Path(folder, "config.json"))[
            "max_position_embeddings"
        ]
    own = {
        "dtype": str(dtype).removeprefix("torch."),
        "max_model_len": max_seq_length,
        "max_num_batched_tokens": max(_STEP_TOKENS, max_seq_length),
        "use_tqdm_on_load": False,
    }
    return LLM(model=str(folder), **own | arguments)


def patch_lora_for_plain_prompts() -> None:
    """Work around two vLLM bugs on CPUs, where an engine takes adapters.

    A prompt without an adapter got the last one: vLLM marks such a prompt with -1 and
    uses that as an index, in all of vllm/lora/ops/torch_ops/lora_ops.py; the GPU's
    kernels skip it. And `prompt_logprobs` ended the engine beside other requests, since
    the output layer of a prompt has more rows than there are requests; it is left as it
    is there, which is what a GPU does.
    """
    from vllm.lora.ops.torch_ops import lora_ops
    from vllm.lora.punica_wrapper import punica_cpu

    shrink = lora_ops.bgmv_shrink
    if hasattr(shrink, "__wrapped__"):
        return

    @functools.wraps(shrink)
    def bgmv_shrink(
        inputs: Any, weights: Any, output: Any, lora_indices: Any, scaling: float = 1.0
    ) -> None:
        shrink(inputs, weights, output, lora_indices, scaling)
        output[lora_indices < 0] = 0  # Zero adds nothing to the answer.

    add_logits = punica_cpu.PunicaWrapperCPU.add_lora_logits

    @functools.wraps(add_logits)
    def add_lora_logits(self: Any, y: Any, x: Any, *args: Any, **kwargs: Any) -> None:
        if x.view(-1, x.shape[-1]).shape[0] == len(self.sampler_indices):
            add_logits(self, y, x, *args, **kwargs)

    punica_cpu.PunicaWrapperCPU.add_lora_logits = add_lora_logits
    lora_ops.bgmv_shrink = punica_cpu.bgmv_shrink = bgmv_shrink


def require_packages(fast_inference: bool, load_in_4bit: bool) -> None:
    """Raise `EngineUnavailableError` where a load would miss a package."""
    import unsloth.import_fixes

    missing, reason = "", getattr(unsloth.import_fixes, "VLLM_DISABLED_REASON", None)
    if fast_inference and reason:
        missing = f"fast_inference=True needs vLLM, and this one is broken: {reason}"
    elif fast_inference and importlib.util.find_spec("vllm") is None:
        missing = (
            "fast_inference=True needs vLLM, which is not installed. `make setup` "
            "installs it; fast_inference=False works without it."
        )
    elif load_in_4bit and fast_inference and lacks_plugin():
        missing = (
            "4-bit weights in vLLM 0.28 and later need vllm-bnb-plugin. `pip install "
            "vllm-bnb-plugin`, or choose a 16-bit model and LOAD_IN_4BIT=false."
        )
    elif load_in_4bit and importlib.util.find_spec("bitsandbytes") is None:
        missing = (
            "load_in_4bit=True needs bitsandbytes, which is not installed. "
            "`pip install bitsandbytes`, or set LOAD_IN_4BIT=false."
        )
    if missing:
        raise EngineUnavailableError(missing)


def refuse_for_cpu_engine(path: str) -> None:
    """Raise `ModelLoadError` for a folder that vLLM can't load alone, or on a CPU.

    Unsloth would merge no adapter here, and vLLM answer without it.
    """
    config = adapter_config(path)
    if config is not None:
        raise ModelLoadError(
            f"{path} is an adapter. Load its model with fast_inference=True and "
            f"max_lora_rank={config.get('r', '(its rank)')} "
            f"({config['base_model_name_or_path']}), and "
            f"pass lora_request=LoRARequest('name', 1, {path!r}) to fast_generate; "
            "fast_inference=False loads both together."
        )
    file = Path(path, "config.json")
    quantised = read_json(file).get("quantization_config") if file.is_file() else None
    if quantised and quantised.get("quant_method") == "bitsandbytes":
        raise ModelLoadError(
            f"{path} is quantised by bitsandbytes, which vLLM can't run on a CPU: load "
            "the model in 16 bits that it was made from, or fast_inference=False."
        )


def set_threads(plan: LoadPlan) -> None:
    """Give a small model on a CPU one thread, a larger one all cores, before the load.

    Threads that share little work wait for one another. OMP_NUM_THREADS wins.
    """
    import torch

    if plan.device == "cpu" and "OMP_NUM_THREADS" not in os.environ:
        default = _all_threads()
        tiny = plan.spec is not None and plan.spec.name == TINY_THINKER
        # vLLM replaces the public function by one that does nothing.
        torch._C.set_num_threads(1 if tiny else default)


@functools.cache
def _all_threads() -> int:
    """Return PyTorch's own choice; it must be asked before that is changed."""
    import torch

    return torch.get_num_threads()


def import_unsloth(settings: Settings) -> types.ModuleType:
    """Import unsloth quietly, with what it needs to see this machine as it is.

    Warns (`ImportOrderWarning`) where it comes too late; raises
    `EngineUnavailableError` where it can't be imported.
    """
    if "unsloth" not in sys.modules:
        early = [name for name in PATCHED_BY_UNSLOTH if name in sys.modules]
        if early:
            warnings.warn(
                f"{', '.join(early)} imported before unsloth, which then can't speed "
                "it up. Restart the kernel and make "
                '"from helpers import FastLanguageModel" the first import.',
                ImportOrderWarning,
                stacklevel=2,
            )
        settings.apply()
        os.environ.setdefault(_ALIASING, "0")
        if settings.device == "cpu" or not (runs_cuda() and list_gpus()):
            for name, value in CPU_VARIABLES.items():
                os.environ.setdefault(name, value)
        hide_unusable_extension()
    if codecs.lookup(locale.getencoding()).name == "ascii":
        raise EngineUnavailableError(
            "this locale reads files as ASCII, and vLLM's are UTF-8: set LANG=C.UTF-8 "
            "or PYTHONUTF8=1 before Python starts."
        )
    cache = hub_cache()
    with quiet(settings):
        try:
            import unsloth
        except Exception as error:  # An AttributeError, where torch does not fit it.
            raise EngineUnavailableError(
                f"unsloth can't be imported ({error}). `python -m helpers` says what "
                "is wrong with this environment; `make setup` builds a sound one."
            ) from error
    link_models(cache)
    # Some releases of torch read only this, and not the variable.
    sys.modules["torch"]._functorch.config.error_on_custom_op_aliasing = False
    if not is_loud(settings):
        quieten_packages()
    return unsloth


def hide_unusable_extension() -> None:
    """Keep unsloth from loading a build of vLLM's extension that this CPU can't run.

    As unsloth is imported it loads `vllm._C` to see whether vLLM is broken. In a CPU
    build that is the variant for AVX-512 with bfloat16: elsewhere it ends the process
    with SIGILL, or doubles the variant that vLLM picks by itself.
    """
    spec = importlib.util.find_spec("vllm")
    folders = spec.submodule_search_locations or [] if spec else []
    files = [file.name for folder in folders for file in Path(folder).glob("_C*")]
    try:
        cpuinfo = Path("/proc/cpuinfo").read_text()
    except OSError:
        return
    if extension_is_unusable(files, cpuinfo):
        sys.modules.setdefault("vllm._C", None)


def extension_is_unusable(files: Iterable[str], cpuinfo: str) -> bool:
    """Whether `vllm._C` is built for a CPU, and for a better one than this.

    `files` are the names of vLLM's extension modules, `cpuinfo` the text of
    /proc/cpuinfo. A CUDA build (no AVX2 variant beside it) is never unusable: there
    `vllm._C` holds the GPU's kernels.
    """
    if not any(name.startswith("_C_AVX2") for name in files):
        return False
    flags = re.search(r"^flags\s*:(.*)$", cpuinfo, re.MULTILINE)
    # The condition of vllm/platforms/cpu.py, import_kernels.
    return not {"avx512f", "avx512_bf16"} <= set(flags[1].split() if flags else ())
