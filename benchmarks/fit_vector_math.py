"""Regenerates the polynomial coefficients in ``codegen/vector_tables.py`` and prints their errors.

``python benchmarks/fit_vector_math.py`` needs mpmath. Each fit is minimax in relative error
(weighted Remez exchange for float64, Lawson's iteration for float32).
"""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence

import mpmath as mp
import numpy as np

mp.mp.prec = 140
Real = Callable[[mp.mpf], mp.mpf]


def remez(
    f: Real, weight: Real, low: mp.mpf, high: mp.mpf, powers: Sequence[int], rounds: int = 12
) -> tuple[list[mp.mpf], mp.mpf]:
    """Coefficients of ``powers`` that minimise max |weight * (sum - f)| on [low, high]; the max."""
    count = len(powers) + 1
    grid = [_chebyshev(low, high, k, 30 * count) for k in range(30 * count)]
    values = [(x, f(x), weight(x)) for x in grid]
    at = [values[round((k + 0.5) * len(values) / count)] for k in range(count)]
    best: list[mp.mpf] = []
    for _ in range(rounds):
        rows = [[x**p for p in powers] + [(-1) ** k / w] for k, (x, _, w) in enumerate(at)]
        solution = mp.lu_solve(mp.matrix(rows), mp.matrix([y for _, y, _ in at]))
        best = [solution[k] for k in range(len(powers))]
        errors = [w * (_sum(best, powers, x) - y) for x, y, w in values]
        peaks = _alternating_peaks(errors)
        if len(peaks) < count:
            break
        while len(peaks) > count:
            peaks.pop(0 if abs(errors[peaks[0]]) < abs(errors[peaks[-1]]) else -1)
        at = [values[p] for p in peaks]
    worst = max(abs(w * (_sum(best, powers, x) - y)) for x, y, w in values)
    return best, worst


def fit(
    f: Real, weight: Real, low: float, high: float, powers: Sequence[int], dtype: type
) -> tuple[list[float], float]:
    """Coefficients that are exact in ``dtype``, and the relative error that they leave.

    For float32 the coefficients are rounded one at a time, lowest order first, and the others
    fitted again: that loses less than rounding all at once.
    """
    low, high = mp.mpf(low), mp.mpf(high)
    if dtype is np.float64:
        fixed = [float(c) for c in remez(f, weight, low, high, powers)[0]]
    else:
        x = [_chebyshev(low, high, k, 1000) for k in range(1000)]
        fixed = _fit_rounded(
            np.array([float(v) for v in x]),
            np.array([float(f(v)) for v in x]),
            np.array([float(weight(v)) for v in x]),
            powers,
            dtype,
        )
    grid = [_chebyshev(low, high, k, 500) for k in range(500)]
    worst = max(abs(weight(x) * (_sum(fixed, powers, x) - f(x))) for x in grid)
    return fixed, float(worst)


def _fit_rounded(
    x: np.ndarray, y: np.ndarray, w: np.ndarray, powers: Sequence[int], dtype: type
) -> list[float]:
    """Minimax by Lawson's reweighted least squares, one rounded coefficient after the other."""
    fixed: list[float] = []
    rest = y
    for k in range(len(powers)):
        matrix = np.stack([x**p for p in powers[k:]], 1)
        lawson = np.ones_like(x)
        for _ in range(100):
            scale = np.sqrt(lawson) * w
            solution = np.linalg.lstsq(matrix * scale[:, None], rest * scale, rcond=None)[0]
            error = np.abs(w * (matrix @ solution - rest))
            lawson *= error / error.max() + 1e-3
            lawson /= lawson.mean()
        fixed.append(float(dtype(solution[0])))
        rest = rest - fixed[-1] * x ** powers[k]
    return fixed


def fit_rational(
    f: Real, weight: Real, low: float, high: float, top: int, bottom: int
) -> tuple[list[float], list[float]]:
    """P and Q (Q[0] = 1) in float64 with P/Q close to f: linearised, reweighted least squares."""
    x = np.array([float(_chebyshev(mp.mpf(low), mp.mpf(high), k, 2000)) for k in range(2000)])
    y = np.array([float(f(mp.mpf(v))) for v in x])
    w = np.array([float(weight(mp.mpf(v))) for v in x])
    lawson, q = np.ones_like(x), np.ones_like(x)
    for _ in range(200):
        scale = np.sqrt(lawson) * w / q
        columns = [x**k for k in range(top + 1)] + [-y * x**k for k in range(1, bottom + 1)]
        matrix = np.stack(columns, 1) * scale[:, None]
        solution = np.linalg.lstsq(matrix, y * scale, rcond=None)[0]
        p = sum(c * x**k for k, c in enumerate(solution[: top + 1]))
        q = 1 + sum(c * x ** (k + 1) for k, c in enumerate(solution[top + 1 :]))
        error = np.abs(w * (p / q - y))
        lawson *= error / error.max() + 1e-3
        lawson /= lawson.mean()
    return list(solution[: top + 1]), [1.0, *solution[top + 1 :]]


def split(value: mp.mpf, parts: int, bits: int, tail_bits: int) -> list[float]:
    """``value`` as a sum of floats of ``bits`` significant bits; the last has ``tail_bits``."""
    out = []
    for k in range(parts):
        kept = bits if k < parts - 1 else tail_bits
        with mp.workprec(kept):
            part = +value
        out.append(float(part))
        value -= part
    return out


def _sum(coefficients: Sequence[mp.mpf], powers: Sequence[int], x: mp.mpf) -> mp.mpf:
    return mp.fsum(c * x**p for c, p in zip(coefficients, powers, strict=True))


def _chebyshev(low: mp.mpf, high: mp.mpf, k: int, count: int) -> mp.mpf:
    return (low + high) / 2 - (high - low) / 2 * mp.cos(mp.pi * (k + mp.mpf(1) / 2) / count)


def _alternating_peaks(errors: Sequence[mp.mpf]) -> list[int]:
    """Index of the largest error of each run of one sign."""
    peaks = [0]
    for k, error in enumerate(errors):
        if (error > 0) == (errors[peaks[-1]] > 0):
            if abs(error) > abs(errors[peaks[-1]]):
                peaks[-1] = k
        else:
            peaks.append(k)
    return peaks


def _show(name: str, coefficients: Sequence[float], worst: float | None = None) -> None:
    note = f"  # {worst:.1e}" if worst is not None else ""
    print(f"{name} = ({', '.join(repr(c) for c in coefficients)}){note}")


def _exp_tail(x: mp.mpf) -> mp.mpf:
    return (mp.expm1(x) - x) / x**2


def _log_tail(x: mp.mpf) -> mp.mpf:
    return (mp.log1p(x) - x) / x**2


def main() -> None:
    fit_common(np.float32, 24, {"exp": 4, "log": 7, "sin": 2, "cos": 2})
    fit_common(np.float64, 53, {"exp": 9, "log": 19, "sin": 6, "cos": 6})
    fit_erf()


def fit_common(dtype: type, bits: int, degrees: Mapping[str, int]) -> None:
    """The functions that both dtypes compute alike: exp, log, sin and cos. ``bits`` is the length
    of a mantissa, ``degrees`` are those of the polynomials."""
    half_log2 = mp.log(2) / 2
    quarter = mp.pi / 4
    kind = dtype.__name__
    # ln2's head has trailing zeros, so that n * head is exact for every exponent n.
    _show(f"{kind} LN2", split(mp.log(2), 2, bits - 11, bits))
    _show(f"{kind} HALF_PI", split(mp.pi / 2, 3, bits, bits))
    margin = mp.mpf("1.0001")
    _show(
        f"{kind} EXP",
        *fit(
            _exp_tail,
            lambda x: x**2 / mp.exp(x),
            -half_log2 * margin,
            half_log2 * margin,
            range(degrees["exp"] + 1),
            dtype,
        ),
    )
    _show(
        f"{kind} LOG",
        *fit(
            _log_tail,
            lambda x: x**2 / mp.log1p(x),
            mp.sqrt(0.5) - 1,
            mp.sqrt(2) - 1,
            range(degrees["log"] + 1),
            dtype,
        ),
    )
    # In z = x**2: sin(x) = x + x z SIN(z), cos(x) = 1 - z / 2 + z**2 COS(z).
    _show(
        f"{kind} SIN",
        *fit(
            lambda z: (mp.sin(mp.sqrt(z)) / mp.sqrt(z) - 1) / z,
            lambda z: z**1.5 / mp.sin(mp.sqrt(z)),
            mp.mpf("1e-12"),
            quarter**2 * margin,
            range(degrees["sin"] + 1),
            dtype,
        ),
    )
    _show(
        f"{kind} COS",
        *fit(
            lambda z: (mp.cos(mp.sqrt(z)) - 1 + z / 2) / z**2,
            lambda z: z**2 / mp.cos(mp.sqrt(z)),
            mp.mpf("1e-6"),
            quarter**2 * margin,
            range(degrees["cos"] + 1),
            dtype,
        ),
    )


def fit_erf() -> None:
    """erf, which each dtype computes in its own way."""
    p, q = fit_rational(
        lambda z: mp.erf(mp.sqrt(z)) / mp.sqrt(z),
        lambda z: mp.sqrt(z) / mp.erf(mp.sqrt(z)),
        1e-12,
        3.925**2,
        5,
        5,
    )
    _show("float32 ERF_P", [float(np.float32(c)) for c in p])
    _show("float32 ERF_Q", [float(np.float32(c)) for c in q])
    # |x| <= 1: erf(x) = x + x ERF(x**2); 1 <= |x| <= 6: erfc(x) = exp(-x**2) ERFCX(t),
    # t = (x - 2.5) / (x + 2.5).
    _show(
        "float64 ERF",
        *fit(
            lambda z: mp.erf(mp.sqrt(z)) / mp.sqrt(z) - 1,
            lambda z: mp.sqrt(z) / mp.erf(mp.sqrt(z)),
            mp.mpf("1e-12"),
            mp.mpf(1.001),
            range(13),
            np.float64,
        ),
    )
    erf_slope = 2 / mp.sqrt(mp.pi)
    print(f"# slope of erf at 0: {mp.nstr(erf_slope, 20)}")
    _show(
        "float64 ERFCX",
        *fit(
            lambda t: _erfcx(2.5 * (1 + t) / (1 - t)),
            lambda t: 1 / _erfcx(2.5 * (1 + t) / (1 - t)),
            (mp.mpf(1) - 2.5) / (mp.mpf(1) + 2.5) - mp.mpf("1e-3"),
            mp.mpf(3.6) / mp.mpf(8.6),
            range(16),
            np.float64,
        ),
    )


def _erfcx(x: mp.mpf) -> mp.mpf:
    return mp.exp(x * x) * mp.erfc(x)


if __name__ == "__main__":
    main()
