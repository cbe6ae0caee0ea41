"""The prompts whose figures the test bed reports, and those on which settings are chosen."""

import hashlib
from pathlib import Path

from rwguidance.evaluation import prompts
from rwguidance_testbed.data import load_names
from rwguidance_testbed.prompt_sets import DEVELOPMENT, REPORT, prompts_of

ROOT = Path(__file__).parents[2]


def test_reported_prompts_are_those_of_the_published_figures():
    text = "\n".join(REPORT.prompts)
    assert REPORT.prompts == tuple(prompt.text for prompt in prompts_of(200, 0))
    assert hashlib.sha256(text.encode()).hexdigest()[:16] == "a4c520e85f5b722b"


def test_settings_are_chosen_on_prompts_that_say_nothing_of_what_is_reported():
    assert len(REPORT) == len(DEVELOPMENT) == 200
    assert prompts.common(DEVELOPMENT.prompts, REPORT.prompts) == []
    plain = {name for members in load_names().values() for name in members}
    without_style = lambda some: {prompt.partition(", ")[0] for prompt in some.prompts}
    assert without_style(REPORT) & without_style(DEVELOPMENT) == set()
    assert len(without_style(REPORT) & plain) > 50 < len(without_style(DEVELOPMENT) & plain)
    # As other seeds repeat plain names, they are left out on purpose.
    assert {p.text for p in prompts_of(200, 1)} & set(REPORT.prompts)


def test_groups_are_those_of_the_names():
    held_out = load_names()["held_out"]
    for some in (REPORT, DEVELOPMENT):
        for prompt, group in zip(some.prompts, some.groups, strict=True):
            found = [name for name in held_out if prompt.startswith(name)]
            assert group in ("learned", "held out")
            assert group == "learned" or found
        assert 10 < some.groups.count("held out") < 25


def test_the_package_advertises_them():
    text = (ROOT / "testbed" / "pyproject.toml").read_text(encoding="utf-8")
    for some in ("REPORT", "DEVELOPMENT"):
        line = f'emoji-{some.lower()} = "rwguidance_testbed.prompt_sets:{some}"'
        assert line in text.partition('[project.entry-points."rwguidance.prompts"]')[2]
