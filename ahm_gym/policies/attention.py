"""Masks from the attention of a teacher."""

from __future__ import annotations

from functools import partial
from typing import Any

import ahm_gym._compat  # noqa: F401

import torch
from jaxtyping import Float
from timm.models.vision_transformer import Attention, VisionTransformer
from torch import Tensor

from ahm_gym.device import ranks
from ahm_gym.errors import InputError
from ahm_gym.masking.selection import PatchBatch, random_scores
from ahm_gym.model.autoencoder import Autoencoder
from ahm_gym.model.moving_average import MovingAverage
from ahm_gym.policies.teacher import TaughtPolicy


class AttentionPolicy(TaughtPolicy):
    """Masks the patches that the encoder attends to most: AttMask-High.

    AttMask (Kakogeorgiou et al., "What to Hide from Your Students: Attention-Guided Masked Image
    Modeling", ECCV 2022). The attention is that of the class token in the last block of an averaged
    encoder, which sees the whole image; it is averaged over heads. In every batch, each image is masked this
    way with probability 0.5, and otherwise at random. The paper leaves the other images unmasked, but an
    autoencoder needs something to reconstruct.

    Unlike in the paper, the attention is learned by reconstruction, not by distillation; if there is no class
    token, it is the mean attention that a patch receives from all tokens; and the teacher's momentum rises
    linearly from 0.996 to 1 instead of by a cosine, and warms up (see `MovingAverage`).

    Raises:
        InputError: if the attention of the encoder's last block cannot be computed.
    """

    share_of_images: float = 0.5
    """Probability that an image is masked by attention."""

    def __init__(self, autoencoder: Autoencoder) -> None:
        check_attention(autoencoder)
        self.autoencoder = autoencoder
        self.teacher: MovingAverage[VisionTransformer] = MovingAverage(
            autoencoder.encoder, start=0.996, end=1.0
        )

    def score(self, patches: PatchBatch, generator: torch.Generator) -> Float[Tensor, "B L"]:
        batch, num_patches = patches.embeddings.shape[:2]
        with torch.no_grad(), self.autoencoder.autocast():
            look = partial(attention_to_patches, self.teacher.network)
            attention = ranks.mapped(look, patches.images)
        scores = self.rank(attention, generator)
        noise = random_scores((batch, num_patches), generator, scores.device)
        informed = random_scores((batch, 1), generator, scores.device) < self.share_of_images
        return torch.where(informed, scores, noise)

    def rank(self, attention: Float[Tensor, "B L"], generator: torch.Generator) -> Float[Tensor, "B L"]:
        """Scores of an image that is masked by attention."""
        return attention


class AttentionLowPolicy(AttentionPolicy):
    """Masks the patches that the encoder attends to least: AttMask-Low, the paper's control."""

    def rank(self, attention: Float[Tensor, "B L"], generator: torch.Generator) -> Float[Tensor, "B L"]:
        return -attention


class AttentionHintsPolicy(AttentionPolicy):
    """Masks the most attended patches but shows a few of them as hints: AttMask-Hint.

    The hints are a random half of the tenth of the patches that is attended to most.
    """

    hinted_from: float = 0.1
    """Share of the patches from which the hints are drawn."""
    hinted: float = 0.5
    """Share of these patches that becomes hints."""

    def rank(self, attention: Float[Tensor, "B L"], generator: torch.Generator) -> Float[Tensor, "B L"]:
        batch, num_patches = attention.shape
        num_top = max(round(self.hinted_from * num_patches), 1)
        num_hints = max(round(self.hinted * num_top), 1)
        top = attention.argsort(dim=1, descending=True)[:, :num_top]
        drawn = random_scores((batch, num_top), generator, top.device).argsort(dim=1)[:, :num_hints]
        return attention.scatter(1, top.gather(1, drawn), -1.0)


def check_attention(autoencoder: Autoencoder) -> None:
    """Raises InputError if the attention of the encoder's last block cannot be computed."""
    blocks = getattr(autoencoder.encoder, "blocks", None)
    if blocks is None or type(getattr(blocks[-1], "attn", None)) is not Attention:
        raise InputError(
            "this policy needs plain attention in the encoder's last block, which this model does not have: "
            "choose a vision transformer such as `model=tiny`, or `policy=hard_patches` or teacher_loss."
        )


def attention_to_patches(encoder: VisionTransformer, images: Float[Tensor, "B C *S"]) -> Float[Tensor, "B L"]:
    """Attention of the last block from the class token, or else from all tokens, to every patch.

    It is averaged over heads (and tokens); the part that goes to prefix tokens is left out.
    """
    blocks: Any = encoder.blocks
    attention = blocks[-1].attn
    inputs: list[Tensor] = []
    with attention.register_forward_pre_hook(lambda module, arguments: inputs.append(arguments[0])):
        encoder.forward_features(images)
    queries, keys, _ = (
        attention.qkv(inputs[0]).unflatten(2, (3, attention.num_heads, -1)).permute(2, 0, 3, 1, 4)
    )
    # Fused kernels return no weights; for a single query they are cheap to compute.
    queries = queries[:, :, :1] if encoder.cls_token is not None else queries
    queries, keys = attention.q_norm(queries).float(), attention.k_norm(keys).float()  # B heads N Dh
    weights = (attention.scale * queries @ keys.transpose(2, 3)).softmax(dim=3)
    return weights.mean(dim=(1, 2))[:, encoder.num_prefix_tokens :]
