"""Several Python threads compile and call models at the same time."""

from __future__ import annotations

import threading
from collections.abc import Callable
from typing import Any

import numpy as np

import netwright as nw
from netwright import nn


def in_a_thread(function: Callable[[], Any], seconds: float = 60.0) -> list[Any]:
    """Starts a thread; its result is appended to the list. Waits at most ``seconds``."""
    found: list[Any] = []
    thread = threading.Thread(target=lambda: found.append(function()))
    thread.start()
    thread.join(seconds)
    return found


def test_a_trace_sees_only_the_operations_of_its_own_thread():
    """The tracer was a global: eager calls of the same model elsewhere became nodes of the trace,
    and their results were symbols without data."""
    x = np.ones((2, 3), np.float32)
    elsewhere: list[Any] = []

    class Meeting(nn.Module):
        def __init__(self):
            super().__init__()
            self.linear = nn.Linear(3, 4)

        def forward(self, x):
            if not elsewhere:
                elsewhere.append(None)
                elsewhere[:] = in_a_thread(lambda: self.linear(nw.tensor(x_of_thread)))
                elsewhere.extend(in_a_thread(lambda: other(x_of_thread)))
            return self.linear(x)

    x_of_thread = np.full((5, 3), 2, np.float32)
    other = nw.compile(nn.Linear(3, 2).eval())
    model = Meeting().eval()
    fast = nw.compile(model)
    result = fast(x)
    assert nw.allclose(result, model.linear(nw.tensor(x)), atol=1e-6)
    assert nw.allclose(elsewhere[0], model.linear(nw.tensor(x_of_thread)))
    assert elsewhere[1].shape == (5, 2)
    assert [n.op for n in fast.graph("traced").nodes].count("linear") == 1


def test_a_call_waits_until_another_thread_has_bound_the_new_weights(monkeypatch):
    """The arrays counted as bound before they were: a second thread computed with the old weights
    and, in the first call, with null pointers."""
    model = nn.Linear(3, 4).eval()
    fast = nw.compile(model)
    x = np.ones((2, 3), np.float32)
    with nw.no_grad():
        fast(x)
        (variant,) = fast._variants.values()
        bind, meanwhile = variant.executable.bind, []

        def slow_bind(state):
            def call():
                with nw.no_grad():
                    meanwhile.append(fast(x))

            thread = threading.Thread(target=call)
            thread.start()
            thread.join(0.2)
            bind(state)
            threads.append(thread)

        threads: list[threading.Thread] = []
        monkeypatch.setattr(variant.executable, "bind", slow_bind)
        model.weight.data = nw.full((4, 3), 5.0)
        fast(x)
        for thread in threads:
            thread.join()
        assert nw.allclose(meanwhile[0], model(nw.tensor(x)))
