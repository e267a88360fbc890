"""Libraries that have threads of their own, with the threads started."""

import os

import numpy
import scipy.linalg
import sklearn.cluster
import sklearn.datasets
import sklearn.ensemble
import sklearn.linear_model

_generator = numpy.random.RandomState(0)
SIZES = (1 << 17, 100 << 17)  # 1 MB and 100 MB of float64
arrays = [numpy.arange(size, dtype=float) for size in SIZES]

_square = _generator.rand(600, 600)
# The first product starts OpenBLAS's threads, the first k-means those of OpenMP.
_square @ _square
_points, _ = sklearn.datasets.make_blobs(3000, centers=4, random_state=0)
sklearn.cluster.KMeans(4, n_init=1, random_state=0).fit(_points)

tasks = len(os.listdir("/proc/self/task"))
