"""Stored files that are deleted, cut off or altered under results that were kept."""

import shutil

import pytest

pytestmark = [pytest.mark.slow, pytest.mark.chaos]


def delete(path):
    path.unlink()


def cut(path):
    path.write_bytes(path.read_bytes()[: path.stat().st_size // 2])


def flip(path):
    content = bytearray(path.read_bytes())
    content[len(content) // 2] ^= 1
    path.write_bytes(content)


def lose(path):
    shutil.rmtree(path.parent)


def garble(path):
    path.write_bytes(b"\0" * 100)


KINDS = {
    "questions": ("rows.parquet", flip, "prepare questions"),
    "corpus": ("rows.parquet", cut, "prepare corpus"),
    "model": ("model.safetensors", flip, "obtain tiny"),
    "generations": ("rows.parquet", delete, "infer"),
    "verdicts": ("rows.parquet", flip, "judge"),
    "summary": ("summary.json", flip, "summarise"),
    "training_data": ("rows.parquet", cut, "data"),
    "adapter": ("adapter_model.safetensors", cut, "train"),
    "evaluation": ("*.json", flip, "evaluate"),
    "figures": ("*", lose, "draw"),
}


def test_every_kind_of_artifact_that_is_damaged_is_named_and_made_again(whole, calm):
    assert {path.name for path in (whole.store / "artifacts").iterdir()} == set(KINDS)
    for kind, (file, damage, stage) in KINDS.items():
        folder = whole.artifacts(kind)[-1]
        path = next(path for path in sorted(folder.glob(file)) if path.name != "manifest.json")
        before = path.read_bytes()
        damage(path)

        attempt = whole.run().done()

        stages = attempt.stages()
        again = [name for name, state in stages.items() if state != "Cached"]
        assert again[0].startswith(stage)
        # An evaluation dates its policies by the verdicts, which were made anew above.
        assert set(again[1:]) <= ({"draw"} if kind == "evaluation" else set()), (kind, stages)
        assert f"{kind} {folder.name[:12]}" in attempt.words
        assert folder.is_dir()
        assert path.read_bytes() == before
        assert whole.numbers() == calm.numbers()
    assert whole.court.count == 0, "the ledger had every verdict"


def test_records_that_are_damaged_are_named_and_cost_no_job_and_no_call(whole, calm):
    damages = (delete, cut, flip, garble)
    records = whole.records()
    for number, record in enumerate(records):
        damages[number % len(damages)](record)

    attempt = whole.run().done()

    assert set(attempt.stages().values()) <= {"Completed", "Cached"}
    ran = [name for name, state in attempt.stages().items() if state == "Completed"]
    assert len(ran) >= len(records) * 3 // 4, "a flipped bit need not matter"
    assert "its record in the cache could not be read" in attempt.words
    assert whole.numbers() == calm.numbers()
    assert not whole.finished_jobs()
    assert whole.court.count == 0
    assert set(whole.run().done().stages().values()) == {"Cached"}
