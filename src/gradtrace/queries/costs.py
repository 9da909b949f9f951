"""By how much what a question needs grows with what there is: constants that `benchmarks/estimate.py --fit` prints.

SECONDS: a hundred calls, calls, multiplications in products and in convolutions, numbers of rows, of other calls,
of leaves, of each example's leaves, and of those at each use. BYTES: 1 MiB, 1 KiB a call, numbers of each example's
leaves, of leaves, of results, of stored winners, of what is carried at one time, of a convolution's patches, of the
largest leaf or result. See `estimate.done` and `estimate.held`.
"""

SECONDS = {
    "trace": (4.52, 0, 0, 1.64, 18.5, 0, 17.2, 0, 0),
    "check": (6.89, 0, 2.74, 4.47, 0, 48.1, 0, 0, 0),
    "greedy": (6.69, 0, 1.56, 4.49, 82.8, 0, 39.1, 0, 0),
    "each example": (5.21, 0, 0, 3.43, 34.8, 0, 35.8, 0, 0.817),
    "greedy, each example": (8.58, 0, 6.11, 2.96, 205, 0, 0, 0, 7.83),
    "influence": (0.407, 0.655, 0, 0, 0, 0.0635, 2.07, 0, 0),
    "influence, each example": (0, 6.92, 0, 0, 42.7, 4.36, 0, 0, 4.94),
    "influence, greedy, each example": (0, 13.3, 3.8, 0, 36.8, 41.5, 80.2, 0, 0),
    "flow": (1.01, 0.794, 0.173, 0.0876, 0, 2.38, 0, 0, 0),
    "report": (47.7, 0, 83.8, 7.11, 293, 0, 0, 0, 0),
    "sum": (3.31, 0.324, 0.289, 0.697, 2.65, 2.54, 4.85, 0, 0),
    "abssum": (6.86, 0, 0.913, 2.62, 26.8, 0, 0, 0, 0),
    "power": (7.08, 0, 0.419, 1.25, 20.4, 0, 24.3, 0, 0),
    "max": (5.84, 0, 0.292, 1.47, 19.2, 0, 11.6, 0, 0),
    "count": (4.16, 0, 0.366, 4.78, 33.8, 0, 1.69, 0, 0),
    "entropy": (9.18, 0, 1.86, 19, 42.7, 0, 26.1, 0, 0),
    "topk": (13.5, 0, 0.769, 4.14, 0, 3.38, 4.22, 0, 0),
    "signedmax": (5.66, 3.34, 3.23, 11, 52.2, 0.57, 0, 0, 0),
    "through": (11.7, 4.74, 0.337, 0.0453, 0.755, 0, 0, 0, 0),
    "graded": (6.52, 5.07, 0.175, 0.0832, 0.784, 0.356, 0, 0, 0),
}
BYTES = {
    "trace": (1.21, 16, 0, 1, 0.868, 0.328, 0, 0.423, 0),
    "check": (4.3, 0, 0, 2.97, 1.06, 0, 7.21, 1.55, 0),
    "greedy": (0, 16, 0, 2, 0, 2.52, 6.57, 3.21, 0),
    "each example": (0, 17.6, 1.53, 2.57, 0, 1.22, 0.103, 7.54, 0),
    "greedy, each example": (0, 14.4, 5.12, 0.669, 1.53, 0, 12, 8.97, 0),
    "influence": (0.696, 2.61, 0, 0.11, 0, 0, 0, 0.0101, 0),
    "influence, each example": (0, 30.9, 1.17, 0, 0, 0, 1.74, 1.35, 2.2),
    "influence, greedy, each example": (0.712, 0, 3.12, 1.24, 0.435, 0, 0, 0, 53.8),
    "flow": (0, 37.3, 0, 0, 0.301, 0, 0, 0.111, 0),
    "report": (2.56, 0, 8.35, 28.7, 0, 3.14, 0, 5.62, 13.6),
    "sum": (0, 13.1, 0, 1.4, 0.0172, 0, 1.3, 1.11, 0),
    "abssum": (0.066, 12.5, 0, 2.02, 0.0373, 0, 1.88, 2.12, 0),
    "power": (1.01, 0, 0, 1.23, 0.0868, 0, 2.47, 1.82, 0),
    "max": (0.755, 0, 0, 4.83, 0.427, 0, 1.08, 1.24, 0),
    "count": (0.832, 0, 0, 1, 0.319, 0, 4.56, 9.35, 0),
    "entropy": (0.274, 8.75, 0, 1, 0, 0, 0.873, 2.37, 10.4),
    "topk": (0, 13.3, 0, 1.32, 0.188, 0, 0, 1.76, 0),
    "signedmax": (0, 13.9, 0, 1.34, 0, 0, 2.65, 6.57, 6.15),
    "through": (0, 3.98, 0, 2.09, 0, 0, 0, 0, 0.601),
    "graded": (0, 9.96, 0, 1.33, 0, 0, 0.162, 0.146, 0),
}
