"""Warnings that are heard, and those that pass."""

import warnings

from rwguidance.support.notes import heard


class Mine(UserWarning):
    pass


class Own(Mine):
    pass


class Other(RuntimeWarning):
    pass


def test_some_warnings_are_heard_every_time_and_others_are_shown_as_ever():
    seen = []
    with warnings.catch_warnings(record=True) as shown:
        warnings.simplefilter("ignore")
        warnings.simplefilter("default", RuntimeWarning)
        before = warnings.showwarning
        with heard(seen.append, Mine, Other):
            for _ in range(2):
                warnings.warn("one", Mine, stacklevel=1)
            warnings.warn("two", Own, stacklevel=1)
            warnings.warn("three", Other, stacklevel=1)
            warnings.warn("passes", RuntimeWarning, stacklevel=1)
            warnings.warn("is ignored", UserWarning, stacklevel=1)
        assert warnings.showwarning is before
        warnings.warn("after", RuntimeWarning, stacklevel=1)
    expected = [(Mine, "one"), (Mine, "one"), (Own, "two"), (Other, "three")]
    assert [(type(one), str(one)) for one in seen] == expected
    passed = [(one.category, str(one.message)) for one in shown]
    assert passed == [(RuntimeWarning, "passes"), (RuntimeWarning, "after")]
    assert {one.filename for one in shown} == {__file__}
