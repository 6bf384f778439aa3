"""What is deployed on Modal: a function for each kind of job, another one for vLLM, and a doctor.

`modal deploy -m deployments.modal_app` builds the images and puts the code of `calibration` there. A
function does what the local worker does, on a store that lies on a volume. Importing this module loads
neither Prefect nor anything of the images' heavy packages.
"""

import re
from collections.abc import Callable
from pathlib import Path
from typing import Any

import modal

from calibration.artifacts import Store
from calibration.backends.container import LIBRARIES, attempt, examine
from calibration.backends.modal import (
    ARTIFACTS,
    CACHE,
    CODE,
    DOCTOR_MINUTES,
    SECRET,
    TOKEN,
    Modal,
    deployed_code,
)
from calibration.backends.wire import APP

PYTHON, UV = "3.12.15", "0.13.9"
LOCKS = Path(__file__).parent / "images"
SETTINGS = {
    "SLM_CALIBRATION_STORE": "/artifacts",
    "HF_HOME": "/cache/hf",
    "VLLM_CACHE_ROOT": "/cache/vllm",
    # Its kernels are built when they are first used, with a CUDA compiler that the image lacks.
    "VLLM_USE_FLASHINFER_SAMPLER": "0",
    "HF_HUB_DISABLE_PROGRESS_BARS": "1",
    "HF_XET_HIGH_PERFORMANCE": "1",
    "TOKENIZERS_PARALLELISM": "false",
    "TQDM_DISABLE": "1",
}


def _image(lock: str) -> modal.Image:
    """Packages by their hashes, and the source last, so that a change of code builds nothing anew."""
    return (
        modal.Image.debian_slim(PYTHON)
        # Triton builds a stub for every kernel with a C compiler, which the slim image lacks.
        .apt_install("gcc", "libc6-dev")
        .uv_pip_install(requirements=[str(LOCKS / lock)], extra_options="--require-hashes", uv_version=UV)
        .env(SETTINGS)
        .add_local_python_source("calibration", "deployments")
    )


def _pinned(lock: str) -> dict[str, str]:
    """The versions of the libraries that decide numbers."""
    pins = dict(re.findall(r"^([\w.-]+)==(\S+)", (LOCKS / lock).read_text(), re.MULTILINE))
    return {name: pins[name] for name in LIBRARIES}


VLLM, TRAIN = _image("vllm.txt"), _image("train.txt")
"""vLLM excludes versions that everything else is done with."""

artifacts = modal.Volume.from_name(ARTIFACTS, create_if_missing=True)
cache = modal.Volume.from_name(CACHE, create_if_missing=True)

app = modal.App(
    APP,
    tags={CODE: deployed_code(), "project": APP, **_pinned("train.txt")} if modal.is_local() else {},
    volumes={"/artifacts": artifacts, "/cache": cache},
    secrets=[modal.Secret.from_name(SECRET, required_keys=[TOKEN])],
    include_source=False,
)

DEFAULTS = Modal()
ONCE: dict[str, Any] = {"single_use_containers": True, "max_containers": 4, "startup_timeout": 900}
"""A fresh process for every attempt, and none that idles: a broken CUDA context is not inherited, and
only work is paid for."""


def _commit(*volumes: modal.Volume) -> Callable[[], None]:
    """Makes durable what was written to these volumes, one after the other."""

    def commit() -> None:
        for volume in volumes:
            try:
                volume.commit()
            except modal.exception.Error as error:
                raise RuntimeError(f"{type(error).__name__}: {error}") from error

    return commit


def _attempt(job: dict[str, Any], key: str, over: list[str], *volumes: modal.Volume) -> dict[str, Any]:
    call = modal.current_function_call_id() or ""
    return attempt(job, key, Store.from_environment(), _commit(*volumes), call=call, over=over)


@app.function(image=TRAIN, cpu=2, timeout=60 * DEFAULTS.obtain_minutes, retries=2, **ONCE)
def obtain(job: dict[str, Any], key: str, over: list[str]) -> dict[str, Any]:
    """Get a model, without a GPU."""
    # Models first, so that finished work never points at missing ones.
    return _attempt(job, key, over, cache, artifacts)


@app.function(image=TRAIN, gpu=DEFAULTS.infer_gpu, timeout=60 * DEFAULTS.infer_minutes, retries=2, **ONCE)
def infer(job: dict[str, Any], key: str, over: list[str]) -> dict[str, Any]:
    """Ask a model."""
    return _attempt(job, key, over, artifacts)


@app.function(image=VLLM, gpu=DEFAULTS.infer_gpu, timeout=60 * DEFAULTS.infer_minutes, retries=2, **ONCE)
def infer_vllm(job: dict[str, Any], key: str, over: list[str]) -> dict[str, Any]:
    """Ask a model with vLLM."""
    return _attempt(job, key, over, artifacts)


@app.function(
    image=TRAIN,
    gpu=DEFAULTS.train_gpu,
    timeout=60 * DEFAULTS.train_minutes,
    retries=modal.Retries(max_retries=3, initial_delay=0.0),
    **ONCE,
)
def train(job: dict[str, Any], key: str, over: list[str]) -> dict[str, Any]:
    """Teach a model."""
    return _attempt(job, key, over, artifacts)


@app.function(image=VLLM, timeout=60 * DOCTOR_MINUTES, **ONCE)
def doctor(job: dict[str, Any], key: str) -> dict[str, Any]:
    """Say what is installed there, and whether the models of an experiment can be had and asked."""
    del key
    return examine(job["exams"])
