"""The sparse autoencoder: encoder, allocator, decoder."""

from __future__ import annotations

import copy
import math
from collections.abc import Callable, Iterator, Mapping
from functools import partial
from typing import Any, SupportsIndex

import torch
from pydantic import Field, model_validator
from torch import Tensor, nn

from .affinities import WHOLE, Affinities, EncoderConfig, Ordered, Rows, Survey, affinities_of
from .allocators.base import Allocator, AllocatorConfig, Calibration, cross_fitted
from .clock import END, Clock
from .code import Code, Undo
from .config import Config, Open
from .errors import InvalidInput, NonFiniteActivations
from .intervention import Intervention, OnBudget, check_intervention, clamped_at_k
from .spans import span
from .trace import Dictionary, Trace
from .transforms import NoTransformConfig, Transform, TransformConfig
from .workspace import Workspace
from .world import SOLO, World


class SAEConfig(Config):
    """Shape and rule of an SAE.

    Attributes:
        d_in: width of an activation.
        d_sae: number of features.
        allocator: the rule, with its budget k.
        transform: what activations go through before the dictionary sees them.
    """

    d_in: int = Field(gt=0)
    d_sae: int = Field(gt=0)
    allocator: Open[AllocatorConfig]
    transform: Open[TransformConfig] = NoTransformConfig()

    @model_validator(mode="after")
    def _k_fits(self) -> SAEConfig:
        k = self.allocator.mean_k
        if not 0 < k <= self.d_sae:
            raise ValueError(f"k = {k:g} must be above 0 and at most d_sae = {self.d_sae}")
        return self


class SAE(nn.Module):
    """A sparse autoencoder.

    Parameters are stored feature-major: ``encoder.weight [d_sae, d_in]``, ``encoder.bias [d_sae]``,
    ``W_dec [d_sae, d_in]``, ``b_dec [d_in]``; ``W_enc`` and ``b_enc`` are their names for readers. They stay
    float32 (or float64) under ``.to(bfloat16)`` of a surrounding model and under autocast: which features a token
    gets must not depend on either.

    Args:
        config: shape and rule.
        metadata: how it was trained and calibrated, JSON.
    """

    def __init__(self, config: SAEConfig, metadata: Mapping[str, Any] | None = None) -> None:
        super().__init__()
        self.config = config
        self.metadata: dict[str, Any] = dict(metadata or {})
        # Float32 on the CPU, whatever the process's defaults are; and no random numbers drawn for what is zero.
        cpu = torch.device("cpu")
        self.encoder = nn.Linear(config.d_in, config.d_sae, device="meta", dtype=torch.float32)
        self.encoder.to_empty(device=cpu)
        self.W_dec = nn.Parameter(torch.zeros(config.d_sae, config.d_in, dtype=torch.float32, device=cpu))
        self.b_dec = nn.Parameter(torch.zeros(config.d_in, dtype=torch.float32, device=cpu))
        self.allocator: Allocator = config.allocator.build(d_in=config.d_in, d_sae=config.d_sae)
        self.transform: Transform = config.transform.build(config.d_in)
        with torch.no_grad():
            self.encoder.weight.zero_()
            self.encoder.bias.zero_()

    @property
    def d_in(self) -> int:
        return self.config.d_in

    @property
    def d_sae(self) -> int:
        return self.config.d_sae

    @property
    def k(self) -> float:
        """Mean features per token that it is meant to spend."""
        return self.config.allocator.mean_k

    @property
    def W_enc(self) -> Tensor:
        """[d_in, d_sae], a view of ``encoder.weight``."""
        return self.encoder.weight.T

    @property
    def b_enc(self) -> Tensor:
        """[d_sae]."""
        return self.encoder.bias

    @property
    def device(self) -> torch.device:
        return self.b_dec.device

    @property
    def dtype(self) -> torch.dtype:
        return self.b_dec.dtype

    @torch.no_grad()
    def initialise(self, b_dec: Tensor, generator: torch.Generator, b_enc: float = 0.0) -> None:
        """Random unit directions, encoder their transpose, biases ``b_dec [d_in]`` and ``b_enc``."""
        self.W_dec.normal_(generator=generator)
        self.W_dec.div_(torch.linalg.vector_norm(self.W_dec, dim=1, keepdim=True))
        self.encoder.weight.copy_(self.W_dec)
        self.encoder.bias.fill_(b_enc)
        self.b_dec.copy_(b_dec)
        self.allocator.initialise(self.dictionary(), generator)

    def dictionary(self, *, accumulate: bool = False) -> Dictionary:
        """Encoder and decoder parameters as losses and rules see them."""
        return Dictionary(self.encoder.weight, self.encoder.bias, self.W_dec, self.b_dec, accumulate)

    def trace(
        self,
        x: Tensor,
        clock: Clock = END,
        *,
        target: Tensor | None = None,
        world: World = SOLO,
        workspace: Workspace | None = None,
        accumulate: bool = False,
        encoder: EncoderConfig = WHOLE,
    ) -> Trace:
        """One forward pass with all that losses and measures need.

        Args:
            x: [n, d_in], scaled.
            clock: when it happens.
            target: [n], the number that came with each token.
            workspace: lends the large buffers; the trace is then valid until its next use.
            accumulate: see ``Dictionary``.
            encoder: how the affinities are computed.

        Raises:
            InvalidInput: ``x`` has another width.
        """
        self._check(x)
        if x.dtype != self.dtype:
            raise InvalidInput(f"activations are {x.dtype}, parameters {self.dtype}; convert one of them")
        dictionary = self.dictionary(accumulate=accumulate)
        x, undo = self.transform(x)
        pre = affinities_of(x, dictionary, encoder, clock=clock, world=world, workspace=workspace)
        with torch.autocast(x.device.type, enabled=False):
            with span("allocate"):
                code, notes, penalty = self.allocator(pre, x, clock)
            with span("decode"):
                x_hat = dictionary.decode(code)
        return Trace(x, target, pre, code.undone_by(undo), notes, x_hat, clock, penalty)

    def encode(self, x: Tensor) -> Code:
        """Sparse code of ``x [..., d_in]``, any float dtype.

        With a rule that couples no rows, a token gets the same features in any batch, at any place in it.

        Raises:
            InvalidInput: ``x`` has another width.
            NonFiniteActivations: ``x`` has NaN or infinite entries.
        """
        self._check(x)
        _, code, _ = self._allocate(*self._transformed(x.reshape(-1, self.d_in).to(self.dtype)))
        return code.reshape(x.shape[:-1])

    def decode(self, code: Code, *, like: Tensor | None = None) -> Tensor:
        """Reconstruction ``[..., d_in]`` of a code with leading shape ``...``.

        Args:
            like: [..., d_in] the tokens whose size the reconstruction is to have, for a code that was made by
                hand and an SAE that transforms tokens one by one; what ``encode`` returns knows its tokens.

        Raises:
            InvalidInput: the code is of another SAE, or does not know the sizes of its tokens.
        """
        if not isinstance(code, Code):
            raise InvalidInput(f"a {type(code).__name__} is no Code; pass what encode returned")
        if code.d_sae != self.d_sae:
            raise InvalidInput(f"the code has {code.d_sae} features, the SAE {self.d_sae}; use its own SAE")
        undo = code.undo
        if like is not None:
            self._check(like)
            undo = self.transform(like.reshape(-1, self.d_in).to(self.dtype))[1]
        if self.transform.per_token and (undo is None or len(undo.gain) != code.n):
            raise InvalidInput(
                f"this SAE transforms every token by itself ({type(self.transform).__name__}), and the code does "
                "not know its tokens; decode what encode returned, or give the tokens as like=x"
            )
        with torch.autocast(self.device.type, enabled=False):
            x_hat = self.transform.restore(self.dictionary().decode(code), undo)
            return x_hat.reshape(*code.shape, self.d_in)

    def forward(self, x: Tensor) -> Tensor:
        """Reconstruction of ``x [..., d_in]``."""
        return self.decode(self.encode(x))

    def read(self, x: Tensor) -> Trace:
        """What ``encode`` and ``decode`` give for ``x [n, d_in]``, any float dtype, and the affinities behind it.

        The trace is in the dictionary's own space; ``sae.restored(trace)`` is what ``decode`` gives.

        Raises: as ``encode``.
        """
        self._check(x)
        x, undo = self._transformed(x.to(self.dtype))
        pre, code, notes = self._allocate(x, undo)
        with torch.autocast(self.device.type, enabled=False):
            return Trace(x, None, pre, code, notes, self.dictionary().decode(code), END)

    def without_features(self) -> Tensor:
        """[d_in] what a token without a feature is decoded to, before anything of its own is undone."""
        return self.transform.restore(self.b_dec[None], None)[0]

    def restored(self, trace: Trace) -> Tensor:
        """[n, d_in] the reconstruction of a trace that ``read`` gave, in the space of the activations."""
        return self.transform.restore(trace.x_hat, trace.code.undo)

    @torch.no_grad()
    def order(self, trace: Trace, k: int) -> Ordered:
        """The first ``k`` features of each token in the order of its rule, whatever the rule would spend.

        A frozen code is a prefix of it (in float32, but for entries that rounding cannot tell apart).

        Raises:
            InvalidInput: ``k`` is below 1.
        """
        if k < 1:
            raise InvalidInput(f"an order of {k} features was asked for; ask for at least 1")
        return self.allocator.order(trace.pre, trace.x, k)

    def intervene(
        self, x: Tensor, feature: SupportsIndex, value: float, *, k: OnBudget = "recompute", error: bool = True
    ) -> Intervention:
        """Clamp one feature to ``value`` on every token of ``x [..., d_in]``, 0 taking it out, and decode.

        The rule has chosen by then and is not asked again. ``k`` says what the edit does to a token's number of
        features:

        - ``"recompute"``: it is counted anew, and no other entry changes. A token that did not have the feature
          has one more than the rule gave it, one that loses it one less. So ``x_hat`` moves along
          ``W_dec[feature]`` alone, as steering means it.
        - ``"keep"``: it stays, and another feature pays. Where the feature is new, the token's last other one in
          the order of its rule goes; where it is taken out, the next one in that order comes in. Only a token
          without any feature gets one more, and only one without a further positive affinity keeps one less.

        Args:
            value: at least 0, in the unit of the code's values.
            error: add what the SAE does not explain, x - decode(encode(x)), so that ``x_hat`` is x where the edit
                changes nothing; else ``x_hat`` is the decoded code alone.

        Raises:
            InvalidInput: as ``encode``; the feature is out of range, the value negative or not finite, or
                ``k`` is ``"keep"`` and the rule couples rows, so that its codes are no prefixes of its order.
            InvalidConfig: ``k`` is another word.
        """
        place, value = check_intervention(feature, value, k, self.d_sae)
        self._check(x)
        flat = x.reshape(-1, self.d_in).to(self.dtype)
        trace = self.read(flat)
        if k == "recompute":
            code = trace.code.clamped(place, value)
        elif self.allocator.couples_rows:
            raise InvalidInput(
                'k = "keep" needs a rule that gives each token its own order; freeze the SAE first'
            )
        else:
            most = int(trace.code.counts().max()) if len(trace.x) else 0
            code = clamped_at_k(trace.code, self.order(trace, most + 1), place, value)
        x_hat = self.decode(code)
        if error:
            x_hat = flat + (x_hat - self.restored(trace))  # to the bit x where the codes are equal
        return Intervention(x_hat.reshape(x.shape), code.reshape(x.shape[:-1]))

    def freeze(self) -> SAE:
        """The same dictionary under the rule's inference form. The copy shares nothing with this one."""
        return self.with_allocator(self.allocator.freeze())

    def with_allocator(self, allocator: Allocator) -> SAE:
        """A copy of encoder and decoder under another rule."""
        config = self.config.model_copy(update={"allocator": allocator.config})
        return self._with(config, allocator, copy.deepcopy(self.metadata))

    @torch.no_grad()
    def prefix(self, n: int) -> SAE:
        """The SAE of the first ``n`` features, under the same rule over these alone; a copy that shares nothing.

        With fewer features to choose from the rule spends another L0: ``ap.calibrate`` fits it anew. The metadata
        say under ``cut_from`` what it was cut from; the calibration of the whole stands there too.

        Raises:
            InvalidInput: ``n`` is out of range, or less than k.
        """
        if isinstance(n, bool) or not isinstance(n, int) or not 0 < n <= self.d_sae:
            raise InvalidInput(
                f"a prefix of {n} features is not within 1 to d_sae = {self.d_sae}; choose another"
            )
        if n < self.k:
            raise InvalidInput(f"{n} features have no room for k = {self.k:g}; keep {math.ceil(self.k)} or more")
        if n == self.d_sae:
            return copy.deepcopy(self)
        rule = self.allocator.cut(n, d_in=self.d_in)
        metadata = copy.deepcopy(self.metadata)
        of_the_whole = {key: metadata.pop(key) for key in ("calibration", "cut_from") if key in metadata}
        metadata["cut_from"] = {"d_sae": self.d_sae, **of_the_whole}
        config = SAEConfig(d_in=self.d_in, d_sae=n, allocator=rule.config, transform=self.config.transform)
        return self._with(config, rule, metadata)

    def calibrate(self, blocks: Callable[[], Iterator[Rows]], k: float) -> tuple[SAE, Calibration]:
        """Fit the frozen rule so that it spends ``k`` per token on held-out rows; ``calibrate.fit`` does more.

        Args:
            blocks: each call iterates once over the rows, as tensors [n, d_in] in the SAE's own scale; or as
                pairs of these and the documents [n] of the rows, which tell what is held out to check the fit.
            k: features per token.

        Raises:
            InvalidInput: ``k`` is out of range, or there are no rows.
        """
        if not 0 < k <= self.d_sae:
            raise InvalidInput(f"k = {k:g} must be above 0 and at most d_sae = {self.d_sae}; choose another")
        rule = self.allocator.freeze().to(self.device)
        fitted = cross_fitted(rule, Survey(partial(self.surveyed, settle=True), blocks), k)
        return self.with_allocator(fitted.allocator), fitted

    @torch.no_grad()
    def fold(self, scale: float) -> SAE:
        """A copy that takes raw inputs, where this one takes inputs times ``scale``.

        A transform that is the same for all tokens becomes part of the decoder's bias. With a power of two, and
        without such a transform, the codes agree to the bit, up to ``scale``.
        """
        left = self.transform.fold(scale)
        folded = copy.deepcopy(self)
        folded.config = self.config.model_copy(update={"transform": left.config})
        folded.transform = left.config.build(self.d_in).to(self.device)
        folded.encoder.bias.div_(left.scale)
        folded.b_dec.div_(left.scale)
        folded.allocator.fold(left.scale)
        if left.shift is not None:
            folded.b_dec.add_(left.shift)
        return folded

    def _with(self, config: SAEConfig, allocator: Allocator, metadata: dict[str, Any]) -> SAE:
        """A copy of encoder and decoder, as far as ``config`` has features, under a rule built for it."""
        other = SAE(config, metadata)
        other.allocator = allocator
        other.to(device=self.device, dtype=self.dtype)
        other.transform.load_state_dict(self.transform.state_dict())
        with torch.no_grad():
            for mine, theirs in zip(self._own(), other._own(), strict=True):
                theirs.copy_(mine[: len(theirs)])
        return other.requires_grad_(self.b_dec.requires_grad).train(self.training)

    def _own(self) -> list[Tensor]:
        return [self.encoder.weight, self.encoder.bias, self.W_dec, self.b_dec]

    def _check(self, x: Tensor) -> None:
        if not isinstance(x, Tensor):
            raise InvalidInput(f"activations are a {type(x).__name__}; pass a tensor [..., {self.d_in}]")
        if x.ndim == 0 or x.shape[-1] != self.d_in or not x.is_floating_point():
            raise InvalidInput(
                f"activations of shape {tuple(x.shape)} and type {x.dtype} do not fit this SAE; "
                f"pass floating-point activations [..., {self.d_in}]"
            )

    @torch.no_grad()
    def survey(self, x: Tensor) -> Affinities:
        """The affinities of ``x [n, d_in]``, in the SAE's own scale, without allocating anything."""
        return self.surveyed(x)[0]

    @torch.no_grad()
    def surveyed(self, x: Tensor, *, settle: bool = False) -> tuple[Affinities, Tensor]:
        """The same, and ``x`` as the dictionary sees it: what a rule is calibrated on.

        Args:
            settle: as ``encode`` has them, decided in float64 where float32 could err.
        """
        x, _ = self.transform(x.to(self.dtype))
        return affinities_of(x, self.dictionary(), settle=settle and x.dtype == torch.float32), x

    def _transformed(self, x: Tensor) -> tuple[Tensor, Undo | None]:
        """Finite ``x [n, d_in]`` of the SAE's dtype as the dictionary sees it, and what undoes that."""
        if not torch.isfinite(x).all():
            row = int((~torch.isfinite(x).all(1)).nonzero()[0])
            raise NonFiniteActivations(f"row {row} of the activations is not finite; drop or repair such rows")
        with torch.autocast(x.device.type, enabled=False):
            found: tuple[Tensor, Undo | None] = self.transform(x)
        return found

    def _allocate(self, x: Tensor, undo: Undo | None) -> tuple[Affinities, Code, Mapping[str, Tensor]]:
        """The rule's answer at inference for transformed ``x [n, d_in]``, undone by ``undo``."""
        with torch.autocast(x.device.type, enabled=False):
            # Training may round as it likes; a frozen rule must not. Float64 needs no settling.
            settle = not self.allocator.couples_rows and x.dtype == torch.float32
            pre = affinities_of(x, self.dictionary(), settle=settle)
            code, notes, _ = self.allocator(pre, x, END)
        return pre, code.undone_by(undo), notes

    def _apply(self, fn: Callable[[Tensor], Tensor], recurse: bool = True) -> SAE:
        """Follow moves between devices, ignore conversions to a narrower dtype."""

        def keep_precision(t: Tensor) -> Tensor:
            moved = fn(t)
            if not t.is_floating_point() or moved.dtype.itemsize >= t.dtype.itemsize:
                return moved
            return t.to(moved.device)

        super()._apply(keep_precision, recurse)
        return self
