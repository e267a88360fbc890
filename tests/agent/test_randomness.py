"""Processes of one image share no randomness, except what was chosen."""

import importlib.util
import unittest
from typing import Any

from restored import AGENT, freeze, run

RANDOM = "import random; say([random.random(), random.gauss(0, 1)])"
NUMPY = "import numpy; say([numpy.random.rand(), numpy.random.randn()])"


class Randomness(unittest.TestCase):
    def same(self, program: str, code: str, **options: object) -> bool:
        """Whether two processes of an image that has run ``code`` agree."""
        image = freeze(program, program, imports=["code_"], modules={"code_": code}, **options)
        first, second = image.runs
        self.assertEqual((first.status, second.status), (0, 0), first.err)
        self.assertIsNotNone(first.said)
        return bool(first.said == second.said)

    def test_time_based_numbers_are_of_different_sequences(self) -> None:
        # Where a daemon keeps them apart, they are all of one sequence.
        say = "import os, uuid; one = uuid.uuid1(); say([one.variant, one.version, one.clock_seq, one.node]"
        say += " if one.is_safe is not uuid.SafeUUID.safe else os.urandom(8).hex())"
        self.assertFalse(self.same(say, "import uuid; uuid.uuid1()"))

    def check(self, program: str, module: str, draw: str) -> None:
        accidents = (
            f"import {module}",
            f"import {module}\nfor _ in range(3000): {draw}",
            f"import {module}\n{module}.seed(1)\n{module}.seed()",
            f"import {module}\n{module}.seed(1)\n{module}.seed(None)\n{draw}",
        )
        for code in accidents:
            with self.subTest(code):
                self.assertFalse(self.same(program, code))
        choices = (
            f"import {module}\n{module}.seed(1)",
            f"import {module}\n{module}.seed(1)\n{draw}",
            f"from {module} import seed\nseed(1)",
            f"import {module}\n{module}.seed()\n{module}.seed(1)",
        )
        for code in choices:
            with self.subTest(code):
                self.assertTrue(self.same(program, code))

    def test_random(self) -> None:
        self.check(RANDOM, "random", "random.random()")

    def test_random_put_back_is_no_choice(self) -> None:
        code = "import random\nstate = random.getstate()\nrandom.seed(1)\nrandom.random()\nrandom.setstate(state)"
        self.assertFalse(self.same(RANDOM, code))
        code = "import random\nrandom.setstate(random.Random(5).getstate())"
        self.assertTrue(self.same(RANDOM, code))

    def test_instances(self) -> None:
        program = "from code_ import own; say(own.random())"
        for code, same in (
            ("own = random.Random()", False),
            ("own = random.Random()\nown.seed(1)\nown.seed()", False),
            ("own = random.Random(5)", True),
            ("own = random.Random()\nown.seed(7)", True),
            ("own = random.Random()\nown.setstate(random.Random(5).getstate())", True),
            ("class Own(random.Random): pass\nown = Own()", False),
        ):
            with self.subTest(code):
                self.assertEqual(self.same(program, f"import random\n{code}"), same)

    @unittest.skipUnless(importlib.util.find_spec("numpy"), "needs numpy")
    def test_instances_of_numpy(self) -> None:
        program = "from code_ import own; say(float(own.uniform()))"
        for code, same in (
            ("own = default_rng()", False),
            ("own = Generator(Philox())", False),
            ("own = RandomState()", False),
            ("own = default_rng(5)", True),
            ("own = RandomState()\nown.seed(5)", True),
        ):
            with self.subTest(code):
                code = f"from numpy.random import *\nfrom numpy.random import Generator, Philox\n{code}"
                self.assertEqual(self.same(program, code), same)

    def test_tensorflow_is_known_by_what_it_draws(self) -> None:
        agent: dict[str, Any] = {"__name__": "agent"}
        exec(compile(AGENT.read_bytes(), "agent", "exec", dont_inherit=True), agent)
        for word in (1, 0x0123456789ABCDEF, (1 << 64) - 1, 0x8000000000000001):
            # The output function of mt19937-64 (Nishimura and Matsumoto).
            drawn = word
            drawn ^= drawn >> 29 & 0x5555555555555555
            drawn ^= drawn << 17 & 0x71D67FFFEDA60000
            drawn ^= drawn << 37 & 0xFFF7EEE000000000
            drawn ^= drawn >> 43
            self.assertEqual(agent["TensorflowGenerator"].word(drawn), word)

    def test_what_tensorflow_and_keras_have_drawn_from(self) -> None:
        code = """
import os, sys
from types import ModuleType, SimpleNamespace as Any
def module(name, **content):
    sys.modules[name] = ModuleType(name)
    sys.modules[name].__dict__.update(content)
calls = []
context = Any(_seed=%s, clear_kernel_cache=lambda: calls.append("cleared"))
module("tensorflow", __path__=[])
module("tensorflow.python", __path__=[])
module("tensorflow.python.eager.context", context_safe=lambda: context)
module("tensorflow.python.framework", __path__=[os.path.dirname(os.path.abspath(__file__))])
from tensorflow.python.framework import random_seed
random_seed.get_seed(%s)
tracker = Any(global_seed_generator=Any(_initial_seed=%s))
module("keras.src.backend.common.global_state", GLOBAL_STATE_TRACKER=tracker)
import random
if %s:
    random.seed(1)
"""
        seeds = """
from types import SimpleNamespace
config = original = SimpleNamespace(is_op_determinism_enabled=lambda: False)
def get_seed(op_seed):
    return op_seed is not None or config.is_op_determinism_enabled()
"""
        program = """
import libraries
seeds = libraries.random_seed
say([libraries.calls, vars(libraries.tracker) == {}, seeds.config is seeds.original])
"""
        # The global seed, the operation's, that of Keras's generator, and whether Python's has one.
        for chosen, said in (
            ((None, None, None, 0), [["cleared"], True, True]),
            ((None, 7, None, 0), [[], True, True]),
            ((3, None, None, 0), [[], True, True]),
            ((None, None, 4, 0), [["cleared"], False, True]),
            ((None, None, None, 1), [["cleared"], False, True]),
        ):
            modules = {"libraries": code % chosen, "random_seed": seeds}
            result = run(program, imports=["libraries"], modules=modules)
            self.assertEqual(result.said, said, chosen)

    def test_random_seeded_by_a_file(self) -> None:
        image = freeze(
            RANDOM, RANDOM, execute=["warm.py"], modules={"warm": "import random\nrandom.seed(1)"}
        )
        self.assertEqual(image.runs[0].said, image.runs[1].said)

    @unittest.skipUnless(importlib.util.find_spec("numpy"), "needs numpy")
    def test_numpy(self) -> None:
        self.check(NUMPY, "numpy.random", "numpy.random.randn()")

    @unittest.skipUnless(importlib.util.find_spec("numpy"), "needs numpy")
    def test_numpy_spawns_no_twins(self) -> None:
        program = "import numpy.random as r; say(str(r.mtrand._rand._bit_generator._seed_seq))"
        image = freeze(program, imports=["numpy.random"])
        self.assertEqual(image.only().said, "None")
        code = "import numpy.random as r\nr.set_state(r.RandomState(5).get_state())"
        self.assertTrue(self.same(NUMPY, code))

    @unittest.skipUnless(importlib.util.find_spec("_sqlite3"), "needs sqlite3")
    def test_a_sqlite_that_shows_no_function(self) -> None:
        program = "import sqlite3; say(sqlite3.connect(':memory:').execute('select hex(randomblob(8))').fetchone())"
        draw = "import sqlite3\nsqlite3.connect(':memory:').execute('select random()').fetchone()"
        self.assertFalse(self.same(program, draw))

    def test_nobody_keeps_a_stand_in(self) -> None:
        code = "from random import seed\nimport random"
        program = "import code_; say([code_.seed == code_.random.Random.seed.__get__(code_.random._inst), code_.seed is code_.random.seed])"
        image = freeze(program, imports=["code_"], modules={"code_": code})
        self.assertEqual(image.only().said, [True, True])

    TORCH = """
import os
class Generator:
    def __init__(self): self.seed()
    def seed(self): self.value = int.from_bytes(os.urandom(4), "little")
    def initial_seed(self): return self.value
default_generator = Generator()
initial_seed = default_generator.initial_seed
def manual_seed(value): default_generator.value = value
def get_num_threads(): return 1
def set_num_threads(number): raise AssertionError
"""

    def test_torch(self) -> None:
        program = "import torch; say(torch.initial_seed())"
        for code, same in (("import torch", False), ("import torch\ntorch.manual_seed(7)", True)):
            image = freeze(
                program, program, imports=["user"], modules={"torch": self.TORCH, "user": code}
            )
            self.assertEqual(image.runs[0].said == image.runs[1].said, same)

    def test_the_rest(self) -> None:
        program = """
import multiprocessing.synchronize, secrets, tempfile, uuid, os
say([
    list(multiprocessing.current_process().authkey),
    next(tempfile._get_candidate_names()),
    next(multiprocessing.synchronize.SemLock._rand),
    str(uuid.uuid4()), str(uuid.uuid1()), secrets.token_hex(),
])
"""
        draw = "import multiprocessing.synchronize, tempfile, uuid\nnext(tempfile._get_candidate_names())\nnext(multiprocessing.synchronize.SemLock._rand)\nuuid.getnode()"
        image = freeze(program, program, imports=["draw"], modules={"draw": draw})
        for one, other in zip(image.runs[0].said, image.runs[1].said):
            self.assertNotEqual(one, other)

    def test_an_authkey_that_was_chosen(self) -> None:
        code = "import multiprocessing\nmultiprocessing.current_process().authkey = b'chosen'"
        self.assertTrue(
            self.same("import multiprocessing as m; say(list(m.current_process().authkey))", code)
        )


if __name__ == "__main__":
    unittest.main()
