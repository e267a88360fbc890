"""Threads that wait and work in every way that Python has, started by an import."""

import ctypes
import faulthandler
import os
import queue
import select
import threading
import time

faulthandler.enable()

# Counts while the process lives.
ticks = 0


def _tick():
    global ticks
    while True:
        ticks += 1
        time.sleep(0.005)


# Answers what it is asked.
requests = queue.Queue()
answers = queue.Queue()


def _work():
    while True:
        item = requests.get()
        if item is None:
            return
        number, function = item
        answers.put((number, function(), threading.get_native_id()))


# Waits with a timeout that ends long after the freeze, and for an event that comes after it.
signalled = threading.Event()
woken = []


def _wait():
    woken.append(signalled.wait(timeout=3600))


# Waits for a lock that the main thread holds at the freeze.
lock = threading.Lock()
lock.acquire()
entered = threading.Event()


def _enter():
    with lock:
        entered.set()


# Sits in C code without the GIL, in a system call that a signal interrupts.
def _pause():
    ctypes.CDLL(None).pause()


# Waits in poll(2) for nothing but time.
polls = 0


def _poll():
    global polls
    while True:
        select.poll().poll(5)
        polls += 1


NAMES = ("ticker", "worker", "waiter", "enterer", "pauser", "poller")
threads = {}
for _name, _target in zip(NAMES, (_tick, _work, _wait, _enter, _pause, _poll)):
    threads[_name] = threading.Thread(target=_target, name=_name, daemon=True)
    threads[_name].start()

local = threading.local()
local.value = "main"

while ticks < 3 or polls < 3:
    time.sleep(0.005)

idents = {name: thread.ident for name, thread in threads.items()}
tasks = len(os.listdir("/proc/self/task"))


def ask(function):
    """What the worker, a thread from before the freeze, makes of it; and its TID."""
    requests.put((len(idents), function))
    _, result, tid = answers.get(timeout=20)
    return result, tid


def settle(count):
    """Whether there are so many tasks, once those that are ending have ended."""
    deadline = time.monotonic() + 20
    while len(os.listdir("/proc/self/task")) != count and time.monotonic() < deadline:
        time.sleep(0.005)
    return len(os.listdir("/proc/self/task")) == count
