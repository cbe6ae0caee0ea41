"""Files that are whole or not there."""

from rwguidance.support.files import replacing


def test_writers_of_one_file_do_not_meet(tmp_path):
    path = tmp_path / "file"
    with replacing(path) as one:
        one.write_text("one")
        with replacing(path) as other:
            other.write_text("other")
        assert path.read_text() == "other"
    assert path.read_text() == "one"
    assert [found.name for found in tmp_path.iterdir()] == ["file"]
