"""The report of a tuning whose numbers are known, and of its evidence."""

import dataclasses
import io
import json
import re

import pytest
import torch
from transformers import AutoModelForCausalLM, AutoTokenizer

from made_up_tuning import tuned_steering
from rotalabs_steer.errors import FileFormatError
from rotalabs_steer.evaluation import CapabilityCheck, Detection, Estimate, PairedComparison, ProjectedText
from rotalabs_steer.files.records import to_json
from rotalabs_steer.reporting import plots
from rotalabs_steer.reporting.extra_measurements import Evidence, ProjectedAnswers, gather_evidence
from rotalabs_steer.reporting.html_report import write_report
from rotalabs_steer.tuning.candidates import Answers, JudgedTexts


def evidence():
    offsets, scores = ((0, 3), (3, 5), (5, 14)), torch.tensor([[-3.0, 0.0, 3.0]])
    seen = ProjectedText("Two & <three>.", ("Two", " &", " <three>."), offsets, scores, torch.tensor([0.0]))
    half = Estimate(0.5, 0.4, 0.6)
    check = CapabilityCheck(half, (1.0, -1.0), half, PairedComparison(Estimate(0.0, -0.1, 0.1), 1.0, 2, 0))
    projected = tuple(ProjectedAnswers(strength, (seen,)) for strength in (-1.0, 0.0, 1.0))
    return Evidence(check, projected, Detection("calm", 2, half, half, (1.0, 2.0), (0.0, 1.5)))


def page_of(tmp_path, tuned, found=None):
    path = tmp_path / "made" / "report.html"
    write_report(path, tuned, {"positive": "calm words", "negative": "excited words"}, found)
    return path.read_text("utf-8")


def test_the_page_holds_everything_and_needs_nothing(tmp_path):
    page = page_of(tmp_path, tuned_steering(), evidence())
    assert page.count('<svg role="img" aria-label="') == page.count("<svg") == 4
    assert not re.search(r'(src|href)="(?!#)|url\((?!#)|@import', page), "the page loads something"
    assert "How do I &lt;b&gt;boil&lt;/b&gt; an egg?" in page
    assert "<b>boil" not in page
    assert "does not steer" not in page
    ids = re.findall(r'\bid="([^"]+)"', page)
    assert len(ids) == len(set(ids)), "an id occurs twice"
    assert re.findall(r"<h(\d)", page)[:3] == ["1", "2", "3"]


def test_the_records_are_those_of_the_tuning(tmp_path):
    tuned = tuned_steering()
    page = page_of(tmp_path, tuned, evidence())
    text = re.search(r'<pre id="records"[^>]*>(.*?)</pre>', page, re.DOTALL)[1]
    for entity, letter in (("&#34;", '"'), ("&#39;", "'"), ("&lt;", "<"), ("&gt;", ">"), ("&amp;", "&")):
        text = text.replace(entity, letter)
    assert json.loads(text) == json.loads(json.dumps(tuned.to_record() | {"evidence": to_json(evidence())}))


@pytest.mark.parametrize(("model", "shown"), [
    ("/home/ann/models/SmolLM2", "SmolLM2"), (r"C:\models\SmolLM2", "SmolLM2"), ("org/SmolLM2", "org/SmolLM2"),
])  # fmt: skip
def test_a_page_to_show_names_the_model_without_the_machines_path(tmp_path, model, shown):
    tuned = tuned_steering()
    page = page_of(tmp_path, dataclasses.replace(tuned, provenance={**tuned.provenance, "model": model}))
    assert f'<p class="soft">{shown}, 2026' in page
    assert f"<dt>model</dt><dd>{shown}</dd>" in re.sub(r">\s+<", "><", page)
    assert f"&#34;model&#34;: &#34;{shown}&#34;" in page
    assert "/home" not in page
    assert "C:" not in page


@pytest.mark.parametrize(("slope", "change", "said"), [
    (0.0, 0.0, "Neither the log-odds of held-out pairs nor what the model writes"),
    (-1.0, 1.0, "The log-odds of held-out pairs do not move the right way"),
    (1.0, -1.0, "but what the model writes does not: the 95 % interval"),
])  # fmt: skip
def test_what_does_not_steer_is_said_to_the_reader(tmp_path, slope, change, said):
    page = page_of(tmp_path, tuned_steering(slope, change))
    assert "On this evidence the behaviour does not steer on this model." in page
    assert said in page


def test_too_few_answers_to_say_whether_it_steers(tmp_path):
    tuned = tuned_steering(answered=7)
    assert (tuned.steers, tuned.undecided, tuned.verdict) == (False, True, "cannot say")
    assert str(tuned).startswith(
        "calm: whether it steers on this model cannot be said: 16 test pairs and 7 answers are"
    )
    page = page_of(tmp_path, tuned)
    assert "The evidence does not show whether the behaviour steers on this model." in page
    assert "7 answers; no interval: the values are too few or too much alike" in page
    opposed = tuned_steering(slope=-1.0, answered=7)
    assert (opposed.steers, opposed.verdict) == (False, "no"), "one interval that does not lie above zero is enough"
    assert tuned_steering().verdict == "yes"


def test_pictures_of_too_few_pairs_show_no_interval():
    tuned = tuned_steering()
    few = dataclasses.replace(tuned.curve, propensities=tuned.curve.propensities[:, :5])
    tuned = dataclasses.replace(tuned, curve=few, control=few)
    line = plots.tradeoff_figure(tuned).axes[0].lines[-1]
    assert line.get_ydata()[0] == pytest.approx(few.effect.mean)
    drawn = plots.propensity_figure(tuned)
    assert drawn.axes[0].lines[2].get_ydata()[-1] == pytest.approx(few.change_at(1.0).mean)
    drawn.savefig(io.BytesIO(), format="png")


def test_without_evidence_the_page_says_how_to_add_it(tmp_path):
    page = page_of(tmp_path, tuned_steering())
    assert "rotalabs-steer report FOLDER --model MODEL" in page
    assert "Which tokens carry it" not in page


def test_the_same_numbers_give_the_same_page(tmp_path):
    tuned = tuned_steering()
    assert page_of(tmp_path, tuned, evidence()) == page_of(tmp_path, tuned, evidence())


def test_pictures_show_the_numbers():
    tuned = tuned_steering()
    heat = plots.heat_map_figure(tuned).axes[0]
    expected = [change.mean for candidate in tuned.candidates for change in map(candidate.curve.change_at, (-1, 0, 1))]
    shown = [float(text.get_text().replace("−", "-")) for text in heat.texts]
    assert shown == pytest.approx(expected, abs=0.0051)
    bars = plots.first_order_figure(tuned).axes[0].patches
    assert [bar.get_height() for bar in bars] == pytest.approx([-0.5, 0.5, 1.5, 2.5])
    line = plots.tradeoff_figure(tuned).axes[0].lines[-1]
    assert (line.get_xdata()[0], line.get_ydata()[0]) == pytest.approx((0.2, tuned.curve.effect.mean))
    curves = plots.propensity_figure(tuned).axes[0].lines
    assert curves[2].get_ydata()[-1] == pytest.approx(tuned.curve.change_at(1.0).mean)


def test_evidence_is_kept_beside_the_tuning(tmp_path):
    assert Evidence.load(tmp_path) is None
    evidence().save(tmp_path)
    assert json.dumps(to_json(Evidence.load(tmp_path))) == json.dumps(to_json(evidence()))
    (tmp_path / "evidence.json").write_text('{"capability": 3}')
    with pytest.raises(FileFormatError, match="not the evidence of a tuning"):
        Evidence.load(tmp_path)


@pytest.mark.real_model
def test_evidence_is_measured_at_the_chosen_layer(small_model, tmp_path):
    model, tokenizer = (kind.from_pretrained(small_model) for kind in (AutoModelForCausalLM, AutoTokenizer))
    tuned = tuned_steering(hidden=32)
    said = {-1.0: ("", ""), 0.0: ("Boil it.", ""), 1.0: ("Boil it.", "")}
    spoken = tuple(JudgedTexts(sign, texts, (sign, 2 * sign)) for sign, texts in said.items())
    tuned = dataclasses.replace(tuned, answers=Answers(("An egg?", "And now?"), spoken))
    found = gather_evidence(model, tokenizer, tuned, [{"prompt": "Well?", "positive": "Yes, sir.", "negative": "Yep."}])
    assert found.detection.layer_index == tuned.layer_index
    assert [len(row.texts) for row in found.projected] == [0, 1, 1], "an empty answer has no tokens"
    assert found.capability.change.pairs == len(found.capability.log_odds)
    page_of(tmp_path, tuned, found)
