"""How sums in floating point come out: the same for every job of an experiment, wherever it runs.

On a CPU they depend on the number of threads, which is a setting of the experiment, and on variables that a
person or an image may have set for other reasons, which do not count. What is left is the processor: one with
other instructions adds up in another order, and the last digits differ.
"""

import os
import sys

_THREADS = ("OMP_NUM_THREADS", "MKL_NUM_THREADS", "OPENBLAS_NUM_THREADS")
_NOT_HEEDED = (
    "OMP_",
    "MKL_",
    "KMP_",
    "GOMP_",
    "ONEDNN_",
    "DNNL_",
    "ATEN_",
    "NVIDIA_TF32_",
    "TORCH_ALLOW_TF32_",
)
"""How the variables begin by which the libraries of arithmetic are told what to do."""


def fix_arithmetic(threads: int) -> None:
    """Make this process compute as every other one that does the same job.

    Called before the libraries of arithmetic are loaded, as they read their variables then; of those that are
    loaded already, torch is told.

    Args:
        threads: CPU threads.
    """
    for name in [name for name in os.environ if name.startswith(_NOT_HEEDED)]:
        del os.environ[name]
    os.environ.update(dict.fromkeys(_THREADS, str(threads)))
    if "torch" in sys.modules:
        import torch

        torch.set_num_threads(threads)


def refuse_threads(settings: object) -> object:
    """The settings of a backend, among which the number of threads once was.

    Raises:
        ValueError: It still is.
    """
    if not isinstance(settings, dict) or "threads" not in settings:
        return settings
    if settings["threads"] is not None:
        raise ValueError(
            "threads is a setting of the experiment, as its numbers depend on it: --set threads=2"
        )
    return {name: value for name, value in settings.items() if name != "threads"}
