"""Question sets as the hub keeps them, in folders."""

import pyarrow as pa
import pyarrow.parquet as pq
import pytest

CARD = """---
configs:
- config_name: unfiltered.nocontext
  data_files:
  - split: train
    path: unfiltered.nocontext/train-*
---
"""


@pytest.fixture
def hub(tmp_path, monkeypatch):
    """Writes a repository of TriviaQA or of NQ-open with some rows; returns its folder."""
    import datasets

    monkeypatch.setattr(datasets.config, "HF_DATASETS_CACHE", tmp_path / "cache")

    def trivia(rows):
        place = tmp_path / "trivia"
        (place / "unfiltered.nocontext").mkdir(parents=True)
        (place / "README.md").write_text(CARD)
        table = [
            {"question": q, "question_id": str(i), "answer": {"value": value, "aliases": list(aliases)}}
            for i, (q, value, *aliases) in enumerate(rows)
        ]
        pq.write_table(
            pa.Table.from_pylist(table), place / "unfiltered.nocontext" / "train-00000-of-00001.parquet"
        )
        return place

    def nq(rows):
        place = tmp_path / "nq"
        place.mkdir()
        table = [{"question": q, "answer": list(answers)} for q, *answers in rows]
        pq.write_table(pa.Table.from_pylist(table), place / "train-00000-of-00001.parquet")
        return place

    return {"triviaqa": trivia, "nq_open": nq}
