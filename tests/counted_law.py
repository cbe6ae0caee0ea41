"""A model, and a reward, that count what is asked of them; a backward pass counts as two calls."""

from torch import nn

from pixel_law import Brightness, Law


class CountedLaw(Law):
    """Counts calls of the network, and pictures decoded."""

    depends_on = Law.depends_on
    incidental = (*Law.incidental, "network", "decoded")
    network = decoded = 0

    def forward(self, x_t, t, condition=None):
        prediction = super().forward(x_t, t, condition)
        count(self, "network", 1, prediction.mean)
        return prediction

    def decode(self, latents):
        images = super().decode(latents)
        count(self, "decoded", len(images), images)
        return images


class CountedBrightness(nn.Module):
    """Counts pictures scored."""

    depends_on = ("reward",)

    def __init__(self):
        super().__init__()
        self.reward = Brightness()
        self._scored = 0

    def forward(self, images, prompts):
        values = self.reward(images, prompts)
        count(self, "_scored", len(images), values)
        return values


def count(owner, name, n, result):
    add = lambda n: setattr(owner, name, getattr(owner, name) + n)
    add(n)
    if result.requires_grad:
        result.register_hook(lambda _: add(2 * n))


def counts(law, reward):
    """Calls, pictures decoded and pictures scored."""

    return law.network, law.decoded, reward._scored


def said_in(sentence):
    """The same three numbers of a forecast's sentence."""

    numbers = [word.replace(",", "") for word in sentence.split(": ", 1)[1].split()]
    calls, _, decoded, scored = (int(word) for word in numbers if word.isdigit())
    return calls, decoded, scored
