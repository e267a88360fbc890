"""Everything that draws random numbers, already drawn from."""

import ctypes
import multiprocessing
import os
import random
import secrets
import ssl
import tempfile
import uuid

try:
    import numpy
except ImportError:
    numpy = None

try:
    from cryptography.hazmat.primitives.asymmetric import ec
except ImportError:
    ec = None

own = random.Random()
chosen = random.Random(42)
chosen.random()

random.random()
random.getrandbits(64)
random.SystemRandom().random()
secrets.token_hex()
uuid.uuid1()
uuid.uuid4()
ssl.RAND_bytes(8)
os.urandom(8)
with tempfile.NamedTemporaryFile():
    pass
multiprocessing.current_process().authkey
if numpy:
    numpy.random.rand()
    numpy.random.default_rng().random()
    own_generator = numpy.random.default_rng()
    own_generator.random()
    own_state = numpy.random.RandomState()
    chosen_generator = numpy.random.default_rng(42)
    chosen_state = numpy.random.RandomState()
    chosen_state.seed(42)
if ec:
    ec.generate_private_key(ec.SECP256R1())


def throw():
    """A name and a number for each source, none of which two processes may share."""
    libc = ctypes.CDLL(None)
    buffer = ctypes.create_string_buffer(8)
    assert libc.getrandom(buffer, 8, 0) == 8
    yield "getrandom", buffer.raw.hex()
    if hasattr(libc, "arc4random_buf"):
        libc.arc4random_buf(buffer, 8)
        yield "arc4random", buffer.raw.hex()
    yield "urandom", os.urandom(8).hex()
    yield "random", random.random()
    yield "getrandbits", random.getrandbits(64)
    yield "shuffle", random.sample(range(1 << 40), 3)
    yield "SystemRandom", random.SystemRandom().random()
    yield "Random", random.Random().random()
    yield "Random of the import", own.random()
    yield "secrets", secrets.token_hex()
    yield "uuid1", str(uuid.uuid1())
    yield "uuid4", str(uuid.uuid4())
    yield "ssl", ssl.RAND_bytes(8).hex()
    yield "mktemp", tempfile.mktemp()
    with tempfile.NamedTemporaryFile() as file:
        yield "NamedTemporaryFile", file.name
    yield "authkey", bytes(multiprocessing.current_process().authkey).hex()
    if numpy:
        yield "numpy.random", float(numpy.random.rand())
        yield "default_rng", float(numpy.random.default_rng().random())
        yield "default_rng of the import", float(own_generator.random())
        # Since numpy 1.25.
        if hasattr(own_generator, "spawn"):
            yield "its children", float(own_generator.spawn(1)[0].random())
        yield "RandomState of the import", float(own_state.rand())
    if ec:
        key = ec.generate_private_key(ec.SECP256R1())
        yield "cryptography", str(key.private_numbers().private_value)
