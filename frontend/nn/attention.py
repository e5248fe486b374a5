"""MultiheadAttention."""

from __future__ import annotations

from typing import Any

from ...errors import DTypeError, ShapeError, UnsupportedError
from ..tensor import Tensor
from . import functional as F
from . import init
from .functional.attention import additive_mask
from .linear import Linear
from .module import Module
from .parameter import Parameter, empty_parameter


class MultiheadAttention(Module):
    """Attention of ``num_heads`` heads between linear projections. Vaswani et al. 2017.

    Inputs are (L, N, E), with ``batch_first`` (N, L, E), or (L, E) without a batch. In the masks
    True hides a key; numbers are added to the scores.
    """

    in_proj_weight: Parameter | None
    q_proj_weight: Parameter | None
    k_proj_weight: Parameter | None
    v_proj_weight: Parameter | None
    in_proj_bias: Parameter | None

    def __init__(
        self,
        embed_dim: int,
        num_heads: int,
        dropout: float = 0.0,
        bias: bool = True,
        add_bias_kv: bool = False,
        add_zero_attn: bool = False,
        kdim: int | None = None,
        vdim: int | None = None,
        batch_first: bool = False,
        device: Any = None,
        dtype: Any = None,
    ) -> None:
        super().__init__()
        if embed_dim <= 0 or num_heads <= 0 or embed_dim % num_heads:
            raise ShapeError(
                f"embed_dim must be divisible by num_heads and both positive, got {embed_dim=} "
                f"and {num_heads=}"
            )
        for name, asked in (("add_bias_kv", add_bias_kv), ("add_zero_attn", add_zero_attn)):
            if asked:
                raise UnsupportedError(
                    f"MultiheadAttention: {name}=True is not supported; append the extra key and "
                    "value to the inputs of scaled_dot_product_attention instead"
                )
        self.embed_dim = embed_dim
        self.kdim = embed_dim if kdim is None else kdim
        self.vdim = embed_dim if vdim is None else vdim
        self.num_heads = num_heads
        self.head_dim = embed_dim // num_heads
        self.dropout = dropout
        self.batch_first = batch_first
        together = self.kdim == self.vdim == embed_dim
        shapes = {
            "q_proj_weight": (embed_dim, embed_dim),
            "k_proj_weight": (embed_dim, self.kdim),
            "v_proj_weight": (embed_dim, self.vdim),
        }
        for name, shape in shapes.items():
            param = None if together else empty_parameter(shape, device, dtype)
            self.register_parameter(name, param)
        stacked = (3 * embed_dim, embed_dim)
        self.register_parameter(
            "in_proj_weight", empty_parameter(stacked, device, dtype) if together else None
        )
        self.register_parameter(
            "in_proj_bias", empty_parameter((3 * embed_dim,), device, dtype) if bias else None
        )
        self.out_proj = Linear(embed_dim, embed_dim, bias=bias, device=device, dtype=dtype)
        self._reset_parameters()

    def _reset_parameters(self) -> None:
        """Projections Xavier uniform, biases 0."""
        for weight in self._weights():
            if weight is not None:
                init.xavier_uniform_(weight)
        for bias in (self.in_proj_bias, self.out_proj.bias):
            if bias is not None:
                init.zeros_(bias)

    def _weights(self) -> tuple[Parameter | None, ...]:
        return self.in_proj_weight, self.q_proj_weight, self.k_proj_weight, self.v_proj_weight

    def forward(
        self,
        query: Tensor,
        key: Tensor,
        value: Tensor,
        key_padding_mask: Tensor | None = None,
        need_weights: bool = True,
        attn_mask: Tensor | None = None,
        average_attn_weights: bool = True,
        is_causal: bool = False,
    ) -> tuple[Tensor, Tensor | None]:
        """(output like the query, weights (N, L, S) or None).

        key_padding_mask (N, S); attn_mask (L, S) or (N * num_heads, L, S). The weights are the mean
        over the heads, or (N, num_heads, L, S) without ``average_attn_weights``. ``is_causal`` says
        that ``attn_mask`` is the causal mask. A query without any key gives NaN if weights are
        needed, else what ``out_proj`` makes of zeros.
        """
        if is_causal and attn_mask is None:
            raise RuntimeError("Need attn_mask if specifying the is_causal hint.")
        self._check(query, key, value)
        batched = query.ndim == 3
        q, k, v = self._project(*self._batch_first(query, key, value))
        if is_causal and key_padding_mask is None and not need_weights:
            mask = None
        else:
            mask, is_causal = self._mask(q, k, key_padding_mask, attn_mask), False
        drop = self.dropout if self.training else 0.0
        weights = None
        if need_weights:
            heads, weights = self._weighted(q, k, v, mask, drop)
        else:
            heads = F.scaled_dot_product_attention(q, k, v, mask, drop, is_causal)
        output = self.out_proj(heads.transpose(1, 2).flatten(2))
        if not batched:
            output = output.squeeze(0)
        elif not self.batch_first:
            output = output.transpose(0, 1)
        if weights is not None:
            weights = weights.mean(1) if average_attn_weights else weights
            weights = weights if batched else weights.squeeze(0)
        return output, weights

    def _check(self, query: Tensor, key: Tensor, value: Tensor) -> None:
        ranks = {query.ndim, key.ndim, value.ndim}
        if len(ranks) > 1 or not ranks <= {2, 3}:
            raise ShapeError(
                "MultiheadAttention expects query, key and value of 3 dimensions (2 without a "
                f"batch), but got {query.ndim}, {key.ndim} and {value.ndim}"
            )
        wanted = (("query", query, self.embed_dim), ("key", key, self.kdim))
        for name, tensor, size in (*wanted, ("value", value, self.vdim)):
            if tensor.shape[-1] != size:
                raise ShapeError(
                    f"MultiheadAttention was expecting {size} features in the last dimension of "
                    f"the {name}, but got {tensor.shape[-1]}"
                )

    def _batch_first(self, *tensors: Tensor) -> list[Tensor]:
        """The tensors as (N, L, E); one that is given twice stays one."""
        made: dict[int, Tensor] = {}
        for x in tensors:
            if id(x) in made:
                continue
            if x.ndim == 2:
                made[id(x)] = x.unsqueeze(0)
            else:
                made[id(x)] = x if self.batch_first else x.transpose(0, 1)
        return [made[id(x)] for x in tensors]

    def _project(self, query: Tensor, key: Tensor, value: Tensor) -> tuple[Tensor, ...]:
        """Queries, keys and values (N, num_heads, L, head_dim), of one input in one product."""
        w, b, size = self.in_proj_weight, self.in_proj_bias, self.embed_dim
        if w is None:
            biases = (None,) * 3 if b is None else b.chunk(3)
            inputs = (query, key, value)
            parts = [
                F.linear(x, one, c)  # type: ignore[arg-type]
                for x, one, c in zip(inputs, self._weights()[1:], biases, strict=True)
            ]
        elif query is key and key is value:
            parts = list(F.linear(query, w, b).chunk(3, -1))
        else:
            parts = [F.linear(query, w[:size], None if b is None else b[:size])]
            if key is value:
                both = F.linear(key, w[size:], None if b is None else b[size:])
                parts += both.chunk(2, -1)
            else:
                for i, x in ((1, key), (2, value)):
                    rows = slice(i * size, (i + 1) * size)
                    parts.append(F.linear(x, w[rows], None if b is None else b[rows]))
        split = (self.num_heads, self.head_dim)
        return tuple(x.unflatten(-1, split).transpose(1, 2) for x in parts)

    def _mask(
        self, q: Tensor, k: Tensor, padding: Tensor | None, attention: Tensor | None
    ) -> Tensor | None:
        """The sum of both masks, (N or 1, num_heads or 1, L or 1, S)."""
        batch, heads, rows, keys = q.shape[0], self.num_heads, q.shape[2], k.shape[2]
        mask = None
        if attention is not None:
            mask = self._numbers("attn_mask", attention, q)
            wanted = (rows, keys) if mask.ndim == 2 else (batch * heads, rows, keys)
            if tuple(mask.shape) != wanted:
                raise ShapeError(
                    f"attn_mask has shape {tuple(mask.shape)}, expected (L, S) or "
                    f"(N * num_heads, L, S) = {wanted}"
                )
            mask = mask.reshape(*((1, 1) if mask.ndim == 2 else (batch, heads)), rows, keys)
        if padding is not None:
            hidden = self._numbers("key_padding_mask", padding, q)
            if hidden.ndim == 1:
                hidden = hidden.unsqueeze(0)
            if tuple(hidden.shape) != (batch, keys):
                raise ShapeError(
                    f"key_padding_mask has shape {tuple(hidden.shape)}, expected (N, S) = "
                    f"{(batch, keys)}"
                )
            hidden = hidden.reshape(batch, 1, 1, keys)
            mask = hidden if mask is None else mask + hidden
        return mask

    def _numbers(self, name: str, mask: Tensor, like: Tensor) -> Tensor:
        if mask.dtype.name == "bool":
            return additive_mask(mask, like, keeps=False)
        if not mask.dtype.is_float:
            raise DTypeError(f"only bool and floating types of {name} are supported, got "
                             f"{mask.dtype}; convert it with .bool()")  # fmt: skip
        return mask.to(like.dtype)

    def _weighted(
        self, q: Tensor, k: Tensor, v: Tensor, mask: Tensor | None, drop: float
    ) -> tuple[Tensor, Tensor]:
        """(heads, weights) from single operators: the weights are a result, too."""
        scores = (q * self.head_dim**-0.5) @ k.transpose(2, 3)
        if mask is not None:
            scores = scores + mask
        weights = F.dropout(F.softmax(scores, -1), drop)
        return weights @ v, weights
