"""A diffusion transformer whose encoder takes t and whose decoder takes r (Decoupled MeanFlow, arXiv 2510.24474)."""

from __future__ import annotations

from collections.abc import Callable

from torch import Tensor, nn

from mfdiag.errors import InputError
from mfdiag.models.networks.dit import DiT

__all__ = ["DecoupledDiT"]


class DecoupledDiT(DiT):
    """Average velocity u(x, r, t): a `DiT` whose last `decoder_depth` blocks take r and whose other blocks take t.

    Both times share one embedding, so at r = t this is a flow-matching transformer of t. With `velocity_head`, a
    second head reads the instantaneous velocity from the encoder's tokens (see `velocity`); u does not use that head.
    The other arguments are those of `DiT`.

    Raises:
        InputError: As for `DiT`, and if `decoder_depth` leaves no block to the encoder.
    """

    # 11 parameters: they are the fields of `architecture.arguments` in specifications and checkpoints
    def __init__(
        self,
        channels: int = 4,
        size: int = 8,
        patch: int = 2,
        width: int = 192,
        depth: int = 6,
        heads: int = 6,
        mlp_ratio: float = 4.0,
        num_classes: int = 0,
        time_scale: float = 1.0,
        decoder_depth: int = 2,
        velocity_head: bool = False,
    ) -> None:
        super().__init__(channels, size, patch, width, depth, heads, mlp_ratio, num_classes, time_scale)
        if not 1 <= decoder_depth < depth:
            raise InputError(
                f"DecoupledDiT needs a decoder of at least 1 and fewer than depth={depth} blocks, but got "
                f"decoder_depth={decoder_depth}; correct the model's arguments."
            )
        del self.interval
        self.decoder_depth = decoder_depth
        self.velocity_head: nn.Linear | None = None
        if velocity_head:
            self.velocity_modulation = nn.Sequential(nn.SiLU(), nn.Linear(width, 2 * width))
            self.velocity_head = nn.Linear(width, channels * patch**2)
            self._initialize()

    def _encode(self, x: Tensor, t: Tensor, y: Tensor | None) -> tuple[Tensor, Tensor]:
        condition = self._add_label(self.time(t), x, y)
        tokens = self._tokens(x)
        for block in self.blocks[: -self.decoder_depth]:
            tokens = block(tokens, condition)
        return tokens, condition

    def forward(self, x: Tensor, r: Tensor, t: Tensor, y: Tensor | None = None) -> Tensor:
        """Average velocity u.

        Args:
            x: Points x_t [n, channels, size, size].
            r: Times r [n] in [0, 1], the other end of the interval.
            t: Times t [n] in [0, 1] of the points.
            y: Labels int64 [n]; None stands for the null label.

        Returns:
            u, shaped as x.
        """
        tokens, _ = self._encode(x, t, y)
        condition = self._add_label(self.time(r), x, y)
        for block in self.blocks[-self.decoder_depth :]:
            tokens = block(tokens, condition)
        return self._image(tokens, condition, self.modulation, self.head, x)

    @property
    def velocity(self) -> Callable[[Tensor, Tensor, Tensor, Tensor | None], Tensor]:
        """(x, r, t, labels) -> v(x, t), shaped as x; r is ignored. Only networks with `velocity_head` have it."""
        head = self.velocity_head
        if head is None:
            raise AttributeError("velocity needs velocity_head=True")

        def velocity(x: Tensor, r: Tensor, t: Tensor, y: Tensor | None = None) -> Tensor:
            tokens, condition = self._encode(x, t, y)
            return self._image(tokens, condition, self.velocity_modulation, head, x)

        return velocity
