"""Hard negatives: captions that are false in one word."""

import math
import types

from squares import scene

from common import assert_within
from rwguidance_testbed.data import Drawing, sources
from rwguidance_testbed.scenes import COLORS
from rwguidance_testbed.towers.negatives import hard_negative


class TestHardNegative:
    entry = Drawing("red apple", "noto", "x", "food-fruit", (), "judge")
    relatives = types.MappingProxyType({"food-fruit": ["lemon", "pear", "red apple"]})

    def found(self, caption, generator, entry=entry, relatives=relatives):
        return {hard_negative(scene(caption), entry, relatives, generator) for _ in range(2000)}

    def test_every_respect_that_is_named_is_changed_and_no_other(self, generator):
        style = next(row["words"] for row in sources()["styles"] if row["name"] == "noto")
        styles = {row["words"] for row in sources()["styles"]} - {style}
        caption = f"a small red apple on an orange background, {style} style, fruit"
        rest = f", {style} style, fruit"
        expected = {f"a small {n} on an orange background{rest}" for n in ("lemon", "pear")}
        expected |= {f"a large red apple on an orange background{rest}"}
        expected |= {
            f"a small red apple on a {color} background{rest}" for color in set(COLORS) - {"orange"}
        }
        expected |= {f"a small red apple on an orange background, {s} style, fruit" for s in styles}
        assert self.found(caption, generator) == expected

    def test_respects_are_equally_likely(self, generator):
        caption = "red apple on a blue background"
        count = 4000
        false = [
            hard_negative(scene(caption), self.entry, self.relatives, generator)
            for _ in range(count)
        ]
        share = sum("red apple" in text for text in false) / count
        assert_within(share, 0.5, math.sqrt(0.25 / count))

    def test_words_of_names_are_not_mistaken(self, generator):
        entry = Drawing("small airplane", "noto", "x", "transport-air", (), "judge")
        relatives = {"transport-air": ["small airplane", "rocket"]}
        assert self.found("small airplane", generator, entry, relatives) == {"rocket"}
        large = self.found("large small airplane", generator, entry, relatives)
        assert large == {"large rocket", "small small airplane"}

    def test_kinds_and_lonely_names(self, generator):
        found = self.found("fruit", generator)
        assert "insect" in found
        assert "fruit" not in found
        alone = {"food-fruit": ["red apple"]}
        assert self.found("red apple", generator, relatives=alone) == {"thing"}

    def test_names_are_compared_as_captions_spell_them(self, generator):
        entry = Drawing("woman\u2019s hat", "noto", "x", "clothing", (), "judge")
        relatives = {"clothing": ["woman\u2019s hat", "man\u2019s shoe"]}
        assert self.found("woman's hat", generator, entry, relatives) == {"man's shoe"}
