# The cells of a notebook for test_jupyterlab.py: controls, and the kernel's end.
# %%
import numpy as np

from helpers.widgets import DistributionExplorer

explorer = DistributionExplorer(
    np.log([0.5, 0.3, 0.15, 0.05]),
    lambda token_ids: "$abc$"[token_ids[0]],
    lambda parameters: released_model.generate(),  # noqa: F821 (it is gone)
)
# %%
explorer  # noqa: B018
# %%
from helpers.memory import MemoryMonitor  # noqa: E402

block = None  # Run again, it begins where it began before.
panel = MemoryMonitor(interval_s=1.0, live=True).start()
block = bytearray(b"x") * 100 * 2**20
marked = panel.mark("block")
# %%
from helpers.kernel import shutdown_kernel  # noqa: E402

shutdown_kernel()
