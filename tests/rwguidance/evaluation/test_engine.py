"""Evaluations from end to end: what is shared, what fails, what is kept, what is refused."""

import json
import math
import os
import time
import warnings
from dataclasses import dataclass
from typing import ClassVar

import numpy
import pytest
import torch
from PIL import Image

from counted_law import CountedBrightness, CountedLaw, counts, said_in
from evaluations import METHODS, PROMPTS, STEPS, Broken, Flat, Moved, Red, assert_same, run
from pixel_law import Brightness, Law
from rwguidance.evaluation import BASE, Cell, TargetSize, load_results, records, write_table
from rwguidance.evaluation.appearance import APPEARANCE
from rwguidance.evaluation.meter import Counted, Meter
from rwguidance.generation import (
    BestOfN,
    Importance,
    Network,
    PlugInMean,
    Pool,
    Resample,
    Store,
)
from rwguidance.generation.base import Aligned, Method
from rwguidance.generation.noise import NoiseChain
from rwguidance.generation.run import Run
from rwguidance.networks import LatentShift
from rwguidance.prediction import Prediction
from rwguidance.schedules import RectifiedSchedule
from rwguidance.support.fingerprint import NotKept

pytestmark = [
    pytest.mark.filterwarnings("ignore::rwguidance.UnreliableEstimate"),
    pytest.mark.filterwarnings("ignore:__array__ implementation:DeprecationWarning"),
]


class Rounding(Law):
    """A law that depends on the batch, as the rounding of a device does, but visibly."""

    depends_on = ("schedule", "std")

    def forward(self, x_t, t, condition=None):
        mean = super().forward(x_t, t, condition).mean + 0.02 * len(x_t)
        return Prediction.from_mean(mean, x_t, self.schedule.at(t, like=x_t))


@pytest.fixture(scope="module")
def whole(tmp_path_factory):
    folder = tmp_path_factory.mktemp("whole")
    return run(folder, backbone=Rounding()), folder


def test_every_cell_has_every_picture(whole):
    results, folder = whole
    names = [BASE, Cell("importance", 0.25), Cell("importance", 1.0), Cell("best of 3")]
    assert list(results.cells) == names
    assert (results.prompts, results.rewards) == (list(PROMPTS), ["reward", "red"])
    for pictures in results.cells.values():
        assert set(pictures.rewards) == {"reward", "red", *APPEARANCE}
        assert {tuple(values.shape) for values in pictures.rewards.values()} == {(2, 6)}
        assert pictures.embeddings["pixels"].shape == (2, 6, 3)
        mean = pictures.embeddings["pixels"].double().mean(-1)
        torch.testing.assert_close(100 * mean, pictures.rewards["reward"], rtol=1e-5, atol=0)
        assert [path.exists() for path in pictures.files.values()] == [True]
    assert [len(draws.rewards["red"]) for draws in results.draws] == [20, 20]
    assert results.failures == []
    write_table(results, folder)
    assert_same(load_results(folder), results)


def test_methods_are_better_than_the_base_by_their_strength(whole):
    results, _ = whole
    base = results.base.rewards["reward"]
    gain = lambda cell: float((results.cells[cell].rewards["reward"] - base).mean())
    assert gain(Cell("importance", 1.0)) > gain(Cell("importance", 0.25)) > 0
    assert float((results.cells[Cell("best of 3")].rewards["reward"] - base).min()) > -1e-9


def test_costs_are_counted_at_the_model(whole):
    results, _ = whole
    costs = lambda cell: {name: values.tolist() for name, values in cell.costs.items()}
    widths = {v.dtype for cell in results.cells.values() for v in cell.costs.values()}
    assert widths == {torch.float64}  # seconds and calls of long runs keep their digits
    pictures = 6
    expected = {
        BASE: (STEPS * pictures, pictures, pictures, 0),
        Cell("importance", 0.25): (STEPS * pictures, pictures, pictures, 2 * 16),
        Cell("importance", 1.0): (STEPS * pictures, pictures, pictures, 2 * 16),
        Cell("best of 3"): (STEPS * pictures, pictures, pictures, 2 * pictures),
    }
    for cell, numbers in expected.items():
        found = costs(results.cells[cell])
        names = ("network", "decoder", "reward", "draws")
        assert [found[name] for name in names] == [[n, n] for n in numbers], cell
        assert min(found["seconds"]) > 0


def test_the_plug_in_pays_for_its_looks(tmp_path):
    results = run(tmp_path, methods={"plug-in": PlugInMean(5.0)}, strengths=())
    costs = results.cells[Cell("plug-in")].costs
    found = [costs[name].tolist() for name in ("network", "decoder", "reward", "draws")]
    assert found == [[18, 18], [60, 60], [60, 60], [0, 0]]  # a look, and back, at each step


@dataclass(frozen=True)
class Hungry(Method):
    """Fills memory for a moment."""

    name: ClassVar[str] = "hungry"

    mebibytes: int

    def align(self, run, prompt, numbers, base, rewards):
        torch.ones(self.mebibytes * 2**20, dtype=torch.uint8)
        return Aligned(base)


def test_the_peak_of_several_blocks_is_the_largest(monkeypatch):
    peaks = iter([3.0, 7.0, 5.0])
    monkeypatch.setattr("rwguidance.evaluation.meter.peak_memory", lambda device: next(peaks))
    meter = Meter(Law(), Counted(Brightness()), torch.device("cpu"))
    for _ in range(3):
        with meter.measured():
            pass
    assert meter.costs()[-1] == 7.0


@pytest.mark.skipif(not os.path.exists("/proc/self/clear_refs"), reason="Linux tells the peak")
def test_the_table_has_the_peak_memory_of_each_method(tmp_path):
    methods = {"frugal": Hungry(0), "hungry": Hungry(200), "frugal again": Hungry(1)}
    results = run(tmp_path, methods=methods, prompts=["ab"], strengths=())
    table = write_table(results, tmp_path)
    memory = {row["method"]: row["memory"] / 2**20 for row in table.rows}
    # Python and PyTorch have some hundreds of MiB, of which a few come and go.
    assert 150 < memory["hungry"] - memory["frugal"] < 250
    assert memory["hungry"] - memory["frugal again"] > 150, "the peak is that of the method alone"
    costs = next(section for section in table.sections if section.title == "Costs")
    heads, *lines = table.cells(costs.columns)
    shown = {line[0]: line[heads.index("MiB")] for line in lines}
    assert shown["hungry"] == f"{memory['hungry']:.0f}"


def test_a_sweep_shares_noise_and_banks(tmp_path):
    counts = []
    for strengths in ((0.5,), (0.25, 0.5, 1.0)):
        backbone = Law()
        out = tmp_path / str(len(strengths))
        methods = {"importance": METHODS["importance"]}
        results = run(out, backbone=backbone, methods=methods, strengths=strengths)
        counts.append(backbone.calls)
    guided = 2 * 2 * STEPS  # prompts, seeds, steps
    assert counts[1] - counts[0] == 2 * guided
    one, three = (load_results(tmp_path / name) for name in ("1", "3"))
    cell = Cell("importance", 0.5)
    assert torch.equal(one.cells[cell].rewards["reward"], three.cells[cell].rewards["reward"])
    assert results.strengths == [0.25, 0.5, 1.0]


def test_targets_rest_on_draws_that_no_method_has_seen(tmp_path):
    store = Store(tmp_path / "store")
    results = run(tmp_path / "out", store=store, target_draws=32)
    times = Law().times(STEPS)
    runs = [Run(Law(), Brightness(), times, seed, 8, None, store) for seed in (0, 1)]
    seen = {round(float(r), 6) for one in runs for r in one.bank("ab", 16, "bank").rewards}
    seen |= {round(float(r), 6) for r in results.base.rewards["reward"][0]}
    assert len(seen) == 32 + 6
    target = {round(float(r), 6) for r in results.draws[0].rewards["reward"]}
    assert len(target) == 32
    assert not target & seen


def test_first_pictures_are_kept_and_targets_are_of_the_first_seed(tmp_path):
    store = Store(tmp_path / "store")
    options = {"methods": {"moved": Moved()}, "strengths": (0.25,), "seeds": (3, 1), "shown": 2}
    results = run(tmp_path / "out", store=store, **options)
    own = Run(Law(), Brightness(), Law().times(STEPS), 3, 8, None, store)
    for i, prompt in enumerate(PROMPTS):
        rewards = own.bank(prompt, 20, "target").rewards
        torch.testing.assert_close(results.draws[i].rewards["reward"], rewards)
        for pictures in results.cells.values():
            shown = torch.from_numpy(numpy.array(Image.open(pictures.files[i]))).flatten() / 255
            first = pictures.embeddings["pixels"][i, 0]
            torch.testing.assert_close(shown, first, rtol=0, atol=0.6 / 255)


def test_strong_targets_are_for_the_first_prompts(tmp_path):
    results = run(tmp_path, targets={1.0: TargetSize(50, prompts=1)}, methods={"moved": Moved()})
    assert [len(draws.rewards["reward"]) for draws in results.draws] == [50, 20]
    assert results.targets[0.25].ess.isnan().tolist() == [False, False]
    assert results.targets[1.0].ess.isnan().tolist() == [False, True]


def test_an_interrupted_evaluation_ends_with_the_same_bits(tmp_path):
    options = {"batch_size": 2, "methods": {"it": Importance(bank=8, kl=0.5), "b": BestOfN(2)}}
    expected = run(tmp_path / "whole", backbone=Rounding(), **options)
    for first, second in ((5, 70), (91, 33)):
        for stop in (first, second):
            backbone = Rounding()
            backbone.breaks_at = stop
            with pytest.raises(KeyboardInterrupt):
                run(tmp_path / f"{first}", backbone=backbone, **options)
        assert_same(run(tmp_path / f"{first}", backbone=Rounding(), **options), expected)


def test_finished_prompts_are_not_made_again_and_read_once(tmp_path, monkeypatch):
    backbone, seen, read = Law(), [], records.read
    first = run(tmp_path, backbone=backbone)
    calls = backbone.calls
    monkeypatch.setattr(records, "read", lambda path: (seen.append(path.name), read(path))[1])
    assert_same(run(tmp_path, backbone=backbone), first)
    assert backbone.calls == calls
    assert seen == [f"{number:04d}.safetensors" for number in range(len(PROMPTS))]


def test_a_damaged_record_is_named_and_made_again(tmp_path):
    options = {"methods": {"moved": Moved()}}
    expected = run(tmp_path / "whole", **options)
    run(tmp_path, **options)
    path = tmp_path / "prompts" / "0001.safetensors"
    content = bytearray(path.read_bytes())
    content[-3] ^= 1
    for wrong in (bytes(content), b"", content[:100]):
        path.write_bytes(wrong)
        with pytest.warns(RuntimeWarning, match=r"0001.safetensors is damaged .* made again"):
            again = run(tmp_path, **options)
        assert_same(again, expected)


def test_a_broken_method_marks_its_cell_and_no_other(tmp_path):
    methods = {"broken": Broken("abc"), "best of 3": METHODS["best of 3"]}
    results = run(tmp_path, methods=methods)
    assert [(f.prompt, f.place) for f in results.failures] == [("abcdef", "broken")]
    assert "out of luck" in results.failures[0].reason
    lost = results.cells[Cell("broken")]
    assert lost.rewards["reward"].isnan().any(1).tolist() == [False, True]
    assert lost.costs["network"].isnan().tolist() == [False, True]
    plain = run(tmp_path / "plain", methods={"best of 3": METHODS["best of 3"]})
    for cell, pictures in plain.cells.items():
        assert torch.equal(pictures.rewards["reward"], results.cells[cell].rewards["reward"])
    table = write_table(results, tmp_path)
    (row,) = [row for row in table.rows if row["method"] == "broken"]
    assert row["failed"] == 6
    assert any("things failed" in doubt for doubt in table.doubts)


def test_rewards_and_embeddings_may_fail_on_some_pictures(tmp_path):
    bad = lambda images, prompts: images[:, 1].mean((1, 2)) > 0.56

    def fails(images):
        raise RuntimeError("no weights")

    def held(images, prompts):
        values = Red()(images, prompts)
        return torch.where(values > 0.55, math.nan, values)

    embeddings = {"pixels": Flat(), "absent": fails}
    options = {
        "held_out": {"held": held}, "reward": Brightness(bad), "embeddings": embeddings,
        "methods": {"moved": Moved(), "importance": Importance(bank=8, kl=1.0)},
    }  # fmt: skip
    with pytest.warns(NotKept, match="not kept for another run"):
        results = run(tmp_path, **options)
    rewards = results.base.rewards
    assert 0 < int(rewards["reward"].isnan().sum()) < 12
    assert 0 < int(rewards["held"].isnan().sum()) < 12
    assert "absent" not in results.base.embeddings
    places = {failure.place for failure in results.failures}
    assert {"reward of base", "held of base", "absent of base", "absent of the target"} <= places
    write_table(results, tmp_path)


def test_what_cannot_be_told_apart_is_made_again(tmp_path):
    options = {"held_out": {"held": lambda images, prompts: images[:, 0].mean((1, 2))}}
    options["methods"] = {"moved": Moved()}
    backbone = Law()
    with pytest.warns(NotKept, match="not kept"):
        first = run(tmp_path, backbone=backbone, **options)
    calls = backbone.calls
    options["held_out"]["held"] = lambda images, prompts: 2 * images[:, 0].mean((1, 2))
    with pytest.warns(NotKept, match="not kept"):
        second = run(tmp_path, backbone=backbone, **options)
    assert backbone.calls > calls
    torch.testing.assert_close(second.base.rewards["held"], 2 * first.base.rewards["held"])


def test_what_failed_is_made_again(tmp_path):
    class Moody(Broken):
        gone = False

        def align(self, run, prompt, numbers, base, rewards):
            return Moved.align(self, run, prompt, numbers, base, rewards)

        factor, nats = 0.0, 0.25

        def settings(self):
            return {}

    class Angry(Moody):
        def align(self, run, prompt, numbers, base, rewards):
            raise RuntimeError("not today")

    assert len(run(tmp_path, methods={"it": Angry()}).failures) == 2
    results = run(tmp_path, methods={"it": Moody()})
    assert results.failures == []
    assert torch.equal(results.cells[Cell("it")].rewards["red"], results.base.rewards["red"])


def test_a_prompt_that_the_model_fails_on_is_named(tmp_path):
    class Picky(Law):
        depends_on = ("schedule", "std")

        def condition(self, prompts):
            if prompts[0] == "ab":
                raise ValueError("no such word")
            return super().condition(prompts)

    results = run(tmp_path, backbone=Picky())
    assert results.prompts == ["abcdef"]
    (failure,) = results.failures
    assert (failure.prompt, failure.place) == ("ab", "base")
    assert "no such word" in failure.reason
    write_table(results, tmp_path)


def test_a_method_that_does_not_fit_the_model_marks_its_cells(tmp_path):
    network = LatentShift(16, RectifiedSchedule(), widths=(8, 8))
    results = run(tmp_path, methods={"network": Network(network), "moved": Moved()})
    assert {failure.place for failure in results.failures} == {"network"}
    assert len(results.failures) == 2


def test_a_folder_of_another_plan_is_refused_by_name(tmp_path):
    first = run(tmp_path)
    for changes, name in (
        ({"images": 2}, "images"),
        ({"methods": {"best of 3": BestOfN(3)}}, "methods"),
        ({"reward": Brightness(factor=50.0)}, "reward keys"),
        ({"backbone": Law(0.2)}, "backbone"),
        ({"prompts": ("ab",)}, "prompts"),
        ({"steps": 2}, "times"),
    ):
        with pytest.raises(ValueError, match=f"results of another plan: .*{name}.* --restart"):
            run(tmp_path, **changes)
    assert_same(load_results(tmp_path), first)
    options = {"methods": {"moved": Moved()}, "images": 2, "restart": True}
    fewer = run(tmp_path, **options)
    assert fewer.base.rewards["reward"].shape == (2, 4)
    assert json.loads((tmp_path / "plan.json").read_text())["images"] == 2
    for file in tmp_path.glob("prompts/*.safetensors"):
        file.unlink()
    assert run(tmp_path).base.rewards["reward"].shape == first.base.rewards["reward"].shape


def test_a_folder_without_an_evaluation_is_refused(tmp_path):
    with pytest.raises(FileNotFoundError, match="must be the folder of an evaluation"):
        load_results(tmp_path)


def test_work_is_forecast(tmp_path):
    said = []
    run(tmp_path, say=said.append)
    assert len(said) == 2
    assert said[0].startswith("to make 24 pictures of each of 2 prompts: ")
    assert "minutes, by the first batch" in said[1]
    run(tmp_path, say=said.append)
    assert len(said) == 2


def test_the_first_batch_is_timed_part_by_part(tmp_path, monkeypatch):
    found = []
    timed = lambda self, images, *seconds: found.append((images, seconds))
    monkeypatch.setattr("rwguidance.generation.work.Forecast.timed", timed)
    start = time.perf_counter()
    run(tmp_path)
    took = time.perf_counter() - start
    for images, (sampling, scoring, judging) in found:
        assert images > 0
        assert min(sampling, scoring, judging) >= 0
        assert 0 < sampling + scoring + judging < took


@pytest.mark.parametrize("images", [1, 3])
@pytest.mark.parametrize("described", [True, False])
def test_the_forecast_is_what_is_counted(tmp_path, images, described):
    law, reward, said = CountedLaw(), CountedBrightness(), []
    methods = {
        "short": Importance(bank=7, kl=1.0), "long": Resample(bank=12, kl=1.0, pictures=4),
        "pool": Pool(bank=7, kl=1.0, pictures=4), "best of 3": BestOfN(3), "best": BestOfN(6),
        "soft": BestOfN(4, kl=1.0, draws=9), "chain": NoiseChain(kl=1.0, bank=12),
    }  # fmt: skip
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        run(
            tmp_path, backbone=law, reward=reward if described else lambda *a: reward(*a),
            methods=methods, images=images, batch_size=4, target_draws=9, say=said.append,
        )  # fmt: skip
    assert said_in(said[0]) == counts(law, reward)


@pytest.mark.parametrize("text", ["", "[", "[" * 100_000, "null", "[1]", "{}", '{"prompts": 3}'])
def test_a_plan_that_is_damaged_is_named(tmp_path, text):
    (tmp_path / "plan.json").write_text(text)
    with pytest.raises(ValueError, match=r"plan\.json is damaged"):
        load_results(tmp_path)
