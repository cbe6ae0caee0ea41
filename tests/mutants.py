"""One-line mutants of the library's formulas: signs, missing scales, swapped times. All must die.

``python tests/mutants.py`` copies the repository to a temporary folder, breaks one formula at a
time, runs the tests that should notice, and prints a table. ``make test-slow`` runs it as a test.
"""

import os
import shutil
import subprocess
import sys
import tempfile
import time
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import NamedTuple

ROOT = Path(__file__).resolve().parent.parent


class Mutant(NamedTuple):
    """One change of one line, and the test files that should notice."""

    what: str
    file: str
    old: str
    new: str
    tests: str


MUTANTS = [
    Mutant(
        "fingerprint: a subclass that does not say is taken at the word of its base",
        "support/fingerprint.py",
        'if "depends_on" in cls.__dict__:',
        'if hasattr(cls, "depends_on"):',
        "test_fingerprint",
    ),
    Mutant(
        "fingerprint: the last entry of a large tensor does not count",
        "support/digests.py",
        "yield _bytes(flat[-1:])",
        "yield _bytes(flat[:1])",
        "test_fingerprint",
    ),
    Mutant(
        "fingerprint: the stride is rounded down",
        "support/digests.py",
        "max(1, -(-sum(part.nbytes for part in numbers) // WHOLE))",
        "max(1, sum(part.nbytes for part in numbers) // WHOLE)",
        "test_fingerprint",
    ),
    Mutant(
        "training: a checkpoint of another temperature is taken",
        "training/origin.py",
        "differ = [name for name in names if found.get(name) != expected.get(name)]",
        "differ = [name for name in expected if name not in found]",
        "test_loop",
    ),
    Mutant(
        "VP: sign of the exponent of alpha",
        "schedules.py",
        "return torch.exp(-0.5 * self._integral(t))",
        "return torch.exp(0.5 * self._integral(t))",
        "test_schedules",
    ),
    Mutant(
        "VE: time of a log-SNR with the wrong factor",
        "schedules.py",
        "log_sigma = -0.5 * log_snr",
        "log_sigma = -log_snr",
        "test_schedules",
    ),
    Mutant(
        "table: the timestep is the entry before",
        "schedules.py",
        "(as_times(t) * self._steps).round()",
        "(as_times(t) * self._steps).floor()",
        "test_schedules",
    ),
    Mutant(
        "table: the time within an entry runs backwards",
        "schedules.py",
        "return 1 - (left + weight) / self._steps",
        "return 1 - (left + 1 - weight) / self._steps",
        "test_schedules",
    ),
    Mutant(
        "Prediction: score without its sign",
        "prediction.py",
        "return -self.noise / self.scales.sigma",
        "return self.noise / self.scales.sigma",
        "test_prediction",
    ),
    Mutant(
        "Prediction: velocity swaps the rates",
        "prediction.py",
        "return self.scales.alpha_rate * self.mean + self.scales.sigma_rate * self.noise",
        "return self.scales.sigma_rate * self.mean + self.scales.alpha_rate * self.noise",
        "test_prediction",
    ),
    Mutant(
        "shifted: noise moves the wrong way",
        "prediction.py",
        "noise = self.noise - _divide_or_zero(",
        "noise = self.noise + _divide_or_zero(",
        "test_prediction",
    ),
    Mutant(
        "shifted: alpha missing",
        "prediction.py",
        "_divide_or_zero(self.scales.alpha * shift, self.scales.sigma)",
        "_divide_or_zero(shift, self.scales.sigma)",
        "test_prediction",
    ),
    Mutant(
        "gradient to shift: sigma instead of sigma squared",
        "estimators/base.py",
        "(scales.sigma**2 / scales.alpha)",
        "(scales.sigma / scales.alpha)",
        "test_learned test_plug_in",
    ),
    Mutant(
        "tilt: beta multiplies the reward",
        "tilt.py",
        "return rewards / self.betas[0]",
        "return rewards * self.betas[0]",
        "test_tilt",
    ),
    Mutant(
        "temperature: KL without the log normalizer",
        "temperature.py",
        "kl = strength * reward - log_w.logsumexp(0) + math.log(len(rewards))",
        "kl = strength * reward",
        "test_temperature",
    ),
    Mutant(
        "weights: ESS without the square",
        "weights.py",
        "return torch.exp(-(2 * log_w.log_softmax(dim)).logsumexp(dim))",
        "return torch.exp(-log_w.log_softmax(dim).logsumexp(dim))",
        "test_weights",
    ),
    Mutant(
        "weights: Gumbel noise of the smallest",
        "weights.py",
        "return -torch.log(-log_uniform(shape, generator))",
        "return torch.log(-log_uniform(shape, generator))",
        "test_weights",
    ),
    Mutant(
        "importance: alpha missing from the squared norm",
        "estimators/importance.py",
        "addcmul_(alpha**2, half_norm, value=-1)",
        "addcmul_(alpha, half_norm, value=-1)",
        "test_importance",
    ),
    Mutant(
        "importance: sigma instead of sigma squared",
        "estimators/importance.py",
        ".div_(sigma.clamp_min(tiny)).div_(sigma.clamp_min(tiny))",
        ".div_(sigma.clamp_min(tiny))",
        "test_importance",
    ),
    Mutant(
        "importance: shift with the sign of the difference swapped",
        "estimators/importance.py",
        "tilted - weight",
        "weight - tilted",
        "test_importance",
    ),
    Mutant(
        "plug-in: posterior variance without alpha squared",
        "estimators/plug_in.py",
        "return v * sigma**2 / (sigma**2 + alpha**2 * v)",
        "return v * sigma**2 / (sigma**2 + v)",
        "test_plug_in",
    ),
    Mutant(
        "plug-in: damping multiplies",
        "estimators/plug_in.py",
        "shift = shift / (1 + self.damping * self._posterior_variance(prediction))",
        "shift = shift * (1 + self.damping * self._posterior_variance(prediction))",
        "test_plug_in",
    ),
    Mutant(
        "toy: half a log-determinant lost",
        "toy/components.py",
        "+ 0.5 * (gradient * move).sum(-1) - 0.5 * log_det",
        "+ 0.5 * (gradient * move).sum(-1) - log_det",
        "test_toy",
    ),
    Mutant(
        "DDIM: times swapped in the bridge",
        "samplers.py",
        "ratio = now.alpha * scales.sigma / (scales.alpha * now.sigma)",
        "ratio = scales.alpha * now.sigma / (now.alpha * scales.sigma)",
        "test_samplers",
    ),
    Mutant(
        "DDIM: the noise keeps its full scale",
        "samplers.py",
        "scales.alpha * prediction.mean + spread * prediction.noise",
        "scales.alpha * prediction.mean + scales.sigma * prediction.noise",
        "test_samplers",
    ),
    Mutant(
        "Heun: slope not halved",
        "samplers.py",
        "slope = (prediction.noise - prediction.mean + ahead.noise - ahead.mean) / 2",
        "slope = prediction.noise - prediction.mean + ahead.noise - ahead.mean",
        "test_samplers",
    ),
    Mutant(
        "guidance: the window looks the wrong way",
        "guidance.py",
        "inside = (times >= low) & (times <= high)",
        "inside = (times <= low) | (times >= high)",
        "test_guidance",
    ),
    Mutant(
        "pCN: the square root is lost",
        "noise_space.py",
        "math.sqrt(1 - rho**2) * z",
        "(1 - rho**2) * z",
        "test_noise_space",
    ),
    Mutant(
        "pCN: accepts what is worse",
        "noise_space.py",
        "< new_log_w - log_w",
        "< log_w - new_log_w",
        "test_noise_space",
    ),
    Mutant(
        "noise space: candidates interleaved, conditions tiled",
        "noise_space.py",
        "tiled = rows * count",
        "tiled = [row for row in rows for _ in range(count)]",
        "test_noise_space",
    ),
    Mutant(
        "loss: Itakura-Saito with the ratio inverted",
        "losses.py",
        "return torch.exp(log_w - log_h) + log_h",
        "return torch.exp(log_h - log_w) + log_h",
        "test_losses",
    ),
    Mutant(
        "loss: centered residual without the minus one",
        "losses.py",
        "ratio = torch.expm1(log_w - log_h.detach())",
        "ratio = torch.exp(-(log_w - log_h.detach()))",
        "test_losses",
    ),
    Mutant(
        "loss: contrastive with normalized labels",
        "losses.py",
        "return -(log_w.exp() * log_h.log_softmax(1)).mean(1)",
        "return -(log_w.softmax(1) * log_h.log_softmax(1)).mean(1)",
        "test_losses",
    ),
    Mutant(
        "regularizer: consistency without weights",
        "regularizers.py",
        "error = (guided.noise - noise).square().flatten(1).mean(1)\n"
        "    return error if log_w is None else log_w.exp() * error",
        "error = (guided.noise - noise).square().flatten(1).mean(1)\n    return error",
        "test_regularizers",
    ),
    Mutant(
        "regularizer: gradient without its graph",
        "regularizers.py",
        "create_graph=True",
        "retain_graph=True",
        "test_regularizers",
    ),
    Mutant(
        "training: weights not centered",
        "training/objectives.py",
        "parts.append(log_w[rows] - log_z)",
        "parts.append(log_w[rows])",
        "test_objectives",
    ),
    Mutant(
        "crop: HF's rule for torchvision's",
        "rewards/preprocessing.py",
        "round((length - size) / 2) if half_up else",
        "(length - size) // 2 if half_up else",
        "test_preprocessing",
    ),
    Mutant(
        "resize: rows before columns",
        "rewards/preprocessing.py",
        "levels = _to_levels(255 * images)\n        if columns is not None:\n"
        "            levels = _times_band(levels, columns)\n        if rows is not None:\n"
        "            levels = _times_band(levels.mT, rows).mT",
        "levels = _to_levels(255 * images)\n        if rows is not None:\n"
        "            levels = _times_band(levels.mT, rows).mT\n        if columns is not None:\n"
        "            levels = _times_band(levels, columns)",
        "test_preprocessing",
    ),
    Mutant(
        "resize: rounding down",
        "rewards/preprocessing.py",
        "x.add_(0.5).floor_()",
        "x.floor_()",
        "test_preprocessing",
    ),
    Mutant(
        "resize: gradient without the columns",
        "rewards/preprocessing.py",
        "gradient = gradient @ columns.to(gradient)",
        "gradient = gradient @ columns.to(gradient).flip(0)",
        "test_preprocessing",
    ),
    Mutant(
        "letterbox: margins swapped",
        "rewards/preprocessing.py",
        "(x // 2, x - x // 2, y // 2, y - y // 2)",
        "(x - x // 2, x // 2, y - y // 2, y // 2)",
        "test_preprocessing",
    ),
    Mutant(
        "letterbox: clamped",
        "rewards/preprocessing.py",
        'mode="bicubic", antialias=True)\n    x, y',
        'mode="bicubic", antialias=True).clamp(0, 1)\n    x, y',
        "test_preprocessing",
    ),
    Mutant(
        "images: groups come back in their own order",
        "rewards/images.py",
        "rows = rows[torch.tensor(inverse, device=rows.device)]",
        "rows = rows.contiguous()",
        "test_preprocessing",
    ),
    Mutant(
        "heads: the bias is not transformed",
        "rewards/towers.py",
        "matrix, bias = w @ matrix, w @ bias + b",
        "matrix, bias = w @ matrix, bias.sum() + b",
        "test_zoo",
    ),
    Mutant(
        "cache: the newest prompt goes first",
        "rewards/towers.py",
        "self._cache.popitem(last=False)",
        "self._cache.popitem(last=True)",
        "test_zoo",
    ),
    Mutant(
        "cache: survives a change of dtype",
        "rewards/towers.py",
        "        self._cache.clear()\n",
        "",
        "test_zoo",
    ),
    Mutant(
        "towers: the scale is cast to half precision",
        "rewards/towers.py",
        "return tensor.to(moved.device) if narrow else moved",
        "return moved",
        "test_zoo",
    ),
    Mutant(
        "HPSv2: the reported score has the logit scale",
        "rewards/hpsv2.py",
        "        return cosine\n",
        "        return self.logit_scale(cosine)\n",
        "test_zoo",
    ),
    Mutant(
        "HPSv2: pooled one token early",
        "rewards/hpsv2.py",
        "[torch.arange(len(x), device=x.device), end]",
        "[torch.arange(len(x), device=x.device), end - 1]",
        "test_zoo",
    ),
    Mutant(
        "CLIPScore: not cleaned",
        "rewards/clipscore.py",
        'clean("A photo depicts " + prompt)',
        '"A photo depicts " + prompt',
        "test_zoo",
    ),
    Mutant(
        "ImageReward: not standardized",
        "rewards/imagereward.py",
        "return (self._raw(self._look(images), prompts) - _MEAN) / _STD",
        "return self._raw(self._look(images), prompts) / _STD",
        "test_zoo",
    ),
    Mutant(
        "ImageReward: padding is read",
        "rewards/imagereward.py",
        "attention_mask=tokens.attention_mask,",
        "",
        "test_zoo",
    ),
    Mutant(
        "JPEG: the sign",
        "rewards/jpeg.py",
        "1.0 if incompressible else -1.0",
        "-1.0 if incompressible else 1.0",
        "test_zoo",
    ),
    Mutant(
        "loading: the digest is not compared",
        "rewards/loading.py",
        "if found.hexdigest() != expected:",
        "if False:",
        "test_loading",
    ),
    Mutant(
        "loading: pickles are executed",
        "rewards/loading.py",
        "weights_only=True",
        "weights_only=False",
        "test_loading",
    ),
    Mutant(
        "SDXL: timestep off by one",
        "backbones/sdxl.py",
        "timestep = (t * self.num_train_timesteps - 1)",
        "timestep = (t * self.num_train_timesteps)",
        "test_backbones",
    ),
    Mutant(
        "SDXL: v read as noise",
        "backbones/coordinates.py",
        "scales.alpha * x_t - scales.sigma * output",
        "scales.alpha * x_t + scales.sigma * output",
        "test_backbones",
    ),
    Mutant(
        "pipelines: positive and negative prompts swapped",
        "backbones/pipelines.py",
        "negative, positive = output.chunk(2)",
        "positive, negative = output.chunk(2)",
        "test_backbones",
    ),
    Mutant(
        "pipelines: latents decoded without their shift",
        "backbones/latents.py",
        "z = latents * scale.to(latents) + shift.to(latents)",
        "z = latents * scale.to(latents)",
        "test_backbones",
    ),
    Mutant(
        "draws: every number gets the same noise",
        "generation/run.py",
        'names = [("draw", *stream, prompt, i) for i in numbers]',
        'names = [("draw", *stream, prompt, 0) for i in numbers]',
        "test_run",
    ),
    Mutant(
        "best of n: takes the worst",
        "generation/methods.py",
        "run, prompt, number).argmax())",
        "run, prompt, number).argmin())",
        "test_methods",
    ),
    Mutant(
        "store: a run of tensors is found one file late",
        "generation/store.py",
        "        done = 0\n",
        "        done = 1\n",
        "test_store",
    ),
    Mutant(
        "networks for latents: states in the units of their path",
        "networks/latents.py",
        "x = x_t / (scales.alpha**2 + scales.sigma**2).sqrt()",
        "x = x_t",
        "test_latents",
    ),
    Mutant(
        "networks for latents: shift without its size",
        "networks/latents.py",
        "return posterior_variance(scales) * self.last(",
        "return self.last(",
        "test_latents",
    ),
    Mutant(
        "objectives: what was encoded does not reach the network",
        "training/objectives.py",
        "condition if self.encode is None else self.encode(condition)",
        "condition",
        "test_latents",
    ),
]


def kill(mutant: Mutant) -> tuple[bool, float, str]:
    """Whether some test notices the mutant, the seconds it took, and the first that failed."""

    started = time.perf_counter()
    with tempfile.TemporaryDirectory() as folder:
        for name in ("rwguidance", "rewards", "backbones", "tests", "pyproject.toml"):
            source = ROOT / name
            copy = shutil.copytree if source.is_dir() else shutil.copy
            copy(source, Path(folder) / name)
        package = "" if mutant.file.startswith(("rewards/", "backbones/")) else "rwguidance"
        target = Path(folder) / package / mutant.file
        source = target.read_text()
        if mutant.old not in source:
            raise LookupError(f"mutant {mutant.what!r} does not apply to {mutant.file} any more")
        target.write_text(source.replace(mutant.old, mutant.new))
        files = [
            str(path.relative_to(folder))
            for name in mutant.tests.split()
            for path in Path(folder, "tests").rglob(f"{name}.py")
        ]
        # The test bed of this checkout: an installed one may be that of another.
        packages = os.pathsep.join((folder, str(ROOT / "testbed")))
        run = subprocess.run(
            [sys.executable, "-m", "pytest", "-x", "-q", "-p", "no:cacheprovider", *files],
            cwd=folder,
            env={**os.environ, "PYTHONPATH": packages, "OMP_NUM_THREADS": "1"},
            capture_output=True,
            text=True,
        )
    failed = [line for line in run.stdout.splitlines() if line.startswith(("FAILED", "ERROR"))]
    first = failed[0].split(" - ")[0].split("::")[-1] if failed else run.stdout[-200:]
    return run.returncode == 1, time.perf_counter() - started, first


def main() -> int:
    with ThreadPoolExecutor(os.cpu_count()) as pool:
        results = list(pool.map(kill, MUTANTS))
    for mutant, (dead, seconds, first) in zip(MUTANTS, results, strict=True):
        verdict = "killed  " if dead else "SURVIVED"
        print(f"{verdict} {seconds:5.0f} s  {mutant.what}  [{first}]")
    survivors = sum(not dead for dead, _, _ in results)
    print(f"{len(MUTANTS) - survivors} of {len(MUTANTS)} mutants killed")
    return survivors


if __name__ == "__main__":
    sys.exit(main())
