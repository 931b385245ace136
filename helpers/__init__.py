"""Helpers of the fast inference notebooks: `from helpers import run_batch, ...`.

The stub beside this file, `__init__.pyi`, lists every public name and the module that
it comes from, for editors and for Python alike. A module is imported when a name of it
is first used, so this package imports no engine, and unsloth can come first.
"""

import lazy_loader

__version__ = "0.1.0"
__getattr__, __dir__, __all__ = lazy_loader.attach_stub(__name__, __file__)
