"""Says which TensorFlow it is, and adds two tensors."""

import tensorflow as tf

print("TF:", tf.__version__, "1 + 1 =", int(tf.constant(1) + tf.constant(1)))
