"""A double for NVML: this machine may have no GPU, and none has all of these."""

from dataclasses import dataclass, field
from types import SimpleNamespace

import pynvml

from helpers.internals.machine.devices import MIB


@dataclass
class Card:
    """A card, and its own handle; memory is in MiB.

    `errors` holds the code of NVML's error by the name of the function that gives it.
    """

    uuid: str
    used: int = 0
    total: int = 24_000
    name: str = "Double"
    capability: tuple[int, int] = (8, 9)
    in_mig_mode: bool = False
    errors: dict[str, int] = field(default_factory=dict)


@dataclass
class Nvml:
    """The state of the double; `open` counts inits without their shutdown."""

    cards: list[Card]
    cuda: int = 13000
    open: int = 0

    def answers(self) -> dict:
        return {
            "nvmlSystemGetCudaDriverVersion_v2": lambda: self.cuda,
            "nvmlSystemGetDriverVersion": lambda: "580.10",
            "nvmlDeviceGetCount": lambda: len(self.cards),
            "nvmlDeviceGetHandleByIndex": lambda index: self.cards[index],
            "nvmlDeviceGetUUID": lambda card: card.uuid,
            "nvmlDeviceGetName": lambda card: card.name,
            "nvmlDeviceGetCudaComputeCapability": lambda card: card.capability,
            "nvmlDeviceGetMemoryInfo": self.memory,
            "nvmlDeviceGetMaxMigDeviceCount": lambda card: 7 * card.in_mig_mode,
        }

    def memory(self, card: Card, version: int | None = None) -> SimpleNamespace:
        return SimpleNamespace(total=card.total * MIB, used=card.used * MIB)

    def answer(self, name: str, *arguments, **options):
        if not self.open:
            raise pynvml.NVMLError(pynvml.NVML_ERROR_UNINITIALIZED)
        result = self.answers()[name](*arguments, **options)
        for card in (*arguments, result):
            if isinstance(card, Card) and name in card.errors:
                raise pynvml.NVMLError(card.errors[name])
        return result
