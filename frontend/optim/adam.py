"""Adam and AdamW."""

from __future__ import annotations

import math
from collections.abc import Hashable, Iterable
from typing import Any

from ..tensor import Tensor
from .optimizer import Optimizer, Rule
from .options import check_learning_rate, number, refuse


class Adam(Optimizer):
    """``p = p - lr * m_hat / (sqrt(v_hat) + eps)``, as ``torch.optim.Adam``.

    m and v are running means of the gradient and of its square, m_hat and v_hat corrected for
    their start at zero (Kingma and Ba, "Adam: a method for stochastic optimization", 2015).
    amsgrad divides by the largest v so far (Reddi et al., "On the convergence of Adam and
    beyond", 2018). weight_decay adds ``weight_decay * p`` to the gradient, or, decoupled, shrinks
    ``p`` by ``lr * weight_decay``. State: ``step``, ``exp_avg``, ``exp_avg_sq``,
    ``max_exp_avg_sq`` (amsgrad).
    """

    counts_steps = True

    def __init__(
        self,
        params: Iterable[Any],
        lr: float = 1e-3,
        betas: tuple[float, float] = (0.9, 0.999),
        eps: float = 1e-8,
        weight_decay: float = 0,
        amsgrad: bool = False,
        *,
        foreach: bool | None = None,
        maximize: bool = False,
        capturable: bool = False,
        differentiable: bool = False,
        fused: bool | None = None,
        decoupled_weight_decay: bool = False,
    ) -> None:
        check_learning_rate(lr)
        if not eps >= 0.0:
            raise ValueError(f"Invalid epsilon value: {eps}")
        for i, beta in enumerate(betas):
            if not 0.0 <= number(beta) < 1.0:
                raise ValueError(f"Invalid beta parameter at index {i}: {beta}")
        if not weight_decay >= 0.0:
            raise ValueError(f"Invalid weight_decay value: {weight_decay}")
        refuse(
            type(self).__name__,
            foreach=foreach,
            capturable=capturable,
            differentiable=differentiable,
            fused=fused,
        )
        defaults = {
            "lr": lr,
            "betas": tuple(number(b) for b in betas),
            "eps": eps,
            "weight_decay": weight_decay,
            "amsgrad": amsgrad,
            "maximize": maximize,
            "foreach": foreach,
            "capturable": capturable,
            "differentiable": differentiable,
            "fused": fused,
            "decoupled_weight_decay": decoupled_weight_decay,
        }
        super().__init__(params, defaults)

    def flags(self, group: dict[str, Any]) -> Hashable:
        decay = group["weight_decay"] != 0
        return (
            bool(group["maximize"]),
            bool(group["amsgrad"]),
            decay,
            decay and bool(group["decoupled_weight_decay"]),
        )

    def state_names(self, index: int) -> tuple[str, ...]:
        names = ("exp_avg", "exp_avg_sq")
        return (*names, "max_exp_avg_sq") if self.param_groups[index]["amsgrad"] else names

    def hyper(self, index: int, param: Tensor) -> dict[str, float]:
        group = self.param_groups[index]
        beta1, beta2 = group["betas"]
        lr, decay = number(group["lr"]), number(group["weight_decay"])
        step = self.steps_taken(param) + 1
        numbers = {
            "step_size": lr / (1.0 - beta1**step),
            "beta1": beta1,
            "gain1": 1.0 - beta1,
            "beta2": beta2,
            "gain2": 1.0 - beta2,
            "correction": 1.0 / math.sqrt(1.0 - beta2**step),
            "eps": number(group["eps"]),
        }
        if decay:
            decoupled = group["decoupled_weight_decay"]
            numbers["weight_decay"] = 1.0 - lr * decay if decoupled else decay
        return numbers

    def update_rule(self, index: int) -> Rule:
        group = self.param_groups[index]
        maximize, amsgrad = bool(group["maximize"]), bool(group["amsgrad"])
        decay, decoupled = group["weight_decay"] != 0, bool(group["decoupled_weight_decay"])

        def rule(
            b: Any, param: Any, grad: Any, state: dict[str, Any], hyper: dict[str, Any]
        ) -> tuple[Any, dict[str, Any]]:
            if maximize:
                grad = b.neg(grad)
            if decay and decoupled:
                param = b.mul(param, hyper["weight_decay"])
            elif decay:
                grad = b.add(grad, b.mul(param, hyper["weight_decay"]))
            mean = b.add(b.mul(state["exp_avg"], hyper["beta1"]), b.mul(grad, hyper["gain1"]))
            square = b.add(
                b.mul(state["exp_avg_sq"], hyper["beta2"]),
                b.mul(b.mul(grad, grad), hyper["gain2"]),
            )
            new_state = {"exp_avg": mean, "exp_avg_sq": square}
            if amsgrad:
                square = b.maximum(state["max_exp_avg_sq"], square)
                new_state["max_exp_avg_sq"] = square
            scale = b.add(b.mul(b.sqrt(square), hyper["correction"]), hyper["eps"])
            return b.sub(param, b.div(b.mul(mean, hyper["step_size"]), scale)), new_state

        return rule


class AdamW(Adam):
    """Adam with decoupled weight decay, as ``torch.optim.AdamW``.

    ``p`` shrinks by ``lr * weight_decay * p``, apart from the adaptive step (Loshchilov and
    Hutter, "Decoupled weight decay regularization", 2019).
    """

    def __init__(
        self,
        params: Iterable[Any],
        lr: float = 1e-3,
        betas: tuple[float, float] = (0.9, 0.999),
        eps: float = 1e-8,
        weight_decay: float = 1e-2,
        amsgrad: bool = False,
        *,
        maximize: bool = False,
        foreach: bool | None = None,
        capturable: bool = False,
        differentiable: bool = False,
        fused: bool | None = None,
    ) -> None:
        super().__init__(
            params,
            lr,
            betas,
            eps,
            weight_decay,
            amsgrad,
            foreach=foreach,
            maximize=maximize,
            capturable=capturable,
            differentiable=differentiable,
            fused=fused,
            decoupled_weight_decay=True,
        )

    def load_state_dict(self, state_dict: Any) -> None:
        super().load_state_dict(state_dict)
        for group in self.param_groups:
            group["decoupled_weight_decay"] = True  # also for the checkpoint of an Adam
