"""The errors of a load, and one warning, as classes alone: everyone may import them."""


class ImportOrderWarning(UserWarning):
    """Something that unsloth patches was imported before unsloth."""


class ModelLoadError(RuntimeError):
    """A model can't be loaded, for a reason that the message tells."""


class ModelNotFoundError(ModelLoadError):
    """The hub has no such model, or does not show it to this user."""


class ModelNotCachedError(ModelLoadError):
    """The model is not on this machine, and the hub can't be reached."""


class GatedModelError(ModelLoadError):
    """The model's terms must be accepted first, by the account of HF_TOKEN."""


class EngineUnavailableError(ModelLoadError, ImportError):
    """A package that the load needs is missing or broken."""


class NotEnoughMemoryError(ModelLoadError, MemoryError):
    """The load or the generation ran out of memory; the message says what to lower."""
