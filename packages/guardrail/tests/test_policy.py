from pathlib import Path

import pytest
import yaml
from pydantic import ValidationError

from wfm_guardrail import Guardrail, Policy
from wfm_guardrail.lexicon import builtin_lexicon, forms, parse_lexicon, read_lexicon
from wfm_guardrail.lint import collisions, duplicates
from wfm_guardrail.policy import PRESETS


@pytest.mark.parametrize("name", PRESETS)
def test_presets_load_and_are_called_by_their_names(name):
    assert Policy.load(name).name == name


def test_no_settings_are_the_default_preset():
    assert Policy() == Policy.load("physical_ai")


def test_the_fingerprint_follows_the_settings():
    assert Policy().fingerprint == Policy().fingerprint
    assert Policy().fingerprint != Policy(timeout_s=1).fingerprint


@pytest.mark.parametrize(
    ("settings", "why"),
    [
        ({"checks": {"lexicon": {"mode": "off"}}}, "needs a reason"),
        ({"checks": {"faces": {"mode": "off", "reason": " "}}}, "needs a reason"),
        (
            {"checks": {"faces": {"mode": "off", "reason": "x", "required": True}}},
            "off and required",
        ),
        ({"tiemout_s": 3}, "Extra inputs"),
        ({"timeout_s": float("nan")}, "greater than 0"),
        ({"faces": {"stride": 8, "gap": 4}}, "would blink"),
        ({"text": {"refuse_from": {"prompt": "note"}}}, "sensitive on"),
    ],
)
def test_policies_that_make_no_sense_are_refused(settings, why):
    with pytest.raises(ValidationError, match=why):
        Policy.model_validate(settings)


def test_a_policy_file_with_mistakes_names_each(tmp_path):
    file = tmp_path / "p.yaml"
    file.write_text("timeout_s: -1\nvideo: {fps: fast}\n")
    with pytest.raises(ValueError, match=r"p\.yaml: timeout_s: .*; video\.fps: ") as caught:
        Policy.load(file)
    assert "\n" not in str(caught.value)
    for text in ("[1, 2]", "a: [", ""):
        file.write_text(text)
        with pytest.raises(ValueError, match=r"p\.yaml"):
            Policy.load(file)
    with pytest.raises(FileNotFoundError, match="nor one of physical_ai"):
        Policy.load(tmp_path / "q.yaml")


def test_the_word_off_need_not_be_quoted_in_yaml(tmp_path):
    file = tmp_path / "p.yaml"
    file.write_text("checks: {script: {mode: off, reason: translated upstream}}\n")
    assert Policy.load(file).check("script").mode == "off"


def test_the_policy_of_the_readme_is_one():
    readme = Path(__file__).parents[1] / "README.md"
    if not readme.is_file():
        pytest.skip("the tests were copied without their README")
    block = readme.read_text().split("```yaml\n")[1].split("```")[0]
    assert Policy.model_validate(yaml.safe_load(block)).check("faces").required


def test_own_lexicons_and_phrases(tmp_path):
    file = tmp_path / "own.yaml"
    file.write_text("entries:\n  ip_brand:\n    explicit: [acme bot(|s)]\n")
    policy = Policy.model_validate(
        {"text": {"lexicons": [str(file)], "allow": ["acme bot museum"]}}
    )
    guard = Guardrail(policy, detector=None)
    assert guard.check_text("two acme bots").category == "ip_brand"
    assert guard.check_text("the acme bot museum").safe
    assert not guard.check_text("acme-bot, museum").safe
    assert not guard.check_text("4cm3 b0t").safe


@pytest.mark.parametrize(
    ("text", "why"),
    [
        ("entries: {a: {explicit: [Upper]}}", "lower-case"),
        ("entries: {a: {explicit: ['(|)']}}", "lower-case"),
        ("entries: {a: {awful: [x]}}", "awful"),
        ("near: [{category: a, severity: explicit, groups: [b, c], within: 3}]", "not there"),
        ("entires: {}", "Extra inputs"),
        ("a: [", "not YAML"),
    ],
)
def test_lexicons_that_cannot_match_are_refused(text, why):
    with pytest.raises(ValueError, match=why):
        parse_lexicon(text, "own.yaml")


def test_a_missing_lexicon_is_named(tmp_path):
    with pytest.raises(FileNotFoundError, match=r"no\.yaml"):
        read_lexicon(tmp_path / "no.yaml")


def test_choices_are_spelled_out():
    assert list(forms("cut(|s|ting) (his|her) hair")) == [
        "cut his hair",
        "cut her hair",
        "cuts his hair",
        "cuts her hair",
        "cutting his hair",
        "cutting her hair",
    ]


def test_the_built_in_lexicon_names_nothing_twice():
    assert list(duplicates(builtin_lexicon())) == []


def test_rules_stay_the_same_when_others_are_added():
    first = {e.forms[0]: e.rule for e in builtin_lexicon().entries}
    assert len(set(first.values())) == len(first)


def test_lint_finds_the_words_that_would_suffer():
    lexicon = parse_lexicon("entries: {brand: {explicit: [deskin, graping]}}", "own.yaml")
    found = {c.words for c in collisions(lexicon, ["desk", "in", "graping", "draping", "robot"])}
    assert found == {"desk in", "draping"}
