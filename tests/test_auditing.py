import math

import numpy as np
import pandas as pd
import pytest

from calibration.auditing import AuditFile, Sample, draw, error_rate, read_sample, read_verdicts, report
from calibration.errors import DataError
from calibration.marking import write_table

SENSITIVITY, SPECIFICITY = 0.85, 0.95


def judged(n=2000, seed=0, share=0.3, lenient=0.0):
    """Verdicts of a judge with known rates, and the truth; `lenient` takes it from the specificity at 1."""
    rng = np.random.default_rng(seed)
    truth = rng.random(n) < share
    confidence = rng.random(n)
    marked = np.where(truth, rng.random(n) < SENSITIVITY, rng.random(n) > SPECIFICITY - lenient * confidence)
    table = pd.DataFrame(
        {
            "id": [f"q{i}" for i in range(n)],
            "question": [f"Which is number {i}?" for i in range(n)],
            "gold": '["Ann"]',
            # The rules of `exact` agree with the truth here, so they disagree with each error of the judge.
            "answer": np.where(truth, "Ann", "Eve"),
            "verdict": np.where(marked, "correct", "incorrect"),
            "conf": confidence.round(4),
        }
    )
    return table, truth


@pytest.fixture
def audit(tmp_path):
    """Verdicts read from a file, a sample drawn from them, and a way to fill it in and read it."""

    def start(table, n=200, seed=0, disagreements=0):
        table.to_csv(tmp_path / "verdicts.csv", index=False)
        verdicts = read_verdicts(tmp_path / "verdicts.csv")
        rows = draw(verdicts, n, seed=seed, disagreements=disagreements)
        write_table(tmp_path / "sample.csv", rows)
        sample = pd.read_csv(tmp_path / "sample.csv", dtype=str, keep_default_na=False)

        def fill(change=lambda sample: sample):
            change(sample.copy()).to_csv(tmp_path / "filled.csv", index=False)
            return read_sample(tmp_path / "filled.csv", verdicts)

        return verdicts, sample, fill

    return start


def by_truth(truth):
    def fill(sample):
        sample["truth"] = [str(int(truth[int(key[1:])])) for key in sample["id"]]
        return sample

    return fill


def test_half_is_drawn_of_each_mark_and_nothing_gives_the_mark_away(audit):
    table, _ = judged()
    _, sample, _ = audit(table, n=200)
    assert list(sample.columns) == ["id", "question", "gold", "answer", "stratum", "truth"]
    assert set(sample["stratum"]) == {"mark"}
    assert set(sample["truth"]) == {""}
    assert sample["id"].is_unique
    marks = table.set_index("id")["verdict"][sample["id"]] == "correct"
    assert marks.sum() == 100
    runs = 1 + int((marks.to_numpy()[1:] != marks.to_numpy()[:-1]).sum())
    assert 75 < runs < 127  # 101 +- 7 in a random order, 2 when sorted


def test_the_draw_depends_on_the_seed_alone(audit):
    table, _ = judged()
    first, again, other = (audit(table, seed=seed)[1]["id"].tolist() for seed in (1, 1, 2))
    assert first == again
    assert len(set(first) & set(other)) < 60


def test_where_one_mark_is_rare_all_of_it_is_drawn_and_more_of_the_other(audit):
    table, _ = judged(share=0.02)
    table.loc[:4, "verdict"] = "unjudged"
    rare = (table["verdict"] == "correct").sum()
    assert rare < 160
    _, sample, _ = audit(table, n=400)
    drawn = table.set_index("id")["verdict"][sample["id"]]
    assert len(drawn) == 400
    assert (drawn == "correct").sum() == rare
    assert (drawn == "unjudged").sum() == 0
    everything = audit(table, n=10_000)[1]
    assert len(everything) == 1995


def test_disagreements_with_the_rules_are_drawn_apart(audit):
    table, truth = judged()
    _, sample, _ = audit(table, n=200, disagreements=50)
    apart = sample[sample["stratum"] == "disagreement"]
    assert len(sample) == 250
    assert len(apart) == 50
    assert sample["id"].is_unique
    marks = (table.set_index("id")["verdict"][apart["id"]] == "correct").to_numpy()
    assert (marks != truth[[int(key[1:]) for key in apart["id"]]]).all()


def test_the_rates_are_those_of_the_judge_whatever_is_said_of_disagreements(audit):
    table, truth = judged(n=4000)
    verdicts, _, fill = audit(table, n=600, disagreements=100)
    found = report(verdicts, fill(by_truth(truth)))
    assert found.audit.sensitivity.low < SENSITIVITY < found.audit.sensitivity.high
    assert found.audit.specificity.low < SPECIFICITY < found.audit.specificity.high
    assert found.audit.right + found.audit.wrong == 600
    assert found.disagreement.n == 100
    assert found.disagreement.agreement.value == 0  # by construction the rules are right there

    def turned(sample):
        filled = by_truth(truth)(sample)
        apart = filled["stratum"] == "disagreement"
        filled.loc[apart, "truth"] = filled.loc[apart, "truth"].map({"0": "1", "1": "0"})
        return filled

    other = report(verdicts, fill(turned))
    assert other.audit == found.audit
    assert other.disagreement.agreement.value == 1


def test_the_rates_are_right_on_average_over_draws(tmp_path):
    table, truth = judged(n=3000)
    table.to_csv(tmp_path / "verdicts.csv", index=False)
    verdicts = read_verdicts(tmp_path / "verdicts.csv")
    marked = verdicts.marks == 1
    known = marked[truth].mean(), (~marked[~truth]).mean()
    found = []
    for seed in range(60):
        drawn = draw(verdicts, 300, seed=seed, disagreements=0)
        sampled = np.full(len(truth), math.nan)
        positions = [int(str(row["id"])[1:]) for row in drawn]
        sampled[positions] = truth[positions]
        counts = report(verdicts, Sample(sampled, np.full(len(truth), math.nan), 0)).audit
        found.append((counts.sensitivity.value, counts.specificity.value))
    assert np.mean(found, axis=0) == pytest.approx(known, abs=0.015)
    # As if the sample were a simple random one, the sensitivity would come out at .93.


def test_leniency_towards_confident_answers_shows_by_tercile(audit):
    table, truth = judged(n=6000, lenient=0.6)
    table["conf"] = table["conf"].astype(str)
    table.loc[7, "conf"] = ""
    table.loc[8, "verdict"] = "unjudged"
    verdicts, _, fill = audit(table, n=1200)
    found = report(verdicts, fill(by_truth(truth)), "conf")
    assert found.without_confidence == 1
    assert len(found.terciles) == 3
    for k, third in enumerate(found.terciles):
        rate = third.audit.specificity
        assert rate.low < SPECIFICITY - 0.6 * (k + 0.5) / 3 < rate.high
        assert third.low == pytest.approx(k / 3, abs=0.02)
    assert sum(t.audit.right + t.audit.wrong for t in found.terciles) in (1199, 1200)


def test_a_tercile_without_enough_says_so(audit):
    table, truth = judged()
    table["conf"] = np.where(truth, 0.9, 0.1)
    verdicts, _, fill = audit(table, n=100)
    thirds = report(verdicts, fill(by_truth(truth)), "conf").terciles
    assert any(third.audit is None and "at least one truly" in third.why for third in thirds)


def test_rows_that_are_not_filled_in_are_counted_and_left_out(audit):
    table, truth = judged()
    verdicts, _, fill = audit(table, n=200, disagreements=10)

    def some(sample):
        filled = by_truth(truth)(sample)
        filled.loc[:6, "truth"] = ""
        return filled

    sample = fill(some)
    assert sample.unfilled == 7
    found = report(verdicts, sample)
    assert found.audit.right + found.audit.wrong + found.disagreement.n == 203


def test_the_table_keeps_what_was_picked_apart_from_what_was_drawn(audit):
    table, truth = judged()
    verdicts, drawn, fill = audit(table, n=200, disagreements=40)
    rows = fill(by_truth(truth)).table(verdicts)
    assert len(rows) == 2000
    filled = {row["id"]: row["truth"] for row in rows if row["truth"]}
    apart = {row["id"]: row["truth_of_disagreement"] for row in rows if row["truth_of_disagreement"]}
    assert set(filled) == set(drawn["id"][drawn["stratum"] == "mark"])
    assert set(apart) == set(drawn["id"][drawn["stratum"] == "disagreement"])
    assert all(mark == str(int(truth[int(key[1:])])) for key, mark in (filled | apart).items())
    assert rows[3]["conf"] == str(table["conf"][3])


def put(row, column, text):
    def change(sample):
        sample["truth"] = "1"
        sample.loc[row, column] = text
        return sample

    return change


BAD = {
    "a mark that is none": (put(2, "truth", "maybe"), r"row 4: 'truth' must be 1, 0.*'maybe'"),
    "an unknown id": (put(2, "id", "q9999"), r"row 4: 'id' must be of an answer in .*'q9999'"),
    "another stratum": (put(2, "stratum", "x"), r"row 4: 'stratum' must be one of mark, dis.*'x'"),
    "another answer": (put(2, "answer", "Bob"), r"row 4: 'answer' must be what .*'Bob'"),
    "another question": (put(2, "question", "Who?"), r"row 4: 'question' must be what .*'Who\?'"),
    "an id twice": (lambda s: pd.concat([s, s.iloc[[5]]]), r"row 202: 'id' must be unique \(row 7"),
    "no truth column": (lambda s: s.drop(columns="truth"), "must have a column 'truth'"),
    "no rows": (lambda s: s.iloc[:0], "must hold rows"),
}


@pytest.mark.parametrize("name", BAD)
def test_a_sample_that_cannot_be_used_is_refused_with_row_and_value(audit, name):
    change, message = BAD[name]
    _, _, fill = audit(judged()[0])
    with pytest.raises(DataError, match=message):
        fill(change)


def test_nothing_filled_in_tells_nothing(audit):
    verdicts, _, fill = audit(judged()[0])
    with pytest.raises(DataError, match="must hold at least one truly right answer"):
        report(verdicts, fill())


def test_verdicts_that_cannot_be_audited_are_refused(tmp_path):
    table, _ = judged(n=10)
    for change, message in (
        ({"verdict": "yes"}, r"row 2: 'verdict' must be one of correct, .*'yes'"),
        ({"verdict": "correct"}, "must hold answers judged right and judged wrong; got 10 and 0"),
    ):
        table.assign(**change).to_csv(tmp_path / "v.csv", index=False)
        with pytest.raises(DataError, match=message):
            draw(read_verdicts(tmp_path / "v.csv"), 4, seed=0, disagreements=0)
    table.loc[1] = table.loc[0]
    table.loc[1, "verdict"] = "not_attempted"
    table.to_csv(tmp_path / "v.csv", index=False)
    with pytest.raises(DataError, match=r"row 3: 'verdict' must be .* as in row 2"):
        read_verdicts(tmp_path / "v.csv")


def write_audited(path, table, truth, n=600):
    """The file that `judge-audit read` writes for a sample drawn by mark."""
    table = table.assign(judge="j@1", truth="")
    for label in ("correct", "incorrect"):
        drawn = table.index[table["verdict"] == label][: n // 2]
        table.loc[drawn, "truth"] = [str(int(truth[i])) for i in drawn]
    table.to_csv(path, index=False)
    return table


def test_an_audit_file_tells_of_the_judge_how_often_it_errs(tmp_path):
    table, truth = judged(n=6000)
    write_audited(tmp_path / "audited.csv", table, truth)
    audit = AuditFile(path=tmp_path / "audited.csv").read("j@1")
    assert audit.right + audit.wrong == 600
    assert audit.sensitivity.low < SENSITIVITY < audit.sensitivity.high
    assert audit.specificity.low < SPECIFICITY < audit.specificity.high
    wrong = ((table["verdict"] == "correct") != truth).mean()
    # Half of the audited have either mark, and a fifth of all are marked right: unweighted it would be .11.
    assert error_rate(audit) == pytest.approx(wrong, abs=0.015)
    everything = table.assign(judge="j@1", truth=truth.astype(int).astype(str))
    everything.to_csv(tmp_path / "all.csv", index=False)
    assert error_rate(AuditFile(path=tmp_path / "all.csv").read("j@1")) == pytest.approx(wrong)


def test_an_audit_of_another_judge_or_of_a_useless_one_is_refused(tmp_path):
    table, truth = judged()
    path = tmp_path / "audited.csv"
    table = write_audited(path, table, truth)
    with pytest.raises(DataError, match=r"row 2: 'judge' must be 'k@1', the judge whose.*got 'j@1'"):
        AuditFile(path=path).read("k@1")
    table.loc[7, "judge"] = "k@1"
    table.to_csv(path, index=False)
    with pytest.raises(DataError, match=r"row 9: 'judge' must be 'j@1'"):
        AuditFile(path=path).read("j@1")
    turned = {"correct": "incorrect", "incorrect": "correct"}
    table.assign(judge="j@1", verdict=table["verdict"].map(turned)).to_csv(path, index=False)
    with pytest.raises(DataError, match="better than chance"):
        AuditFile(path=path).read("j@1")
    table.assign(truth="").to_csv(path, index=False)
    with pytest.raises(DataError):
        AuditFile(path=path).read("j@1")
