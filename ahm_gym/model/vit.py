"""The masked autoencoder: a vision transformer from timm, a light decoder, and a mask given from outside."""

from __future__ import annotations

from importlib import import_module
from typing import Any

import torch
from jaxtyping import Bool, Float, Int
from timm.layers import build_sincos2d_pos_embed
from timm.models.vision_transformer import Block, VisionTransformer
from torch import Tensor, nn
from torch.nn import functional

from ahm_gym.device.transfers import to_device
from ahm_gym.errors import InputError
from ahm_gym.masking.masks import Masks
from ahm_gym.model.autoencoder import Autoencoder, Reconstruction
from ahm_gym.model.encoder_base import ARCHITECTURES
from ahm_gym.model.latent import LatentTask
from ahm_gym.model.patches import patchify, visible_indices
from ahm_gym.model.vit_encoder import PRESETS, Preset, ViTEncoder, build_encoder

OUTSIDE_ENCODER: tuple[str, ...] = ("decoder_", "mask_token", "latent.")
"""What the names of weights outside the encoder start with."""


class MaskedAutoencoder(Autoencoder):
    """Reconstructs masked patches from the visible ones.

    After "Masked Autoencoders Are Scalable Vision Learners" (He et al., CVPR 2022). The mask is always an argument.
    `state_dict()` has the keys of the published checkpoints: timm's names for the encoder, without a prefix, and
    `decoder_*` and `mask_token` for the rest; `latent.*` only with `target=latent`.

    Args:
        encoder: timm's plain VisionTransformer, without a head.
        decoder_dim: width of the decoder.
        decoder_depth: number of blocks of the decoder.
        decoder_heads: number of attention heads in each block of the decoder.
        target: what is predicted, one of `TARGETS`.
        norm_eps: epsilon of every LayerNorm; None keeps that of the encoder, and 1e-6 in the decoder.
    """

    records: bool = True
    takes_published: bool = True
    """Whether its patch embedding is that of published weights."""

    def __init__(
        self,
        encoder: VisionTransformer,
        *,
        decoder_dim: int = 64,
        decoder_depth: int = 2,
        decoder_heads: int = 4,
        target: str = "pixels",
        norm_eps: float | None = None,
    ) -> None:
        described = ViTEncoder(encoder)
        super().__init__(
            image_size=described.image_size,
            patch_size=described.patch_size,
            channels=described.channels,
            dim=described.width,
            target=target,
        )
        self.encoder: VisionTransformer = encoder
        self.num_prefix: int = encoder.num_prefix_tokens

        self.decoder_embed: nn.Linear = nn.Linear(self.dim, decoder_dim)
        self.mask_token: nn.Parameter = nn.Parameter(torch.zeros(1, 1, decoder_dim))
        self.decoder_pos_embed: nn.Parameter = nn.Parameter(
            position_embedding(decoder_dim, self.grid, self.num_prefix), requires_grad=False
        )
        self.decoder_blocks: nn.ModuleList = nn.ModuleList(
            Block(decoder_dim, decoder_heads, qkv_bias=True) for _ in range(decoder_depth)
        )
        self.decoder_norm: nn.LayerNorm = nn.LayerNorm(decoder_dim, eps=1e-6)
        self.decoder_pred: nn.Linear = nn.Linear(decoder_dim, self.target_size)
        self._initialise(norm_eps)
        if target == "latent":
            self.latent: LatentTask | None = LatentTask(encoder, nn.Linear(decoder_dim, self.dim))
        self.register_state_dict_post_hook(_drop_encoder_prefix)
        self.register_load_state_dict_pre_hook(_add_encoder_prefix)

    def embed(self, images: Float[Tensor, "B C *S"]) -> Float[Tensor, "B L D"]:
        """Patch embedding plus position embedding of every patch: what an agent observes."""
        return self._add_position(self._project(patchify(self._checked(images), self.patch_size)))

    def embedding_state(self) -> dict[str, Tensor]:
        """The weights of the patch embedding and the position embedding."""
        weights = self.state_dict()
        return {key: value for key, value in weights.items() if key.startswith(("patch_embed.", "pos_embed"))}

    def encode(
        self, images: Float[Tensor, "B C *S"], mask: Bool[Tensor, "B L"] | None = None
    ) -> Float[Tensor, "B N D"]:
        """The encoded prefix tokens, followed by the encoded visible patches in reading order.

        Args:
            images: normalised images of size `image_size`.
            mask: True where masked, with the same number in every image; None encodes all patches.
        """
        patches = patchify(self._checked(images), self.patch_size)
        visible = None if mask is None else to_device(visible_indices(mask), patches.device)
        return self._encode_patches(patches, visible)

    def mask_inputs(self, masks: Masks) -> tuple[Tensor, ...]:
        """Indices of the visible patches, and the weights."""
        return to_device(visible_indices(masks.masked), self.device), to_device(masks.weight, self.device)

    def fill_in(self, images: Float[Tensor, "B C *S"], *mask_inputs: Tensor) -> Reconstruction:
        visible, weight = mask_inputs
        patches = patchify(self._checked(images), self.patch_size)
        decoded = self._decode(self._encode_patches(patches, visible), visible)
        features = None if self.latent is None else self.latent.head(decoded)
        return self.compare(self.decoder_pred(decoded), images, patches, weight, features)

    def _project(self, patches: Float[Tensor, "B N P"]) -> Float[Tensor, "B N D"]:
        embedder = self.encoder.patch_embed
        # A convolution with the size of a patch is a matrix product, which is cheaper and can skip masked patches.
        weight = embedder.proj.weight.movedim(1, -1).flatten(1)
        return embedder.norm(functional.linear(patches, weight, embedder.proj.bias))

    def _add_position(
        self, tokens: Float[Tensor, "B N D"], indices: Int[Tensor, "B N"] | None = None
    ) -> Float[Tensor, "B N D"]:
        position = self.encoder.pos_embed
        if position is None:
            return tokens
        position = position[0, position.shape[1] - self.num_patches :]  # L D
        return tokens + (position if indices is None else position[indices])

    def _encode_patches(
        self, patches: Float[Tensor, "B L P"], visible: Int[Tensor, "B V"] | None
    ) -> Float[Tensor, "B N D"]:
        if visible is not None:
            patches = patches.gather(1, visible[..., None].expand(-1, -1, patches.shape[2]))  # B V P
        tokens = self._add_position(self._project(patches), visible)
        encoder = self.encoder
        tokens = encoder.pos_drop(torch.cat([*self._prefix(len(tokens)), tokens], dim=1))
        return encoder.norm(encoder.blocks(encoder.norm_pre(tokens)))

    def _prefix(self, batch: int) -> list[Float[Tensor, "B N D"]]:
        encoder = self.encoder
        tokens: list[Tensor] = [
            token for token in (encoder.cls_token, encoder.reg_token) if token is not None
        ]
        if not tokens:
            return []
        prefix = torch.cat(tokens, dim=1)
        if encoder.pos_embed is not None and not encoder.no_embed_class:
            prefix = prefix + encoder.pos_embed[:, : self.num_prefix]
        return [prefix.expand(batch, -1, -1)]

    def _decode(self, encoded: Float[Tensor, "B N D"], visible: Int[Tensor, "B V"]) -> Float[Tensor, "B L _"]:
        """What the decoder makes of each patch, before the linear map to its prediction."""
        tokens = self.decoder_embed(encoded)
        prefix, shown = tokens[:, : self.num_prefix], tokens[:, self.num_prefix :]
        width = tokens.shape[2]
        blank = self.mask_token.to(tokens.dtype).expand(len(tokens), self.num_patches, width)
        full = blank.scatter(1, visible[..., None].expand(-1, -1, width), shown)  # B L Dd
        tokens = torch.cat([prefix, full], dim=1) + self.decoder_pos_embed
        for block in self.decoder_blocks:
            tokens = block(tokens)
        return self.decoder_norm(tokens[:, self.num_prefix :])

    def _initialise(self, norm_eps: float | None) -> None:
        encoder = self.encoder
        if encoder.pos_embed is not None:
            prefix = 0 if encoder.no_embed_class else self.num_prefix
            encoder.pos_embed = nn.Parameter(
                position_embedding(self.dim, self.grid, prefix), requires_grad=False
            )
        for module in self.modules():
            if isinstance(module, nn.Linear):
                nn.init.xavier_uniform_(module.weight)
                if module.bias is not None:
                    nn.init.zeros_(module.bias)
            elif isinstance(module, nn.LayerNorm) and norm_eps is not None:
                module.eps = norm_eps
        *_, projection = (m for m in encoder.patch_embed.modules() if isinstance(m, (nn.Conv2d, nn.Conv3d)))
        nn.init.xavier_uniform_(projection.weight.flatten(1))
        for token in (encoder.cls_token, encoder.reg_token, self.mask_token):
            if token is not None:
                nn.init.normal_(token, std=0.02)


def build_autoencoder(
    model: str = "tiny",
    *,
    image_size: tuple[int, ...] = (64, 64),
    patch_size: int = 8,
    channels: int = 1,
    seed: int = 0,
    **options: Any,
) -> Autoencoder:
    """A newly initialised autoencoder.

    Args:
        model: tiny, tiny_conv, small, base, unet, resenc, or the name of one of timm's plain vision transformers.
        image_size: length of each axis in pixels, two or three multiples of the patch size.
        patch_size: side of a patch in pixels.
        channels: number of image channels.
        seed: seed of the initial weights; the global generator is not changed.
        options: more keyword arguments of `MaskedAutoencoder`, which override those of the preset, or of
            `ConvAutoencoder`.

    Raises:
        InputError: if the model is unknown or the patch size does not divide the image size.
    """
    shape: dict[str, Any] = {"image_size": image_size, "patch_size": patch_size, "channels": channels}
    if model in ARCHITECTURES:
        return import_module(ARCHITECTURES[model]).build(seed, **shape, **options)
    preset = PRESETS.get(model, Preset(model, {}, 192, 4, 6))
    with torch.random.fork_rng(devices=[]):
        torch.default_generator.manual_seed(seed)  # torch.manual_seed would also seed the generators of GPUs
        encoder = build_encoder(model, **shape)
        decoder: dict[str, Any] = {
            "decoder_dim": preset.decoder_dim,
            "decoder_depth": preset.decoder_depth,
            "decoder_heads": preset.decoder_heads,
        }
        return MaskedAutoencoder(encoder, **(decoder | options))


def position_embedding(dim: int, grid: tuple[int, ...], num_prefix: int) -> Float[Tensor, "1 N D"]:
    """The fixed sine-cosine position embedding of the grid, after zeros for the prefix tokens.

    That of a volume has the same frequencies along each of its axes, and zeros in the rest of the width.

    Raises:
        InputError: if `dim` is not a multiple of 4 for images.
    """
    if len(grid) == 2:
        if dim % 4:
            raise InputError(
                f"a width of {dim} cannot hold a two-dimensional position embedding: choose a multiple of 4."
            )
        patches = build_sincos2d_pos_embed(list(grid), dim=dim)
    else:
        count = dim // (2 * len(grid))
        frequencies = 10_000.0 ** -(torch.arange(count) / count)
        places = torch.cartesian_prod(*(torch.arange(float(length)) for length in grid))  # L N
        angles = (places[..., None] * frequencies).flatten(1)
        patches = functional.pad(
            torch.cat([angles.sin(), angles.cos()], dim=1), (0, dim - 2 * angles.shape[1])
        )
    return torch.cat([torch.zeros(num_prefix, dim), patches])[None]


def _drop_encoder_prefix(
    module: nn.Module, state: dict[str, Any], prefix: str, metadata: dict[str, Any]
) -> None:
    for key in [key for key in state if key.startswith(f"{prefix}encoder.")]:
        state[prefix + key[len(prefix) + len("encoder.") :]] = state.pop(key)


def _add_encoder_prefix(module: nn.Module, state: dict[str, Any], prefix: str, *_: Any) -> None:
    own = (*OUTSIDE_ENCODER, "encoder.")
    for key in [key for key in state if key.startswith(prefix)]:
        name = key[len(prefix) :]
        if not name.startswith(own):
            state[f"{prefix}encoder.{name}"] = state.pop(key)
