"""Pairs of pictures with preferences: how they are read, and how agreement is counted."""

import io

import pytest
import torch
from squares import NAMES
from test_towers_accuracy import Colors

from rwguidance.support.fingerprint import fingerprint
from rwguidance_testbed.scenes import COLORS
from rwguidance_testbed.towers import Pairs, command


class Bright(Colors):
    """Prefers bright pictures."""

    def embed_pictures(self, pictures, patches=None):
        return torch.stack([pictures.mean((1, 2, 3)), torch.full((len(pictures),), 0.3)], 1)

    def embed_captions(self, captions):
        return torch.tensor([[1.0, 0.0]]).expand(len(captions), -1)


def encoded(picture):
    from PIL import Image

    file = io.BytesIO()
    Image.fromarray(picture.permute(1, 2, 0).numpy()).save(file, "PNG")
    return file.getvalue()


def write_pairs(path, count=64, **changes):
    """Dark and bright pictures, of which the bright are preferred."""

    import pyarrow as pa
    from pyarrow import parquet

    draws = torch.Generator().manual_seed(0)
    bright_first = torch.rand(count, generator=draws) < 0.5
    base = torch.randint(60, (count, 2, 3, 64, 64), generator=draws).byte()
    base[torch.arange(count), (~bright_first).long()] += 150
    columns = {
        "caption": [f"{NAMES[i % 6]} on a {list(COLORS)[i % 12]} background" for i in range(count)],
        "jpg_0": [encoded(pair[0]) for pair in base],
        "jpg_1": [encoded(pair[1]) for pair in base],
        "label_0": bright_first.float().tolist(),
        "label_1": (~bright_first).float().tolist(),
        "ranking_id": list(range(count)),
    }
    columns |= changes
    parquet.write_table(pa.table({k: v for k, v in columns.items() if v is not None}), path)
    return base


class TestPairs:
    def test_they_are_read_as_written(self, tmp_path):
        base = write_pairs(tmp_path / "pairs.parquet")
        pairs = Pairs(tmp_path / "pairs.parquet")
        assert torch.equal(pairs.pictures, base)
        bright = pairs.pictures.float().flatten(2).mean(2)
        assert torch.equal(pairs.labels, (bright[:, 0] > bright[:, 1]).float())
        learned, checked = pairs.split(4)
        captions = lambda index: {pairs.captions[i] for i in index.tolist()}
        assert captions(learned).isdisjoint(captions(checked))
        assert (len(captions(learned)), len(captions(checked))) == (9, 3)
        assert len(learned) + len(checked) == len(pairs) == 64

    def test_they_are_identified_by_captions_pictures_and_preferences(self, tmp_path):
        def key(**changes):
            write_pairs(tmp_path / "pairs.parquet", 4, **changes)
            return fingerprint(Pairs(tmp_path / "pairs.parquet"))

        first = key()
        assert key(ranking_id=[9, 8, 7, 6]) == first
        halves = {"label_0": [0.5] * 4, "label_1": [0.5] * 4}
        black = {"jpg_0": [encoded(torch.zeros(3, 64, 64, dtype=torch.uint8))] * 4}
        utilities = {"utility_0": [0.0] * 4, "utility_1": [1.0] * 4}
        others = [{"caption": list("abcd")}, halves, black, utilities]
        assert len({first, *(key(**changes) for changes in others)}) == 5

    def test_what_is_wrong_is_said(self, tmp_path):
        path = tmp_path / "pairs.parquet"
        write_pairs(path, 4, label_1=None)
        with pytest.raises(ValueError, match=r"lacks \['label_1'\]"):
            Pairs(path)
        write_pairs(path, 4, label_1=[1.0] * 4, label_0=[1.0] * 4)
        with pytest.raises(ValueError, match="must add to 1"):
            Pairs(path)
        write_pairs(path, 4)
        with pytest.raises(ValueError, match=r"must have 32 x 32 pixels, got \(64, 64\)"):
            Pairs(path, 32)

    def test_ties_do_not_count(self, tmp_path):
        path = tmp_path / "pairs.parquet"
        write_pairs(path)
        pairs = Pairs(path)
        assert pairs.agreement(Bright(), torch.arange(64)) == 1.0
        pairs.labels[:16] = 1 - pairs.labels[:16]
        assert pairs.agreement(Bright(), torch.arange(64)) == 0.75
        pairs.labels[:16] = 0.5
        assert pairs.agreement(Bright(), torch.arange(64)) == 1.0

    def test_clean_agreement_is_with_the_utilities(self, tmp_path):
        path = tmp_path / "pairs.parquet"
        base = write_pairs(path)
        with pytest.raises(ValueError, match="columns utility_0 and utility_1"):
            Pairs(path).agreement(Bright(), torch.arange(64), clean=True)
        light = base.float().flatten(2).mean(2)
        light[:16] = light[:16].flip(1)  # there the utility is against the labels
        light[16:24] = 0.0
        write_pairs(path, utility_0=light[:, 0].tolist(), utility_1=light[:, 1].tolist())
        pairs = Pairs(path)
        assert pairs.agreement(Bright(), torch.arange(64)) == 1.0
        assert pairs.agreement(Bright(), torch.arange(64), clean=True) == pytest.approx(40 / 56)
        figures = command._agreements(Bright(), pairs)
        # Of so few captions none is kept to check with.
        assert figures == {
            "agreement_on_pairs_learned": 1.0,
            "clean_agreement_on_pairs_learned": round(40 / 56, 4),
        }
