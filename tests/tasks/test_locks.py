import asyncio
import os
import signal
import subprocess
import sys
import threading
from pathlib import Path

import pytest

from tasks.locks import FlockManager

HOLDER = (
    "import sys, time\nfrom pathlib import Path\nfrom tasks.locks import FlockManager\n"
    "assert FlockManager(Path(sys.argv[1])).acquire_lock('key', 'other')\n"
    "print('held', flush=True)\ntime.sleep(600)\n"
)


@pytest.fixture
def other_process(tmp_path):
    """A process that holds the lock on `key` until it is killed."""
    with subprocess.Popen([sys.executable, "-c", HOLDER, str(tmp_path)], stdout=subprocess.PIPE) as process:
        assert process.stdout.readline() == b"held\n"
        yield process
        process.kill()


def test_a_lock_that_another_process_holds_is_not_given(tmp_path, other_process):
    manager = FlockManager(tmp_path)
    assert not manager.acquire_lock("key", "me", acquire_timeout=0)
    assert manager.is_locked("key")
    assert manager.acquire_lock("another key", "me", acquire_timeout=0)


def test_a_holder_killed_with_9_lets_go_at_once(tmp_path, other_process):
    os.kill(other_process.pid, signal.SIGKILL)
    other_process.wait()
    assert FlockManager(tmp_path).acquire_lock("key", "me", acquire_timeout=0)


def test_only_its_holder_can_release_it(tmp_path):
    manager = FlockManager(tmp_path)
    assert manager.acquire_lock("key", "me")
    assert manager.is_lock_holder("key", "me")
    with pytest.raises(ValueError, match="you must hold the lock"):
        manager.release_lock("key", "you")
    manager.release_lock("key", "me")
    assert not manager.is_locked("key")


def test_threads_take_turns(tmp_path):
    inside, most = [], []

    def work(name):
        manager = FlockManager(tmp_path)
        manager.acquire_lock("key", name)
        inside.append(name)
        most.append(len(inside))
        inside.remove(name)
        manager.release_lock("key", name)

    threads = [threading.Thread(target=work, args=(str(number),)) for number in range(16)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert most == [1] * 16


def test_waiting_does_not_hold_up_the_event_loop(tmp_path):
    async def both():
        first, second = FlockManager(tmp_path), FlockManager(tmp_path)
        await first.aacquire_lock("key", "first")
        waiting = asyncio.create_task(second.aacquire_lock("key", "second"))
        await asyncio.sleep(0)
        first.release_lock("key", "first")
        assert await waiting

    asyncio.run(both())
    assert Path(tmp_path).is_dir()
