"""The ledger as a file: whole whatever happens, one writer, and a clear word when it cannot be used."""

import asyncio
import os
import random
import re
import signal
import sqlite3
import subprocess
import sys
from pathlib import Path

import pytest

from calibration.artifacts import Store
from calibration.errors import JudgeError
from calibration.judges import Gemini
from calibration.judges.ledger import FILE, Ledger, Outcome, Ruling, opened
from calibration.judges.provider import Reply, Usage
from tests.judges.gemini_server import MODEL

ROOT = Path(__file__).parents[2]
AT_MOST = Usage(prompt=2000, output=256)
REPLY = Reply("", "whole", "STOP", Usage(prompt=600, output=20), MODEL, "r")

HOLDER = (
    "import asyncio, sys\nfrom pathlib import Path\nfrom calibration.judges.ledger import opened\n"
    "async def hold():\n"
    "    async with opened(Path(sys.argv[1])):\n"
    "        print('held', flush=True)\n"
    "        await asyncio.sleep(600)\n"
    "asyncio.run(hold())\n"
)
JUDGING = (
    "import asyncio, sys\nfrom calibration.judges import Gemini, Item\n"
    "items = [Item(question_id=f'q{n}', question=f'What is {n}?', golds=(f'gold {n}',),\n"
    "              answer=f'gold {n}' if n % 2 else f'other {n}') for n in range(int(sys.argv[1]))]\n"
    "asyncio.run(Gemini(concurrency=50, retry_seconds=0.01).judge(items, progress=lambda f, n: None))\n"
)


def run_python(code, *arguments, **settings):
    return subprocess.Popen(
        [sys.executable, "-c", code, *arguments],
        env={**os.environ, "PYTHONPATH": str(ROOT)},
        stdout=subprocess.PIPE,
        **settings,
    )


@pytest.fixture
def path():
    root = Store.from_environment().root
    root.mkdir(parents=True)
    return root / FILE


def judged(label="correct"):
    return Outcome("judged", reply=REPLY, body="{}", ruling=Ruling(label, model_version=MODEL))


def test_a_verdict_and_the_end_of_its_request_are_written_together(path):
    ledger = Ledger(path)
    attempt = ledger.begin("k", "gemini", MODEL, AT_MOST)
    assert ledger.outcomes() == {("gemini", MODEL, None): 1}
    ledger.end(attempt, "k", judged(), Ruling("correct", model_version=MODEL), "p@1")
    ledger.close()
    again = Ledger(path)
    assert again.find("k") == (Ruling("correct", model_version=MODEL), "p@1")
    assert again.find("other") is None
    assert again.outcomes() == {("gemini", MODEL, "judged"): 1}
    assert again.spent("gemini", MODEL).used == Usage(prompt=600, output=20)
    again.close()


def test_a_request_that_a_dead_process_left_open_is_lost_and_counts_at_most(path):
    ledger = Ledger(path)
    ledger.begin("k", "gemini", MODEL, AT_MOST)
    ledger.close()
    again = Ledger(path)
    assert again.outcomes() == {("gemini", MODEL, "lost"): 1}
    spent = again.spent("gemini", MODEL)
    assert (spent.used, spent.unknown, spent.at_most) == (Usage(), 1, AT_MOST)
    again.close()


@pytest.mark.parametrize("name", ["throttled", "failed", "rejected", "fatal"])
def test_an_error_of_the_service_costs_nothing(path, name):
    ledger = Ledger(path)
    ledger.end(ledger.begin("k", "gemini", MODEL, AT_MOST), "k", Outcome(name, "no", 503), None, "p@1")
    spent = ledger.spent("gemini", MODEL)
    assert (spent.used, spent.unknown, spent.at_most) == (Usage(), 0, Usage())
    ledger.close()


def test_other_models_are_other_purses(path):
    ledger = Ledger(path)
    ledger.end(ledger.begin("k", "gemini", MODEL, AT_MOST), "k", judged(), None, "p@1")
    assert ledger.spent("gemini", "other").used == ledger.spent("other", MODEL).used == Usage()
    ledger.close()


def test_a_file_that_is_no_ledger_is_refused(path):
    path.write_bytes(b"no database at all, but long enough to be taken for one" * 100)
    with pytest.raises(JudgeError, match=r"judge\.sqlite must be a whole file.*not a database"):
        Ledger(path)


def test_a_ledger_of_a_later_version_is_left_alone(path):
    Ledger(path).close()
    with sqlite3.connect(path) as later:
        later.execute("PRAGMA user_version = 7")
    later.close()
    before = path.read_bytes()
    with pytest.raises(JudgeError, match=r"must be of version 2; it is of version 7\. Use the"):
        Ledger(path)
    assert path.read_bytes() == before


def test_a_full_disk_stops_the_run_and_keeps_what_was_written(serve, judge, items, monkeypatch):
    server = serve()
    judge(items(30))
    begin = Ledger._prepare

    def prepare_without_room(self):
        begin(self)
        (pages,) = self._db.execute("PRAGMA page_count").fetchone()
        self._db.execute(f"PRAGMA max_page_count = {pages}")

    with monkeypatch.context() as full:
        full.setattr(Ledger, "_prepare", prepare_without_room)
        with pytest.raises(JudgeError, match=r"disk with room; database or disk is full"):
            judge(items(500))
    asked = server.count
    assert 30 < asked < 500
    assert len(judge(items(500))) == 500
    assert server.count - 500 <= 100


def test_another_process_is_waited_for_by_name_until_it_ends(serve, items):
    server, notes = serve(), []
    folder = Store.from_environment().root
    with run_python(HOLDER, str(folder)) as holder:
        assert holder.stdout.readline() == b"held\n"

        def progress(fraction, note):
            if not notes:
                assert server.count == 0
                os.kill(holder.pid, signal.SIGKILL)
            notes.append(note)

        assert len(asyncio.run(Gemini().judge(items(3), progress=progress))) == 3
        assert notes[0] == f"waits for process {holder.pid}, which judges with {folder / FILE}"


def test_a_round_that_is_cancelled_while_it_waits_for_its_turn_leaves_the_turn_free(tmp_path):
    async def go():
        async with opened(tmp_path):

            async def wait():
                async with opened(tmp_path):
                    pass

            waiting = asyncio.create_task(wait())
            await asyncio.sleep(0)
            waiting.cancel()
            with pytest.raises(asyncio.CancelledError):
                await waiting
        async with opened(tmp_path):
            return True

    assert asyncio.run(go())


def kill_at(server, count, requests):
    """Judge in a process of its own, and kill it with 9 when so many requests have arrived in all."""

    async def go():
        arrived = server.event_at(requests)
        process = run_python(JUDGING, str(count), stderr=subprocess.DEVNULL)
        await arrived.wait()
        process.kill()
        process.wait()
        process.stdout.close()

    asyncio.run(go())


def committed():
    ledger = Ledger(Store.from_environment().root / FILE)
    rows = dict(ledger._db.execute("SELECT key, label FROM verdict").fetchall())
    ledger.close()
    return rows


def test_every_request_stands_in_the_ledger_before_it_arrives(serve, judge, items):
    path, written = Store.from_environment().root / FILE, []

    def plan(seen):
        book = sqlite3.connect(path)
        written.append(book.execute("SELECT COUNT(*) FROM attempt").fetchone()[0] >= seen.number)
        book.close()

    serve(plan)
    judge(items(40))
    assert written == [True] * 40


def test_killed_with_9_it_keeps_every_verdict_and_repeats_what_was_under_way(serve, judge, items):
    server = serve(latency=0.05)
    kill_at(server, 300, 150)
    before = committed()
    assert len(before) >= 90
    book = Ledger(Store.from_environment().root / FILE)
    assert book.outcomes()["gemini", MODEL, "judged"] == len(before)
    assert book.outcomes()["gemini", MODEL, "lost"] <= 50
    book.close()
    asked = server.count
    verdicts = judge(items(300))
    assert [v.label for v in verdicts] == ["correct" if n % 2 else "incorrect" for n in range(300)]
    assert before.items() <= committed().items()
    assert server.count - 300 <= 50
    assert server.count - asked == 300 - len(before)


@pytest.mark.slow
def test_killed_with_9_at_twenty_instants_it_ends_as_if_undisturbed(
    serve, judge, items, monkeypatch, tmp_path
):
    server = serve(latency=0.02)
    kept, kills, left = {}, 20, random.Random(4)  # noqa: S311
    for n in range(kills):
        # Instants over the whole of the work; a killed process had up to 50 requests under way.
        kill_at(server, 2000, server.count + left.randint(51, 120))
        now = committed()
        assert kept.items() <= now.items(), f"kill {n} lost a verdict"
        kept = now
    disturbed = judge(items(2000))
    assert server.count - 2000 <= kills * 50
    assert len(server.cases) == 2000
    monkeypatch.setenv("SLM_CALIBRATION_STORE", str(tmp_path / "undisturbed"))
    assert disturbed == judge(items(2000))


MEMORY = (
    "import asyncio, resource, sys\nfrom calibration.judges import Gemini, Item\n"
    "from calibration.judges.gemini import GeminiWire\n"
    "from calibration.records import Verdict\n"
    "BODY = open(sys.argv[2]).read()\n"
    "async def send(self, prompt, room):\n    await asyncio.sleep(0)\n    return BODY\n"
    "GeminiWire.send = send\n"
    "def peak():\n    return resource.getrusage(resource.RUSAGE_SELF).ru_maxrss / 1024\n"
    "items = [Item(question_id=str(n), question='What?', golds=('gold',), answer=str(n))\n"
    "         for n in range(int(sys.argv[1]))]\n"
    "as_many = [Verdict(question_id=str(n), label='incorrect', judge='j' * 40, reason='',\n"
    "                   model_version='m', extracted='x') for n in range(len(items))]\n"
    "before = peak()\n"
    "del as_many\n"
    "verdicts = asyncio.run(Gemini().judge(items, progress=lambda f, n: None))\n"
    "print(len(verdicts), peak() - before)\n"
)


@pytest.mark.slow
def test_memory_stays_flat_to_a_hundred_thousand_answers(tmp_path):
    body = tmp_path / "body.json"
    text = r"{\"extracted\": \"x\", \"verdict\": \"INCORRECT\"}"
    usage = '{"promptTokenCount": 600, "candidatesTokenCount": 20}'
    body.write_text(
        f'{{"candidates": [{{"content": {{"parts": [{{"text": "{text}"}}]}}, "finishReason": "STOP"}}], '
        f'"usageMetadata": {usage}, "modelVersion": "{MODEL}", "pad": "{"x" * 4000}"}}'
    )
    with run_python(MEMORY, "100000", str(body)) as process:
        count, megabytes = process.stdout.read().split()
    assert int(count) == 100_000
    # Beside the verdicts, which are the result. The replies would be 400 MB.
    assert float(megabytes) < 30


@pytest.mark.slow
def test_a_quota_is_used_and_not_stormed(serve, judge, items):
    server = serve(latency=0.2, requests_per_second=60)
    judge(items(900))
    seconds = server.seen[-1].at - server.seen[0].at
    assert server.taken == 900
    assert 900 / seconds > 0.75 * 60
    assert server.refused < 0.1 * 900


def test_a_gemini_judge_is_described_by_its_protocol():
    described = Gemini().identity()
    assert re.fullmatch("[0-9a-f]{64}", described["template_sha256"])
    assert (described["model"], described["thinking"]) == (MODEL, "minimal")
