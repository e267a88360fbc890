"""A rounding mode other than the one that a new process has, in the main thread and in another."""

import ctypes
import ctypes.util
import queue
import threading

UPWARD = 0x800  # FE_UPWARD of <fenv.h>, x86-64
DOWNWARD = 0x400

_math = ctypes.CDLL("libm.so.6")
_questions = queue.Queue()
_answers = queue.Queue()


def state():
    """The rounding mode as the x87 control word has it, and a quotient that MXCSR rounds."""
    return _math.fegetround(), (_one / _three).hex()


_one, _three = 1.0, 3.0


def _other():
    _math.fesetround(DOWNWARD)
    _answers.put(state())
    while True:
        _questions.get()
        _answers.put(state())


threading.Thread(target=_other, daemon=True).start()
_math.fesetround(UPWARD)
before = (state(), _answers.get())


def now():
    """The states of both threads."""
    _questions.put(None)
    return state(), _answers.get(timeout=20)
