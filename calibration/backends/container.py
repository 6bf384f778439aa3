"""A job in a container that can be taken away at any moment: only what was committed outlives it."""

import gc
import time
from collections.abc import Callable, Sequence
from contextlib import suppress
from importlib.util import find_spec

from pydantic import JsonValue, TypeAdapter, ValidationError

from calibration.artifacts import Store
from calibration.backends.exam import Exam
from calibration.backends.worker import perform
from calibration.errors import CalibrationError, JobError
from calibration.fingerprint import library_versions
from calibration.jobs import Job
from calibration.schema import Schema

SIGN = "sign.json"
HOLDER = "holder"
"""Beside the checkpoints: the id of the call that works on them."""
LIBRARIES = ("torch", "transformers", "tokenizers", "peft", "trl", "accelerate")
"""What jobs other than those of vLLM compute with; here and there it must be the same."""
COMMIT_SECONDS = 15.0
"""Time between two commits, which carry checkpoints and the sign of life out of the container."""
COMMIT_PAUSES = (1.0, 5.0, 25.0)
"""Waits, in seconds, before the last commit is tried again."""


class Sign(Schema):
    """The last sign of life of a job, kept beside its checkpoints."""

    fraction: float = 0.0
    note: str = ""
    seconds: float = 0.0
    """Working time of all attempts so far. The start of the containers is not in it."""


def attempt(
    job: dict[str, JsonValue],
    key: str,
    store: Store,
    commit: Callable[[], None],
    *,
    call: str,
    over: Sequence[str] = (),
) -> dict[str, JsonValue]:
    """Do a job, or what earlier attempts left of it.

    Args:
        job: The job as JSON.
        key: Names the work; its checkpoints are found under it.
        store: A store on the volume.
        commit: Makes durable what was written there. Raises RuntimeError when it cannot just now.
        call: Id of the call that this is an attempt of.
        over: Ids of earlier calls for this work, which are known to have ended.

    Returns:
        `seconds`, and `artifact`, or `error` and `message` of a job that refused its inputs. A refusal is a
        value and no exception: trying again would cost money and end in the same way. Or `elsewhere`, the
        id of another call that does this work already.

    Raises:
        JobError: Anything else, in words: the exception itself may not exist where it is read.
    """
    life = _Life(store, key, commit)
    place = store.scratch(key) / HOLDER
    if place.exists() and (holder := place.read_text("utf-8", "replace")) not in {call, *over}:
        return {"elsewhere": holder, "seconds": 0.0}
    place.write_text(call, encoding="utf-8")
    with suppress(RuntimeError):
        commit()
    answer: dict[str, JsonValue]
    try:
        artifact = perform(TypeAdapter(Job).validate_python(job), key, store, life.progress)
        answer = {"artifact": artifact.model_dump()}
    except CalibrationError as error:
        answer = {"error": type(error).__name__, "message": str(error)}
    except BaseException as error:
        # Preempted, cancelled, out of time or broken: what there is of checkpoints is worth keeping.
        life.sign()
        with suppress(RuntimeError):
            commit()
        if isinstance(error, Exception):
            raise JobError(f"{type(error).__name__}: {' '.join(str(error).split())}") from error
        raise
    life.sign()
    _commit_at_last(commit)
    return {**answer, "seconds": life.last.seconds}


def examine(exams: list[dict[str, JsonValue]]) -> dict[str, JsonValue]:
    """What is installed here, and whether models can be had with the token that is here, and be asked.

    Args:
        exams: Each an `Exam` as JSON.

    Returns:
        `libraries`, name to version, and `models`, name to what is wrong with it, or "" if nothing is.
    """
    found: dict[str, JsonValue] = {}
    for exam in map(Exam.model_validate, exams):
        try:
            exam.take()
        except CalibrationError as error:
            found[exam.weights.repo] = str(error)
        else:
            found.setdefault(exam.weights.repo, "")
    installed = {name for name in (*LIBRARIES, "vllm") if find_spec(name)}
    return {"libraries": {**library_versions(sorted(installed))}, "models": found}


def read_sign(content: bytes) -> Sign:
    """A sign of life; one that is damaged says nothing, and keeps nobody from going on."""
    try:
        return Sign.model_validate_json(content)
    except ValidationError:
        return Sign()


def _commit_at_last(commit: Callable[[], None]) -> None:
    """Commit, now or a little later: finished work must not be lost to a file that is still open."""
    for pause in COMMIT_PAUSES:
        # A model that nobody holds any more may still hold its files.
        gc.collect()
        try:
            commit()
        except RuntimeError:
            time.sleep(pause)
        else:
            return
    commit()


class _Life:
    """Writes the sign of life of one attempt, and commits now and then."""

    def __init__(self, store: Store, key: str, commit: Callable[[], None]) -> None:
        self._store, self._key, self._commit = store, key, commit
        path = store.scratch(key) / SIGN
        self.last = read_sign(path.read_bytes() if path.is_file() else b"")
        self._before = self.last.seconds
        self._started = self._committed = time.monotonic()

    def progress(self, fraction: float, note: str) -> None:
        """Take note, and say so to the world if it has not been told for a while."""
        self.last = self.last.model_copy(update={"fraction": fraction, "note": note})
        if time.monotonic() - self._committed >= COMMIT_SECONDS:
            self._committed = time.monotonic()
            self.sign()
            # It refuses while a file is open; the next one will do.
            with suppress(RuntimeError):
                self._commit()

    def sign(self) -> None:
        """Write the sign of life."""
        seconds = self._before + time.monotonic() - self._started
        self.last = self.last.model_copy(update={"seconds": round(seconds, 3)})
        draft = self._store.scratch(self._key) / f"{SIGN}.draft"
        draft.write_text(self.last.model_dump_json(), encoding="utf-8")
        draft.replace(draft.with_name(SIGN))
