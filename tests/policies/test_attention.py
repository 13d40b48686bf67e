import pytest
import torch
from torch import nn

from ahm_gym.errors import InputError
from ahm_gym.masking.masks import Masks
from ahm_gym.masking.selection import PatchBatch, mask_top_k
from ahm_gym.model.vit import build_autoencoder
from ahm_gym.policies import make_policy
from ahm_gym.policies.attention import attention_to_patches

SIZE = (32, 48)
NAMES = ["attention", "attention_low", "attention_hints"]


def build(model):
    return build_autoencoder(model, image_size=SIZE, patch_size=8, seed=0)


@pytest.fixture(scope="module")
def autoencoder():
    return build("tiny")


@pytest.fixture(scope="module")
def patches(autoencoder):
    images = torch.randn(64, 1, *SIZE, generator=torch.Generator().manual_seed(0))
    return PatchBatch(images, autoencoder.embed(images).detach(), autoencoder.grid, 0.5)


@pytest.fixture(scope="module")
def attention(autoencoder, patches):
    with torch.no_grad():
        return attention_to_patches(autoencoder.encoder, patches.images)


@pytest.mark.parametrize("normed", [False, True])
@pytest.mark.parametrize(
    ("model", "class_token", "num_prefix"),
    [("test_vit", True, 1), ("test_vit2", False, 1), ("vit_small_patch14_reg4_dinov2", True, 5)],
)
def test_the_attention_is_what_the_last_block_multiplies_its_values_with(
    model, class_token, num_prefix, normed, patches
):
    encoder = build(model).encoder.eval()
    block = encoder.blocks[-1].attn
    if normed:
        block.q_norm, block.k_norm = nn.LayerNorm(block.head_dim), nn.LayerNorm(block.head_dim)
        nn.init.normal_(block.q_norm.weight, generator=torch.Generator().manual_seed(1))
    weights = []
    with torch.no_grad():
        found = attention_to_patches(encoder, patches.images[:3])
        block.fused_attn = False
        block.attn_drop.register_forward_hook(lambda module, inputs, output: weights.append(output))
        encoder.forward_features(patches.images[:3])
    mean = weights[0].mean(dim=1)  # B N N
    expected = mean[:, 0] if class_token else mean.mean(dim=1)
    torch.testing.assert_close(found, expected[:, num_prefix:])


@pytest.mark.parametrize(("name", "sign"), [("attention", 1), ("attention_low", -1)])
def test_half_of_the_images_are_ranked_by_attention_and_the_others_at_random(
    name, sign, autoencoder, patches, attention
):
    scores = make_policy(name, autoencoder).score(patches, torch.Generator().manual_seed(0))
    ranked = torch.isclose(scores, sign * attention).all(dim=1)
    assert 20 < int(ranked.sum()) < 44
    rest = scores[~ranked]
    assert len(rest.unique()) == rest.numel() and 0.45 < float(rest.mean()) < 0.55
    other = make_policy(name, autoencoder).score(patches, torch.Generator().manual_seed(1))
    assert not torch.equal(ranked, torch.isclose(other, sign * attention).all(dim=1))


def test_hints_are_shown_and_are_a_random_half_of_the_most_attended_tenth(autoencoder, patches, attention):
    policy = make_policy("attention_hints", autoencoder)
    policy.share_of_images, policy.hinted_from = 1.0, 0.25
    scores = policy.score(patches, torch.Generator().manual_seed(0))
    hints = scores == -1.0
    assert (hints.sum(dim=1) == 3).all()
    top = torch.zeros_like(hints).scatter(1, attention.argsort(dim=1, descending=True)[:, :6], True)
    assert (hints & ~top).sum() == 0 and hints[top].float().mean() == 0.5
    assert len({tuple(row.tolist()) for row in hints[top].reshape(64, 6)}) > 10
    mask = mask_top_k(scores, 18, generator=torch.Generator().manual_seed(0))
    assert not (mask & hints).any() and (mask & top).sum() == 3 * 64
    torch.testing.assert_close(scores[~hints], attention[~hints])


def test_one_patch_is_a_hint_if_a_tenth_is_less_than_one(autoencoder, attention):
    ranked = make_policy("attention_hints", autoencoder).rank(attention[:, :4], torch.Generator())
    assert torch.equal(ranked.argmin(dim=1), attention[:, :4].argmax(dim=1))


@pytest.mark.parametrize("name", NAMES)
def test_the_teacher_sees_the_whole_image_and_follows_the_encoder(name, autoencoder, patches):
    policy = make_policy(name, autoencoder)
    policy.teacher.updates = 10**6
    momenta = [policy.teacher.momentum(progress) for progress in (0.0, 0.5, 1.0)]
    assert momenta == pytest.approx([0.996, 0.998, 1.0], abs=2e-5)
    assert policy.observe(patches, Masks.of(torch.ones(64, 24, dtype=torch.bool)), torch.ones(64, 24)) == {}
    assert policy.teacher.updates == 10**6 + 1 and policy.guided_fraction == 1.0


def test_an_encoder_whose_attention_cannot_be_seen_is_refused():
    strange = build("tiny")
    strange.encoder.blocks[-1].attn = nn.Identity()
    for autoencoder in (build("unet"), strange):
        with pytest.raises(
            InputError, match="which this model does not have: choose a vision transformer such as"
        ):
            make_policy("attention", autoencoder)
