"""How long an engine's worker without work spins before it sleeps."""

from typing import Final

from lsg.runtime.settings import Settings

# The next layer's work comes sooner than that.
SPIN_US: Final = 50
# Beside a GPU the next layer comes after its attention: waking workers costs 13 µs a layer on an H200 host.
SPIN_BESIDE_GPU_US: Final = 1000


def spin_us(settings: Settings, *, beside_gpu: bool) -> int:
    """In microseconds, on a machine whose GPU has the rest of the model, or on one without."""
    if settings.power_saving:
        return 0
    return SPIN_BESIDE_GPU_US if beside_gpu else SPIN_US
