"""Images and prompts: what goes with what, and what is refused, by line."""

import os
import sys

import pytest

from rewards.prompt_files import find_images, plan, read_prompts
from scored_folders import IMAGES, paint, write

pytestmark = pytest.mark.usefixtures("registered")


def test_images_are_found_below_and_sorted_by_number(folder):
    assert find_images(folder) == IMAGES


def test_a_folder_without_images_is_refused(tmp_path):
    with pytest.raises(ValueError, match=r"no image \(\.png, .*\) in .* or below"):
        plan(tmp_path)
    with pytest.raises(FileNotFoundError, match="no folder of images at"):
        plan(tmp_path / "absent")


PAIRS_CSV = (
    'file_name,seed,prompt\nz.webp,1,"a, b"\n\n1.png,2, cat \n./z.webp,3,"two\nlines"\nz.webp,4,'
)
PAIRS_JSONL = (
    '{"image": "z.webp", "prompt": "a, b"}\n\n{"prompt": " cat", "image": "1.png", "seed": 1}\r\n'
    '{"image": "z.webp", "prompt": "two\\nlines"}\n{"image": "z.webp", "prompt": ""}'
)


@pytest.mark.parametrize("encoding", ["utf-8", "utf-8-sig"])
@pytest.mark.parametrize(("name", "text"), [("p.csv", PAIRS_CSV), ("p.JSONL", PAIRS_JSONL)])
def test_a_file_that_names_images_makes_pairs(folder, name, text, encoding):
    job = plan(folder, write(name, text, encoding))
    assert [item[:2] for item in job.items] == [
        ("1.png", ("cat",)),
        ("z.webp", ("a, b", "two\nlines", "")),
    ]
    assert (len(job), job.matrix, job.prompted) == (4, False, True)
    assert list(job.notes) == [
        f"3 of 5 images are not in {name}: left out",
        "1 of 4 rows have an empty prompt",
    ]


@pytest.mark.parametrize(
    ("name", "text"),
    [
        ("p.txt", "\ufeffa cat\r\n\r\n  an émeu \n"),
        ("p.csv", "seed,Prompt\n1,a cat\n\n2,an émeu\n"),
        ("p.jsonl", '{"prompt": "a cat"}\n{"prompt": "an émeu"}\n'),
    ],
)
def test_prompts_alone_meet_every_image(folder, name, text):
    job = plan(folder, write(name, text))
    assert [item.image for item in job.items] == IMAGES
    assert {item.prompts for item in job.items} == {("a cat", "an émeu")}
    assert (len(job), job.matrix) == (10, True)


def test_with_pairs_the_images_in_order_take_one_prompt_each(folder):
    file = write("p.txt", "a\nb\na\nc\nd\n")
    job = plan(folder, file, pairs=True)
    assert [item[:2] for item in job.items] == list(
        zip(IMAGES, [("a",), ("b",), ("a",), ("c",), ("d",)], strict=True)
    )
    with pytest.raises(ValueError, match=r"p\.txt, line 3: the same prompt as in line 1; with pai"):
        plan(folder, file)
    with pytest.raises(ValueError, match=r"as many prompts as images, got 2 prompts .* 5 images"):
        plan(folder, write("p.txt", "a\nb\n"), pairs=True)
    with pytest.raises(ValueError, match="pairs needs a file of prompts, got none"):
        plan(folder, pairs=True)


def test_texts_beside_images(folder):
    for image, text in zip(IMAGES[:3], ["\ufeffa cat \n", "\n", "a dog"], strict=True):
        (folder / image).with_suffix(".txt").write_text(text, encoding="utf-8")
    items = plan(folder, "sidecar").items
    assert [(item.prompts, item.problem) for item in items] == [
        (("a cat",), ""),
        (("",), "no prompt: 2.txt is empty"),
        (("a dog",), ""),
        (("",), "no prompt: größe [b]/é.txt is absent"),
        (("",), "no prompt: z.txt is absent"),
    ]
    (folder / "z.txt").write_text("one\n\nanother")
    with pytest.raises(ValueError, match=r"z\.txt, line 3: a text beside an image holds one pro"):
        plan(folder, "sidecar")


def test_without_any_text_beside_images_the_user_is_told(folder):
    with pytest.raises(ValueError, match=r"none of the 5 images .* has a text .* as 1\.txt; name"):
        plan(folder, "sidecar")


@pytest.mark.parametrize(
    ("name", "text", "message"),
    [
        ("p.csv", "image,prompt\n1.png,a,b\n", r"p\.csv, line 2: expected 2 cells .* got 3; quote"),
        ("p.csv", "image,prompt\n1.png\n", r"line 2: expected 2 cells \(image, prompt\), got 1"),
        ("p.csv", 'image,prompt\n1.png,"a\n', r"p\.csv, line 2: unexpected end of data"),
        ("p.csv", "image,text\n1.png,a\n", "line 1: expected the column 'prompt', got 'image', 't"),
        ("p.csv", "prompt,prompt\na,b\n", "line 1: the column 'prompt' comes twice"),
        ("p.csv", "image,file,prompt\na,b,c\n", "'image' and 'file' could both name the image"),
        ("p.csv", "image,prompt\n1.png,a\n,b\n", "line 3: 'image' is empty"),
        ("p.csv", "image,prompt\n../1.png,a\n", r"line 2: the image '../1\.png' is not in the fo"),
        ("p.csv", "image,prompt\n/etc/1.png,a\n", "line 2: the image '/etc/1.png' is not in the"),
        ("p.csv", "image,prompt\nx/1.png,a\n", r"none of the 1 images .* such as 'x/1\.png' of l"),
        ("p.csv", "image,prompt\n", r"p\.csv holds no prompt"),
        ("p.txt", " \n\n", r"p\.txt holds no prompt"),
        (
            "p.jsonl",
            '{"prompt": "a"}\n{"prompt": \n',
            r"p\.jsonl, line 2: not JSON, Expecting value",
        ),
        ("p.jsonl", '["a"]', r'line 1: expected an object like \{"prompt": "a cat"\}, got \["a"\]'),
        ("p.jsonl", '{"prompt": 3}', "line 1: 'prompt' must be a string, got 3"),
        (
            "p.jsonl",
            '{"prompt": "a", "image": "1.png"}\n\n{"prompt": "b"}',
            "line 3: names no image, but line 1 the image by 'image'",
        ),
        ("p.xml", "prompt\n", r"must be in a file \.csv, \.json, .*\.tsv, \.txt, got p\.xml"),
    ],
)
def test_malformed_and_ambiguous_prompts_are_refused_by_line(folder, name, text, message):
    file = write(name, text)
    with pytest.raises(ValueError, match=message):
        plan(folder, file)


def test_prompts_that_are_not_utf8_or_absent(folder):
    with pytest.raises(ValueError, match=r"p\.txt, line 2: not UTF-8"):
        read_prompts(write("p.txt", "a cat\nun émeu\n", "latin-1"))
    with pytest.raises(FileNotFoundError, match=r"no file of prompts at absent\.csv"):
        plan(folder, "absent.csv")


def test_names_are_found_in_every_spelling(folder):
    decomposed = "gro\u0308ße [b]\\e\u0301.gif"
    absolute = (folder / "1.png").resolve()
    job = plan(folder, write("p.csv", f"path,prompt\n{decomposed},a\n{absolute},b\n"))
    assert [item[:2] for item in job.items] == [("1.png", ("b",)), ("größe [b]/é.gif", ("a",))]


def test_json_that_is_nested_too_deeply_names_its_line(tmp_path):
    (tmp_path / "p.jsonl").write_text('{"prompt": "a"}\n' + "[" * 100_000 + "\n")
    with pytest.raises(ValueError, match=r"p\.jsonl, line 2: nested too deeply"):
        read_prompts(tmp_path / "p.jsonl")


def test_a_line_that_repeats_another_counts_once(folder):
    job = plan(folder, write("p.csv", "image,prompt\n1.png,a\n\n1.png,a\n./1.png,a\n1.png,b\n"))
    assert [item[:2] for item in job.items] == [("1.png", ("a", "b"))]
    assert "2 of 4 lines of p.csv repeat others: left out" in job.notes


@pytest.mark.parametrize(
    ("text", "encoding"),
    [
        ('image, prompt\n1.png, "a cat, sitting"\n', "utf-8"),
        ('image,prompt\n1.png, "a cat, sitting"\n', "utf-8"),
        ("image;prompt\n1.png;a cat, sitting\n", "utf-8"),
        ('image\tprompt\n1.png\t"a cat, sitting"\n', "utf-16"),
        ('\ufeffimage,prompt\r\n1.png,"a cat, sitting"\r\n', "utf-32-le"),
    ],
)
def test_tables_as_spreadsheets_write_them(folder, text, encoding):
    assert read_prompts(write("p.csv", text, encoding)) == [(2, "1.png", "a cat, sitting")]


def test_sixteen_bits_without_a_mark_are_refused_by_name(folder):
    with pytest.raises(ValueError, match=r"p\.txt, line 1: holds NUL; save UTF-16 with a byte ord"):
        read_prompts(write("p.txt", "a cat\n", "utf-16-le"))


def test_the_column_of_the_prompts_may_have_another_name(folder):
    file = write("p.csv", "image,Caption\n1.png,a cat\n")
    assert plan(folder, file, prompt_column="caption").items[0].prompts == ("a cat",)
    with pytest.raises(ValueError, match="expected the column 'prompt', got 'image', 'caption'"):
        plan(folder, file)


def test_pictures_of_formats_that_are_not_read_are_named(folder):
    (folder / "layers.PSD").write_bytes(b"8BPS")
    (folder / "phone.heic").write_bytes(b"ftyp")
    notes = plan(folder).notes
    assert notes == ("2 files of formats that are not read (.heic, .psd) are left out",)


@pytest.mark.parametrize("ending", ["jfif", "jpe", "jp2", "ppm", "tga", "apng", "avif"])
def test_what_pillow_reads_is_found(tmp_path, ending):
    (tmp_path / f"a.{ending}").write_bytes(b"")
    assert find_images(tmp_path) == [f"a.{ending}"]


@pytest.mark.parametrize("name", ["a" * 300, "9" * 5000])
def test_names_that_no_file_can_have_are_of_files_that_are_not_there(folder, name):
    job = plan(folder, write("p.csv", f"image,prompt\n{find_images(folder)[0]},a\n{name}.png,b\n"))
    assert sorted("no such file, named in line 3" in item.problem for item in job.items) == [
        False,
        True,
    ]


@pytest.mark.skipif(sys.platform != "linux", reason="other systems have no such names")
@pytest.mark.parametrize("byte", [b"\x80", b"\xff"])
def test_names_in_other_encodings_are_refused(folder, byte):
    paint(folder / os.fsdecode(b"caf" + byte + b".png"))
    with pytest.raises(ValueError, match=r"'caf\\udc(80|ff)\.png' in .* is not UTF-8: rename it"):
        plan(folder)
