"""Stochastic gradient descent with momentum."""

from __future__ import annotations

from collections.abc import Hashable, Iterable
from typing import Any

from ..tensor import Tensor
from .optimizer import Optimizer, Rule
from .options import check_learning_rate, number, refuse


class SGD(Optimizer):
    """``v = momentum * v + (1 - dampening) * g; p = p - lr * v``, as ``torch.optim.SGD``.

    The first step sets ``v = g``. nesterov: the step is ``g + momentum * v`` (Sutskever et al.,
    "On the importance of initialization and momentum in deep learning", 2013). weight_decay adds
    ``weight_decay * p`` to ``g``. maximize: ascends. State: ``momentum_buffer``.
    """

    def __init__(
        self,
        params: Iterable[Any],
        lr: float = 1e-3,
        momentum: float = 0,
        dampening: float = 0,
        weight_decay: float = 0,
        nesterov: bool = False,
        *,
        maximize: bool = False,
        foreach: bool | None = None,
        differentiable: bool = False,
        fused: bool | None = None,
    ) -> None:
        check_learning_rate(lr)
        if not momentum >= 0.0:
            raise ValueError(f"Invalid momentum value: {momentum}")
        if not weight_decay >= 0.0:
            raise ValueError(f"Invalid weight_decay value: {weight_decay}")
        if nesterov and (momentum <= 0 or dampening != 0):
            raise ValueError("Nesterov momentum requires a momentum and zero dampening")
        refuse("SGD", foreach=foreach, differentiable=differentiable, fused=fused)
        defaults = {
            "lr": lr,
            "momentum": momentum,
            "dampening": dampening,
            "weight_decay": weight_decay,
            "nesterov": nesterov,
            "maximize": maximize,
            "foreach": foreach,
            "differentiable": differentiable,
            "fused": fused,
        }
        super().__init__(params, defaults)

    def flags(self, group: dict[str, Any]) -> Hashable:
        momentum = group["momentum"] != 0
        return (
            bool(group["maximize"]),
            group["weight_decay"] != 0,
            momentum,
            momentum and group["dampening"] != 0,
            momentum and bool(group["nesterov"]),
        )

    def state_names(self, index: int) -> tuple[str, ...]:
        return ("momentum_buffer",) if self.param_groups[index]["momentum"] != 0 else ()

    def hyper(self, index: int, param: Tensor) -> dict[str, float]:
        group = self.param_groups[index]
        numbers = {"lr": number(group["lr"])}
        if group["weight_decay"] != 0:
            numbers["weight_decay"] = number(group["weight_decay"])
        if group["momentum"] != 0:
            numbers["momentum"] = number(group["momentum"])
            if group["dampening"] != 0:
                # The buffer starts as zeros, and PyTorch does not dampen the first gradient.
                gain = 1.0 - number(group["dampening"]) if self._progress(param) else 1.0
                numbers["gain"] = gain
        return numbers

    def _progress(self, param: Tensor) -> float:
        return float(param in self.state and self.state[param].get("momentum_buffer") is not None)

    def check_equal_steps(self, params: Iterable[Tensor]) -> None:
        if any(g["momentum"] != 0 and g["dampening"] != 0 for g in self.param_groups):
            super().check_equal_steps(params)

    def update_rule(self, index: int) -> Rule:
        group = self.param_groups[index]
        maximize, decay = bool(group["maximize"]), group["weight_decay"] != 0
        momentum, dampening = group["momentum"] != 0, group["dampening"] != 0
        nesterov = bool(group["nesterov"])

        def rule(
            b: Any, param: Any, grad: Any, state: dict[str, Any], hyper: dict[str, Any]
        ) -> tuple[Any, dict[str, Any]]:
            if maximize:
                grad = b.neg(grad)
            if decay:
                grad = b.add(grad, b.mul(param, hyper["weight_decay"]))
            new_state = {}
            if momentum:
                added = b.mul(grad, hyper["gain"]) if dampening else grad
                velocity = b.add(b.mul(state["momentum_buffer"], hyper["momentum"]), added)
                new_state["momentum_buffer"] = velocity
                grad = b.add(grad, b.mul(velocity, hyper["momentum"])) if nesterov else velocity
            return b.sub(param, b.mul(grad, hyper["lr"])), new_state

        return rule
