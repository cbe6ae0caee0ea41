"""One-line mutants of the library's formulas: signs, missing scales, swapped times. All must die.

Each is made in a copy of the repository, where the tests run that should notice; they must pass
without it. The list below grows with every formula, whence the length of this file. ``make
test-slow`` runs it as a test. Random mutants change any expression of any file; those that survive
are mended by a test, or listed with a reason in tests/mutants_equivalent.txt.

    python tests/mutants.py                          # the list below
    python tests/mutants.py --random 100 --seed 1    # random ones, each in a copy
    make mutants-random SEED=1                       # the same in a fifth of the time: forks first
"""

import argparse
import os
import queue
import sys
import time
from collections.abc import Callable, Iterable
from concurrent.futures import ThreadPoolExecutor
from contextlib import ExitStack
from pathlib import Path
from typing import Any, NamedTuple, TypeVar

from forked_mutants import try_forked
from mutant_runs import ROOT, Copy, Outcome
from mutations import Mutation
from random_mutants import choose, equivalents, files, notice

Item = TypeVar("Item")
Result = TypeVar("Result")


class Mutant(NamedTuple):
    """One change of one line, and the test files that should notice."""

    what: str
    file: str
    old: str
    new: str
    tests: str


MUTANTS = [
    Mutant(
        "app: the best of n is a nat further than it is",
        "app/page/words.py",
        "math.log(middle) - 1 + 1 / middle",
        "math.log(middle) - 1 / middle",
        "test_app_page",
    ),
    Mutant(
        "app: weights are multiplied by typical ranges",
        "app/page/studio.py",
        "weight / (high - low)",
        "weight * (high - low)",
        "test_app_page",
    ),
    Mutant(
        "training: parts add up",
        "training/state.py",
        "(loss / parts if parts > 1 else loss).backward()",
        "loss.backward()",
        "test_recipe",
    ),
    Mutant(
        "training: the average follows the weights at once",
        "training/state.py",
        "share = 1 - min(",
        "share = min(",
        "test_recipe",
    ),
    Mutant(
        "training: the warm-up begins a step late",
        "training/state.py",
        "min(1.0, (self.done + 1) /",
        "min(1.0, self.done /",
        "test_recipe",
    ),
    Mutant(
        "training: processes do not add their gradients",
        "training/state.py",
        "if self.processes.size > 1:",
        "if self.processes.size > 2:",
        "test_recipe",
    ),
    Mutant(
        "chunks of log-weights: the gradient is of their mean",
        "training/chunks.py",
        "log_w.sum()",
        "log_w.mean()",
        "test_one_step",
    ),
    Mutant(
        "chunks of log-weights: all have the conditions of the first",
        "training/chunks.py",
        "take(condition, list(rows))",
        "take(condition, [0] * len(rows))",
        "test_one_step",
    ),
    Mutant(
        "validation: the average stays in the place of the weights",
        "training/state.py",
        "p.copy_(value)",
        "value.copy_(p)",
        "test_recipe",
    ),
    Mutant(
        "validation: the average is not looked at",
        "training/loop.py",
        "with state.averaged():",
        "if True:",
        "test_recipe",
    ),
    Mutant(
        "unseen banks: the noise of a half counts as length",
        "trainer/unseen.py",
        "sums(one, two)",
        "sums(one, one)",
        "test_unseen",
    ),
    Mutant(
        "unseen banks: shifts of few draws stay too short",
        "trainer/unseen.py",
        "2 * _flat(whole.shift) - sum(",
        "2 * _flat(whole.shift) - 2 * _flat(whole.shift) / 2 - 0 * sum(",
        "test_unseen",
    ),
    Mutant(
        "unseen banks: the explained share leaves the error out",
        "trainer/unseen.py",
        "(product - p.own[some].sum()) / square",
        "product / square",
        "test_unseen",
    ),
    Mutant(
        "unseen banks: rewards are shuffled across nothing",
        "trainer/unseen.py",
        "sum(value >= true for",
        "sum(value > 2 * abs(true) for",
        "test_unseen",
    ),
    Mutant(
        "unseen banks: outputs are noised",
        "trainer/unseen.py",
        "seen = states.x_0 if clean else x_t",
        "seen = x_t",
        "test_unseen",
    ),
    Mutant(
        "weights: the variance is that of their squares",
        "trainer/figures.py",
        "(w - 1).square().mean()",
        "w.square().mean()",
        "test_unseen",
    ),
    Mutant(
        "rewards of pairs: the other picture is preferred",
        "trainer/preferences.py",
        "seen[first] - seen[second],",
        "seen[second] - seen[first],",
        "test_train_reward_command",
    ),
    Mutant(
        "rewards of pairs: ties do not hold back",
        "trainer/preferences.py",
        "x.T @ (share - p) / n",
        "x.T @ ((share - p) * (p != 0.5)) / n",
        "test_rewards_of_pairs",
    ),
    Mutant(
        "rewards of pairs: the gradient is of twice the log-odds",
        "trainer/preferences.py",
        "x.T @ (share - p) / n",
        "x.T @ ((2 * s).sigmoid() - p) / n",
        "test_rewards_of_pairs",
    ),
    Mutant(
        "rewards of pairs: the penalty is on weights of raw features",
        "trainer/preferences.py",
        "return v / size",
        "return v",
        "test_rewards_of_pairs",
    ),
    Mutant(
        "pairs: both pictures win",
        "trainer/material.py",
        "(pair.second, 1 - pair.preference)",
        "(pair.second, pair.preference)",
        "test_material",
    ),
    Mutant(
        "pairs: few draws are not centered",
        "trainer/material.py",
        "_deviations(values) for",
        "values for",
        "test_material",
    ),
    Mutant(
        "annealing: log-importances are those of the first guess of the constants",
        "annealing.py",
        "        if change < _TOLERANCE:",
        "        if change > -1:",
        "test_annealing",
    ),
    Mutant(
        "annealing: stages count alike, whatever their draws",
        "annealing.py",
        "log_n = torch.tensor(counts, dtype=torch.float64).log()",
        "log_n = torch.ones(len(counts), dtype=torch.float64).log()",
        "test_annealing",
    ),
    Mutant(
        "annealing: a stage is drawn at the whole tilt",
        "annealing.py",
        "[beta / power for beta in tilt.betas]",
        "list(tilt.betas)",
        "test_annealing",
    ),
    Mutant(
        "anneal: noise that runs begin from tells of the clean state",
        "annealing.py",
        "GuidedModel(self.model, estimator).starting(start)",
        "GuidedModel(self.model, estimator)",
        "test_annealing",
    ),
    Mutant(
        "anneal: particles of a stage are taken without their weights",
        "annealing.py",
        "made.x_0[made.draw(n, self.generator).flatten()]",
        "made.x_0",
        "test_annealing",
    ),
    Mutant(
        "anneal: steps of a stochastic sampler are not weighed",
        "annealing.py",
        "if not self._random:",
        "if self._random or True:",
        "test_annealing",
    ),
    Mutant(
        "renewal: every proposal is accepted",
        "renewal.py",
        "source).to(old_w.device) < new_w - old_w",
        "source).to(old_w.device) < 0",
        "test_renewal",
    ),
    Mutant(
        "renewal: proposals of less reward are accepted",
        "renewal.py",
        "source).to(old_w.device) < new_w - old_w",
        "source).to(old_w.device) < old_w - new_w",
        "test_renewal",
    ),
    Mutant(
        "renewal: the noise stays what it is at the start of a run",
        "renewal.py",
        "model = model.starting(None)",
        "model = model.starting(float(grid[0]))",
        "test_renewal",
    ),
    Mutant(
        "pool: guided draws count as those of the law",
        "pooling.py",
        "torch.full_like(r, math.log(count)), log_n + _times(reached, r) - log_z",
        "torch.full_like(r, math.log(count)), torch.full_like(r, log_n)",
        "test_pooling",
    ),
    Mutant(
        "pool: the constant of the guided law is left out",
        "pooling.py",
        "log_n + _times(reached, r) - log_z",
        "log_n + _times(reached, r)",
        "test_pooling",
    ),
    Mutant(
        "systematic resampling: every place has an offset of its own",
        "weights.py",
        "offset = torch.rand((), generator=generator, dtype=torch.float64)",
        "offset = torch.rand(n, generator=generator, dtype=torch.float64)",
        "test_pooling",
    ),
    Mutant(
        "standard error: over values, not over units",
        "statistics.py",
        "means = _means_of_units(means, list(unit))",
        "list(unit)",
        "test_statistics",
    ),
    Mutant(
        "standard error of a ratio: denominators count as constants",
        "statistics.py",
        "mean_and_error((a - ratio * b) / bottom, units)[1]",
        "mean_and_error(a / bottom, units)[1]",
        "test_statistics",
    ),
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
        "slopes: the tilted law's is added, not taken off",
        "evaluation/slopes.py",
        "sums[0] / sums[1] - sums[2] / sums[3]",
        "sums[0] / sums[1] + sums[2] / sums[3]",
        "test_hacking",
    ),
    Mutant(
        "slopes: the jackknife leaves no prompt out",
        "evaluation/slopes.py",
        "jackknife_error(excess(sums - gains))",
        "jackknife_error(excess(sums))",
        "test_hacking",
    ),
    Mutant(
        "gains of the tilted law: over nothing, not over its draws",
        "evaluation/slopes.py",
        "means[one] - results.draw_means(one) for",
        "means[one] for",
        "test_hacking",
    ),
    Mutant(
        "verdicts: a reward is exploited wherever a held-out one falls",
        "evaluation/hacking.py",
        "any(one.excess.below(0) for one in falling)",
        "any(one.gain.below(0) for one in falling)",
        "test_hacking",
    ),
    Mutant(
        "clear differences: of one standard error",
        "evaluation/measured.py",
        "self.value - level > CLEAR * self.error",
        "self.value - level > self.error",
        "test_hacking",
    ),
    Mutant(
        "high frequencies: along either axis, not of the vector",
        "evaluation/appearance.py",
        "torch.hypot(down[:, None], across) > _CUTOFF",
        "torch.maximum(down[:, None].abs(), across) > _CUTOFF",
        "test_appearance",
    ),
    Mutant(
        "chroma: the exponent of sRGB",
        "evaluation/appearance.py",
        ".pow(2.4)",
        ".pow(2.2)",
        "test_appearance",
    ),
    Mutant(
        "curves: points of poor targets are not marked",
        "evaluation/curves.py",
        'row.get("few", False)',
        "False",
        "test_page",
    ),
    Mutant(
        "page: text is markup",
        "evaluation/markup.py",
        'f"<p>{escape(text)}</p>"',
        'f"<p>{text}</p>"',
        "test_page",
    ),
    Mutant(
        "jackknife: deviations of values without a unit, not scaled up",
        "statistics.py",
        "* (n - 1) / math.sqrt(n) if n > 1",
        "/ math.sqrt(n) if n > 1",
        "test_statistics",
    ),
    Mutant(
        "particles: the proposal over the kernel",
        "particles.py",
        "log_ratio = -(self.drift.double()",
        "log_ratio = (self.drift.double()",
        "test_particles",
    ),
    Mutant(
        "particles: the shift counts twice in the ratio of kernels",
        "particles.py",
        "(noise + self.drift / 2)",
        "(noise + self.drift)",
        "test_particles",
    ),
    Mutant(
        "particles: the last twist stays in the weights",
        "particles.py",
        "old.log_w + new.log_psi - old.log_psi)",
        "old.log_w + new.log_psi)",
        "test_particles",
    ),
    Mutant(
        "particles: resampling forgets Z",
        "particles.py",
        "log_w[prompt] = log_mean_exp(log_w[prompt])",
        "log_w[prompt] = 0.0",
        "test_particles",
    ),
    Mutant(
        "particles: weights are dropped where nothing is resampled",
        "particles.py",
        "log_w=log_w.flatten())",
        "log_w=log_mean_exp(log_w).repeat_interleave(cloud.n))",
        "test_particles",
    ),
    Mutant(
        "particles: twists do not follow their particles",
        "particles.py",
        "lambda name, values: values[index]",
        'lambda name, values: values if name == "log_psi" else values[index]',
        "test_particles",
    ),
    Mutant(
        "particles: conditions do not follow their particles",
        "particles.py",
        "take(self.condition, cloud.origin[rows].tolist())",
        "take(self.condition, rows.tolist())",
        "test_particles",
    ),
    Mutant(
        "particles: a deterministic step is guided",
        "particles.py",
        'return {"mean": law.mean,',
        'return {"mean": law.mean if shift is None else guided,',
        "test_particles",
    ),
    Mutant(
        "particles: the look-ahead looks at the noisy state",
        "estimators/look_ahead.py",
        "self.tilt(prediction.mean, condition)",
        "self.tilt(x_t, condition)",
        "test_particles",
    ),
    Mutant(
        "smc: steps of any noise",
        "generation/smc.py",
        "DDIM(self.eta),",
        "DDIM(1.0),",
        "test_smc",
    ),
    Mutant(
        "residual resampling: the rest by all of the weight",
        "weights.py",
        "rest = (expected - counts).clamp(min=0)",
        "rest = expected",
        "test_pooling",
    ),
    Mutant(
        "win rate: a tie is no win",
        "statistics.py",
        "((a - b).sign() + 1) / 2",
        "(a > b).double()",
        "test_statistics",
    ),
    Mutant(
        "shares of rows: groups count by their rows",
        "metrics/samples.py",
        "self._log_weights(rows).softmax(0) / len(self.names)",
        "self._log_weights(rows).softmax(0) * len(rows) / len(self)",
        "test_metric_samples",
    ),
    Mutant(
        "resampled rows: without weights",
        "metrics/samples.py",
        "keys = log_weights + weights.gumbel",
        "keys = 0 * log_weights + weights.gumbel",
        "test_metric_samples",
    ),
    Mutant(
        "kernel distance: rows make pairs with themselves",
        "metrics/kernels.py",
        "masked_fill(a.unit[rows, None] == b.unit[columns], 0)",
        "masked_fill(torch.zeros((), dtype=torch.bool), 0)",
        "test_kernel_distances",
    ),
    Mutant(
        "kernel distance: pairs between sets once",
        "metrics/kernels.py",
        "return aa + bb - 2 * ab,",
        "return aa + bb - ab,",
        "test_kernel_distances",
    ),
    Mutant(
        "kernel distance: the reference is zero without rows of the other set",
        "metrics/kernels.py",
        "torch.cat((bb_without, bb.expand(others)))",
        "torch.cat((bb_without, 0 * bb.expand(others)))",
        "test_kernel_distances",
    ),
    Mutant(
        "forecast: draws that are there are made again",
        "generation/work.py",
        "any(place % n >= there for place in batch)",
        "any(place % n >= 0 for place in batch)",
        "test_work",
    ),
    Mutant(
        "kernel distance: weights of one row of a pair",
        "metrics/kernels.py",
        "a.shares[rows] * (k @ b.shares[columns])",
        "a.shares.mean() * (k @ b.shares[columns])",
        "test_kernel_distances",
    ),
    Mutant(
        "kernel distance: a unit is left out of rows alone",
        "metrics/kernels.py",
        "(total - by_row - by_column)",
        "(total - by_row)",
        "test_kernel_distances",
    ),
    Mutant(
        "Frechet: half of the root",
        "metrics/frechet.py",
        "+ spread - 2 * root",
        "+ spread - root",
        "test_frechet_distance",
    ),
    Mutant(
        "Frechet: means of parts count as equal",
        "metrics/frechet.py",
        "weights[:, None] * (means - mean)",
        "0 * weights[:, None] * (means - mean)",
        "test_frechet_distance",
    ),
    Mutant(
        "Frechet: biased covariances",
        "metrics/frechet.py",
        "_shorter(whole.factor, 1) / rest.sqrt()",
        "_shorter(whole.factor, 1)",
        "test_frechet_distance",
    ),
    Mutant(
        "precision: a row is its own neighbor",
        "metrics/neighbors.py",
        "distances.masked_fill(itself, math.inf)",
        "distances",
        "test_neighbors",
    ),
    Mutant(
        "curve: the wrong side of the ratio",
        "metrics/neighbors.py",
        "ratios[:, None] * near[:, 1] < near[:, 0]",
        "ratios[:, None] * near[:, 1] > near[:, 0]",
        "test_neighbors",
    ),
    Mutant(
        "curve: mass of the target without the trade-off",
        "metrics/neighbors.py",
        "alpha = ratios * p.sum(1) + q.sum(1)",
        "alpha = p.sum(1) + q.sum(1)",
        "test_neighbors",
    ),
    Mutant(
        "curve: guessed and measured on the same half",
        "metrics/neighbors.py",
        "features[fold == i], features[fold != i], masses[fold != i], k",
        "features[fold == i], features[fold == i], masses[fold == i], k",
        "test_neighbors",
    ),
    Mutant(
        "share of target: from zero, not from the base",
        "metrics/targets.py",
        'means["tilted"] - means["base"]',
        'means["tilted"]',
        "test_neighbors",
    ),
    Mutant(
        "tilted law: weights multiply by beta",
        "evaluation/targets.py",
        "log_w = rewards / beta[i]",
        "log_w = rewards * beta[i]",
        "evaluation/test_targets",
    ),
    Mutant(
        "share: of the mean shares of prompts",
        "metrics/targets.py",
        "float(ratio(gain.sum(), way.sum()))",
        "float(ratio(gain, way).mean())",
        "test_neighbors",
    ),
    Mutant(
        "share: the way is the gain of the method",
        "evaluation/figures.py",
        "way = target.means[results.aligned] - results.draw_means(results.aligned)",
        "way = results.draw_means(results.aligned) - target.means[results.aligned]",
        "evaluation/test_figures",
    ),
    Mutant(
        "energy distance: the draws of the tilted law count alike",
        "evaluation/figures.py",
        "torch.multinomial(log_w.softmax(0), n,",
        "torch.multinomial(log_w.softmax(0) * 0 + 1, n,",
        "evaluation/test_figures",
    ),
    Mutant(
        "costs: draws are free",
        "evaluation/figures.py",
        'cost["network"] + cost["draws"] * draw["network"]',
        'cost["network"]',
        "evaluation/test_figures",
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
        "log_w = rewards / beta",
        "log_w = rewards * beta",
        "test_tilt",
    ),
    Mutant(
        "temperature: KL without the log normalizer",
        "temperature.py",
        "kl = strength * reward - log_w.logsumexp(0) + log_q.logsumexp(0)",
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
        "estimators/draws.py",
        "log_kernel.addcmul_(alpha, self.half_norm, value=-1)",
        "log_kernel.sub_(self.half_norm)",
        "test_importance",
    ),
    Mutant(
        "importance: the mean draw put back with the wrong sign in bfloat16",
        "estimators/draws.py",
        "addcmul_(share - alpha, self.along)",
        "addcmul_(share + alpha, self.along)",
        "test_importance",
    ),
    Mutant(
        "importance: what rounding leaves of the weights is not taken out",
        "estimators/draws.py",
        "total.addcmul_(excess, self.center, value=-1)",
        "total",
        "test_importance",
    ),
    Mutant(
        "importance: sigma instead of sigma squared",
        "estimators/draws.py",
        "log_kernel.mul_(alpha / sigma).div_(sigma)",
        "log_kernel.mul_(alpha / sigma)",
        "test_importance",
    ),
    Mutant(
        "importance: shift with the sign of the difference swapped",
        "estimators/importance.py",
        "tilted.sub_(weight)",
        "weight.sub_(tilted)",
        "test_importance",
    ),
    Mutant(
        "importance: what one exponential rounds to zero is lost",
        "estimators/importance.py",
        "log_kernel.shape[1] * limits.tiny / limits.eps",
        "0",
        "test_importance",
    ),
    Mutant(
        "target ESS: a slope of the wrong moment",
        "estimators/kernels.py",
        "first / total - second / square",
        "first / total",
        "test_importance",
    ),
    Mutant(
        "leave one out: none is left out",
        "estimators/kernels.py",
        "draws.log_kernel(x_t, alpha, sigma, without=held)",
        "draws.log_kernel(x_t, alpha, sigma)",
        "test_leave_one_out",
    ),
    Mutant(
        "leave one out: held-out draws of another law count alike",
        "estimators/kernels.py",
        "log_omega.softmax(0)[held]",
        "torch.ones_like(log_omega)[held]",
        "test_leave_one_out",
    ),
    Mutant(
        "leave one out: the largest error",
        "estimators/kernels.py",
        "risks.argmin()",
        "risks.argmax()",
        "test_leave_one_out",
    ),
    Mutant(
        "importance: noise that knows nothing of x_0 is asked about it",
        "estimators/importance.py",
        "(t == model.start)",
        "(t > model.start)",
        "test_start",
    ),
    Mutant(
        "guided model: the start stays behind",
        "guidance.py",
        "self.base if self.start is None else self.base.starting(self.start)",
        "self.base",
        "test_start",
    ),
    Mutant(
        "importance: a gradient through the factor of a kernel",
        "estimators/importance.py",
        "self.kernel.temper(log_kernel.detach(), draws, alpha, sigma)",
        "self.kernel.temper(log_kernel, draws, alpha, sigma)",
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
        "plug-in: damping does not leave the Jacobian out",
        "estimators/plug_in.py",
        "self.damping is None if jacobian is None else jacobian",
        "True if jacobian is None else jacobian",
        "test_plug_in",
    ),
    Mutant(
        "plug-in: damping multiplies",
        "estimators/plug_in.py",
        "shift = shift / (1 + self.damping * variance)",
        "shift = shift * (1 + self.damping * variance)",
        "test_plug_in",
    ),
    Mutant(
        "posterior draws: two observations count as one",
        "estimators/posterior_draws.py",
        "total = (outer.alpha / outer.sigma) ** 2 + (inner.alpha / inner.sigma) ** 2",
        "total = (inner.alpha / inner.sigma) ** 2",
        "test_posterior",
    ),
    Mutant(
        "posterior draws: the proposal's density is forgotten",
        "estimators/posterior_draws.py",
        "log_ratio = 0.5 * (noise.square() - misfit.square()).flatten(1).sum(1)",
        "log_ratio = -0.5 * misfit.square().flatten(1).sum(1)",
        "test_posterior",
    ),
    Mutant(
        "posterior sampling: the mean of the draws is not taken off",
        "estimators/posterior.py",
        "weights = (tilted - log_q.softmax(1)).to(x_0)",
        "weights = tilted.to(x_0)",
        "test_posterior",
    ),
    Mutant(
        "posterior sampling: the first states of a run tell of the clean state",
        "estimators/posterior.py",
        "        if t == model.start:",
        "        if t == -1.0:",
        "test_posterior",
    ),
    Mutant(
        "FMPS: the clean state moves as the noisy one does",
        "estimators/fmps.py",
        "gradient / scales.alpha, prediction",
        "gradient, prediction",
        "test_fmps",
    ),
    Mutant(
        "flow prior: errors count alike at all times",
        "regularizers.py",
        "return 0.5 * (slope.abs() * excess).flatten(1).sum(1) + entropy",
        "return 0.5 * excess.flatten(1).sum(1) + entropy",
        "test_regularizers",
    ),
    Mutant(
        "second order: the curvature has the wrong sign",
        "estimators/second_order.py",
        "torch.zeros_like(v) if product is None else -product",
        "torch.zeros_like(v) if product is None else product",
        "test_second_order",
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
        "samplers: noise drawn in the dtype of the states",
        "samplers.py",
        "normal(x_t.shape, generator, x_t.device, x_s.dtype)",
        "normal(x_t.shape, generator, x_t.device, x_t.dtype)",
        "test_samplers",
    ),
    Mutant(
        "samplers: mean for median of the effective draws in a warning",
        "samplers.py",
        'diagnostics["ess_tilted"].median()',
        'diagnostics["ess_tilted"].mean()',
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
        "noise_space/kernels.py",
        "keep = (1 - rho**2).sqrt()",
        "keep = 1 - rho**2",
        "test_noise_space",
    ),
    Mutant(
        "pCN: accepts what is worse",
        "noise_space/kernels.py",
        "return new.log_w - old.log_w\n",
        "return old.log_w - new.log_w\n",
        "test_noise_space",
    ),
    Mutant(
        "pCNL: the density of the way back is lost",
        "noise_space/kernels.py",
        "(back - there).to(new.log_w)",
        "(there - back).to(new.log_w)",
        "test_noise_gradient",
    ),
    Mutant(
        "pCNL: half of the squared gradient is forgotten",
        "noise_space/kernels.py",
        "(along - (1 - keep) / 2 * squared)",
        "(along - (1 - keep) * squared)",
        "test_noise_gradient",
    ),
    Mutant(
        "noise gradient: the scale of the noise enters once",
        "noise_space/gradient.py",
        "moved = z + size * self.std**2 * gradient",
        "moved = z + size * self.std * gradient",
        "test_noise_gradient",
    ),
    Mutant(
        "adapted pCN: steps grow where few are accepted",
        "noise_space/adapted.py",
        "(log_ratio.exp().to(log_odds) - self.target)",
        "(self.target - log_ratio.exp().to(log_odds))",
        "test_adapted_chains",
    ),
    Mutant(
        "adapted pCN: chains in modes of their own may stop",
        "noise_space/adapted.py",
        "return still and _effective(trace) >= effective",
        "return still",
        "test_adapted_chains",
    ),
    Mutant(
        "noise space: candidates interleaved, conditions tiled",
        "noise_space/selection.py",
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
        "towers: embeddings normalized in half precision",
        "rewards/towers.py",
        "F.normalize(embedding.to(working_dtype(embedding.dtype)), dim=-1)",
        "F.normalize(embedding, dim=-1).to(working_dtype(embedding.dtype))",
        "test_towers",
    ),
    Mutant(
        "cache: the newest prompt goes first",
        "rewards/prompt_cache.py",
        "self._entries.popitem(last=False)",
        "self._entries.popitem(last=True)",
        "test_prompt_cache",
    ),
    Mutant(
        "cache: survives a change of dtype",
        "rewards/towers.py",
        "the old one.\n        self._cache = PromptCache()\n",
        "the old one.\n",
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
        '1.0 if flag("incompressible", incompressible) else -1.0',
        '-1.0 if flag("incompressible", incompressible) else 1.0',
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
        "files of PyTorch: pickles are executed",
        "support/tensors.py",
        "weights_only=True",
        "weights_only=False",
        "test_tensor_files",
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
        "SCM: states taken for those of the path",
        "backbones/coordinates.py",
        "size = float(config.sigma_data)",
        "size = 1.0",
        "test_guide_laws",
    ),
    Mutant(
        "draw: one generator for all draws of a batch",
        "backbones/draw.py",
        "[generator_for(*name) for name in names]",
        "[generator_for(*names[0]) for name in names]",
        "test_draw",
    ),
    Mutant(
        "draw: the state before the last step",
        "backbones/draw.py",
        "recorder.state = state_after(result)",
        "recorder.state = sample",
        "test_draw",
    ),
    Mutant(
        "any pipeline: states of Euler schedulers reach the network unscaled",
        "backbones/coordinates.py",
        "return float(self.schedule.alpha(t)) if self.unscaled else 1.0",
        "return 1.0",
        "test_any_pipeline",
    ),
    Mutant(
        "any pipeline: the network is asked at the timestep after",
        "backbones/coordinates.py",
        "timestep = (t * len(scheduler.alphas_cumprod) - 1).clamp(min=0)",
        "timestep = t * len(scheduler.alphas_cumprod)",
        "test_any_pipeline",
    ),
    Mutant(
        "any pipeline: embeddings stay in the order of encoding",
        "backbones/call_condition.py",
        "return value if places or len(value) != n else value[rows]",
        "return value",
        "test_any_pipeline",
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
        'names = [("draw", *stream, prompt, i) for stream in streams for i in range(n)]',
        'names = [("draw", *stream, prompt, 0) for stream in streams for i in range(n)]',
        "test_run",
    ),
    Mutant(
        "draws: batches begin where the last ones end",
        "store/filling.py",
        "values = self.make(batch)",
        "values = self.make(batch := range(gaps[0].start, batch.stop))",
        "test_filling",
    ),
    Mutant(
        "pairs: batches of the missing pictures alone",
        "generation/pairs.py",
        "base, aligned = _align(run, job.method, prompt, numbers, forecast)",
        "numbers = range(wanted[0], numbers.stop); "
        "base, aligned = _align(run, job.method, prompt, numbers, forecast)",
        "test_kills",
    ),
    Mutant(
        "forecast: seconds of a step for those of a run",
        "generation/work.py",
        "self.work.calls * sampling / self.steps",
        "self.work.calls * sampling",
        "test_work",
    ),
    Mutant(
        "split: prompts that differ in case alone are parted",
        "evaluation/prompt_sets.py",
        "self._wording(order[end]) == self._wording(order[end - 1])",
        "order[end] == order[end - 1]",
        "test_prompts",
    ),
    Mutant(
        "common: in the letters in which prompts are given",
        "evaluation/prompt_sets.py",
        "if wording(prompt) in known",
        "if prompt in known",
        "test_prompts",
    ),
    Mutant(
        "tables: quotation marks of TSV are taken for quotes",
        "support/records.py",
        '"excel-tab", quoting=csv.QUOTE_NONE',
        '"excel-tab"',
        "test_records",
    ),
    Mutant(
        "processes: each does everything",
        "support/processes.py",
        "return range(self.rank, n, self.size)",
        "return range(n)",
        "test_processes",
    ),
    Mutant(
        "summary: pictures of a prompt as if prompts did not matter",
        "generation/console.py",
        "unit = [row.prompt for row in pairs] if over_prompts else None",
        "unit = None",
        "test_results",
    ),
    Mutant(
        "folder: a pair without its reward is finished",
        "generation/folder.py",
        "return [row for row in done if not row.error], sorted([*missing, *failed])",
        "return done, missing",
        "test_failures",
    ),
    Mutant(
        "best of n: takes the worst",
        "generation/methods.py",
        "pick = int(values.argmax())",
        "pick = int(values.argmin())",
        "test_methods",
    ),
    Mutant(
        "store: a shard is believed whatever its digest",
        "store/shards.py",
        "if not found.sha256.startswith(self.sha256):",
        "if False:",
        "test_damage",
    ),
    Mutant(
        "store: entries of a shard are read from its start",
        "store/shards.py",
        "[rows.start - self.start : rows.stop - self.start]",
        "[: len(rows)]",
        "test_columns",
    ),
    Mutant(
        "store: shards are merged without regard to gaps",
        "store/columns.py",
        "group[-1].stop == shard.start and fits",
        "fits",
        "test_columns",
    ),
    Mutant(
        "importance: draws of another law count as those of the model",
        "estimators/importance.py",
        "log_kernel = log_kernel.add_(draws.log_importance)",
        "pass",
        "test_importance",
    ),
    Mutant(
        "beta: draws of another law count as those of the model",
        "temperature.py",
        "log_w = strength * finite + log_q[rewards.isfinite()]",
        "log_w = strength * finite",
        "test_temperature",
    ),
    Mutant(
        "networks for latents: states in the units of their path",
        "networks/guidance.py",
        "x = (x_t / (scales.alpha**2 + scales.sigma**2).sqrt())",
        "x = x_t",
        "test_latents",
    ),
    Mutant(
        "networks for latents: shift without its size",
        "networks/guidance.py",
        "out = posterior_variance(scales) * out",
        "pass",
        "test_latents",
    ),
    Mutant(
        "networks for latents: tokens that are not there are seen",
        "networks/convolutions.py",
        "if mask is not None:",
        "if False:",
        "test_prompted_networks",
    ),
    Mutant(
        "networks for latents: factors by the strength, not by its logarithm",
        "networks/guidance.py",
        "dtype=out.dtype, device=out.device).log()",
        "dtype=out.dtype, device=out.device)",
        "test_prompted_networks",
    ),
    Mutant(
        "objectives: what was encoded does not reach the network",
        "training/objectives.py",
        "condition if self.encode is None else self.encode(condition)",
        "condition",
        "test_latents",
    ),
    Mutant(
        "objectives: draws of another law count as those of the model",
        "training/objectives.py",
        "return (self.log_importance.exp().to(values) * values).mean()",
        "return values.mean()",
        "test_weighted_banks",
    ),
    Mutant(
        "flow map: the first state is taken for one of the path",
        "noise_space/generators.py",
        "model = model.starting(float(times[0]))",
        "pass",
        "test_noise_space",
    ),
    Mutant(
        "choice: banks are as large for weak tilts as for strong ones",
        "generation/choice.py",
        'math.exp(given.get("kl", 1.0))',
        "math.exp(1.0)",
        "test_choice",
    ),
    Mutant(
        "choice: unguided pictures cost nothing where they are chosen from",
        "generation/choice.py",
        "if method.chooses:",
        "if False:",
        "test_choice",
    ),
    Mutant(
        "estimated shifts: states of the tilted law are weighed again",
        "training/estimated.py",
        "log_weight[len(index) - self._of_tilted :] = 0",
        "pass",
        "test_estimated",
    ),
    Mutant(
        "estimated shifts: the bank's mean is the model's",
        "training/estimated.py",
        "torch.where(good[:, None], own, self.base(batch).mean.flatten(1))",
        "own",
        "test_estimated",
    ),
    Mutant(
        "gradients: noise of any width is that of width one",
        "training/gradients.py",
        "self.std**2 * of_z",
        "of_z",
        "test_one_step_gradients",
    ),
    Mutant(
        "gradients: pictures are made anew in every step",
        "training/gradients.py",
        "    @cached_property\n",
        "    @property\n",
        "test_one_step_gradients",
    ),
    Mutant(
        "one step: the proximal term has no half",
        "training/one_step.py",
        "near = change.square().flatten(1).sum(1) / (2 * self.variance)",
        "near = change.square().flatten(1).sum(1) / self.variance",
        "test_one_step",
    ),
    Mutant(
        "one step: noise of any width is that of width one",
        "training/one_step.py",
        "/ (2 * self.std**2)",
        "/ 2",
        "test_one_step",
    ),
    Mutant(
        "one step: output networks go back through the generator",
        "training/one_step.py",
        "with torch.no_grad():",
        "if True:",
        "test_one_step",
    ),
    Mutant(
        "calibration: the law's own mean does not count",
        "training/calibration.py",
        " - plain.softmax(0) @ own)",
        ")",
        "test_calibration",
    ),
    Mutant(
        "objectives: groups of another law count as those of the model",
        "training/objectives.py",
        "shares.multinomial(",
        "torch.ones_like(shares).multinomial(",
        "test_weighted_banks",
    ),
]


class BrokenTests(Exception):
    """Tests that should notice a mutant fail without it."""


def files_named(names: str) -> list[str]:
    """The files of tests of these names.

    Raises:
        LookupError: If there is none of some name.
    """

    found = []
    for name in names.split():
        paths = sorted((ROOT / "tests").rglob(f"{name}.py"))
        if not paths:
            raise LookupError(f"there is no {name}.py under tests/")
        found += [path.relative_to(ROOT).as_posix() for path in paths]
    return found


def mutated(mutant: Mutant) -> tuple[str, str]:
    """The file that a mutant changes, relative to the repository, and its text with the change.

    Raises:
        LookupError: If the file does not hold what is changed.
    """

    package = "" if mutant.file.startswith(("rewards/", "backbones/")) else "rwguidance/"
    source = (ROOT / package / mutant.file).read_text(encoding="utf-8")
    if mutant.old not in source:
        raise LookupError(f"mutant {mutant.what!r} does not apply to {mutant.file} any more")
    return package + mutant.file, source.replace(mutant.old, mutant.new)


def control(copy: Copy, names: str) -> None:
    """Checks that tests pass as they are.

    Raises:
        BrokenTests: If one fails.
    """

    outcome = copy.run(files_named(names), _LIMIT)
    if outcome.verdict != "passed":
        raise BrokenTests(f"{outcome.first} fails without any mutant")


def kill(copy: Copy, mutant: Mutant) -> Outcome:
    """Runs the tests that should notice a mutant."""

    file, text = mutated(mutant)
    with copy.changed(file, text):
        return copy.run(files_named(mutant.tests), _LIMIT)


_LIMIT = 1200.0
"""Seconds that the tests of a mutant of the list may take."""


def in_copies(
    function: Callable[[Copy, Item], Result], items: Iterable[Item], workers: int
) -> list[Result]:
    """Calls a function with a copy of the repository and each item, in parallel."""

    with ExitStack() as stack:
        free: queue.SimpleQueue[Copy] = queue.SimpleQueue()
        for _ in range(workers):
            free.put(stack.enter_context(Copy()))

        def call(item: Item) -> Result:
            copy = free.get()
            try:
                return function(copy, item)
            finally:
                free.put(copy)

        with ThreadPoolExecutor(workers) as pool:
            return list(pool.map(call, items))


def run_list(workers: int) -> int:
    """Runs the mutants of the list, prints a table, and returns how many survive."""

    in_copies(control, dict.fromkeys(mutant.tests for mutant in MUTANTS), workers)
    results = in_copies(kill, MUTANTS, workers)
    for mutant, outcome in zip(MUTANTS, results, strict=True):
        verdict = "killed  " if outcome.noticed else "SURVIVED"
        print(f"{verdict} {outcome.seconds:5.0f} s  {mutant.what}  [{outcome.first.strip()}]")
    survivors = sum(not outcome.noticed for outcome in results)
    print(f"{len(MUTANTS) - survivors} of {len(MUTANTS)} mutants killed")
    return survivors


def run_random(draw: dict[str, Any], limit: float, workers: int, lines: Path | None = None) -> int:
    """Runs random mutants, prints a table, and returns how many survive without a reason.

    Arguments:
        draw: Arguments of `random_mutants.choose`.
        limit: Seconds that the tests of one may take.
        workers: Number of processes.
        lines: Notes of a run with `-p line_map`, by which they are tried in forks first.
    """

    chosen = list(enumerate(choose(**draw)))
    reasons = {(entry.file, entry.old, entry.new): entry.reason for entry in equivalents()}
    excused = lambda mutation: reasons.get((mutation.file, mutation.old, mutation.new))
    noticed = {}
    if lines is not None:
        places = [place for place, mutation in chosen if not excused(mutation)]
        noticed = try_forked(places, draw, lines, workers)

    def run(copy: Copy, item: tuple[int, Mutation]) -> tuple[str, Mutation]:
        place, mutation = item
        if excused(mutation):
            outcome = Outcome("equivalent", 0.0, str(excused(mutation)))
        else:
            outcome = noticed.get(place) or notice(copy, mutation, limit)
        verdict = "killed" if outcome.noticed else outcome.verdict
        verdict = "SURVIVED" if verdict in ("passed", "time limit") else verdict
        note = outcome.first.strip()
        if outcome.verdict == "time limit":
            note = f"time limit at {note}"
        where = f"{mutation.kind:9s} {mutation.file}:{mutation.line}"
        print(f"{verdict:10s} {outcome.seconds:4.0f} s  {where}  [{note}]", flush=True)
        return verdict, mutation

    results = in_copies(run, chosen, workers)
    survivors = [mutation for verdict, mutation in results if verdict == "SURVIVED"]
    for mutation in survivors:
        print(f"\n{mutation.file}:{mutation.line}\n- {mutation.old}\n+ {mutation.new}")
    equivalent = sum(verdict == "equivalent" for verdict, _ in results)
    killed = len(results) - len(survivors) - equivalent
    print(f"\n{killed} killed, {equivalent} equivalent, {len(survivors)} survive")
    return len(survivors)


def main() -> int:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--random", type=int, metavar="N", help="N random mutants instead")
    parser.add_argument("--seed", type=int, default=0, help="of the random ones; default 0")
    parser.add_argument("--only", nargs="+", choices=files(), metavar="FILE", help="mutate these")
    parser.add_argument(
        "--limit", type=float, default=300.0, help="seconds for a random one; default 300"
    )
    parser.add_argument(
        "--lines", type=Path, metavar="FOLDER", help="notes of pytest -p line_map: forks come first"
    )
    parser.add_argument("--workers", type=int, default=os.cpu_count(), help="default: every core")
    given = parser.parse_args()
    started = time.monotonic()
    if given.random is None:
        survivors = run_list(given.workers)
    else:
        draw = {"count": given.random, "seed": given.seed, "among": given.only}
        survivors = run_random(draw, given.limit, given.workers, given.lines)
    print(f"{(time.monotonic() - started) / 60:.1f} minutes")
    return 1 if survivors else 0


if __name__ == "__main__":
    sys.exit(main())
