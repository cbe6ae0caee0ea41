"""What a training has left is known as its own, and is not waited for."""

import json
import os

from rwguidance.trainer.run import _FINISHED, _RESULTS, _digests, _is_finished


def test_a_result_that_was_changed_or_is_a_pipe_is_not_finished(tmp_path):
    for name in _RESULTS:
        (tmp_path / name).write_text(name)
    (tmp_path / _FINISHED).write_text(json.dumps(_digests(tmp_path)))
    assert _is_finished(tmp_path)
    for name in _RESULTS:
        (tmp_path / name).write_text("other")
        assert not _is_finished(tmp_path)
        (tmp_path / name).unlink()
        os.mkfifo(tmp_path / name)
        assert not _is_finished(tmp_path)
        (tmp_path / name).unlink()
        (tmp_path / name).write_text(name)
    assert _is_finished(tmp_path)
