"""By how much what a question needs grows with what there is: constants that `benchmarks/estimate.py --fit` prints.

SECONDS: a hundred calls, calls, multiplications in products and in convolutions, numbers of rows, of other calls,
of leaves, of each example's leaves, and of those at each use. BYTES: 1 MiB, 1 KiB a call, numbers of each example's
leaves, of leaves, of results, of stored winners, of what is carried at one time, of a convolution's patches, of the
largest leaf or result. See `estimate.done` and `estimate.held`.
"""

SECONDS = {
    "trace": (4.51, 0, 0, 1.68, 18, 0, 18.5, 0, 0),
    "check": (6.2, 0, 2.8, 4.29, 0, 50.3, 0, 0, 0),
    "greedy": (6.79, 0, 1.63, 4.59, 81.7, 0, 37.1, 0, 0),
    "each example": (5.41, 0, 0, 3.56, 34.8, 0, 31, 0, 0.803),
    "greedy, each example": (8.87, 0, 5.75, 3, 207, 0, 0, 0, 7.78),
    "influence": (0.323, 0.715, 0, 0, 0, 0.0938, 2.01, 0, 0),
    "influence, each example": (0, 7.06, 0, 0, 43.8, 4.31, 0, 0, 3.62),
    "influence, greedy, each example": (0, 13.9, 4.02, 0, 43.2, 39.8, 72.5, 0, 0),
    "flow": (1.4, 0.396, 0.174, 0.0846, 0, 2.51, 0, 0, 0),
    "report": (49.3, 0, 83.5, 7.86, 281, 0, 0, 0, 0),
    "sum": (3.43, 0, 0.191, 0.727, 1.33, 2.92, 7.3, 0, 0),
    "abssum": (7.21, 0, 0.729, 2.76, 25.8, 0, 0, 0, 0),
    "power": (4.59, 4.89, 0.901, 1.77, 17.5, 0, 0, 0, 0),
    "max": (5.87, 0, 0.363, 1.5, 19.3, 0, 8.56, 0, 0),
    "count": (4.28, 0, 0.37, 4.92, 33.9, 0, 0, 0, 0),
    "entropy": (7.03, 4.22, 2.27, 19.6, 40.9, 0, 0, 0, 0),
    "topk": (13.8, 0, 0.787, 4.13, 0, 3.34, 3.78, 0, 0),
    "signedmax": (6.31, 2.92, 3.26, 11, 53.8, 0, 0, 0, 0),
    "through": (11.9, 4.62, 0.334, 0.0473, 0.696, 0, 0, 0, 0),
    "graded": (6.4, 4.97, 0.174, 0.0847, 0.738, 0.397, 0, 0, 0),
}
BYTES = {
    "trace": (0.833, 23, 0, 1, 0.828, 0.402, 0, 0.462, 0),
    "check": (4.04, 0, 0, 3.1, 1.13, 0, 7.16, 1.51, 0),
    "greedy": (0, 16.5, 0, 2.1, 0, 2.42, 6.6, 3.31, 0),
    "each example": (0, 18.1, 1.65, 2.66, 0, 1.02, 0, 7.7, 0),
    "greedy, each example": (0, 14.6, 5.01, 1.36, 1.53, 0, 12.1, 9.03, 0),
    "influence": (0.846, 2.35, 0, 0.105, 0, 0, 0, 0.00359, 0),
    "influence, each example": (0, 33.6, 1, 0, 0, 0, 1.36, 1.39, 2.87),
    "influence, greedy, each example": (0.626, 0, 1.04, 13.1, 0.77, 0, 0, 0, 51.9),
    "flow": (0, 42.3, 0, 0, 0.301, 0, 0, 0.0444, 0),
    "report": (2.43, 0, 8.39, 26.9, 0, 3.32, 0, 5.18, 14.8),
    "sum": (0, 13.4, 0, 1.37, 0, 0, 1.36, 1.13, 0),
    "abssum": (0, 24.1, 0, 1.2, 0.353, 0, 0.155, 1.83, 0),
    "power": (0, 23.6, 0, 1, 0.171, 0, 0.814, 2.22, 0),
    "max": (0, 12, 0, 4.74, 0.355, 0, 1.1, 1.51, 0),
    "count": (0, 20.7, 0, 1, 0.241, 0, 3.71, 9.77, 0),
    "entropy": (0, 20.3, 0, 1, 0.199, 0, 3.43, 2.11, 0),
    "topk": (0, 15.9, 0, 0.774, 0.162, 0.2, 0, 1.61, 0),
    "signedmax": (0, 20.4, 0, 1, 0.179, 0, 3.92, 6.34, 0),
    "through": (0, 4.89, 0, 2.07, 0, 0, 0, 0, 0.601),
    "graded": (0, 9.51, 0, 1.32, 0, 0, 0.169, 0.142, 0),
}
