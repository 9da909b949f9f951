"""By how much what a question needs grows with what there is: constants that `benchmarks/estimate.py --fit` prints.

SECONDS: a hundred calls (of a report), calls, multiplications in products and in convolutions, numbers of rows, of
other calls, of leaves, of each example's leaves, and of those at each use. BYTES: 1 MiB, 1 KiB a call, numbers of each
example's leaves, of leaves, of results, of stored winners, of what is carried at one time, of a convolution's patches,
of the largest leaf or result. See `estimate.done` and `estimate.held`.
"""

SECONDS = {
    "trace": (0, 3.36, 0.397, 1.37, 16.1, 0, 0, 0, 0),
    "check": (0, 9.99, 2.5, 2.8, 40.9, 12.2, 0, 0, 0),
    "greedy": (0, 6.4, 2.24, 4.05, 37.1, 8, 0, 0, 0),
    "each example": (0, 6.58, 0.461, 3.18, 30.4, 0, 0, 0, 0.615),
    "greedy, each example": (0, 6.64, 6.8, 7.85, 81.4, 0, 0, 0, 3.1),
    "influence": (0, 0.726, 0, 0, 0.691, 0, 14.5, 0, 0),
    "influence, each example": (0, 3.61, 0.266, 0.268, 26.5, 0, 30.2, 14, 0),
    "influence, greedy, each example": (0, 7.41, 2.67, 0.294, 81.9, 0, 0, 12.9, 1.48),
    "flow": (0, 2.14, 0, 0, 2.58, 2.81, 4.36, 0, 0),
    "report": (62.1, 0, 64.3, 3.46, 330, 0, 0, 0, 5.33),
    "sum": (0, 4.33, 0.513, 0.783, 8.04, 0, 0, 0, 0),
    "abssum": (0, 6.46, 0.657, 2.77, 23, 0, 0, 0, 0),
    "power": (0, 8.13, 0.834, 2.24, 14.2, 0, 0, 0, 0),
    "max": (0, 5.83, 0.608, 2.23, 13, 0, 0, 0, 0),
    "count": (0, 3.71, 0.346, 3.55, 34.5, 0, 0, 0, 0),
    "entropy": (0, 12.3, 2.98, 22.5, 18.4, 0, 0, 0, 0),
    "topk": (0, 18.4, 0.685, 4.47, 0, 1.49, 8.11, 0, 0),
    "signedmax": (0, 6.82, 2.86, 13.1, 30.2, 2.91, 0, 0, 0),
    "through": (0, 14.8, 0.107, 0.0855, 0.282, 0, 2.82, 0, 0),
    "graded": (0, 10.7, 0.151, 0.134, 1.31, 0, 0, 0, 0),
}
BYTES = {
    "trace": (1.35, 4.1, 0, 1, 0.212, 1.56, 0, 0.281, 0),
    "check": (2.26, 0, 0, 3.11, 1.24, 0, 7, 2.57, 0),
    "greedy": (0, 17.7, 0, 1, 0.643, 0.68, 8.67, 9.55, 0),
    "each example": (0, 17.3, 1.26, 3.43, 0.211, 1.37, 0, 7.6, 0),
    "greedy, each example": (0.909, 0, 3.26, 0, 0.444, 1.21, 0, 15.6, 38.8),
    "influence": (0.513, 0, 0, 4.23, 0.0118, 0.0494, 0, 0.126, 0),
    "influence, each example": (0.441, 24.1, 1.15, 6.5, 0, 1.81, 0, 0, 0),
    "influence, greedy, each example": (0, 25.2, 1, 52.4, 0, 0, 14.4, 3.9, 0),
    "flow": (0, 28.7, 0, 0, 0.77, 0.0945, 0, 0.0225, 0),
    "report": (11.3, 0, 9.88, 0, 0, 6.04, 0, 1.68, 39.2),
    "sum": (0, 11.7, 0, 1.04, 0, 0, 1.55, 1.03, 0),
    "abssum": (0, 24.6, 0, 1.46, 0.127, 0, 0.621, 2.55, 0),
    "power": (0, 24.6, 0, 1.44, 0, 0, 0.964, 2.74, 0),
    "max": (0.578, 6.82, 0, 4.54, 0.141, 0.384, 1.32, 1.52, 0),
    "count": (0, 21.8, 0, 1, 0.29, 0, 3.26, 10.2, 0),
    "entropy": (0, 22.4, 0, 1.5, 0.149, 0, 3.23, 2.44, 0),
    "topk": (0, 16.1, 0, 0.628, 0.127, 0.355, 0.0125, 1.47, 0),
    "signedmax": (0, 20.3, 0, 1.1, 0.187, 0, 3.87, 6.51, 0),
    "through": (0, 7.14, 0, 2.1, 0, 0, 0, 0, 0.685),
    "graded": (0, 8.77, 0, 1.33, 0, 0, 0, 0.188, 0.351),
}
