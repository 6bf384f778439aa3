"""What is checked before the first stage of a run, wherever the run was asked for."""

import asyncio
from collections.abc import Callable, Collection
from typing import Any, cast, get_args

from pydantic import ValidationError

from calibration.artifacts import Store
from calibration.backends import BackendConfig
from calibration.config import Experiment, explain
from calibration.endpoints import check_confirmed, endpoints_of, remember_confirmed
from calibration.errors import ConfigurationError
from calibration.preflight import preflight
from calibration.schema import Schema
from calibration.shared import Shared
from deployments.doctor import check_models

BACKENDS: dict[str, type[Schema]] = {
    str(backend.model_fields["kind"].default): backend for backend in get_args(get_args(BackendConfig)[0])
}
"""The settings of each backend, by its kind."""


def backend_of(settings: dict[str, Any], where: str) -> BackendConfig:
    """The backend with these settings.

    Args:
        settings: What can be written down of it, its kind among them.
        where: What the person who gave them calls them.

    Raises:
        ConfigurationError: A setting is wrong; names it.
    """
    kind = settings["kind"]
    if kind not in BACKENDS:
        raise ConfigurationError(f"{where}: kind must be one of {', '.join(BACKENDS)}; got {kind!r}")
    try:
        return cast("BackendConfig", BACKENDS[kind].model_validate(settings))
    except ValidationError as error:
        page = "docs/scaling.md" if kind == "dask" else "docs/modal.md"
        raise ConfigurationError(f"{where}: {explain(error, settings, BACKENDS[kind], page)}") from error


async def check_before(
    experiment: Experiment,
    on: BackendConfig,
    *,
    is_new: bool,
    confirmed: Collection[str] = (),
    say: Callable[[str], None],
) -> None:
    """Find what would keep a run from its end, as far as it can be found at no cost.

    Args:
        experiment: What is to be run.
        on: Where.
        is_new: Whether it is the first attempt; a later one does not try the models again.
        confirmed: Addresses that the person who begins it has agreed to send questions and keys to.
        say: Told, before anything is sent, what is sent where.

    Raises:
        CalibrationError: Something would; says what to do.
    """
    store, shared = Store.from_environment(), Shared.from_environment()
    endpoints = [*endpoints_of([experiment, on]), *([shared.endpoint] if shared else [])]
    check_confirmed(endpoints, confirmed, store)
    for endpoint in endpoints:
        say(str(endpoint))
    questions = await asyncio.to_thread(preflight, experiment)
    store.check_writable()
    remember_confirmed(endpoints, store)
    if shared:
        await asyncio.to_thread(shared.check)
    await on.check(store)
    if is_new:
        await check_models(on, experiment, questions)
