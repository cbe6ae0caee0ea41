"""Prepared data whose files were damaged is refused, and preparing it again mends it."""

import json
import random

import pytest

from path_model import Text
from preference_files import CAPTIONS, Model, job, pick_a_pic
from rwguidance.preparation import Prepared, prepare_draws, prepare_pairs
from rwguidance.preparation.row_log import Row, RowLog
from rwguidance.store import Damaged

SIZE = (16, 16)


def pairs_of(data):
    pairs = [pair for name in ("train", "validation") for pair in data.pairs(name)]
    return [(pair.x_0.tolist(), *pair[1:3], str(pair.rewards)) for pair in pairs]


def test_a_bit_of_the_list_of_rows_is_noticed_and_made_again(tmp_path):
    pick_a_pic(tmp_path / "a.parquet")
    prepare = lambda: prepare_pairs(job(tmp_path / "out"), [tmp_path / "a.parquet"], SIZE)
    whole = pairs_of(prepare())
    (log,) = (tmp_path / "out" / "rows").glob("*.jsonl")
    content = log.read_bytes()
    chance = random.Random(0)
    for _ in range(12):
        damaged = bytearray(content)
        place = content.index(b": ", chance.randrange(len(content) - 60)) + 3  # within a value
        damaged[place] ^= 1
        log.write_bytes(damaged)
        with pytest.raises(ValueError, match=rf"{log.name} is damaged, \d+ rows of it are left"):
            pairs_of(Prepared(tmp_path / "out"))
        assert pairs_of(prepare()) == whole
        assert log.read_bytes() == content


@pytest.mark.parametrize("change", [bytes.lower, lambda line: b"", lambda line: line + line])
def test_lines_that_were_changed_lost_or_doubled_are_noticed(tmp_path, change):
    log = RowLog(tmp_path / "rows.jsonl", 2)
    rows = [Row("A cat", (0.0, 1.0)), Row(problem="No label"), Row("A dog", (0.5,), group="g")]
    log.extend(rows[:2], last=False)
    log.extend(rows[2:], last=True)
    assert log.whole() == rows
    lines = log.path.read_bytes().splitlines(keepends=True)
    for i in range(3):
        log.path.write_bytes(b"".join([*lines[:i], change(lines[i]), *lines[i + 1 :]]))
        assert log.read()[1] is False
        with pytest.raises(ValueError, match=r"rows\.jsonl is damaged"):
            log.whole()


def test_lines_are_written_as_they_always_were(tmp_path):
    log = RowLog(tmp_path / "rows.jsonl", 2)
    log.extend([Row("ä", (0.0, 1.0))], last=True)
    assert log.path.read_text().splitlines() == [
        '{"caption": "\\u00e4", "ranks": [0.0, 1.0], "sha256": "f0a5588359bd25ea"}',
        '{"rows": 1, "sha256": "92eca19a4e4339ef"}',
    ]


def test_lines_without_a_digest_are_read_as_before(tmp_path):
    path = tmp_path / "rows.jsonl"
    entries = [{"caption": "a", "ranks": [0.0]}, {"problem": "b"}, {"rows": 2}]
    path.write_text("".join(f"{json.dumps(entry)}\n" for entry in entries))
    assert RowLog(path, 2).whole() == [Row("a", (0.0,)), Row(problem="b")]
    path.write_text(path.read_text().replace('"problem"', '"probleM"'))
    assert RowLog(path, 2).read() == ([], False)


class Two(Model):
    """A model whose text is kept as two embeddings."""

    depends_on = Model.depends_on

    def condition(self, prompts):
        code = super().condition(prompts).embeddings["code"]
        return Text(prompts, {"code": code, "other": 2 * code})


@pytest.mark.parametrize("place", [0, 1])
def test_damaged_embeddings_are_made_again(tmp_path, place):
    prepare = lambda: prepare_draws(job(tmp_path, backbone=Two()), CAPTIONS, draws=2)
    data = prepare()
    whole = data.embeddings(data.prompts)
    one, other = sorted((tmp_path / "draws").glob("*/embeddings-*/*.safetensors"))
    shard = (one, other)[place]
    content = bytearray(shard.read_bytes())
    content[-1] ^= 4
    shard.write_bytes(content)
    with pytest.raises(Damaged, match=shard.parent.name):
        Prepared(tmp_path).embeddings(data.prompts)
    with pytest.warns(RuntimeWarning, match="is damaged .* made again"):
        prepare()
    again = Prepared(tmp_path).embeddings(data.prompts)
    assert [again[name].equal(whole[name]) for name in ("code", "other")] == [True, True]
