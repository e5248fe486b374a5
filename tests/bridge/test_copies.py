"""Copies and pickles of compiled modules: they compile for themselves."""

import copy
import pickle

import numpy as np

import netwright as nw
from netwright import nn


def compiled() -> nn.Module:
    nw.manual_seed(0)
    return nw.compile(nn.Sequential(nn.Linear(3, 4), nn.ReLU()).eval(), strict=True)


X = np.ones((2, 3), np.float32)


def test_a_deep_copy_has_parameters_of_its_own():
    """It was an error of ctypes."""
    fast = compiled()
    with nw.no_grad():
        expected = fast(X)
        other = copy.deepcopy(fast)
        assert list(other.state_dict()) == list(fast.state_dict())
        assert nw.equal(other(X), expected)
        for parameter in other.parameters():
            parameter.zero_()
        assert other(X).abs().sum() == 0
        assert nw.equal(fast(X), expected)


def test_a_pickle_reads_back_with_its_options():
    fast = compiled()
    with nw.no_grad():
        expected = fast(X)
        other = pickle.loads(pickle.dumps(fast))
        assert nw.equal(other(X), expected)
    assert other._options == fast._options and other._options.strict
