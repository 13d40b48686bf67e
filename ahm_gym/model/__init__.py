"""The masked autoencoder: patches, encoders, decoders, and the one place that updates it."""

import ahm_gym._compat  # noqa: F401
