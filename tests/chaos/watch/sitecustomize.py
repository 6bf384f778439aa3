"""Python runs this at the start of every process of a run that is watched.

At every point where work becomes durable it writes a line into a book: just before something is moved into
its place in the store, and just before a record is written into the cache. Tests count these lines, and can
have the whole process group killed at one of them. It shares no code with what it watches.
"""

import os
import signal
import sys

BOOK = os.environ.get("CHAOS_BOOK")
KILL_AT = int(os.environ.get("CHAOS_KILL_AT", "0"))
IS_WORKER = sys.orig_argv[1:3] == ["-m", "calibration.backends.worker"]
JOB = sys.orig_argv[-1] if IS_WORKER else "-"


def watch(event, arguments):
    if event == "os.rename":
        place = os.fspath(arguments[1])
    elif event == "open" and isinstance(arguments[1], str) and "w" in arguments[1]:
        place = str(arguments[0])
    else:
        return
    if "/artifacts/" in place or "/scratch/" in place or ("/cache/" in place and event == "open"):
        note(place)


def note(place):
    book = os.open(BOOK, os.O_RDWR | os.O_CREAT | os.O_APPEND)
    os.write(book, f"{JOB} {place}\n".encode())
    os.lseek(book, 0, os.SEEK_SET)
    lines = os.read(book, 10**6).count(b"\n")
    os.close(book)
    if KILL_AT and lines >= KILL_AT:
        os.killpg(os.getpgid(0), signal.SIGKILL)


if BOOK:
    sys.addaudithook(watch)
