"""Writes constants.h: the numbers behind the elementary functions and the rotation.

Run by hand (needs numpy and mpmath), commit the result: the header is the specification, since a
least-squares solver may differ in its last bits from machine to machine.

    python csrc/kernels/detail/make_constants.py > csrc/kernels/detail/constants.h
"""

import mpmath as mp
import numpy as np

mp.mp.dps = 40


def minimax(f, weight, low, high, degree, points=2000, rounds=400):
    """Coefficients (ascending) of the polynomial with the least largest weighted error (Lawson)."""
    t = np.cos(np.pi * (np.arange(points) + 0.5) / points)
    x = (low + high) / 2 + (high - low) / 2 * t
    target = np.array([float(f(mp.mpf(float(v)))) for v in x])
    w = np.array([float(weight(mp.mpf(float(v)))) for v in x])
    basis = np.polynomial.chebyshev.chebvander(t, degree)
    share = np.full(points, 1 / points)
    best_error, best = np.inf, None
    for _ in range(rounds):
        s = np.sqrt(share) * w
        c = np.linalg.lstsq(basis * s[:, None], target * s, rcond=None)[0]
        error = np.abs(w * (basis @ c - target))
        if error.max() < best_error:
            best_error, best = error.max(), c
        share = share * error
        share /= share.sum()
    series = np.polynomial.chebyshev.Chebyshev(best, domain=[low, high])
    return best_error, series.convert(kind=np.polynomial.Polynomial).coef


def literal(value):
    """The nearest float32 as a C++ hexadecimal literal."""
    mantissa, exponent = float(np.float32(value)).hex().split("p")
    if "." in mantissa:
        mantissa = mantissa.rstrip("0").rstrip(".")
    return f"{mantissa}p{exponent}f"


def array(name, comment, values):
    body = ", ".join(literal(v) for v in values)
    lines, line = [], "   "
    for item in body.split(", "):
        if len(line) + len(item) + 2 > 98:
            lines.append(line)
            line = "   "
        line += f" {item},"
    lines.append(line.rstrip(","))
    return (
        f"// {comment}\nstatic constexpr float {name}[{len(values)}] = {{\n"
        + "\n".join(lines)
        + "};\n"
    )


def scalar(name, value, comment):
    return f"static constexpr float {name} = {literal(value)};  // {comment}\n"


def elementary():
    half = mp.log(2) / 2 * mp.mpf("1.0005")
    error, c = minimax(
        lambda r: (mp.exp(r) - 1 - r) / r**2 if abs(r) > 1e-9 else mp.mpf("0.5"),
        lambda r: r * r / mp.exp(r),
        -half,
        half,
        4,
    )
    yield array(
        "kExp",
        "e^r = 1 + r + r^2 (kExp[0] + kExp[1] r + ...), |r| <= ln 2 / 2; "
        f"relative error {error:.1e}",
        c,
    )
    error, c = minimax(lambda x: mp.mpf(2) ** x, lambda x: mp.mpf(2) ** -x, -0.5, 0.5, 3)
    yield array(
        "kExp2", f"2^f = kExp2[0] + kExp2[1] f + ..., |f| <= 1/2; relative error {error:.1e}", c
    )
    yield scalar("kWholeTop", mp.log(32752, 2), "log2 32752: no weight of whole texts passes 32767")
    ln2_high = mp.mpf(float.fromhex("0x1.62e4p-1"))
    yield scalar("kLog2E", 1 / mp.log(2), "1 / ln 2")
    yield scalar("kLn2High", ln2_high, "15 bits: its product with |n| < 2^8 is exact")
    yield scalar("kLn2Low", mp.log(2) - ln2_high, "ln 2 - kLn2High")
    error, c = minimax(
        lambda u: (mp.tanh(mp.sqrt(u)) / mp.sqrt(u) - 1) / u,
        lambda u: u,
        mp.mpf("1e-6"),
        mp.mpf("0.625") ** 2,
        4,
    )
    yield array(
        "kTanh",
        "tanh a = a + a u (kTanh[0] + kTanh[1] u + ...), u = a^2, |a| <= 0.625; "
        f"relative error {error:.1e}",
        c,
    )
    slope = mp.mpf(float(np.float32(0.3)))

    def tail(t):
        z = (1 / t - 1) / slope
        return mp.erfc(z) * mp.exp(z * z) / 2 / t

    error, c = minimax(tail, lambda t: 1 / tail(t), 1 / (1 + slope * 10), mp.mpf(1), 8, 400, 200)
    yield array(
        "kErfc",
        "erfc(z) / 2 = exp(-z^2) t (kErfc[0] + kErfc[1] t + ...), "
        f"t = 1 / (1 + kErfcSlope z), z <= 10; relative error {error:.1e}",
        c,
    )
    yield scalar("kErfcSlope", slope, "")
    yield scalar("kSqrtHalf", mp.sqrt(mp.mpf(1) / 2), "")
    yield scalar(
        "kGeluInner",
        2 * mp.sqrt(2 / mp.pi),
        "gelu_tanh = x sigmoid(kGeluInner (x + kGeluCube x^3))",
    )
    yield scalar("kGeluCube", mp.mpf("0.044715"), "")


def rotation():
    yield array("kHadamardScale", "1 / sqrt(2^k)", [1 / mp.sqrt(mp.mpf(2) ** k) for k in range(10)])
    rows = []
    for m in range(1, 32, 2):
        cosines = [mp.sqrt(mp.mpf(2) / m) * mp.cos(mp.pi * k / (2 * m)) for k in range(m)]
        rows.append(cosines + [mp.mpf(0)] * (32 - m) + [mp.sqrt(mp.mpf(1) / m)])
    yield array(
        "kDct",
        "Orthonormal DCT-II of odd m: row (m - 1) / 2 holds sqrt(2/m) cos(pi k / 2m) "
        "for k <= m\n// and, in its last place, sqrt(1/m)",
        [v for row in rows for v in row],
    )


def main():
    print(
        "// Written by make_constants.py; the specification of these numbers. Internal linkage.\n"
        "#pragma once\n\nnamespace musespark {\n"
    )
    print("\n".join([*elementary(), *rotation()]))
    print("}  // namespace musespark")


main()
