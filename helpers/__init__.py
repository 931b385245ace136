"""Helpers of the fast inference notebooks, one module for each topic.

Importing this package, or any module in it, imports no torch, transformers, unsloth
or vllm: those load when a function needs them, so that unsloth can come first.
"""

__version__ = "0.1.0"
