"""Sets of prompts: published formats, subsets and splits, and what two sets have in common."""

import json
import random
import re
from pathlib import Path

import pyarrow
import pytest
from pyarrow import parquet
from typer.testing import CliRunner

from common import needs_testbed
from rwguidance.app.cli import app
from rwguidance.evaluation import PromptSet, prompts
from rwguidance.evaluation.published import PUBLISHED, PublishedPrompts

ROOT = Path(__file__).parents[3]
FACTS = {"title": "Some", "license": "MIT", "source": "here"}
WORDS = ["red", "blue", "green", "small", "large", "old"]
THINGS = ["cat", "dog", "key", "boat", "apple", "house", "tree"]
MANY = tuple(f"a {word} {thing}" for word in WORDS for thing in THINGS)


def set_of(some, **facts):
    return PromptSet(name="some", prompts=tuple(some), **FACTS, **facts)


def write_published(root):
    """One file or folder for each published set, as its publishers write them, and its prompts."""

    (root / "PartiPrompts.tsv").write_text(
        "Prompt\tCategory\tChallenge\tNote\nbond\tAbstract\tBasic\tconcepts\n"
        '"G I G" in thick letters. \tArts\tWriting & Symbols\t\n'
    )
    (root / "DrawBench Prompts - Sheet1.csv").write_text(
        'Prompts,Category\nA red car.,Colors\n"Two cats, one dog.",Gary Marcus et al. \n'
    )
    tags = [{"tag": "colors", "include": [{"class": "cup", "count": 1}], "prompt": "a red cup"}]
    (root / "evaluation_metadata.jsonl").write_text("\n".join(map(json.dumps, tags)) + "\n")
    (root / "hpd" / "benchmark").mkdir(parents=True)
    for style in ("anime", "concept-art", "paintings", "photo", "drawbench"):
        (root / "hpd" / "benchmark" / f"{style}.json").write_text(json.dumps([f"{style} of a cat"]))
    (root / "data").mkdir()
    table = pyarrow.table({"caption": ["cat", "dog"], "jpg_0": [b"1", b"2"], "user_id": [3, 4]})
    parquet.write_table(table, root / "data" / "validation_unique-00000-of-00001-33ead1.parquet")
    ranked = {"generations": ["a.webp"], "ranking": [1]}
    entries = [{"id": str(i), "prompt": text, **ranked} for i, text in enumerate(["b", "a", "b"])]
    (root / "test.json").write_text(json.dumps(entries, indent=4))
    (root / "benchmark-prompts.json").write_text(json.dumps([{"id": "0", "prompt": "a car"}]))
    return {
        "partiprompts": [("bond", "Abstract"), ('"G I G" in thick letters.', "Arts")],
        "drawbench": [("A red car.", "Colors"), ("Two cats, one dog.", "Gary Marcus et al.")],
        "geneval": [("a red cup", "colors")],
        "hpdv2": [
            (f"{style} of a cat", style) for style in ("anime", "concept-art", "paintings", "photo")
        ],
        "pickapic": [("cat", ""), ("dog", "")],
        "imagereward": [("b", ""), ("a", "")],
        "imagereward-benchmark": [("a car", "")],
    }


class TestPublished:
    def test_sets_are_read_as_they_are_published(self, tmp_path):
        expected = write_published(tmp_path)
        names = {known.name for known in prompts.available() if not isinstance(known, PromptSet)}
        assert names == set(expected)
        for name, pairs in expected.items():
            found = prompts.find(f"{name}={tmp_path}")
            groups = found.groups or [""] * len(found)
            assert list(zip(found.prompts, groups, strict=True)) == pairs, name
            assert found.name == name
            # These are a few of the published ones.
            assert f"{name} has" in found.notes[-1]

    def test_a_prompt_that_repeats_is_left_out_and_counted(self, tmp_path):
        write_published(tmp_path)
        found = prompts.load("imagereward", tmp_path / "test.json")
        assert found.notes[0].startswith("1 of 3 prompts in")
        assert found.notes[0].endswith("repeat others: left out")

    def test_one_file_of_several_and_another_format_of_the_same_columns(self, tmp_path):
        write_published(tmp_path)
        found = prompts.load("hpdv2", tmp_path / "hpd" / "benchmark" / "photo.json")
        assert (found.prompts, found.groups) == (("photo of a cat",), ("photo",))
        (tmp_path / "pick.csv").write_text("user_id,caption\n1,cat\n2,dog\n")
        assert prompts.load("pickapic", tmp_path / "pick.csv").prompts == ("cat", "dog")

    def test_prompts_of_two_files_are_grouped_by_file(self, tmp_path):
        for name in "ab":
            (tmp_path / f"{name}.txt").write_text(f"a prompt of {name}\n")
        facts = {**FACTS, "name": "two", "column": "prompt"}
        found = PublishedPrompts(files=("a.txt", "b.txt"), **facts).read(tmp_path)
        assert found.groups == ("a", "b")
        assert PublishedPrompts(files=("a.txt",), **facts).read(tmp_path).groups == ()

    def test_the_users_own_folder(self, tmp_path, monkeypatch):
        monkeypatch.setenv("HOME", str(tmp_path))
        write_published(tmp_path)
        assert prompts.find("geneval=~/evaluation_metadata.jsonl").prompts == ("a red cup",)
        (tmp_path / "mine.txt").write_text("a cat\n")
        assert prompts.find("~/mine.txt").prompts == ("a cat",)

    @pytest.mark.parametrize("path", [None, "absent", "."])
    @pytest.mark.parametrize("name", ["partiprompts", "drawbench", "hpdv2", "pickapic"])
    def test_what_is_absent_says_where_it_is_and_under_which_license(
        self, tmp_path, monkeypatch, name, path
    ):
        monkeypatch.chdir(tmp_path)
        known = next(known for known in prompts.available() if known.name == name)
        with pytest.raises(FileNotFoundError) as error:
            prompts.load(name, path)
        for fact in (known.source, f"(license: {known.license})", known.files[0], name):
            assert fact in str(error.value)

    @pytest.mark.parametrize(
        ("name", "file", "message"),
        [
            ("geneval", "PartiPrompts.tsv", "line 1: expected the columns 'prompt', 'tag', got 'p"),
            ("pickapic", "test.json", "entry 1: expected the column 'caption', got 'id', 'prompt'"),
            ("partiprompts", "DrawBench Prompts - Sheet1.csv", "expected the columns 'prompt', 'c"),
            ("hpdv2", "evaluation_metadata.jsonl.zip", "prompts must be in a file .csv, .json, "),
        ],
    )
    def test_a_file_of_another_set_is_refused(self, tmp_path, name, file, message):
        write_published(tmp_path)
        (tmp_path / "evaluation_metadata.jsonl.zip").touch()
        with pytest.raises(ValueError, match=r".") as error:
            prompts.load(name, tmp_path / file)
        assert str(tmp_path / file) in str(error.value)
        assert message in str(error.value)

    def test_a_folder_with_two_of_one_name_is_refused(self, tmp_path):
        write_published(tmp_path)
        (tmp_path / "data" / "test.json").write_text("[]")
        with pytest.raises(ValueError, match=r"holds several test\.json: name one of .*data"):
            prompts.load("imagereward", tmp_path)

    @needs_testbed
    def test_a_set_that_comes_with_a_package_takes_no_path(self):
        with pytest.raises(ValueError, match="come with a package: path must be None"):
            prompts.load("emoji-demo", "here")


class TestOwnFiles:
    def test_a_column_of_ones_own(self, tmp_path):
        (tmp_path / "p.csv").write_text("text,prompt\na cat,1\na dog,2\na cat,3\n")
        found = prompts.find(str(tmp_path / "p.csv"), "text")
        assert (found.prompts, found.license) == (("a cat", "a dog"), "unknown")
        assert found.notes == [f"1 of 3 prompts in {tmp_path / 'p.csv'} repeat others: left out"]

    def test_mistakes_are_named(self, tmp_path, monkeypatch):
        monkeypatch.chdir(tmp_path)
        Path("empty.csv").write_text('prompt\na\n""\n')
        Path("none.txt").write_text("\n")
        Path("p.docx").touch()
        for text, message in {
            "empty.csv": r"empty\.csv, line 3: the prompt is empty",
            "none.txt": r"none\.txt holds no prompt",
            "p.docx": r"prompts must be in a file \.csv",
        }.items():
            with pytest.raises(ValueError, match=message):
                prompts.find(text)
        with pytest.raises(FileNotFoundError, match=r"no file of prompts at absent\.txt"):
            prompts.find("absent.txt")
        for text in ("partiprompt", "partiprompt=PartiPrompts.tsv"):
            with pytest.raises(LookupError, match="did you mean 'partiprompts'"):
                prompts.find(text)


class TestChoice:
    def test_a_seed_picks_the_same_prompts_whatever_their_order_and_neighbors(self):
        whole = set_of(MANY)
        picked = whole.subset(10, 3).prompts
        shuffled = list(MANY)
        random.Random(0).shuffle(shuffled)
        assert set(set_of(shuffled).subset(10, 3).prompts) == set(picked)
        rest = [prompt for prompt in MANY if prompt not in picked][:9]
        assert set(set_of([*rest, *picked]).subset(10, 3).prompts) == set(picked)
        assert list(picked) == [prompt for prompt in MANY if prompt in picked]
        assert set(whole.subset(9, 3).prompts) < set(picked)
        assert whole.subset(10, 4).prompts != picked
        assert whole.subset(10, 3).name == "some (10 of 42, seed 3)"

    def test_a_seed_picks_the_same_prompts_in_every_version(self):
        assert set_of(MANY).subset(4).prompts == (
            "a blue dog",
            "a green dog",
            "a small cat",
            "a large boat",
        )
        development, _ = set_of(MANY).split(1, development=3)
        assert development.prompts == ("a green apple", "a small cat", "a old dog")

    def test_all_prompts_are_equally_likely(self):
        whole = set_of(MANY)
        counts = dict.fromkeys(MANY, 0)
        n, seeds = 14, 400
        for seed in range(seeds):
            for prompt in whole.subset(n, seed).prompts:
                counts[prompt] += 1
        share = n / len(MANY)
        error = (seeds * share * (1 - share)) ** 0.5
        assert all(abs(count - seeds * share) < 5 * error for count in counts.values())

    def test_a_split_parts_all_prompts(self):
        whole = set_of(MANY, groups=[prompt.split()[1] for prompt in MANY])
        development, report = whole.split(5, development=12)
        assert (len(development), len(report)) == (12, 30)
        assert set(development.prompts) | set(report.prompts) == set(MANY)
        for part in (development, report):
            assert all(group in p for p, group in zip(part.prompts, part.groups, strict=True))
        assert "12" in development.name
        assert "seed 5" in report.name
        assert whole.split(6, development=12)[0].prompts != development.prompts
        # Not those of a subset, which may have been looked at.
        assert whole.subset(12, 5).prompts != development.prompts

    def test_what_is_the_same_in_other_letters_is_never_parted(self):
        pairs = [text for prompt in MANY for text in (prompt, f"{prompt.upper()}!")]
        whole = set_of(pairs)
        for seed in range(20):
            development, report = whole.split(seed, development=11)
            assert len(development) == 12
            assert prompts.common(development.prompts, report.prompts) == []

    def test_sizes_that_make_no_sense(self):
        whole = set_of(MANY)
        with pytest.raises(ValueError, match="n must be at most 42 of 42 prompts, got 43"):
            whole.subset(43)
        with pytest.raises(ValueError, match="n must be at least 1, got 0"):
            whole.subset(0)
        with pytest.raises(ValueError, match="development must be at most 41 of 42 pro"):
            whole.split(development=42)
        with pytest.raises(ValueError, match="development must leave a prompt to report"):
            set_of(["a cat", "A cat."]).split(development=1)
        with pytest.raises(ValueError, match="groups must be one for each of the 42 pro"):
            set_of(MANY, groups=["a"])


def test_common_prompts_are_equal_up_to_case_punctuation_and_white_space():
    developed = ["A red-haired  cat.", "it's", "\uff23++", "!!!", "एक कुत्ता", "straße"]
    same = ["a red haired CAT", "its", "it\u2019s!", "c++", "!!!", "एक  कुत्ता।", "STRASSE"]
    assert prompts.common(developed, same) == same
    other = ["a red haired cat and", "redhaired cat", "c", "?", "एक कत्ता", "🦊", "it is"]
    assert prompts.common(developed, other) == []
    assert prompts.common(same, [*other[:2], "IT S", "It's", *other[2:]]) == ["It's"]


class TestCommand:
    def run(self, *arguments):
        return CliRunner().invoke(app, ["prompts", *map(str, arguments)])

    def test_it_lists_the_sets(self):
        heading, *lines = self.run().stdout.splitlines()
        assert heading.split() == ["name", "prompts", "license", "where"]
        table = {line.split()[0]: line.split()[1:] for line in lines}
        assert table["geneval"] == ["553", "MIT", "https://github.com/djghosh13/geneval"]
        assert table["pickapic"][:2] == ["500", "unknown"]
        documented = (ROOT / "docs" / "generation.md").read_text(encoding="utf-8")
        for known in PUBLISHED:
            (line,) = re.findall(rf"^\| `{known.name}` .*", documented, re.MULTILINE)
            number, license = line.split("|")[2:4]
            assert int(number.split()[0].strip(",").replace(",", "")) == known.number
            assert license.strip() == known.license
        place = heading.index("license")
        assert {line[place - 2 : place] for line in lines} == {"  "}
        assert all(line[place] != " " for line in lines)

    def test_it_prints_prompts_one_per_line(self, tmp_path):
        write_published(tmp_path)
        found = self.run(f"imagereward={tmp_path}")
        assert found.stdout == "b\na\n"
        assert "note: 1 of 3 prompts" in found.stderr
        (tmp_path / "p.csv").write_text("words\n" + "\n".join(MANY))
        found = self.run(tmp_path / "p.csv", "--prompt-column", "words", "--subset", 5, "--seed", 2)
        assert tuple(found.stdout.splitlines()) == set_of(MANY).subset(5, 2).prompts
        found = self.run(tmp_path / "p.csv", "--prompt-column", "words", "--subset", 5)
        assert tuple(found.stdout.splitlines()) == set_of(MANY).subset(5, 0).prompts

    def test_a_subset_of_nothing(self):
        assert "subset needs a set of prompts" in str(self.run("--subset", 3).exception)
