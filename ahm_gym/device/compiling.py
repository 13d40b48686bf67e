"""torch.compile: code for this machine that fuses operations; errors of the compiler become one sentence."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import torch

from ahm_gym.errors import RunError


class Compiled:
    """A function that is compiled at its first call, and again for other shapes.

    Args:
        function: function of modules and tensors. Modules of the same shapes share the compiled code.
    """

    def __init__(self, function: Callable[..., Any]) -> None:
        self._compiled: Callable[..., Any] = torch.compile(function, dynamic=False)

    def __call__(self, *arguments: Any) -> Any:
        """What the function returns.

        Raises:
            RunError: if the function cannot be compiled on this machine.
        """
        try:
            return self._compiled(*arguments)
        except RuntimeError as error:
            from torch._dynamo.exc import TorchDynamoException  # takes a second, and is loaded by now

            if not isinstance(error, TorchDynamoException):
                raise
            reason = str(error).strip().partition("\n")[0]
            raise RunError(
                f"the autoencoder could not be compiled ({reason}): torch.compile needs a C++ compiler; leave "
                "`compile` out."
            ) from error
