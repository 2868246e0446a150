"""The table of rules: what each row must have, and docs/rules.md, which is made of it: `python -m tests.test_rules`."""

from __future__ import annotations

import re
import string
from pathlib import Path

import pytest

from generator.rules import RULES
from generator.rules.releases import RELEASES, find_release
from generator.rules.rule import SEVERITIES, Rule, release_key
from generator.rules.words import find_rule
from tests.doctor_cases import CASES

ROOT = Path(__file__).parents[1]
PAGE = ROOT / "docs" / "rules.md"
HEAD = (
    "| rule | severity | shown by | releases | cause | what to do | tritonserver's words (a regular expression) |\n"
    "|---|---|---|---|---|---|---|\n"
)
# What find_rule gives beside the groups of the words.
ALWAYS = {"model", "words", "place"}
BUILDS = {"rebuild": ", or build it again", "rewrite": ", or build it again and discard the edits", None: ""}


def name_fields(rule: Rule) -> set[str]:
    """Return what cause and fix need."""
    parts = [*string.Formatter().parse(rule.cause), *string.Formatter().parse(rule.fix)]
    return {str(name) for _, name, _, _ in parts if name is not None}


def test_ids_are_unique_and_of_one_form() -> None:
    ids = [rule.id for rule in RULES]
    assert len(set(ids)) == len(ids)
    assert all(re.fullmatch(r"[a-z]+(-[a-z]+)*", one) for one in ids)


@pytest.mark.parametrize("rule", RULES, ids=lambda rule: rule.id)
def test_the_words_give_what_cause_and_fix_need(rule: Rule) -> None:
    assert rule.severity in SEVERITIES
    assert not (rule.first and rule.last) or release_key(rule.first) <= release_key(rule.last)
    if rule.says is None:
        assert "log" not in rule.seen_in or rule.id == "unknown-words"
    elif "log" in rule.seen_in:
        given = set(re.compile(rule.says, re.DOTALL).groupindex)
        assert name_fields(rule) <= given | ALWAYS


def test_what_checks_give_is_enough_for_rules_without_words() -> None:
    """Those with a case are formatted there (tests/test_doctor.py); the others are these."""
    cases = {case.rule for case in CASES}
    assert {rule.id for rule in RULES if rule.says is None} - cases == {
        "python-newer-than-ours",  # depends on the Python of the tests, tested apart
        "server-refuses",  # tests/test_doctor_prove.py
        "server-accepts",
        "unknown-words",
    }


WORDS = {
    "config-field-newer": 'failed to read text proto from m/config.pbtxt (line 2: has no field named "model_metrics".)',
    "warmup-file-missing": "failed to open text file for read /r/m/warmup/x.bin: No such file or directory",
    "layout-named-file-missing": "failed to open text file for read /r/m/labels.txt: No such file or directory",
    "layout-no-config": "failed to open text file for read /r/m/config.pbtxt: No such file or directory",
    "backend-removed": "unable to find backend library for backend 'tensorflow', try specifying runtime",
    "backend-unknown": "unable to find backend library for backend 'own', try specifying runtime",
    "platform-unknown": "unexpected platform type 'caffe2_netdef' for m",
    "plan-version": "the engine plan file is not compatible with this version of TensorRT, expecting library version "
    "10.9.0.34 got 10.8.0.43, please rebuild",
    "network-max-batch": "configuration specified max-batch 64 but TensorRT engine only supports max-batch 8",
    "label-outside": "label file path '/r/x' for output 'Y' in model 'm' is outside model directory",
    "network-tensor-unknown": "unexpected inference input 'x', allowed inputs are: PIXELS",
    "ensemble-member-version": "ensemble 'm' depends on 'a' whose required version 0 is not loaded",
}


@pytest.mark.parametrize("rule", WORDS)
def test_a_special_rule_comes_before_the_general_one(rule: str) -> None:
    found = find_rule(WORDS[rule], model="m")
    assert found is not None
    assert found[0].id == rule
    assert all("{" not in text.format_map(found[1]) for text in (found[0].cause, found[0].fix))


def test_releases_are_in_order_and_the_last_known_one_is_taken() -> None:
    keys = [release_key(release.name) for release in RELEASES]
    assert keys == sorted(keys)
    newest, oldest = find_release("99.01"), find_release("20.01")
    assert newest is not None
    assert newest.name == RELEASES[-1].name
    assert oldest is None


def test_the_page_is_what_the_table_makes() -> None:
    assert PAGE.read_text().partition(HEAD)[2] == render_rules(), "python -m tests.test_rules"


def render_rules() -> str:
    """Return the rows of the page."""
    rows = []
    for rule in RULES:
        first, last = rule.first or "", rule.last or ""
        releases = (
            f"{first} to {last}" if first and last else f"from {first}" if first else f"to {last}" if last else ""
        )
        words = f"`{rule.says}`" if rule.says else ""
        shown = ", ".join(rule.seen_in)
        cells = (f"`{rule.id}`", rule.severity, shown, releases, rule.cause, rule.fix + BUILDS[rule.build], words)
        rows.append(" | ".join(" ".join(cell.split()).replace("|", "\\|") for cell in cells))
    return "".join(f"| {row} |\n" for row in rows)


if __name__ == "__main__":
    PAGE.write_text(PAGE.read_text().partition(HEAD)[0] + HEAD + render_rules())
