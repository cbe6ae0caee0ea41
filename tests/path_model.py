"""A model with a path, a text of two embeddings, and pictures both ways: what trainings take."""

import torch
import torch.nn.functional as F

from rwguidance import Backbone, RectifiedSchedule, toy
from rwguidance.support.randomness import normal

SHAPE = (1, 4, 4)


class PathModel(Backbone):
    """States from N(0, I), of one channel and four by four pixels; two steps."""

    depends_on = ("schedule",)

    def __init__(self):
        super().__init__(RectifiedSchedule())
        self.encoded = []

    def condition(self, prompts):
        self.encoded.append(tuple(prompts))
        codes = torch.tensor([[len(p), p.count("a"), p.count("e")] for p in prompts]).float()
        return Text(prompts, {"pooled": codes, "text": codes[:, None].repeat(1, 2, 1)})

    def forward(self, x_t, t, condition=None):
        law = toy.Gaussian(torch.zeros(16), torch.eye(16)).model(self.schedule)
        mean = law(x_t.flatten(1), t).mean.reshape(x_t.shape)
        scales = self.schedule.at(t, like=x_t)
        return type(law(x_t.flatten(1), t)).from_mean(mean, x_t, scales)

    def draw_noise(self, n, generator=None):
        return normal((n, *SHAPE), generator)

    def decode(self, latents):
        large = F.interpolate(latents, scale_factor=4).expand(-1, 3, -1, -1)
        return (0.5 + 0.1 * large).clamp(0, 1)

    def encode(self, images):
        return 10 * (F.avg_pool2d(images.mean(1, keepdim=True), 4) - 0.5)

    def times(self, steps=None):
        return torch.linspace(1, 0, (steps or 2) + 1, dtype=torch.float64)


class Text:
    """Prompts with their embeddings."""

    def __init__(self, prompts, embeddings):
        self.prompts = tuple(prompts)
        self.embeddings = embeddings

    def restored(self, prompts, embeddings):
        return Text(prompts, embeddings)

    def __len__(self):
        return len(self.prompts)

    def __iter__(self):
        return iter(self.prompts)

    def __getitem__(self, index):
        rows = list(range(len(self)))[index] if isinstance(index, slice) else index
        found = {name: value[rows] for name, value in self.embeddings.items()}
        return Text([self.prompts[i] for i in rows], found)
