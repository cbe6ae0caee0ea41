"""Cards of trained models."""

import json
import re
from pathlib import Path

import rwguidance_testbed
from rwguidance_testbed.training.cards import write_card

FIGURES = {"name_of_other_drawings": 0.721, "pictures_seen": 3000000}


def card(folder, **changed):
    parts = {
        "about": "Towers, " + "many " * 40 + "of them.\n\n    read(folder)",
        "data": "Drawings.",
        "training": "On captions.",
        "command": "towers judge " + " ".join(f"--option{i} {i}" for i in range(12)),
        "quality": "Shares.",
        "figures": FIGURES,
    }
    write_card(folder, **{**parts, **changed})
    return (folder / "README.md").read_text(encoding="utf-8")


def test_a_card_says_what_how_and_how_well(tmp_path):
    text = card(tmp_path / "emoji-judge")
    assert text.startswith("---\nlicense: mit\n---\n\n# emoji-judge\n\nTowers, many ")
    assert "\n\n    read(folder)\n\n" in text
    assert "**Data.** Drawings. Credits and licenses are in `rwguidance_testbed/NOTICE`." in text
    assert text.endswith(
        "| figure | value |\n|---|---|\n| name of other drawings | 0.721 |\n"
        "| pictures seen | 3,000,000 |\n"
    )
    assert max(map(len, text.splitlines())) <= 100
    figures = json.loads((tmp_path / "emoji-judge" / "figures.json").read_text(encoding="utf-8"))
    assert figures == FIGURES


def test_the_command_can_be_copied(tmp_path):
    text = card(tmp_path / "emoji-judge")
    lines = text.partition("    python -m ")[2].partition("\n\n")[0]
    words = lines.replace("\\\n", " ").split()
    assert words[:3] == ["rwguidance_testbed.towers", "judge", "--option0"]
    assert words[3:] == [word for i in range(12) for word in (f"--option{i}", str(i))][1:]
    assert all(line.endswith(" \\") for line in lines.splitlines()[:-1])


def test_what_is_shipped_says_nothing_of_where_it_was_made():
    weights = Path(rwguidance_testbed.__file__).with_name("weights")
    texts = [*weights.rglob("*.json"), *weights.rglob("*.md")]
    assert len(texts) > 8
    for path in texts:
        assert not re.search(r'"/\w', path.read_text(encoding="utf-8")), path
