"""The report: every number, nothing foreign, nothing executable."""

import base64
import json
import re
from html.parser import HTMLParser

import pytest
from pydantic import ValidationError

from calibration.report.figures import draw
from calibration.report.page import RunInfo, answers, decisive, recommended, render
from calibration.results import (
    LEVELS,
    Curve,
    Evaluation,
    Example,
    GroupRow,
    Line,
    MissingSystem,
    Row,
    VerdictReport,
)
from calibration.routing.policy import RouterPolicy

HOSTILE = "<script>alert(1)</script>"
VOID = {"meta", "img", "br"}


class Page(HTMLParser):
    """Every element of a page, checked to be closed in order."""

    def __init__(self, html):
        super().__init__(convert_charrefs=True)
        self.open, self.found, self.text = [], [], []
        self.feed(html)
        self.close()
        assert self.open == []

    def handle_starttag(self, tag, attrs):
        self.found.append((tag, dict(attrs)))
        if tag not in VOID:
            self.open.append(tag)

    def handle_endtag(self, tag):
        assert self.open.pop() == tag

    def handle_data(self, data):
        if self.open and self.open[-1] != "style":
            self.text.append(data)

    def attributes(self, name):
        return [attrs[name] for _, attrs in self.found if name in attrs]


@pytest.fixture(scope="module")
def page(report):
    return Page(report.html)


def words(html):
    return " ".join(" ".join(Page(html).text).split())


def test_the_page_is_well_formed_and_has_one_heading(page):
    assert [tag for tag, _ in page.found].count("h1") == 1


def test_the_page_asks_the_network_for_nothing(page, report):
    assert all(uri.startswith("data:image/svg+xml;base64,") for uri in page.attributes("src"))
    assert all(target.startswith("#") for target in page.attributes("href"))
    assert not re.search(r"https?:|@import|url\(", report.html)
    assert not {"script", "link", "iframe", "object"} & {tag for tag, _ in page.found}


def test_every_link_of_the_page_leads_somewhere(page):
    assert {target[1:] for target in page.attributes("href")} <= set(page.attributes("id"))


def test_ids_are_unique(page):
    ids = page.attributes("id")
    assert len(ids) == len(set(ids)) > 5


def test_hostile_text_is_shown_and_not_run(page, report, evaluation):
    assert any(HOSTILE in gap.reason for gap in evaluation.missing)
    assert HOSTILE not in report.html
    assert HOSTILE in "".join(page.text)
    assert not {"b", "script"} & {tag for tag, _ in page.found}


def test_a_quote_cannot_leave_its_attribute(info):
    breakout = '"><img src=x onerror=alert(1)>' + "x" * 300
    example = Example(
        system="dpo",
        question="Who?",
        expected="she",
        answer=breakout,
        topic="Art",
        confidence=0.9,
        is_correct=False,
        why="confidently wrong",
    )
    page = Page(render(Evaluation(rows=(), counts={}, examples=(example,)), info, {}).html)
    assert breakout in page.attributes("title")
    assert "img" not in {tag for tag, _ in page.found}


def test_a_long_answer_is_cut_and_kept_in_full_behind_it(page, evaluation):
    (long,) = {e.answer for e in evaluation.examples if len(e.answer) > 160}
    assert long in page.attributes("title")
    assert long not in "".join(page.text)
    assert long[:150] in "".join(page.text)


def test_the_pictures_are_inside_the_page(page, figures):
    inside = {base64.b64decode(uri.partition(",")[2]) for uri in page.attributes("src")}
    assert inside == {content for name, content in figures.items() if name.endswith(".svg")}
    assert all(len(text) > 20 for text in page.attributes("alt"))


def test_json_has_every_number_of_the_evaluation(report, evaluation, info):
    stored = json.loads(report.files()["report.json"])
    dumped = evaluation.model_dump(mode="json")
    for key in ("rows", "verdicts", "routing", "groups", "examples", "missing", "counts", "notes"):
        assert stored[key] == dumped[key]
    assert (stored["run"], stored["experiment"], stored["seed"]) == (info.run, info.experiment, info.seed)
    assert stored["stages"] == [s.model_dump() for s in info.stages]
    assert stored["versions"] == info.versions
    assert stored["settings"] == json.loads(info.settings)
    assert "curves" not in stored


def test_the_evaluation_can_be_read_back_from_the_json(report, evaluation):
    kept = {key: report.json[key] for key in Evaluation.model_fields if key != "curves"}
    assert Evaluation.model_validate(kept) == evaluation.model_copy(update={"curves": ()})


def test_the_page_shows_each_verdict_line_and_its_outcome(report, evaluation):
    text = words(report.html)
    assert text.count("✓ pass") + text.count("✗ fail") + text.count("? can't tell") == (
        sum(1 + len(verdict.lines) for verdict in evaluation.verdicts) + 2
    )
    for verdict in evaluation.verdicts:
        for line in verdict.lines:
            assert " ".join(line.note.split()) in text


def test_the_page_shows_the_main_numbers(report, evaluation):
    text = words(report.html)
    for row in evaluation.rows:
        for value in (row.accuracy, row.rms, row.rms_floor, row.brier, row.auroc):
            assert f" {value:.3f}".replace(" 0.", " .") in text


def test_the_other_models_and_readouts_are_there_too(report, evaluation):
    for model in {row.model for row in evaluation.rows}:
        assert f"{model}, test split" in words(report.html)
    assert report.html.count('scope="row">base<') >= sum(row.system == "base" for row in evaluation.rows)


def test_the_decisive_level_is_open_and_only_that(report):
    # One for the verdict and one for the literal criteria of each method.
    assert report.html.count("<details open>") == 4


def test_markdown_has_the_verdict_table_and_the_pictures(report, evaluation):
    text = report.markdown
    assert "| criterion | value | 95 % interval | minimum | target | stretch |" in text
    implicit = text.partition("## Verdict: implicit")[2].partition("\n## ")[0]
    line = next(v for v in evaluation.verdicts if v.system == "implicit").lines[4]
    assert line.name == "accuracy"
    assert f"| change of accuracy, relative | -{-line.value:.3f}".replace("-0.", "-.") in implicit
    assert re.findall(r"!\[[^]]*\]\((.*?)\)", text) == [
        "reliability.png",
        "histogram.png",
        "risk_coverage.png",
        "cost_quality.png",
    ]
    for table in re.findall(r"(?:^\|.*\n)+", text, re.MULTILINE):
        rows = [re.split(r"(?<!\\)\|", row) for row in table.strip().splitlines()]
        assert len({len(row) for row in rows}) == 1


def test_markdown_shows_hostile_text_as_text(report):
    assert HOSTILE not in report.markdown
    assert r"\<script>alert(1)\</script>" in report.markdown


def test_standalone_markdown_carries_its_pictures_and_stays_small(report, figures):
    text = report.standalone_markdown()
    found = [base64.b64decode(b) for b in re.findall(r"\(data:image/png;base64,([^)]*)\)", text)]
    assert found == [content for name, content in figures.items() if name.endswith(".png")]
    assert len(text) < 1_000_000


def test_files_are_the_texts_the_pictures_and_the_policy(report, figures):
    texts = {"report.html", "report.md", "report.json", "router_policy.json"}
    assert set(report.files()) == texts | set(figures)


def test_the_policy_beside_the_page_is_the_recommended_systems(report, evaluation):
    name = recommended(evaluation)
    assert RouterPolicy.model_validate_json(report.files()["router_policy.json"]) == evaluation.policies[name]
    passed = {v.system for v in evaluation.verdicts if v.outcome == "pass" and not v.literal}
    assert name in (passed or {"base"})


def test_rendering_twice_gives_the_same_files(report, evaluation, info, figures):
    assert render(evaluation, info, figures).files() == report.files()


def test_the_summary_says_the_answer_and_fits_a_terminal(report, evaluation):
    assert "[pass] dpo reaches every level" in report.summary
    assert "[fail] implicit does not reach the minimum level" in report.summary
    table = report.summary.partition("\n\n")[2]
    assert max(map(len, table.splitlines())) <= 100
    assert len(table.splitlines()) == 1 + len({(c.system, c.map) for c in evaluation.curves}) + 1


def test_a_baseline_without_methods_is_a_report_of_its_own(baseline_only, info):
    report = render(baseline_only, info, draw(baseline_only))
    text = words(report.html)
    assert "As it is, google/gemma-2-2b-it is right in" in text
    assert 'id="verdicts"' not in report.html
    assert "## Verdict" not in report.markdown
    assert report.json["verdicts"] == []


def verdict(level, **outcomes):
    lines = tuple(Line(name=n, value=None, threshold=None, outcome=o) for n, o in outcomes.items())
    order = [o for o in ("fail", "undecided", "pass") if o in outcomes.values()]
    return VerdictReport(system="dpo", level=level, outcome=order[0], lines=lines)


def said(*verdicts):
    (answer,) = answers(Evaluation(rows=(), counts={}, verdicts=verdicts))
    return answer.outcome, answer.sentence


@pytest.mark.parametrize(
    ("outcomes", "expected"),
    [
        (("pass", "pass", "pass"), ("pass", "dpo reaches every level, minimum to stretch.")),
        (
            ("pass", "fail", "fail"),
            (
                "pass",
                "dpo reaches the minimum level; it does not reach the target level: it fails on accuracy.",
            ),
        ),
        (
            ("pass", "pass", "undecided"),
            (
                "pass",
                (
                    "dpo reaches the target level; it may or may not reach the stretch level: "
                    "too few questions to tell on accuracy."
                ),
            ),
        ),
        (("fail", "fail", "fail"), ("fail", "dpo does not reach the minimum level: it fails on accuracy.")),
        (
            ("undecided", "undecided", "fail"),
            (
                "undecided",
                "dpo may or may not reach the minimum level: too few questions to tell on accuracy.",
            ),
        ),
    ],
)
def test_the_answer_names_the_highest_level_reached_and_what_stops_the_next(outcomes, expected):
    pairs = zip(LEVELS, outcomes, strict=True)
    assert said(*(verdict(level, accuracy=outcome, readable="pass") for level, outcome in pairs)) == expected


def test_the_answer_names_each_reason_once_and_no_line_that_passes():
    sentence = said(
        verdict(
            "minimum", rms_reduction="fail", rms_hle_reduction="fail", accuracy="undecided", readable="fail"
        )
    )[1]
    assert sentence.endswith("it fails on calibration error and readability.")


@pytest.mark.parametrize(
    ("outcome", "remark"),
    [
        ("fail", " The base with a two-parameter map is as good."),
        ("undecided", " These questions cannot tell it from the base with a two-parameter map."),
    ],
)
def test_the_answer_says_when_a_map_would_have_done(outcome, remark):
    assert said(verdict("minimum", brier_after_map=outcome, accuracy="fail"))[1].endswith(remark)


def test_literal_criteria_do_not_decide_the_answer():
    literal = verdict("minimum", accuracy="fail").model_copy(update={"literal": True})
    verdicts = [literal, *(verdict(level, accuracy="pass") for level in LEVELS)]
    assert said(*verdicts)[0] == "pass"
    assert decisive(verdicts) == "stretch"


def test_missing_numbers_are_shown_as_missing(info):
    row = Row(
        system="base",
        model="m",
        readout="stated_greedy",
        map="none",
        split="test",
        n=0,
        n_unjudged=1,
        n_unreadable=29,
        accuracy=None,
        mean_confidence=None,
        rms_hle=None,
        rms=None,
        rms_floor=None,
        l1=None,
        brier=None,
        auroc=None,
        aurc=None,
        effective_levels=None,
        top_two_share=None,
        span_low=None,
        span_high=None,
    )
    group = GroupRow(
        system="base",
        readout="stated_greedy",
        group_by="topic",
        group="Art",
        n=3,
        accuracy=1,
        mean_confidence=0.5,
        rms=0.5,
        rms_floor=0.1,
        auroc=None,
    )
    silent = Curve(system="base", readout="stated_greedy", map="none", confidence=(), correct=())
    evaluation = Evaluation(rows=(row,), counts={"test": 30}, curves=(silent,), groups=(group,))
    report = render(evaluation, info, draw(evaluation))
    assert words(report.html).count("n/a") >= 12
    assert "n/a" in report.summary
    assert "None" not in report.html + report.markdown + report.summary


def test_a_run_in_which_nothing_worked_still_has_a_report(info):
    gaps = (MissingSystem(system="dpo", reason="out | of * memory"),)
    report = render(Evaluation(rows=(), counts={}, missing=gaps), info, {})
    assert "dpo has no numbers: out | of * memory" in words(report.html)
    assert r"out \| of \* memory" in report.markdown


@pytest.mark.parametrize("field", ["settings", "backend"])
def test_settings_and_backend_must_be_json(info, field):
    with pytest.raises(ValidationError, match=field):
        RunInfo.model_validate(info.model_dump() | {field: "{not json"})
