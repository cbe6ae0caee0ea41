r"""Tilting the noise of a generator: samples of the tilted law from rewards alone.

A generator :math:`x_0 = G(z, y)` turns noise :math:`z \sim N(0, C)` into clean states: a one-step
network, or a model with a deterministic sampler. Its law is that of G(z), and tilting the noise
tilts it exactly:

.. math:: z \sim N(0, C) \, w(G(z, y), y) / Z(y) \quad \Rightarrow \quad
    x_0 = G(z, y) \sim p(x_0 | y) \, w(x_0, y) / Z(y)

No density or score is needed, of the generator or of the reward, and no property of the path; a
gradient of both, where there is one, saves calls (:func:`noise_gradient`, :func:`pcnl`). This is
the exact object where one step leaves nothing to guide. The price is paid in calls of the
generator.

Clean states are kept with their noise and never generated twice. A generator that draws numbers
of its own (an ancestral sampler) therefore keeps every statement here true of its law, but `noise`
no longer reproduces `x_0`, and proposals of :func:`pcn` are not close to where they come from. If
the generator is a guided model, the law that is tilted is the guided one.
"""

from .adapted import adapted_pcn
from .banks import draw_bank
from .chains import pcn, pcnl
from .generators import Draw, Generate, flow_map
from .gradient import GainOutOfReach, noise_gradient, size_for_gain
from .networks import change_map, noise_map, output_map
from .selection import best_of_n, soft_best_of_n
from .tasks import Selection

__all__ = [
    "Draw",
    "GainOutOfReach",
    "Generate",
    "Selection",
    "adapted_pcn",
    "best_of_n",
    "change_map",
    "draw_bank",
    "flow_map",
    "noise_gradient",
    "noise_map",
    "output_map",
    "pcn",
    "pcnl",
    "size_for_gain",
    "soft_best_of_n",
]
