"""By how much what a question needs grows with what there is: constants that `benchmarks/estimate.py --fit` prints.

SECONDS: a hundred calls (of a report), calls, multiplications in products and in convolutions, numbers of rows, of
other calls, of leaves, of each example's leaves, and of those at each use. BYTES: 1 MiB, 1 KiB a call, numbers of each
example's leaves, of leaves, of results, of stored winners, of what is carried at one time, of a convolution's patches,
of the largest leaf or result. See `estimate.done` and `estimate.held`.
"""

SECONDS = {
    "trace": (0, 7.5, 0.397, 2.4, 13.5, 0, 0, 0, 0),
    "check": (0, 9.46, 3.04, 4.11, 24.1, 40.5, 0, 0, 0),
    "greedy": (0, 10.1, 2.49, 5.58, 76.8, 0, 0, 0, 0),
    "each example": (0, 8.14, 0.478, 4.34, 31.5, 0, 0, 0, 0.701),
    "greedy, each example": (0, 9.81, 5.44, 3.57, 207, 0, 0, 0, 7.43),
    "influence": (0, 1.16, 0, 0.0047, 0, 0, 2.23, 0, 0),
    "influence, each example": (0, 7.06, 0, 0, 43.8, 4.31, 0, 0, 3.65),
    "influence, greedy, each example": (0, 13.9, 4.02, 0, 43.2, 39.8, 72.5, 0, 0),
    "flow": (0, 1.53, 0.187, 0.17, 0, 2.08, 0, 0, 0),
    "report": (49.3, 0, 83.5, 7.86, 281, 0, 0, 0, 0),
    "sum": (0, 4.76, 0.435, 0.871, 7.39, 0, 0, 0, 0),
    "abssum": (0, 5.9, 0.732, 3.33, 23.8, 0, 0, 0, 0),
    "power": (0, 8.47, 0.875, 2.06, 16.9, 0, 0, 0, 0),
    "max": (0, 6.38, 0.643, 2.19, 15.7, 0, 0, 0, 0),
    "count": (0, 5.32, 0.365, 5.61, 28.7, 0, 0, 0, 0),
    "entropy": (0, 13.3, 2.35, 21.1, 30, 0, 0, 0, 0),
    "topk": (0, 22.8, 0.963, 4.43, 0, 2.14, 0, 0, 0),
    "signedmax": (0, 6.97, 3.22, 11.8, 50.9, 0, 0, 0, 0),
    "through": (0, 16.6, 0.15, 0.112, 0, 0, 2.36, 0, 0),
    "graded": (0, 12.7, 0.157, 0.143, 1.03, 0, 0, 0, 0),
}
BYTES = {
    "trace": (0.833, 9, 0, 1, 0.828, 0.402, 0, 0.462, 0),
    "check": (4.04, 0, 0, 3.1, 1.13, 0, 7.16, 1.51, 0),
    "greedy": (0, 16.5, 0, 2.1, 0, 2.42, 6.6, 3.31, 0),
    "each example": (0, 18.1, 1.65, 2.66, 0, 1.02, 0, 7.7, 0),
    "greedy, each example": (0, 14.6, 5.01, 1.36, 1.53, 0, 12.1, 9.03, 0),
    "influence": (0.846, 2.35, 0, 0.105, 0, 0, 0, 0.00359, 0),
    "influence, each example": (0, 33.6, 1, 0, 0, 0, 1.36, 1.39, 2.87),
    "influence, greedy, each example": (0.626, 0, 1.04, 13.1, 0.77, 0, 0, 0, 51.9),
    "flow": (0, 13, 0, 0, 0.301, 0, 0, 0.0444, 0),
    "report": (2.43, 0, 8.39, 26.9, 0, 3.32, 0, 5.18, 14.8),
    "sum": (0, 5, 0, 1.37, 0, 0, 1.36, 1.13, 0),
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
