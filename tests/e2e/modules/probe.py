"""What a program can see of the interpreter that runs it."""

import gc
import locale
import os
import signal
import sys
import threading
import time
import warnings


def stream(file):
    """Everything about a standard stream."""
    if file is None:
        return None

    def ask(function):
        try:
            return function()
        except (OSError, ValueError) as error:
            return f"{type(error).__name__}: {error}"

    names = ("name", "mode", "encoding", "errors", "line_buffering", "write_through", "newlines", "closed")
    text = {name: getattr(file, name, "none") for name in names}
    calls = ("isatty", "fileno", "seekable", "readable", "writable", "tell")
    text.update({name: ask(getattr(file, name)) for name in calls})
    text["repr"] = repr(file)
    below = file.buffer
    layers = []
    while below is not None:
        layer = {"type": type(below).__name__}
        for name in ("name", "mode", "closefd", "_blksize"):
            layer[name] = ask(lambda: getattr(below, name, "none"))
        for name in ("isatty", "fileno", "seekable", "readable", "writable", "tell"):
            layer[name] = ask(getattr(below, name))
        layers.append(layer)
        below = getattr(below, "raw", None)
    text["layers"] = layers
    return text


def streams():
    """All three, and whether the originals are the same."""
    for name in ("stdin", "stdout", "stderr"):
        file = getattr(sys, name)
        yield name, stream(file), getattr(sys, f"__{name}__") is file


def interpreter(namespace):
    """Names and values, in a fixed order."""
    main = sys.modules["__main__"]
    yield "argv", sys.argv
    yield "orig_argv", sys.orig_argv
    for name in ("__name__", "__file__", "__package__", "__doc__", "__cached__"):
        yield name, namespace.get(name, "none")
    spec = namespace.get("__spec__")
    yield "spec", (spec and (spec.name, spec.origin, type(spec.loader).__name__))
    yield "loader", type(namespace.get("__loader__")).__name__ , repr(namespace.get("__loader__")).split(" at ")[0]
    yield "globals", sorted(namespace)
    yield "is main", main.__dict__ is namespace
    yield "path", sys.path
    yield "flags", sys.flags
    for name in (
        "executable", "_base_executable", "prefix", "base_prefix", "exec_prefix", "warnoptions", "_xoptions",
        "dont_write_bytecode", "pycache_prefix", "platlibdir", "float_repr_style", "version", "implementation",
        "hash_info", "abiflags", "byteorder", "maxsize",
    ):
        yield name, getattr(sys, name, "none")
    yield "hooks", sys.excepthook is sys.__excepthook__, sys.displayhook is sys.__displayhook__
    yield "breakpoint", sys.breakpointhook is sys.__breakpointhook__
    yield "interactive", hasattr(sys, "ps1"), hasattr(sys, "last_value")
    yield "trace", sys.gettrace(), sys.getprofile(), threading._trace_hook
    yield "limits", sys.getrecursionlimit(), sys.getswitchinterval()
    yield "garbage", gc.isenabled(), gc.get_threshold(), gc.garbage, gc.get_debug(), gc.callbacks
    yield "threads", [thread.name for thread in threading.enumerate()], threading.current_thread() is threading.main_thread()
    yield "native id", threading.main_thread().native_id == os.getpid() == threading.get_native_id()
    yield "frames", sys._getframe(1).f_back is None
    yield "asynchronous", sys.get_asyncgen_hooks(), sys.get_coroutine_origin_tracking_depth()
    yield "filters", [(entry[0], str(entry[1]), entry[2].__name__, str(entry[3]), entry[4]) for entry in warnings.filters]
    yield "signals", [(number, str(signal.getsignal(number))) for number in sorted(signal.valid_signals()) if isinstance(signal.getsignal(number), (int, type(None)))]
    yield "interrupt", signal.getsignal(signal.SIGINT) is signal.default_int_handler
    yield "mask", sorted(signal.pthread_sigmask(signal.SIG_BLOCK, [])), sorted(signal.sigpending())
    yield "encodings", sys.getfilesystemencoding(), sys.getfilesystemencodeerrors(), sys.getdefaultencoding()
    yield "locale", locale.setlocale(locale.LC_ALL), locale.getpreferredencoding(False)
    yield "zone", time.tzname, time.timezone
    yield "environ", os.environ.copy() == {key: os.environ[key] for key in os.environ}, type(os.environ).__name__
    yield "ours", sorted(name for name in sys.modules if "criu" in name.lower() or "preload" in name.lower())
    yield "builtins", sorted(name for name in dir(__builtins__ if not isinstance(__builtins__, dict) else sys.modules["builtins"]))
    yield "sys", sorted(name for name in dir(sys) if name not in ("last_exc", "last_type", "last_value", "last_traceback"))
    yield "meta path", [getattr(finder, "__name__", type(finder).__name__) for finder in sys.meta_path]
    yield "path hooks", [getattr(hook, "__name__", type(hook).__name__) for hook in sys.path_hooks]


def show(namespace):
    """Prints it all."""
    for line in interpreter(namespace):
        print(*map(repr, line))
