"""Locks between runs that die with their holder.

Prefect's file locks outlive a process killed with -9, and the next run waits for ever. An flock(2)
belongs to an open file: the kernel lets go of it when the process ends, however it ends.
"""

import asyncio
import fcntl
import hashlib
import os
import time
from pathlib import Path

POLL_SECONDS = 0.2


class FlockManager:
    """Prefect's LockManager protocol over flock(2). Not for file systems without it, such as some NFS."""

    def __init__(self, root: Path) -> None:
        """Keep the lock files in `root`."""
        self.root = root
        self._held: dict[str, tuple[str, int]] = {}

    def acquire_lock(
        self, key: str, holder: str, acquire_timeout: float | None = None, hold_timeout: float | None = None
    ) -> bool:
        """Wait for the lock; False when `acquire_timeout` seconds were not enough."""
        del hold_timeout
        deadline = _deadline(acquire_timeout)
        while not self._try(key, holder):
            if time.monotonic() >= deadline:
                return False
            time.sleep(POLL_SECONDS)
        return True

    async def aacquire_lock(
        self, key: str, holder: str, acquire_timeout: float | None = None, hold_timeout: float | None = None
    ) -> bool:
        """Wait for the lock without holding up the event loop."""
        del hold_timeout
        deadline = _deadline(acquire_timeout)
        while not self._try(key, holder):
            if time.monotonic() >= deadline:
                return False
            await asyncio.sleep(POLL_SECONDS)
        return True

    def release_lock(self, key: str, holder: str) -> None:
        """Let go of the lock.

        Raises:
            ValueError: This holder does not have it.
        """
        if not self.is_lock_holder(key, holder):
            raise ValueError(f"{holder} must hold the lock on {key} to release it")
        _, descriptor = self._held.pop(key)
        os.close(descriptor)

    def is_locked(self, key: str) -> bool:
        """Whether anyone, in this process or another, has the lock."""
        if key in self._held:
            return True
        free = self._try(key, "probe")
        if free:
            self.release_lock(key, "probe")
        return not free

    def is_lock_holder(self, key: str, holder: str) -> bool:
        """Whether this holder has the lock."""
        return self._held.get(key, ("", -1))[0] == holder

    def wait_for_lock(self, key: str, timeout: float | None = None) -> bool:
        """Wait until nobody has the lock; False when `timeout` seconds were not enough."""
        deadline = _deadline(timeout)
        while self.is_locked(key):
            if time.monotonic() >= deadline:
                return False
            time.sleep(POLL_SECONDS)
        return True

    async def await_for_lock(self, key: str, timeout: float | None = None) -> bool:
        """Wait until nobody has the lock, without holding up the event loop."""
        deadline = _deadline(timeout)
        while self.is_locked(key):
            if time.monotonic() >= deadline:
                return False
            await asyncio.sleep(POLL_SECONDS)
        return True

    def _try(self, key: str, holder: str) -> bool:
        if key in self._held:
            return self._held[key][0] == holder
        self.root.mkdir(parents=True, exist_ok=True)
        path = self.root / f"{hashlib.sha256(key.encode()).hexdigest()[:32]}.lock"
        descriptor = os.open(path, os.O_RDWR | os.O_CREAT | os.O_CLOEXEC, 0o600)
        try:
            fcntl.flock(descriptor, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except BlockingIOError:
            os.close(descriptor)
            return False
        self._held[key] = (holder, descriptor)
        return True


def _deadline(timeout: float | None) -> float:
    return float("inf") if timeout is None else time.monotonic() + timeout
