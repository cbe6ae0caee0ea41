"""Pieces of a page, each against its whole text."""

import base64
import io

import numpy
import pytest
from PIL import Image

from rwguidance.evaluation.markup import box, grid, image, items, paragraph, section


def test_texts_are_escaped_in_every_piece():
    assert paragraph("<a> & b") == "<p>&lt;a&gt; &amp; b</p>"
    assert items(["<a>", "b"]) == "<ul><li>&lt;a&gt;</li><li>b</li></ul>"
    assert box(["<a>"]) == '<div class="alarm" role="note"><ul><li>&lt;a&gt;</li></ul></div>'
    assert box([]) == ""


def test_a_section_leaves_out_what_is_empty_and_itself_if_all_is():
    assert section("<h>", "", "<p>a</p>", "", "b") == (
        "<section>\n<h2>&lt;h&gt;</h2>\n<p>a</p>\nb\n</section>"
    )
    assert section("heading", "", "") == ""


@pytest.mark.parametrize(
    "means",
    [pytest.param(0, id="none"), pytest.param(1, id="one"), pytest.param(3, id="all")],
)
def test_the_last_rows_of_a_table_are_its_references(means):
    rows = [["a", "1"], ["b", "2"], ["<c>", "3"]]
    text = grid("of <all>", ["name", "<x>"], rows, means=means)
    body = text.split("<tbody>\n")[1].split("\n</tbody>")[0].split("\n")
    assert ['class="mean"' in line for line in body] == [i >= 3 - means for i in range(3)]
    assert body[0].endswith('<th scope="row">a</th><td>1</td></tr>')
    assert "&lt;c&gt;" in body[2]
    assert '<th scope="col">name</th><th scope="col">&lt;x&gt;</th>' in text
    assert text.startswith('<p class="soft">of &lt;all&gt;</p>')
    assert grid("", [], rows) == grid("", [], rows, means=0)


@pytest.mark.parametrize(("side", "shown"), [(256, 256), (257, 256), (1_000, 256)])
def test_a_picture_comes_along_and_is_made_smaller_above_256_pixels(side, shown, tmp_path):
    path = tmp_path / "a.png"
    Image.fromarray(numpy.full((side // 2, side, 3), 200, dtype=numpy.uint8)).save(path)
    text = image(path, ["<first>", "second"])
    assert 'alt="&lt;first&gt;"' in text
    assert "<figcaption>&lt;first&gt;<br>second</figcaption>" in text
    kind = "png" if side <= 256 else "jpeg"
    assert ('class="small"' in text) == (side <= 256)
    data = text.split(f"data:image/{kind};base64,")[1].split('"')[0]
    with Image.open(io.BytesIO(base64.b64decode(data))) as found:
        assert found.format == kind.upper()
        assert found.size == (shown, round(shown * (side // 2) / side))


@pytest.mark.parametrize(("side", "given"), [(256, ("PNG", {})), (257, ("JPEG", {"quality": 90}))])
def test_only_pictures_made_smaller_lose_quality_and_little(side, given, tmp_path, monkeypatch):
    asked, save = [], Image.Image.save
    Image.new("RGB", (8, side)).save(tmp_path / "a.png")

    def spy(self, file, kind, **options):
        asked.append((kind, options))
        save(self, file, kind, **options)

    monkeypatch.setattr(Image.Image, "save", spy)
    image(tmp_path / "a.png", ["a"])
    assert asked == [given]
