"""Muon: orthogonal steps of matrices, Adam for all else."""

import pytest
import torch

from rwguidance_testbed import turbo
from rwguidance_testbed.training import muon


class TestMuon:
    @pytest.mark.parametrize("shape", [(3, 16, 40), (2, 40, 16)])
    def test_matrices_are_nearly_orthogonal_and_keep_their_axes(self, generator, shape):
        matrices = torch.randn(*shape, generator=generator) * 1e-6
        found = muon.orthogonal(matrices).float()
        u, _, vh = torch.linalg.svd(matrices, full_matrices=False)
        inside = u.mT @ found @ vh.mT
        values = inside.diagonal(dim1=1, dim2=2)
        assert 0.5 < float(values.min()) <= float(values.max()) < 1.4
        assert float((inside - torch.diag_embed(values)).abs().max()) < 0.1

    def steps(self, optimizer, weight, count=4):
        draws = torch.Generator().manual_seed(3)
        for _ in range(count):
            weight.grad = torch.randn(weight.shape, generator=draws)
            optimizer.step()
        return weight.detach()

    def test_what_is_no_matrix_is_moved_by_adam(self, generator):
        start = torch.randn(5, 4, generator=generator)
        ours, theirs = (torch.nn.Parameter(start.clone()) for _ in range(2))
        rows = [{"params": [ours], "matrices": False}]
        settings = {"lr": 0.1, "weight_decay": 0.3, "betas": (0.8, 0.9)}
        found = self.steps(muon.Muon(rows, **settings), ours)
        expected = self.steps(torch.optim.AdamW([theirs], **settings), theirs)
        assert torch.allclose(found, expected, atol=1e-5)

    def test_matrices_follow_their_momentum(self, generator):
        start = torch.randn(6, 9, generator=generator)
        weight = torch.nn.Parameter(start.clone())
        rows = [{"params": [weight], "matrices": True}]
        optimizer = muon.Muon(rows, lr=0.1, momentum=0.7, weight_decay=0.2)
        found = self.steps(optimizer, weight, count=2)
        draws = torch.Generator().manual_seed(3)
        expected, momentum = start, torch.zeros(6, 9)
        for _ in range(2):
            gradient = torch.randn(6, 9, generator=draws)
            momentum = 0.7 * momentum + 0.3 * gradient
            step = muon.orthogonal((0.3 * gradient + 0.7 * momentum)[None])[0].float()
            expected = expected * (1 - 0.1 * 0.2) - 0.1 * 0.2 * 3 * step
        assert torch.allclose(found, expected, atol=1e-3)

    def test_only_weights_of_linear_layers_in_blocks_are_matrices(self, flow_pipe):
        parts = [flow_pipe.transformer, flow_pipe.text_encoder, flow_pipe.text_encoder_2]
        matrices, others = muon.groups(parts)
        names = {p: name for part in parts for name, p in part.named_parameters()}
        assert len(matrices["params"]) + len(others["params"]) == len(names)
        found = {names[p] for p in matrices["params"]}
        assert {name for name in found if name.startswith("transformer_blocks.")}
        assert not {name for name in found if "embed" in name or "bias" in name}
        assert {names[p] for p in others["params"]} >= {"proj_out.weight", "pos_embed.proj.weight"}

    def test_a_convolution_is_a_matrix(self, generator):
        start = torch.randn(6, 4, 3, 3, generator=generator)
        gradient = torch.randn(6, 4, 3, 3, generator=generator)
        moved = []
        for shape in ((6, 4, 3, 3), (6, 36)):
            weight = torch.nn.Parameter(start.reshape(shape).clone())
            weight.grad = gradient.reshape(shape)
            muon.Muon([{"params": [weight], "matrices": True}], lr=0.1).step()
            moved.append(weight.detach().reshape(6, 36))
        assert torch.equal(*moved)
        assert not torch.equal(moved[0], start.reshape(6, 36))

    def test_convolutions_in_blocks_are_turned_and_the_outer_ones_are_not(self, flow_pipe):
        unet = turbo.new(flow_pipe, smoke=True).unet
        matrices, others = muon.groups([unet])
        names = {p: name for name, p in unet.named_parameters()}
        found = {names[p] for p in matrices["params"]}
        assert "up_blocks.1.resnets.0.conv1.weight" in found
        assert {names[p] for p in others["params"]} >= {"conv_in.weight", "conv_out.weight"}
        assert all(p.ndim in (2, 4) for p in matrices["params"])
