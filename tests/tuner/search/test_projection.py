"""The random projection p = A z + p0."""

from __future__ import annotations

import math

import numpy as np
import pytest
import torch

from bbt_fast.engine.embeddings import clipped_spread, spread_of
from bbt_fast.tuner.search.projection import PROJECTIONS, TRANSFERRED, FullSpace, draw_projections, normal_scale

N, H, D = 4, 50, 30
CPU = torch.device("cpu")


def draw(kind: str = "normal", seed: int = 1, scales: tuple[float, ...] = (0.5, 2.0)):
    """Projections of layers with these scales."""
    origins = [torch.full((N, H), float(i)) for i in range(len(scales))]
    return draw_projections(kind, seed, D, scales, origins, CPU)


@pytest.mark.parametrize("kind", PROJECTIONS)
def test_a_population_is_projected_as_each_candidate_alone(kind):
    candidates = np.random.default_rng(0).normal(size=(5, D))
    for layer, projection in enumerate(draw(kind)):
        prompts = projection(candidates)
        assert prompts.shape == (5, N, H)
        for prompt, z in zip(prompts, candidates, strict=True):
            expected = (projection.matrix.double().numpy() @ z).reshape(N, H) + layer
            np.testing.assert_allclose(prompt.numpy(), expected, atol=1e-4)


@pytest.mark.parametrize("kind", PROJECTIONS)
def test_zero_projects_to_p0(kind):
    assert torch.equal(draw(kind)[1](np.zeros((1, D)))[0], torch.ones(N, H))


@pytest.mark.parametrize("kind", PROJECTIONS)
def test_a_layers_matrix_depends_on_the_seed_and_the_layer_alone(kind):
    two, three, other = draw(kind), draw(kind, scales=(0.5, 2.0, 1.0)), draw(kind, seed=2)
    assert torch.equal(two[1].matrix, three[1].matrix)
    assert not torch.equal(two[0].matrix, two[1].matrix)
    assert not torch.equal(two[0].matrix, other[0].matrix)


@pytest.mark.parametrize("kind", PROJECTIONS)
def test_every_embedding_has_a_matrix_of_its_own(kind):
    origins = [torch.zeros(N, H)]
    drawn = [draw_projections(kind, 42, D, [1.0], origins, CPU, embedding)[0].matrix for embedding in (0, 1, 2)]
    assert not torch.equal(drawn[0], drawn[1])
    assert not torch.equal(drawn[1], drawn[2])


def test_a_matrix_turned_towards_earlier_prompts_keeps_its_scale_and_has_a_share_along_them():
    rng = np.random.default_rng(3)
    earlier = (
        torch.from_numpy(rng.normal(size=(3, 2, N, H)).astype(np.float32))
        * torch.tensor([1.0, 5.0, 0.1])[:, None, None, None]
    )
    origins = [torch.zeros(N, H)] * 2
    turned = draw_projections("normal", 1, 500, [0.5, 2.0], origins, CPU, 0, earlier)
    for layer, (projection, scale) in enumerate(zip(turned, (0.5, 2.0), strict=True)):
        assert spread_of(projection.matrix) == pytest.approx(scale, rel=0.05)
        basis = torch.linalg.qr(earlier[:, layer].flatten(1).T).Q
        along = float((basis.T @ projection.matrix).square().sum() / projection.matrix.square().sum())
        assert along == pytest.approx(TRANSFERRED, abs=0.1)
        unit = torch.nn.functional.normalize(earlier[:, layer].flatten(1), dim=1)
        shares = (unit @ projection.matrix).square().mean(dim=1)
        assert float(shares.max() / shares.min()) < 1.5  # a long prompt counts as a short one
    plain = draw_projections("normal", 1, 500, [0.5, 2.0], origins, CPU)
    apart = plain[0].matrix - plain[0].matrix.mean()
    assert not torch.allclose(turned[0].matrix, apart, atol=0.1)


def test_normal_has_the_scale_asked_for():
    for projection, scale in zip(draw("normal"), (0.5, 2.0), strict=True):
        assert spread_of(projection.matrix) == pytest.approx(scale, rel=0.05)
        assert abs(float(projection.matrix.mean())) < 0.1 * scale


def test_uniform_fills_the_range_of_a_fresh_linear_layer():
    matrix = draw("uniform")[0].matrix
    bound = 1 / math.sqrt(D)
    assert 0.95 * bound < float(matrix.max()) <= bound
    assert -bound <= float(matrix.min()) < -0.95 * bound


def test_the_published_scale():
    assert normal_scale(0.8, dim=400, alpha=0.5, sigma=2.0) == pytest.approx(0.5 * 0.8 / (20 * 2))


def test_the_spread_of_hidden_states_is_measured_after_five_rounds_of_clipping():
    generator = torch.Generator().manual_seed(0)
    values = torch.randn(20_000, generator=generator)
    values[:20] = 500.0  # what a few outlier dimensions do to a transformer's hidden states
    expected = values.double().numpy()
    for _ in range(5):
        mean, std = expected.mean(), expected.std()
        expected = expected.clip(mean - 3 * std, mean + 3 * std)
    assert clipped_spread(values) == pytest.approx(expected.std(), rel=1e-9)
    assert clipped_spread(values) < 0.1 * spread_of(values)


def test_a_full_space_is_the_prompt_itself_and_holds_no_matrix():
    space = FullSpace(0.5, torch.ones(N, H))
    z = np.random.default_rng(0).normal(size=(3, N * H))
    np.testing.assert_allclose(space(z).numpy(), 0.5 * z.reshape(3, N, H) + 1, atol=1e-6)
    assert (space.dim, space.nbytes) == (N * H, 0)
    assert [(one.dim, one.nbytes) for one in draw()] == [(D, 4 * N * H * D)] * 2


def test_first_prompts_are_spread_alike_with_and_without_a_projection():
    rng, sigma = np.random.default_rng(0), 0.7
    projected = draw("normal", scales=(normal_scale(0.3, D, 2.0, sigma),))[0]
    full = FullSpace(normal_scale(0.3, 1, 2.0, sigma), torch.zeros(N, H))
    for space in (projected, full):
        prompts = space(sigma * rng.normal(size=(400, space.dim)))
        assert float(prompts.std()) == pytest.approx(0.6, rel=0.1)
