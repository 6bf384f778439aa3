"""Locks between machines that die with their holder.

A machine cannot see that a process on another one has ended. So the holder of a lease writes a sign of life
into the bucket again and again; one that has shown none for a while is taken over. Every write names the
version that it replaces, and S3 refuses all but one of those that name the same.
"""

import hashlib
import threading
import time
from contextlib import suppress
from pathlib import Path
from uuid import uuid4

from calibration.shared import Shared
from tasks.locks import FlockManager

LEASE_SECONDS = 60.0
"""Time without a sign of life after which a holder counts as dead."""
SIGN_SECONDS = 10.0
LOOK_SECONDS = 2.0
"""Time between two looks at a lease that someone else has."""
FREE = b""
BOOT = Path("/proc/sys/kernel/random/boot_id")
MACHINE = BOOT.read_text(encoding="utf-8").strip() if BOOT.exists() else uuid4().hex
"""This machine since it was started; a system that does not say counts as another one for each process."""


class LeaseManager(FlockManager):
    """Prefect's LockManager protocol: flock(2) within the machine, a lease in the bucket beyond it."""

    def __init__(self, root: Path, shared: Shared) -> None:
        """Keep the lock files in `root` and the leases in the bucket."""
        super().__init__(root)
        self._shared = shared
        self._leases: dict[str, Lease] = {}
        self._signs: dict[str, tuple[str, float]] = {}
        self._looks: dict[str, float] = {}

    def release_lock(self, key: str, holder: str) -> None:
        """Let go of the lock.

        Raises:
            ValueError: This holder does not have it.
        """
        if self.is_lock_holder(key, holder) and key in self._leases:
            self._leases.pop(key).end()
        super().release_lock(key, holder)

    def _try(self, key: str, holder: str) -> bool:
        if key in self._held:
            return super()._try(key, holder)
        if time.monotonic() < self._looks.get(key, 0.0) or not super()._try(key, holder):
            return False
        lease = None
        try:
            lease = self._take(key)
        finally:
            if lease is None:
                self._looks[key] = time.monotonic() + LOOK_SECONDS
                super().release_lock(key, holder)
        if lease is not None:
            self._leases[key] = lease
        return lease is not None

    def _take(self, key: str) -> "Lease | None":
        """The lease, if it is free or its holder is dead."""
        name = f"leases/{hashlib.sha256(key.encode()).hexdigest()[:32]}"
        found = self._shared.read(name)
        if found is not None and found[1] != FREE and not self._is_dead(key, *found):
            return None
        here = _lock_folder(self.root)
        version = self._shared.replace(name, found[0] if found else None, _sign(here))
        return None if version is None else Lease(self._shared, name, version, here)

    def _is_dead(self, key: str, version: str, sign: bytes) -> bool:
        """Whether the holder has shown no sign of life for long, by the clock that is here."""
        if sign.startswith(_lock_folder(self.root)):
            # It held the lock file that is held here now.
            return True
        now = time.monotonic()
        last, since = self._signs.get(key, ("", now))
        if last != version:
            last, since = self._signs[key] = (version, now)
        return now - since >= LEASE_SECONDS


class Lease:
    """The right to do one piece of work, for as long as signs of life are written."""

    def __init__(self, shared: Shared, name: str, version: str, here: bytes) -> None:
        """Begin to write signs of life."""
        self._shared, self._name, self._version, self._here = shared, name, version, here
        self._over = threading.Event()
        self._thread = threading.Thread(target=self._live, daemon=True)
        self._thread.start()

    def end(self) -> None:
        """Let the next one begin at once."""
        self._over.set()
        self._thread.join()
        # Out of reach: it ends by itself a minute later.
        with suppress(Exception):
            self._write(FREE)

    def _live(self) -> None:
        while not self._over.wait(SIGN_SECONDS):
            # Out of reach: the next sign may get through.
            with suppress(Exception):
                if not self._write(_sign(self._here)):
                    # Taken over. What is made twice is equal, and is stored once.
                    return

    def _write(self, content: bytes) -> bool:
        """Replace what this holder wrote last; False when someone else has taken over."""
        version = self._shared.replace(self._name, self._version, content)
        if version is None:
            found = self._shared.read(self._name)
            if found is None or not found[1].startswith(self._here):
                return False
            # A write got through whose answer did not: who holds the lock file here wrote what is there.
            version = self._shared.replace(self._name, found[0], content) or found[0]
        self._version = version
        return True


def _lock_folder(folder: Path) -> bytes:
    """The folder that flock(2) sees, among those of all machines."""
    folder.mkdir(parents=True, exist_ok=True)
    place = folder.stat()
    return f"{MACHINE} {place.st_dev} {place.st_ino} ".encode()


def _sign(here: bytes) -> bytes:
    return here + uuid4().hex.encode()
