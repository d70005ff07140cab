"""What a forward pass leaves behind: the dictionary it used, and the trace that losses and measures read."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import TYPE_CHECKING, NamedTuple

from torch import Tensor

from .clock import Clock
from .code import Code
from .ops.decode import decode
from .ops.encode_at import encode_at, encode_whole
from .ops.nested_error import nested_error
from .ops.take_rows import take_rows
from .workspace import Workspace

if TYPE_CHECKING:
    from .affinities import Affinities


@dataclass(frozen=True, eq=False)
class Dictionary:
    """The parameters of encoder and decoder.

    Attributes:
        weight: [d_sae, d_in] encoder weights, feature-major and contiguous (``W_enc`` transposed).
        b_enc: [d_sae].
        W_dec: [d_sae, d_in], one direction per feature.
        b_dec: [d_in].
        accumulate: backward passes add the weights' gradients into the ``.grad`` buffers that exist, and
            allocate none. For training steps; leave it off for ``torch.autograd.grad``.
    """

    weight: Tensor
    b_enc: Tensor
    W_dec: Tensor
    b_dec: Tensor
    accumulate: bool = False

    @property
    def d_in(self) -> int:
        return self.weight.shape[1]

    @property
    def d_sae(self) -> int:
        return self.weight.shape[0]

    def parameters(self) -> list[Tensor]:
        """What gradients reach."""
        return [self.weight, self.b_enc, self.W_dec, self.b_dec]

    def detach(self) -> Dictionary:
        """The same numbers, of which no gradient reaches any."""
        weight, b_enc, W_dec, b_dec = (parameter.detach() for parameter in self.parameters())
        return Dictionary(weight, b_enc, W_dec, b_dec)

    def part(self, features: Tensor) -> Dictionary:
        """A dictionary of ``features [g]`` alone, whose gradients reach this one's parameters."""
        into = (self.weight.grad, self.W_dec.grad) if self.accumulate else (None, None)
        return Dictionary(
            take_rows(self.weight, features, into[0]),
            self.b_enc[features],
            take_rows(self.W_dec, features, into[1]),
            self.b_dec,
        )

    def held(self, workspace: Workspace) -> Dictionary:
        """The same without gradients, whose encoder stays as it is when the parameters move.

        Its weights are a copy in a buffer that ``workspace`` lends.
        """
        now = self.detach()
        weight = workspace.lend("held weight", tuple(now.weight.shape), now.weight).copy_(now.weight)
        return Dictionary(weight, now.b_enc.clone(), now.W_dec, now.b_dec.clone())

    def decode(self, code: Code, *, bias: bool = True) -> Tensor:
        """[n, d_in]: the weighted sum of directions, plus ``b_dec`` unless ``bias`` is false."""
        into = self.W_dec.grad if self.accumulate else None
        return decode(code, self.W_dec, self.b_dec if bias else None, into)

    def nested_error(self, x: Tensor, code: Code, ends: Tensor) -> Tensor:
        """[]: |x - x_hat|^2 summed over tokens and over the prefixes that ``ends`` names. See ``ops``."""
        into = self.W_dec.grad if self.accumulate else None
        return nested_error(x, code, self.W_dec, self.b_dec, ends, into)

    def encode_whole(self, x: Tensor, centred: Tensor, pre: Tensor) -> Tensor:
        """Known pre-activations ``pre [n, d_sae]``, made differentiable. See ``ops.encode_at``."""
        into = self.weight.grad if self.accumulate else None
        return encode_whole(x, self.weight, self.b_enc, self.b_dec, centred=centred, pre=pre, into=into)

    def encode_at(self, x: Tensor, centred: Tensor, values: Tensor, rows: Tensor, features: Tensor) -> Tensor:
        """Known pre-activations ``values [nnz]`` at the pairs, made differentiable. See ``ops.encode_at``."""
        into = self.weight.grad if self.accumulate else None
        return encode_at(
            x,
            self.weight,
            self.b_enc,
            self.b_dec,
            rows,
            features,
            centred=centred,
            values=values,
            into=into,
        )


class Penalty(NamedTuple):
    """What a rule without a hard budget pays for every feature that fires.

    Attributes:
        cost: [] mean over tokens, not yet weighted, differentiable.
        k: mean features per token that the weight is to bring about.
    """

    cost: Tensor
    k: float


@dataclass(frozen=True, eq=False)
class Trace:
    """One forward pass.

    Attributes:
        x: [n, d_in] input, as the dictionary sees it: scaled and transformed.
        target: [n] or None, the number that came with each token.
        pre: the affinities, still open to questions until the weights move (see ``Allocator.revisits``).
        code: n tokens.
        notes: what the rule wants to say of itself (named scalars or [n] tensors).
        x_hat: [n, d_in], what the dictionary makes of the code; compared with ``x``.
        clock: when it happened.
        penalty: what the rule pays for sparsity, if it is held to k by a price.
    """

    x: Tensor
    target: Tensor | None
    pre: Affinities
    code: Code
    notes: Mapping[str, Tensor]
    x_hat: Tensor
    clock: Clock
    penalty: Penalty | None = None
