"""The polynomial that approximates the error function in ``gelu_kernel.py``."""

LIMIT = 4.4
COEFFICIENTS = (
    0.32080884,
    -0.157224632,
    0.110501054,
    -0.0801784013,
    0.0536042872,
    -0.031954165,
    0.0219759049,
    -0.0157682203,
    0.00550817463,
)
"""Of the polynomial p, lowest power first: erf(x / sqrt 2) = x p(2 x^2 / LIMIT^2 - 1) for |x| up to LIMIT.
The maximum error of GELU, 2.5e-5, is the least for nine coefficients; float16 rounds values near 1 by up to 4.9e-4."""
