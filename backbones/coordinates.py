r"""Coordinates in which the schedulers of diffusers keep states, and the meaning of outputs.

A scheduler is handed the output of a network and a state. Four kinds of state occur:

- :math:`x_0 + (\sigma_t / \alpha_t) \epsilon`, unscaled: EulerDiscrete, EulerAncestralDiscrete,
  HeunDiscrete, KDPM2Discrete, KDPM2AncestralDiscrete and LMSDiscrete,
- :math:`\alpha_t x_0 + \sigma_t \epsilon` with :math:`\alpha_t^2 + \sigma_t^2 = 1`: DDIM, DDPM,
  PNDM, LCM, TCD, and without flow sigmas DPMSolverMultistep, DPMSolverSinglestep, DEISMultistep and
  UniPCMultistep,
- :math:`(1 - \sigma) x_0 + \sigma \epsilon` on the straight path: FlowMatchEulerDiscrete,
  FlowMatchHeunDiscrete, FlowMatchLCM, and these four solvers with flow sigmas,
- :math:`\varsigma \, (\cos(t) \, x_0 + \sin(t) \, \epsilon)`, of the size :math:`\varsigma`
  that the scheduler has as `sigma_data`, with t an angle: SCM.

Having a table of sigmas says nothing about which of them it is, so the classes are listed one by
one. The first two are one path here, the :class:`~rwguidance.DiscreteSchedule` of the scheduler's
table, on which states are :math:`\alpha_t x_0 + \sigma_t \epsilon`.
"""

from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor

from rwguidance import CosineSchedule, DiscreteSchedule, Prediction, RectifiedSchedule, Schedule
from rwguidance.schedules import Scales, working_dtype

__all__ = ["Coordinates", "read_output", "table_times"]

Level = Callable[[Any, Any], Any]
"""Maps (scheduler, timestep), at a call of `step`, to the sigma or index where it stands."""


def _sigma(scheduler: Any, timestep: Any) -> Any:
    return scheduler.sigmas[scheduler.step_index]


def _sigma_kdpm2(scheduler: Any, timestep: Any) -> Any:
    first = scheduler.state_in_first_order
    sigmas = scheduler.sigmas if first else scheduler.sigmas_interpol
    return sigmas[scheduler.step_index]


def _sigma_kdpm2_ancestral(scheduler: Any, timestep: Any) -> Any:
    if scheduler.state_in_first_order:
        return scheduler.sigmas[scheduler.step_index]
    return scheduler.sigmas_interpol[scheduler.step_index - 1]


def _index(scheduler: Any, timestep: Any) -> Any:
    return int(timestep)


def _angle(scheduler: Any, timestep: Any) -> Any:
    return scheduler.timesteps[scheduler.step_index]


@dataclass(frozen=True)
class _Kind:
    """A class of schedulers.

    Arguments:
        state: Kind of its states, "ve", "vp", "flow" or "angle".
        level: Map to the noise level at which it stands.
        prediction_types: Prediction types that its `step` knows.
    """

    state: str
    level: Level
    prediction_types: tuple[str, ...]


_EPS_V = ("epsilon", "v_prediction")
_ALL = (*_EPS_V, "sample")
_FLOW = ("flow_prediction",)
_ANGLE = ("trigflow",)

_KINDS = {
    "EulerDiscreteScheduler": _Kind("ve", _sigma, _ALL),
    "EulerAncestralDiscreteScheduler": _Kind("ve", _sigma, _EPS_V),
    "HeunDiscreteScheduler": _Kind("ve", _sigma, _ALL),
    "KDPM2DiscreteScheduler": _Kind("ve", _sigma_kdpm2, _EPS_V),
    "KDPM2AncestralDiscreteScheduler": _Kind("ve", _sigma_kdpm2_ancestral, _EPS_V),
    "LMSDiscreteScheduler": _Kind("ve", _sigma, _ALL),
    "DDIMScheduler": _Kind("vp", _index, _ALL),
    "DDPMScheduler": _Kind("vp", _index, _ALL),
    "PNDMScheduler": _Kind("vp", _index, _EPS_V),
    "LCMScheduler": _Kind("vp", _index, _ALL),
    "TCDScheduler": _Kind("vp", _index, _ALL),
    "DPMSolverMultistepScheduler": _Kind("vp", _sigma, _ALL),
    "DPMSolverSinglestepScheduler": _Kind("vp", _sigma, _ALL),
    "DEISMultistepScheduler": _Kind("vp", _sigma, _ALL),
    "UniPCMultistepScheduler": _Kind("vp", _sigma, _ALL),
    "FlowMatchEulerDiscreteScheduler": _Kind("flow", _sigma, _FLOW),
    "FlowMatchHeunDiscreteScheduler": _Kind("flow", _sigma, _FLOW),
    "FlowMatchLCMScheduler": _Kind("flow", _sigma, _FLOW),
    "SCMScheduler": _Kind("angle", _angle, _ANGLE),
}
"""Schedulers by the class of diffusers that defines their `step`."""


@dataclass(frozen=True)
class Coordinates:
    r"""Coordinates of one scheduler: reads its states and the outputs that it is handed.

    Arguments:
        schedule: The path.
        unscaled: Whether states come as :math:`x_0 + (\sigma_t / \alpha_t) \epsilon`.
        prediction_type: Meaning of an output of the network: "epsilon", "v_prediction", "sample"
            or "flow_prediction".
        level: Map to the noise level at which the scheduler stands at a call of its `step`.
        size: Factor of the scheduler's states and of the outputs that it is handed, to those of
            the path.
    """

    schedule: Schedule
    unscaled: bool
    prediction_type: str
    level: Level
    size: float = 1.0

    @classmethod
    def from_scheduler(cls, scheduler: Any) -> "Coordinates":
        """The coordinates of a scheduler of diffusers.

        Arguments:
            scheduler: The scheduler.

        Raises:
            TypeError: If its class, or its configuration, is not one of those that are understood.
        """

        name = type(scheduler).__name__
        # A subclass with a step of its own is another scheduler.
        bases = type(scheduler).__mro__
        own = next((base for base in bases if "step" in vars(base)), object)
        kind = _KINDS.get(own.__name__)
        if kind is None or not own.__module__.startswith("diffusers."):
            raise TypeError(f"guidance understands the schedulers {', '.join(_KINDS)}; got {name}")
        config = scheduler.config
        flow = kind.state == "flow" or config.get("use_flow_sigmas", False)
        known = _FLOW if flow else kind.prediction_types
        prediction_type = config.get("prediction_type", known[0])
        if prediction_type not in known:
            raise TypeError(
                f"{name} with{'' if flow else 'out'} flow sigmas must have one of the prediction "
                f"types {', '.join(known)} to be guided, got {prediction_type!r}"
            )
        reason = _unsupported(config, flow and kind.state != "flow")
        if reason is not None:
            raise TypeError(f"{name} cannot be guided with the configuration {reason}")
        if kind.state == "angle":  # on a circle, the velocity along the angle is v
            size = float(config.sigma_data)
            return cls(CosineSchedule(), False, "v_prediction", kind.level, size)
        schedule = RectifiedSchedule() if flow else DiscreteSchedule(scheduler.alphas_cumprod)
        return cls(schedule, kind.state == "ve", prediction_type, kind.level)

    def time(self, scheduler: Any, timestep: Any) -> Tensor:
        """The time at which a scheduler is about to step, in [0, 1], a float64 scalar.

        Second stages of a step stand at noise levels of their own, so it is asked at every call.

        Arguments:
            scheduler: The scheduler.
            timestep: The timestep that its `step` is given.

        Raises:
            ValueError: If the noise level lies beyond those of the network's path.
        """

        if getattr(scheduler, "step_index", 0) is None:  # as `step` itself does, later
            scheduler._init_step_index(timestep)
        level = torch.as_tensor(self.level(scheduler, timestep), dtype=torch.float64).cpu()
        if isinstance(self.schedule, RectifiedSchedule):
            t = level
        elif isinstance(self.schedule, CosineSchedule):
            t = 2 / torch.pi * level
            t = torch.where((t - 1).abs() < 1e-5, 1.0, t)  # pipelines write 1.57080 for pi / 2
        elif self.level is _index:
            t = (level + 1) / len(scheduler.alphas_cumprod)
        else:
            t = table_times(self.schedule, len(scheduler.alphas_cumprod), -2 * level.log())
        if not 0 <= float(t) <= 1:
            raise ValueError(
                f"the scheduler stands at noise level {float(level):.4g}, beyond those on which "
                "the network was trained"
            )
        return t

    def times(self, scheduler: Any) -> Tensor:
        """The times that a scheduler visits, once its timesteps are set.

        Arguments:
            scheduler: The scheduler, whose place is changed.

        Returns:
            Strictly decreasing times, the last one 0, float64, with shape (steps + 1,). A noise
            level that is visited twice is there once.
        """

        found: list[float] = []
        for index, timestep in enumerate(scheduler.timesteps):
            scheduler._step_index = index
            t = float(self.time(scheduler, timestep))
            if t > 0 and (not found or t < found[-1]):
                found.append(t)
        return torch.tensor([*found, 0.0], dtype=torch.float64)

    def timestep(self, scheduler: Any, t: Tensor) -> Tensor:
        """The timestep with which a pipeline asks its network at a time; the inverse of `time`.

        Arguments:
            scheduler: The scheduler, once its timesteps are set.
            t: The time, a float64 scalar.
        """

        if isinstance(self.schedule, RectifiedSchedule):
            timestep = t * scheduler.config.num_train_timesteps  # solvers of diffusion cut it
        elif isinstance(self.schedule, CosineSchedule):
            timestep = t * torch.pi / 2
        else:
            timestep = (t * len(scheduler.alphas_cumprod) - 1).clamp(min=0)
            if not scheduler.timesteps.is_floating_point():
                timestep = timestep.round()
        return timestep.to(scheduler.timesteps.dtype)

    def input_scale(self, t: Tensor) -> float:
        """The factor of the scheduler's states before the network.

        Arguments:
            t: Time of the states, a float64 scalar.
        """

        return float(self.schedule.alpha(t)) if self.unscaled else 1.0

    def read(self, output: Tensor, sample: Tensor, t: Tensor) -> tuple[Tensor, Prediction]:
        r"""The state on the path and its prediction, in float32 or wider.

        Arguments:
            output: The network's output, with shape (B, \*event).
            sample: The scheduler's state, with the same shape.
            t: Time of the step, as from :meth:`time`.
        """

        dtype = working_dtype(output.dtype, sample.dtype)
        output, x_t = output.to(dtype) / self.size, sample.to(dtype) / self.size
        scales = self.schedule.at(t, like=x_t)
        if self.unscaled:
            x_t = scales.alpha * x_t
        return x_t, read_output(self.prediction_type, output, x_t, scales)

    def state(self, x_t: Tensor, t: Tensor) -> Tensor:
        """The state of the scheduler that a state on the path is; the inverse of :meth:`read`."""

        if self.unscaled:
            x_t = x_t / self.schedule.at(t, like=x_t).alpha
        return self.size * x_t

    def write(self, prediction: Prediction) -> Tensor:
        """The output that the scheduler is to be handed for a prediction."""

        return self.size * self._output(prediction)

    def _output(self, prediction: Prediction) -> Tensor:
        if self.prediction_type == "epsilon":
            return prediction.noise
        if self.prediction_type == "flow_prediction":
            return prediction.velocity
        if self.prediction_type == "v_prediction":
            scales = prediction.scales
            return scales.alpha * prediction.noise - scales.sigma * prediction.mean
        return prediction.mean


def read_output(prediction_type: str, output: Tensor, x_t: Tensor, scales: Scales) -> Prediction:
    r"""The prediction that an output of a network states.

    Arguments:
        prediction_type: Meaning of the output, in the words of diffusers: "epsilon",
            "v_prediction", "sample" or "flow_prediction".
        output: The output, with shape (B, \*event).
        x_t: The states on the path, with the same shape.
        scales: The path at their times. v is defined where :math:`\alpha_t^2 + \sigma_t^2 = 1`.
    """

    if prediction_type == "epsilon":
        return Prediction.from_noise(output, x_t, scales)
    if prediction_type == "flow_prediction":
        return Prediction.from_velocity(output, x_t, scales)
    if prediction_type == "v_prediction":  # v = alpha noise - sigma mean
        output = scales.alpha * x_t - scales.sigma * output
    return Prediction.from_mean(output, x_t, scales)


def _unsupported(config: Any, mixed: bool) -> str | None:
    """The setting that changes coordinates in a way not understood here, if there is one."""

    if config.get("timestep_type", "discrete") != "discrete":
        return f"timestep_type={config.timestep_type!r}"
    if config.get("variance_type") in ("learned", "learned_range"):
        return f"variance_type={config.variance_type!r}"
    if config.get("invert_sigmas", False):
        return "invert_sigmas=True"
    spacings = ("karras_sigmas", "exponential_sigmas", "beta_sigmas", "lu_lambdas")
    for name in (f"use_{spacing}" for spacing in spacings):
        if mixed and config.get(name, False):  # these are sigmas of the other path
            return f"use_flow_sigmas=True, {name}=True"
    return None


def table_times(schedule: Schedule, num_train_timesteps: int, log_snr: Tensor) -> Tensor:
    """Times of noise levels that a scheduler computed in float32.

    Nearly all of them are entries of its table, and are rounded to these.

    Arguments:
        schedule: The path through the table.
        num_train_timesteps: Number of entries of the table.
        log_snr: Log-SNR of the noise levels, in nats, with any shape.
    """

    position = num_train_timesteps * schedule.time(log_snr)
    nearest = position.round()
    return torch.where((position - nearest).abs() < 1e-3, nearest, position) / num_train_timesteps
