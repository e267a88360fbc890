"""The Python side of a frozen interpreter.

It lives in the image, and runs before and after the user's program, never while it does:

``prepare`` runs once, when the image is made: it imports and warms up, finds out what must be
different in every restored process, and gets ready what ``thaw`` will need.

``thaw`` runs in every restored process, when CPython has read the command line and before its main
runs the program: it makes of the frozen interpreter one that has just been started, with this
process's environment, standard streams, signals and randomness. It is on the way of every run, so
it imports nothing and touches little memory.

Nothing of this is visible to the program: no name in ``sys.modules``, no frame in a traceback, no
module that only we needed. Of the exit callbacks the first registered, so the last called, is
ours: it hides the frozen modules from the interpreter's finalization, which would visit all of
their memory to free what the kernel frees anyway.

Randomness: importing ``random``, ``numpy.random`` or ``torch`` seeds a hidden generator from the
operating system, and every restored process must get its own. One that was seeded on purpose must
stay as it is. The generator's state tells the two apart: a state that the one of the import leads
to by drawing numbers (libraries do, for temporary names and the like) is an accident and is
replaced; so is what ``seed()`` without an argument led to. Any other was chosen and stays.
The same goes for generators that a module has made for itself, ``random.Random()`` or
``numpy.random.default_rng()``: what was not given a seed gets a new one.
"""

from __future__ import annotations

import sys

# The line above the last one has imported a module too.
_MODULES_OF_PYTHON = [name for name in sys.modules if name != "__future__"]

import _imp
import _io
import _locale
import _thread
import _warnings
import _weakref
import atexit
import builtins
import codecs
import gc
import os
import posix
import time

TYPE_CHECKING = False
if TYPE_CHECKING:
    import signal as _signal
    from collections.abc import Callable, Iterator, Mapping, Sequence
    from importlib.machinery import ModuleSpec
    from types import ModuleType, TracebackType
    from typing import Any, NoReturn, Protocol, TypeVar

    Key = TypeVar("Key")

    class Part(Protocol):
        """Something that a process has and an image must not. Made before the imports."""

        def settle(self) -> None:
            """Once, after the imports: learns what they did, does what can be done early."""

        def thaw(self, start: Start) -> None:
            """In every restored process."""

else:
    import _signal

FULL_EXIT = 1
"""Option of ``thaw``: the interpreter's finalization tears everything down."""
SILENT = 8
"""Option of ``thaw``: nothing is said where an ordinary interpreter is started instead."""
REHEARSAL = 16
"""Option of ``thaw``: nothing of the user's is called, this run is only watched."""

_IMPORTED_FOR_US = [name for name in sys.modules if name not in _MODULES_OF_PYTHON]
_OUR_FILE = (lambda: None).__code__.co_filename
_OLDEST, _NEWEST = (3, 10), (3, 13)
_TORN_DOWN = ("sys", "builtins", "__main__")
"""The modules that belong to the program, or that finalization cannot do without, in the order in
which CPython makes them."""

_NO_MATTER = frozenset((b"PATH", b"PWD", b"OLDPWD", b"SHLVL", b"_"))
"""Variables that differ from run to run, and that imports look at for other programs' sake."""

_BASES_OF_TYPE: Callable[[type], tuple[type, ...]] = type.__dict__["__mro__"].__get__
_NAMES_OF_TYPE: Callable[[type], Mapping[str, object]] = type.__dict__["__dict__"].__get__
_NAMES_OF_MODULE: Callable[[object], dict[str, object]] = type(sys).__dict__["__dict__"].__get__
"""What is in the objects themselves, whatever their classes say."""

_frozen: Frozen
_kept: list[object] = []
"""What must never be freed."""


def prepare(job_json: bytes, report_fd: int, facts: dict[str, Any]) -> None:
    """Imports, warms up and makes ready. ``job_json`` and the lines written to ``report_fd`` are
    documented in ``mod.rs``; ``facts`` are the resident's, for the reader of the report."""
    global _frozen
    begin = time.time()
    # Registered before any import can register its own: called last.
    atexit.register(_leave)
    for name in (__name__, *_IMPORTED_FOR_US):
        sys.modules.pop(name, None)
    # Importing is as in `python3 -c`.
    sys.argv = ["-c"]
    json = _without_trace("json")
    job = json.loads(job_json.decode())
    report = Report(report_fd, json.dumps)
    _check_python(report)
    _frozen = Frozen(job.get("preload"), facts.pop("sqlite"))
    reads = Reads(_frozen.environment)
    ledger = Ledger(Properties(facts.pop("prctl")), report_fd, facts.get("orders"))
    watch = Watch(_frozen.randomness.notes, _frozen.pools.notes)
    sys.meta_path.insert(0, watch)
    _import(job["imports"], report, ledger)
    for path in job.get("exec", ()):
        _execute(path, report)
        ledger.look(f"exec {path}")
    _frozen.hooks.before_snapshot(report, ledger)
    sys.meta_path.remove(watch)
    reads.end()

    gc.collect()
    report.refused(ledger.refusals(job.get("lenient", False)))
    for part in _frozen.parts:
        part.settle()
    report.refused(_frozen.randomness.refusals)
    _kept.extend((_frozen, _subclass_tables()))
    names_from_c = facts.pop("variables", bytes)()
    wipe, wipe_given = facts.pop("wipe"), facts.pop("wipe_given")
    ready = report.line(
        "ready",
        pid=os.getpid(),
        **facts,
        **reads.told(names_from_c, _frozen.pools, _frozen.hooks),
        python=_python(),
        modules={name: _source(module, begin) for name, module in sys.modules.items()},
        versions=_versions(),
        descriptors=ledger.descriptors(),
        mappings=ledger.mappings(),
        timers=ledger.timer_owners(),
        children=ledger.child_owners(),
    )
    reads.forget_the_rest(_frozen.pools, wipe, wipe_given)
    _flush()
    nothing = os.open("/dev/null", os.O_RDWR)
    for descriptor in range(3):
        os.dup2(nothing, descriptor)
    os.close(nothing)
    del json, report.dumps
    _freeze()
    report.write(ready)
    os.close(report_fd)


def thaw(
    environ: bytes, argv: list[bytes], ignored: int, options: int, numbers: bytes = b""
) -> bytes:
    """Makes this process's own what must not be the image's. ``environ`` is the environment as a
    NUL-separated block (C's already is this one), ``argv`` the command line of the interpreter,
    ``ignored`` the signals that the caller ignores (bit n-1 for signal n, as in /proc), ``numbers``
    pairs of 32 bits: what the numbers of processes and threads were, and what they are. Returns
    what is to be run, as ``_program`` has it."""
    start = Start(environ, argv, ignored, numbers)
    for part in _frozen.parts:
        part.thaw(start)
    if any(_frozen.shadowed(*searched) for searched in _first_searched(start)):
        start.over()
    if options & REHEARSAL:
        _rehearse()
    else:
        _frozen.hooks.after_restore(start, bool(options & SILENT))
    _frozen.full_exit = bool(options & FULL_EXIT)
    return b"" if _frozen.full_exit else _program(start)


def _program(start: Start) -> bytes:
    """What the command line asks for, as CPython has parsed it: ``c`` and the code, ``m`` and the
    module, ``f`` and the file, with ``sys.path`` and ``__main__`` ready for it as CPython's own main
    makes them (Modules/main.c, pymain_run_python). Empty for all that is rarer: that main runs it,
    and leaves by the whole of finalization."""
    flags = sys.flags
    if flags.inspect or flags.interactive or start.variable(b"PYTHONINSPECT"):
        return b""
    kind, rest = sys.argv[0], len(sys.argv) - 1
    place = len(sys.orig_argv) - rest - 1
    what = sys.orig_argv[place]
    options = sys.orig_argv[1:place]
    if what[:1] in ("-", "") or any("x" in option for option in options):
        return b""
    safe = flags.isolated or getattr(flags, "safe_path", False)
    try:
        if kind == "-c":
            program, search = b"c" + (what + "\n").encode(), ""
            # From 3.13 on, tracebacks show this code, by ways that only CPython's main knows.
            if sys.version_info >= (3, 13):
                return b""
            sys.audit("cpython.run_command", what)
        elif kind == "-m":
            program, search = b"m" + what.encode(), os.getcwd()
            sys.audit("cpython.run_module", what)
        elif kind == what and _is_script(what):
            what = _absolute(what)
            program, search = b"f" + os.fsencode(what), os.path.dirname(os.path.realpath(what))
            loader = sys.modules["_frozen_importlib_external"].SourceFileLoader("__main__", what)
            main = sys.modules["__main__"].__dict__
            main.update(__file__=what, __cached__=None, __loader__=loader)
            sys.audit("cpython.run_file", what)
        else:
            return b""
    except (OSError, UnicodeError):
        return b""
    if not safe:
        sys.path.insert(0, search)
    return program


def _first_searched(start: Start) -> list[tuple[str, bool]]:
    """The directories that are searched for modules before those where the frozen ones were found,
    and whether that is so from the interpreter's start on: the program's own, and those of another
    PYTHONPATH than the image's."""
    directories = []
    if not (sys.flags.isolated or getattr(sys.flags, "safe_path", False)):
        program = sys.argv[0]
        if program in ("", "-", "-c", "-m"):
            directories.append((".", False))
        else:
            try:
                program = os.path.realpath(program)
            except OSError:
                # There is no current directory.
                return []
            folder = program if os.path.isdir(program) else os.path.dirname(program)
            directories.append((folder, False))
    path = start.variable(b"PYTHONPATH")
    if path != _frozen.path:
        directories += [(folder or ".", True) for folder in path.split(":")] if path else []
    return directories


def _absolute(path: str) -> str:
    """As CPython makes the path of a script absolute (Python/fileutils.c, _Py_abspath)."""
    return path if path[:1] == "/" else os.getcwd() + "/" + path


def _is_script(path: str) -> bool:
    """Whether a file is neither a zip archive nor compiled code, nor something that is read once."""
    descriptor = os.open(path, os.O_RDONLY)
    try:
        status = os.fstat(descriptor)
        # The end of a zip file's directory lies this far from the end of the file at most.
        furthest = 22 + 65535
        magic = sys.modules["_frozen_importlib_external"].MAGIC_NUMBER[:2]
        end = os.pread(descriptor, furthest, max(0, status.st_size - furthest))
        compiled = path.endswith(".pyc") or os.pread(descriptor, 2, 0) == magic
        return status.st_mode & 0o170000 == 0o100000 and not compiled and b"PK\5\6" not in end
    finally:
        os.close(descriptor)


INTERRUPTED = -2
"""Exit status of a program that SIGINT has ended: the process dies of that signal."""


def finish(
    error: BaseException | None,
    status: int,
    leave: Callable[[int | None], bool],
    hide: Callable[[dict[str, ModuleType]], None],
) -> int:
    """The program has ended: by the SystemExit ``error``, or with ``status``. Returns the exit status
    of the process, and has finalization end it by ``leave``, which does not return, as soon as
    nothing of the program is left; ``leave(None)`` says whether C code of the program's is left alone by
    that. ``hide`` gives ``sys.modules`` the content of a dictionary, and
    the dictionary the modules."""
    main = sys.modules.get("__main__")
    if main is not None and getattr(main, "__loader__", None) is not None:
        for name in ("__file__", "__cached__"):
            main.__dict__.pop(name, None)
    if error is not None:
        status = _status(error)
    # The layout of a dictionary that ``hide`` knows.
    if object.__basicsize__ == 16 and dict.__basicsize__ == 48:
        _frozen.hide = hide
    _frozen.leave, _frozen.status = leave, status
    return status


def _status(error: BaseException) -> int:
    """The exit status that a SystemExit asks for (Python/pythonrun.c, _Py_HandleSystemExit)."""
    code = getattr(error, "code", error)
    if code is None:
        return 0
    if isinstance(code, int):
        # What C makes of a number: too large a one is -1.
        return code & 0xFF if -(1 << 63) <= code < 1 << 63 else 0xFF
    if sys.stderr is not None:
        _try(lambda: print(code, file=sys.stderr))
    return 1


def _leave() -> None:
    """Hides the frozen modules from finalization, without a look at them: even a reference that
    is taken and dropped writes to an object, and so makes a page of the image this process's."""
    if not _kept:
        return
    words = sys.__dict__["streams"] = LastWords(_frozen)
    leave, words.leave = words.leave, None
    if _frozen.full_exit:
        _frozen.callbacks.call()
        _kept.clear()
        _frozen.__dict__.clear()
        gc.unfreeze()
        return
    table, hide = _frozen.table, _frozen.hide
    name, module = _frozen.newest
    if (
        hide is None
        or sys.modules is not table
        or table.get(name) is not module
        # A thread that goes on while the interpreter leaves may still import.
        or _thread._count()
    ):
        _frozen.callbacks.call()
        kinds = set(map(id, (_io.TextIOWrapper, _io.BufferedWriter, _io.BufferedRandom)))
        for thing in gc.get_objects():
            if id(type(thing)) in kinds:
                _try(thing.flush)
        return
    # C code of the program's own may want to be called at exit, and that of the libraries is then too.
    if leave is None or not leave(None):
        _frozen.callbacks.call()
    # A dictionary gives back first what was put there last.
    own: list[tuple[str, ModuleType]] = []
    while name in table:
        own.append(table.popitem())
    newest = own.pop()
    if _hung([module for _, module in own]):
        # CPython knows best when each of them goes.
        table.update([newest, *reversed(own)])
        _frozen.callbacks.call()
        _kept.clear()
        _frozen.__dict__.clear()
        gc.unfreeze()
        return
    left = {name: table[name] for name in _TORN_DOWN if name in table}
    left.update(reversed(own))
    hide(left)
    _kept.extend((left, newest, sys.path_importer_cache))
    # Only what is hidden may be left behind.
    words.leave = leave


def _rehearse() -> None:
    """Has nothing of the user's called at exit."""
    atexit._clear()
    threading: Any = sys.modules.get("threading")
    if threading:
        threading._threading_atexits.clear()
    atexit.register(_leave_rehearsal)
    for function in _exit_functions_of_python():
        atexit.register(function)


def _exit_functions_of_python() -> list[Callable[[], object]]:
    """Those of the standard library, as far as they reach nothing of the user's: what they touch, every
    run does."""
    functions: list[Callable[[], object]] = []
    util: Any = sys.modules.get("multiprocessing.util")
    if util and not util._finalizer_registry:
        functions.append(util._exit_function)
    logging: Any = sys.modules.get("logging")
    if logging and all(
        type(handler()).__module__.partition(".")[0] in ("logging", "absl", "builtins")
        for handler in logging._handlerList
    ):
        functions.append(logging.shutdown)
    return functions


def _leave_rehearsal() -> None:
    """As a run leaves, but never by a finalization that would reach what the user has imported."""
    _leave()
    if sys.__dict__["streams"].leave is None:
        posix._exit(0)


def _hung(own: list[ModuleType]) -> bool:
    """Whether something that the program has made, and that does something when it goes, is held by
    what is not torn down: it hangs in a frozen module, type, list. Told as the garbage collector tells
    it: by references that are not from within (Modules/gcmodule.c, subtract_refs)."""
    made = gc.get_objects()
    # Frozen objects are not among them, and are not to be looked at.
    # Types are told apart by their addresses, and nothing is asked of an object: its class, or its class's
    # class, may answer by code of the program's, and the object of a weak proxy may be gone.
    kinds = {id(kind): kind for kind in map(type, made) if kind is not LastWords}
    finalized = {number for number, kind in kinds.items() if _has_finalizer(kind)}
    ours = {id(stream.raw) for stream in _frozen.streams.streams}
    doing = {
        id(thing) for thing in made if id(type(thing)) in finalized and not _is_closed(thing)
    } - ours
    if not doing:
        return False
    places = {id(thing): place for place, thing in enumerate(made)}
    outside = [sys.getrefcount(thing) for thing in made]
    # The list, and the argument of the function.
    held = 2
    main = sys.modules["__main__"].__dict__
    torn_down = [sys.__dict__, builtins.__dict__, own]
    if id(main) not in places:
        torn_down.append(main)
    for owner in (*made, *torn_down):
        for thing in _referents(owner):
            place = places.get(id(thing))
            if place is not None:
                outside[place] -= 1
    inside = {id(main), id(made), id(own), *map(id, own)}
    reached = [
        thing
        for thing, count in zip(made, outside)
        if count > held and id(thing) not in inside
    ]
    seen = set(map(id, reached))
    while reached:
        thing = reached.pop()
        if id(thing) in doing:
            return True
        for other in _referents(thing):
            if id(other) in places and id(other) not in seen and id(other) not in inside:
                seen.add(id(other))
                reached.append(other)
    return False


def _has_finalizer(kind: type) -> bool:
    return any("__del__" in _NAMES_OF_TYPE(base) for base in _BASES_OF_TYPE(kind))


def _is_closed(thing: Any) -> bool:
    """Whether it is a file that has nothing more to do."""
    if type(thing) not in (_io.TextIOWrapper, _io.BufferedReader, _io.BufferedWriter, _io.FileIO):
        return False
    try:
        return bool(thing.closed)
    except ValueError:
        # It was detached from the file below it.
        return True


def _referents(owner: object) -> list[Any]:
    """What an object refers to; of a module what is in it. One of C code may visit objects that are dead
    and only kept for later use (CPython 3.12, Modules/_asynciomodule.c): a reference that is taken and
    dropped makes them die again."""
    is_module = issubclass(type(owner), type(sys))
    return [_NAMES_OF_MODULE(owner)] if is_module else gc.get_referents(owner)


class LastWords:
    """Dies when finalization clears ``sys``, as the standard streams do in an interpreter where no
    frozen module has a reference to them: what was printed since must not be lost."""

    def __init__(self, frozen: Frozen) -> None:
        self.leave, self.status = frozen.leave, frozen.status
        self.callbacks = frozen.callbacks
        self.standard = [getattr(sys, name, None) for name in ("stdout", "stderr")]
        self.streams: list[Any] = []
        for stream in frozen.streams.streams[1:]:
            self.streams += [stream.text, stream.buffer]

    def __del__(self) -> None:
        for stream in self.streams:
            if stream is not None:
                _try(stream.flush)
        for stream in self.standard:
            if stream is not None and not getattr(stream, "closed", False):
                try:
                    stream.flush()
                except BaseException:
                    self.status = 120
        if self.leave is not None:
            if not self.leave(None):
                self.callbacks.call()
            self.leave(self.status)


class Frozen:
    """What the image holds for ``thaw``."""

    def __init__(
        self,
        preload: str | None,
        sqlite: tuple[Callable[[bytes], bytes], Callable[[], object]],
    ) -> None:
        self.environment = environment = Environment(preload)
        locale = Locale(environment)
        self.pools = pools = Pools(environment)
        self.randomness = Randomness(*sqlite)
        self.callbacks = Callbacks()
        self.streams = Streams(locale)
        self.hooks = Hooks()
        self.parts: list[Part] = [
            environment,
            locale,
            TimeZone(),
            self.streams,
            Signals(),
            System(),
            Warnings(),
            Tools(),
            self.randomness,
            Memories(),
            Processes(),
            pools,
            Marks(),
            self.callbacks,
            self,
        ]
        self.path = os.environ.get("PYTHONPATH", "")
        self.suffixes = frozenset((".py", ".pyc", *_imp.extension_suffixes()))
        self.full_exit = True
        self.status = 0
        self.leave: Callable[[int | None], bool] | None = None
        self.hide: Callable[[dict[str, ModuleType]], None] | None = None

    def settle(self) -> None:
        self.table = sys.modules
        self.newest = list(self.table.items())[-1]
        # Built-in and frozen modules are found before any directory is searched.
        self.files = {
            name: file
            for name, module in self.table.items()
            if "." not in name
            and name not in _MODULES_OF_PYTHON
            and (file := _file(module)) is not None
            and getattr(getattr(module, "__spec__", None), "origin", None) == file
        }

    def shadowed(self, directory: str, at_start: bool) -> bool:
        """Whether one of the imported modules would be another one, imported from this directory:
        what the program finds there first must be what it gets. At its start, an interpreter also
        looks there for what an administrator or user wants to be run."""
        try:
            names = os.listdir(directory)
        except OSError:
            return False
        for entry in names:
            name, _, suffix = entry.partition(".")
            custom = at_start and name in ("sitecustomize", "usercustomize")
            if name not in self.files and not (custom and name not in self.table):
                continue
            path = f"{directory}/{entry}"
            if suffix:
                if f".{suffix}" not in self.suffixes:
                    continue
            elif not os.path.isfile(path := f"{path}/__init__.py"):
                continue
            try:
                if not os.path.samefile(path, self.files[name]):
                    return True
            except (OSError, KeyError):
                return True
        return False

    def thaw(self, start: Start) -> None:
        pass


class Start:
    """How this process was started."""

    __slots__ = ("environ", "argv", "ignored", "numbers", "umask")

    def __init__(
        self, block: bytes, argv: list[bytes], ignored: int, numbers: bytes = b""
    ) -> None:
        words = memoryview(numbers).cast("I").tolist()
        self.numbers: dict[int, int] = dict(zip(words[::2], words[1::2]))
        self.environ: dict[bytes, bytes] = {}
        for entry in block.split(b"\0"):
            name, equals, value = entry.partition(b"=")
            if equals:
                self.environ.setdefault(name, value)
        self.argv = argv
        self.ignored = ignored
        self.umask: int | None = None
        """The caller's, where an import's has taken its place."""

    def variable(self, name: bytes) -> str:
        """A variable that is meant for Python; empty is as good as absent."""
        if sys.flags.ignore_environment:
            return ""
        return os.fsdecode(self.environ.get(name, b""))

    def wish(self, option: str, variable: bytes) -> str | bool | None:
        """An option of -X, or else a variable: its value, True without one, None if absent."""
        given: str | bool | None = sys._xoptions.get(option)
        return given if given is not None else self.variable(variable) or None

    def unbuffered(self) -> bool:
        """PYTHONUNBUFFERED or -u, of which CPython leaves no other trace."""
        variable = self.variable(b"PYTHONUNBUFFERED")
        # Any text counts, but for the number 0.
        if variable and not (variable.strip().isdecimal() and int(variable) == 0):
            return True
        arguments = iter(self.argv)
        next(arguments, None)
        for argument in arguments:
            if argument[:1] != b"-" or argument in (b"-", b"--"):
                break
            if argument[:2] == b"--":
                if argument == b"--check-hash-based-pycs":
                    next(arguments, None)
                continue
            for place in range(1, len(argument)):
                flag = argument[place : place + 1]
                if flag == b"u":
                    return True
                if flag in b"cm":
                    return False
                if flag in b"WX":
                    if place + 1 == len(argument):
                        next(arguments, None)
                    break
        return False

    def over(self) -> NoReturn:
        """Leaves it to an ordinary interpreter to say what is wrong, in its own words."""
        # What is ignored stays so in the new one.
        for number in _signal.valid_signals():
            ignored = self.ignored >> (number - 1) & 1
            if not ignored and _signal.getsignal(number) is _signal.SIG_IGN:
                _signal.signal(number, _signal.SIG_DFL)
        if self.umask is not None:
            os.umask(self.umask)
        program = "/proc/self/exe"
        try:
            if sys.executable[:1] == "/" and os.path.samefile(sys.executable, program):
                # The process is called by the last part; by the very path it would be a child's start.
                program = f"/.{sys.executable}"
        except (OSError, TypeError, ValueError):
            pass
        os.execve(program, self.argv, self.environ)


class Environment:
    """``os.environ`` becomes this process's, with what the imports changed in theirs."""

    def __init__(self, preload: str | None) -> None:
        os.environ.pop("PRELOADED_CRIU_FREEZE", None)
        if preload is None:
            os.environ.pop("LD_PRELOAD", None)
        else:
            os.environ["LD_PRELOAD"] = preload
        # The dictionary behind os.environ, which is posix.environ too.
        self.data: dict[bytes, bytes] = os.environ._data  # type: ignore[attr-defined]
        self.original = dict(self.data)
        # Copies that were made of all variables.
        self.blocks: list[bytes] = []
        self.changes: list[tuple[bytes, bytes | None, bytes | None]] = []

    def settle(self) -> None:
        for name in {**self.original, **self.data}:
            before, after = self.original.get(name), self.data.get(name)
            if before != after:
                self.changes.append((name, before, after))

    def thaw(self, start: Start) -> None:
        data = self.data
        data.clear()
        data.update(start.environ)
        if data is not posix.environ:
            posix.environ.clear()
            posix.environ.update(start.environ)
        for name, before, after in self.changes:
            current = data.get(name)
            if after is None:
                if data.pop(name, None) is not None:
                    posix.unsetenv(name)
            elif before is None:
                # The import's default; a caller who says otherwise means it.
                if current is None:
                    self.set(name, after)
            elif current is not None and before and before in after:
                # Something was put before or after a list such as PATH.
                self.set(name, after.replace(before, current, 1))
            else:
                self.set(name, after)

    def set(self, name: bytes, value: bytes) -> None:
        """As ``os.environ`` would."""
        posix.putenv(name, value)
        self.data[name] = value


class Locale:
    """The locale of the environment, as CPython applies it at its start (PEP 538 and 540)."""

    COERCED = ("C.UTF-8", "C.utf8", "UTF-8")
    WARNING = (
        "Python detected LC_CTYPE=C: LC_CTYPE coerced to {} (set another locale or "
        "PYTHONCOERCECLOCALE=0 to disable this locale coercion behavior).\n"
    )

    def __init__(self, environment: Environment) -> None:
        self.environment = environment
        # Without the LC_CTYPE that CPython sets when it coerces the locale. Read in one piece, of which no
        # part is copied: what lies in memory that was freed would be in the image.
        descriptor = os.open("/proc/self/environ", os.O_RDONLY)
        block = os.read(descriptor, 1 << 23)
        os.close(descriptor)
        environment.blocks.append(block)
        self.choice = self.chosen(lambda name: self.find(block, name))
        self.coerced = self.choice != self.chosen(os.environb.get)

    def settle(self) -> None:
        self.encoding, self.errors = self.codec()
        self.categories = [
            category
            for category in (
                _locale.LC_COLLATE,
                _locale.LC_MONETARY,
                _locale.LC_NUMERIC,
                _locale.LC_TIME,
                _locale.LC_MESSAGES,
            )
            if _locale.setlocale(category) not in ("C", "POSIX")
        ]

    @staticmethod
    def chosen(get: Callable[[bytes], bytes | None]) -> tuple[bytes | None, ...]:
        return tuple(map(get, (b"LC_ALL", b"LC_CTYPE", b"LANG", b"PYTHONCOERCECLOCALE")))

    @staticmethod
    def find(block: bytes, name: bytes) -> bytes | None:
        """The value of a variable in a block of them."""
        head = name + b"="
        place = 0 if block.startswith(head) else block.find(b"\0" + head) + 1
        if not block.startswith(head, place):
            return None
        place += len(head)
        end = block.find(b"\0", place)
        return block[place : end if end >= 0 else len(block)]

    def codec(self) -> tuple[str, str]:
        """The encoding of the standard streams, and their error handler."""
        if sys.flags.utf8_mode:
            return "utf-8", "surrogateescape"
        errors = "strict"
        if _locale.setlocale(_locale.LC_CTYPE) in ("C", "POSIX", *self.COERCED):
            errors = "surrogateescape"
        return codecs.lookup(_locale.nl_langinfo(_locale.CODESET)).name, errors

    def thaw(self, start: Start) -> None:
        if self.chosen(start.environ.get) == self.choice:
            if self.coerced:
                self.tell(start, _locale.setlocale(_locale.LC_CTYPE))
            return
        if not _set_locale(_locale.LC_CTYPE, ""):
            _set_locale(_locale.LC_CTYPE, "C")
        if _locale.setlocale(_locale.LC_CTYPE) == "C":
            self.coerce(start)
        for category in self.categories:
            _set_locale(category, "")
        self.encoding, self.errors = self.codec()

    def coerce(self, start: Start) -> None:
        if start.environ.get(b"LC_ALL") or start.variable(b"PYTHONCOERCECLOCALE") == "0":
            # CPython would be in UTF-8 mode now; this is how that mode reads and writes.
            _set_locale(_locale.LC_CTYPE, self.COERCED[0])
            return
        for name in self.COERCED:
            if _set_locale(_locale.LC_CTYPE, name) and _locale.nl_langinfo(_locale.CODESET):
                self.tell(start, name)
                _set_locale(_locale.LC_ALL, "")
                return

    def tell(self, start: Start, name: str) -> None:
        self.environment.set(b"LC_CTYPE", name.encode())
        if start.variable(b"PYTHONCOERCECLOCALE") == "warn":
            _try(lambda: os.write(2, self.WARNING.format(name).encode()))


class TimeZone:
    """``time.tzname`` and C's idea of local time."""

    def __init__(self) -> None:
        self.zone = self.current(os.environb)

    def settle(self) -> None:
        pass

    @staticmethod
    def current(environ: Mapping[bytes, bytes]) -> tuple[object, ...]:
        zone = environ.get(b"TZ")
        if zone is not None:
            return (zone,)
        try:
            file = posix.stat("/etc/localtime")
        except OSError:
            return ()
        return (file.st_mtime, file.st_size, file.st_ino)

    def thaw(self, start: Start) -> None:
        if self.current(start.environ) != self.zone:
            time.tzset()


class Stream:
    """One of the standard streams. Those that libraries keep references to are made anew in
    place: the text layer and the buffer below it."""

    def __init__(self, descriptor: int, name: str) -> None:
        self.descriptor = descriptor
        self.name = name
        self.text: Any = getattr(sys, f"__{name}__")
        self.reading = descriptor == 0
        self.buffer: Any = self.text.buffer
        if isinstance(self.buffer, _io.FileIO):
            self.buffer = _io.BufferedWriter(self.buffer)
        self.first = self.look()
        self.changes: dict[str, object] = {}
        self.raw: Any = None

    def look(self) -> dict[str, object]:
        names = ("encoding", "errors", "line_buffering", "write_through")
        return {name: getattr(self.text, name) for name in names}

    def settle(self) -> None:
        try:
            last = self.look()
        except ValueError:
            # An import has detached it: it stays so.
            self.text = None
            return
        self.changes = {name: last[name] for name in last if last[name] != self.first[name]}

    def open(self, encoding: str, errors: str, unbuffered: bool) -> None:
        """As ``create_stdio`` (Python/pylifecycle.c) makes it."""
        buffer, text = self.buffer, self.text
        if text is None or text.closed:
            return
        # A new object: the old one remembers whether its file could be positioned.
        raw: Any = _io.FileIO(self.descriptor, "rb" if self.reading else "wb", False)
        raw.name = f"<{self.name}>"
        self.raw = raw
        buffer.__init__(raw, raw._blksize)
        below = raw if unbuffered and not self.reading else buffer
        lines = not unbuffered and (self.descriptor == 2 or raw.isatty())
        text.__init__(below, encoding, errors, "\n", lines, unbuffered)
        if self.changes:
            text.reconfigure(**self.changes)

    def close(self) -> None:
        """A stream whose descriptor is closed is None; whoever kept the object finds it closed."""
        if getattr(sys, self.name) is self.text:
            setattr(sys, self.name, None)
        setattr(sys, f"__{self.name}__", None)
        if self.text is not None:
            self.text.close()


class Streams:
    """Standard input, output and error."""

    def __init__(self, locale: Locale) -> None:
        self.locale = locale
        self.streams = [Stream(*pair) for pair in enumerate(("stdin", "stdout", "stderr"))]

    def settle(self) -> None:
        for stream in self.streams:
            stream.settle()

    def thaw(self, start: Start) -> None:
        encoding, errors = self.locale.encoding, self.locale.errors
        wish, _, wished_errors = start.variable(b"PYTHONIOENCODING").partition(":")
        if wish:
            errors = "strict"
            try:
                encoding = codecs.lookup(wish).name
            except LookupError:
                start.over()
        if wished_errors:
            errors = wished_errors
        unbuffered = start.unbuffered()
        for stream in self.streams:
            if stream.descriptor == 2:
                errors = "backslashreplace"
            try:
                stream.open(encoding, errors, unbuffered)
            except IsADirectoryError:
                start.over()
            except OSError:
                stream.close()


class Signals:
    """A signal that the caller ignores is ignored, unless an import handles it."""

    def __init__(self) -> None:
        self.handled = 0

    def settle(self) -> None:
        with _io.open("/proc/self/status") as status:
            for line in status:
                if line.startswith("SigCgt:"):
                    self.handled = int(line.split()[1], 16)

    def thaw(self, start: Start) -> None:
        ignored, number = start.ignored, 0
        while ignored:
            number += 1
            wanted, ignored = ignored & 1, ignored >> 1
            if not wanted:
                continue
            handler = _signal.getsignal(number)
            handled = self.handled >> (number - 1) & 1
            if handler is _signal.default_int_handler or (
                handler == _signal.SIG_DFL and not handled
            ):
                _signal.signal(number, _signal.SIG_IGN)


class System:
    """What of ``sys`` depends on the caller, and CPython makes at its first start only."""

    def __init__(self) -> None:
        value = "" if sys.flags.ignore_environment else os.environ.get("PYTHONPATH", "")
        self.entries = self.resolve(value)
        self.home = self.home_of(os.environb)

    def settle(self) -> None:
        self.argv = sys.argv
        self.path = sys.path
        self.frozen = list(sys.path)
        self.prefixes = sys.prefix, sys.exec_prefix
        self.site: Any = sys.modules.get("site")
        self.user_site: str | None = self.site and self.site.ENABLE_USER_SITE and self.site.USER_SITE

    @staticmethod
    def resolve(value: str) -> list[str]:
        """The part of ``sys.path`` that PYTHONPATH makes."""
        entries: list[str] = []
        for entry in value.split(os.pathsep) if value else ():
            if not sys.flags.no_site:
                try:
                    entry = os.path.abspath(entry)
                except OSError:
                    pass
            if entry not in entries:
                entries.append(entry)
        return entries

    @staticmethod
    def home_of(environ: Mapping[bytes, bytes]) -> tuple[object, ...]:
        return (environ.get(b"HOME"), environ.get(b"PYTHONUSERBASE"), os.getuid())

    def thaw(self, start: Start) -> None:
        # A library may have kept the list; what is in it is this process's command line.
        self.argv[:] = sys.argv
        sys.argv = self.argv
        # CPython has put the installation's there; a virtual environment's are site's to find.
        sys.prefix, sys.exec_prefix = self.prefixes
        path, entries = self.frozen, self.resolve(start.variable(b"PYTHONPATH"))
        if entries != self.entries:
            place = min((path.index(entry) for entry in self.entries if entry in path), default=0)
            kept = [entry for entry in path if entry not in self.entries and entry not in entries]
            path = kept[:place] + entries + kept[place:]
        # CPython 3.10 has put another list there, without what site had added.
        sys.path, sys.path[:] = self.path, path
        there = self.user_site and os.path.isdir(self.user_site)
        if self.home_of(start.environ) != self.home or there != (self.user_site in self.frozen):
            self.move_home(start)

    def move_home(self, start: Start) -> None:
        """The user's own packages are another user's, or are there now, or no more."""
        site, path = self.site, sys.path
        sysconfig: Any = sys.modules.get("sysconfig")
        known = getattr(sysconfig, "_CONFIG_VARS", None)
        if known and "userbase" in known:
            known["userbase"] = sysconfig._getuserbase()
        if site is None or site.USER_SITE is None:
            return
        old = site.USER_SITE
        site.USER_BASE = site.USER_SITE = None
        # A virtual environment's interpreter knows them too, and does not use them.
        new = site.getusersitepackages()
        if not site.ENABLE_USER_SITE:
            return
        there = os.path.isdir(new)
        if new == old and there == (old in path):
            return
        place = next((path.index(entry) for entry in site.getsitepackages() if entry in path), None)
        if old in path:
            place = path.index(old)
            path.remove(old)
        if there:
            if _frozen.shadowed(new, True):
                start.over()
            known = len(path)
            site.addsitedir(new)
            if place is not None:
                path[place:] = path[known:] + path[place:known]


class Generator:
    """The hidden generator of a module: first state, and whether it was seeded since."""

    FOLLOWED = 10_000
    """How far the first state is followed, in steps of the 624 numbers that it holds."""

    def __init__(self) -> None:
        self.module: Any = None

    def note(self, module: Any) -> None:
        """The module has just been imported."""
        self.module, self.seed = module, module.seed
        self.first = self.state()

        def seed(*args: object, **options: object) -> None:
            self.seed(*args, **options)
            if all(value is None for value in (*args[:1], *options.values())):
                self.first = self.state()

        module.seed = seed

    def forget(self) -> None:
        """Gives the module its function back, and those who have got it from there."""
        stand_in, self.module.seed = self.module.seed, self.seed
        for module in list(sys.modules.values()):
            names = getattr(module, "__dict__", {})
            for name in [name for name in names if names[name] is stand_in]:
                names[name] = self.seed

    def seeded(self) -> bool:
        last = self.state()
        return all(state != last for state in self.following())

    def state(self) -> object:
        raise NotImplementedError

    def following(self) -> Iterator[object]:
        """The states after the first, itself included."""
        raise NotImplementedError

    def fresh(self) -> None:
        """Takes randomness from the operating system."""
        raise NotImplementedError


class RandomGenerator(Generator):
    """That of ``random``."""

    def state(self) -> object:
        return self.module.getstate()[1][:-1]

    def following(self) -> Iterator[object]:
        clone = self.module.Random()
        clone.setstate((self.module.Random.VERSION, (*self.first, 624), None))  # type: ignore
        for _ in range(self.FOLLOWED):
            yield clone.getstate()[1][:-1]
            clone.getrandbits(32 * 624)

    def fresh(self) -> None:
        self.seed()


class NumpyGenerator(Generator):
    """The legacy one of ``numpy.random``."""

    def state(self) -> object:
        state = self.module._rand._bit_generator.state
        # Another kind of generator can only have been put there on purpose.
        return bytes(state["state"]["key"]) if state["bit_generator"] == "MT19937" else None

    def following(self) -> Iterator[object]:
        clone = self.module._MT19937(0)
        key = memoryview(self.first).cast("I")  # type: ignore[arg-type]
        clone.state = {"bit_generator": "MT19937", "state": {"key": key, "pos": 624}}
        for _ in range(self.FOLLOWED):
            yield bytes(clone.state["state"]["key"])
            clone.random_raw(624, False)

    def forget(self) -> None:
        super().forget()
        if not self.seeded():
            # It forgets a number that it had in store, and the sequence that it came from, of
            # which every process would spawn the same children.
            self.seed(0)
            self.first = self.state()

    def fresh(self) -> None:
        # What seed() does takes ten times as long.
        key = memoryview(os.urandom(4 * 624)).cast("I")
        state = {"bit_generator": "MT19937", "state": {"key": key, "pos": 624}}
        self.module._rand._bit_generator.state = state


class Instances:
    """Generators that modules have made for themselves."""

    def __init__(self) -> None:
        self.unseeded: dict[int, Any] = {}
        self.drawn: set[int] = set()
        self.undo: list[Callable[[], None]] = []

    def note_random(self, module: Any) -> None:
        """Watches those of ``random``: a seed or state that is given is chosen."""
        kind = module.Random
        seed, setstate = kind.seed, kind.setstate

        def noted_seed(this: Any, a: Any = None, version: int = 2) -> None:
            seed(this, a, version)
            self.unseeded.pop(id(this), None)
            if a is None:
                self.unseeded[id(this)] = this

        def noted_setstate(this: Any, state: Any) -> None:
            setstate(this, state)
            self.unseeded.pop(id(this), None)

        kind.seed, kind.setstate = noted_seed, noted_setstate

        def undo() -> None:
            kind.seed, kind.setstate = seed, setstate

        self.undo.append(undo)

    def note_numpy(self, module: Any) -> None:
        """Watches what numpy draws where no seed is given."""
        randbits = module.randbits

        def noted(count: int) -> int:
            bits: int = randbits(count)
            self.drawn.add(bits)
            return bits

        module.randbits = noted

        def undo() -> None:
            module.randbits = randbits

        self.undo.append(undo)

    def settle(self, shared: Sequence[Any]) -> list[Callable[[], object]]:
        """What makes them new, but for those that everybody shares."""
        for undo in self.undo:
            undo()
        fresh: list[Callable[[], object]] = []
        for instance in self.unseeded.values():
            if not any(instance is one for one in shared) and sys.getrefcount(instance) > 3:
                fresh.append(instance.seed)
        kinds = {"Generator": "bit_generator", "RandomState": "_bit_generator"}
        for thing in gc.get_objects() if self.drawn else ():
            if type(thing).__name__ not in kinds or any(thing is one for one in shared):
                continue
            generator = getattr(thing, kinds[type(thing).__name__], None)
            # Its first name is that of numpy before 1.25.
            seeds = getattr(generator, "_seed_seq", getattr(generator, "seed_seq", None))
            entropy = getattr(seeds, "entropy", None)
            if isinstance(entropy, int) and entropy in self.drawn:
                fresh.append(generator.__init__)  # type: ignore[misc]
        self.unseeded.clear()
        return fresh


class TensorflowGenerator:
    """The one that TensorFlow takes the seeds of its operations from (``tsl::random::New64``, a
    ``std::mt19937_64``), where no seed was set. It cannot be seeded; but its state is found by what
    it draws."""

    WORDS = 312
    LIBRARY = "libtensorflow_framework."
    FUNCTION = "_ZN3tsl6random5New64Ev"
    MASK = (1 << 64) - 1

    @classmethod
    def find(cls) -> memoryview | None:
        """The memory of its state, with the place of the next word behind it."""
        ctypes: Any = _without_trace("ctypes")
        maps = [line.split(None, 5) for line in _read("/proc/self/maps").splitlines()]
        path = next(line[5] for line in maps if cls.LIBRARY in line[-1])
        function = getattr(ctypes.CDLL(path, os.RTLD_NOLOAD | os.RTLD_NOW), cls.FUNCTION, None)
        if function is None:
            return None
        function.restype = ctypes.c_uint64
        for _ in range(3):
            # Next to each other, unless the state was made anew in between.
            words = [cls.word(function()).to_bytes(8, "little") for _ in range(2)]
            wanted = b"".join(words)
            for addresses, access, *_rest in maps:
                first, last = (int(number, 16) for number in addresses.split("-"))
                if not access.startswith("rw-p") or last - first > 1 << 32:
                    continue
                for place in cls.places(first, last, wanted):
                    number = ctypes.c_uint64.from_address
                    for index in range(2, cls.WORDS + 1):
                        start = place - 8 * (index - 2)
                        end = start + 8 * cls.WORDS
                        if first <= start and end + 8 <= last and number(end).value == index:
                            state = (ctypes.c_char * (8 * cls.WORDS + 8)).from_address(start)
                            return memoryview(state).cast("B")
        return None

    @classmethod
    def seed(cls, state: memoryview) -> None:
        size = 8 * cls.WORDS
        # The last word has been drawn: the next one makes all of them anew.
        state[:] = os.urandom(size) + cls.WORDS.to_bytes(8, "little")

    @staticmethod
    def places(first: int, last: int, wanted: bytes) -> Iterator[int]:
        memory = os.open("/proc/self/mem", os.O_RDONLY | os.O_CLOEXEC)
        try:
            for start in range(first, last, 1 << 24):
                try:
                    content = os.pread(memory, min(last - start, (1 << 24) + 16), start)
                except OSError:
                    return
                place = content.find(wanted)
                while place >= 0:
                    yield start + place
                    place = content.find(wanted, place + 1)
        finally:
            os.close(memory)

    @classmethod
    def word(cls, drawn: int) -> int:
        """The word of the state that a number was made of: the steps of the generator's output
        (Nishimura and Matsumoto, mt19937-64), each undone."""
        drawn ^= drawn >> 43
        drawn ^= drawn << 37 & 0xFFF7EEE000000000
        shifted = drawn
        for _ in range(64 // 17 + 1):
            shifted = drawn ^ (shifted << 17 & 0x71D67FFFEDA60000)
        word = shifted
        for _ in range(64 // 29 + 1):
            word = shifted ^ (word >> 29 & 0x5555555555555555)
        return word & cls.MASK


class TensorflowOperations:
    """Stands in for the module that TensorFlow asks whether an operation may go without a seed
    (tensorflow/python/framework/random_seed.py, ``get_seed``), and notes that one did. It has a generator
    of its own then, where it is kept ready."""

    def __init__(self, module: Any) -> None:
        self.module, self.config = module, getattr(module, "config", None)
        self.drawn = False
        if hasattr(self.config, "is_op_determinism_enabled"):
            module.config = self

    def is_op_determinism_enabled(self) -> bool:
        self.drawn = True
        enabled: bool = self.config.is_op_determinism_enabled()
        return enabled

    def __getattr__(self, name: str) -> Any:
        return getattr(self.config, name)

    def settle(self) -> None:
        if self.config is not None:
            self.module.config = self.config
        eager: Any = sys.modules.get("tensorflow.python.eager.context")
        context = eager.context_safe() if self.drawn and eager else None
        # What a seed was chosen for goes on.
        if context is not None and context._seed is None:
            context.clear_kernel_cache()


class Randomness:
    """Everything that the imports drew from the operating system, and other processes must not
    share."""

    def __init__(
        self, find_sqlite: Callable[[bytes], bytes], reset_sqlite: Callable[[], object]
    ) -> None:
        self.find_sqlite, self.reset_sqlite = find_sqlite, reset_sqlite
        self.generators = {"random": RandomGenerator(), "numpy.random.mtrand": NumpyGenerator()}
        self.instances = Instances()
        self.refusals: list[tuple[str, str]] = []
        self.torch_seed: int | None = None
        self.operations: TensorflowOperations | None = None
        self.authkey: object = None
        self.pid = os.getpid()
        self.fresh: list[Callable[[], object]] = []
        self.notes: dict[str, Callable[[Any], None]] = {
            "torch": self.note_torch,
            "tensorflow.python.framework.random_seed": self.note_tensorflow,
            "multiprocessing.process": self.note_multiprocessing,
            "numpy.random.bit_generator": self.instances.note_numpy,
            "numpy.random.mtrand": self.generators["numpy.random.mtrand"].note,
            "random": self.note_random,
        }
        for name in list(self.notes):
            if name in sys.modules:
                self.notes.pop(name)(sys.modules[name])

    def note_random(self, module: Any) -> None:
        self.instances.note_random(module)
        self.generators["random"].note(module)

    def note_torch(self, module: Any) -> None:
        self.torch_seed = module.initial_seed()

    def note_tensorflow(self, module: Any) -> None:
        self.operations = TensorflowOperations(module)

    def note_multiprocessing(self, module: Any) -> None:
        self.authkey = module.current_process().authkey

    def settle(self) -> None:
        for generator in self.generators.values():
            if generator.module:
                generator.forget()
                if not generator.seeded():
                    self.fresh.append(generator.fresh)
        shared = [("random", "_inst"), ("numpy.random.mtrand", "_rand")]
        self.fresh += self.instances.settle(
            [getattr(sys.modules.get(module), name, None) for module, name in shared]
        )
        torch: Any = sys.modules.get("torch")
        if torch and torch.initial_seed() == self.torch_seed:
            self.fresh.append(torch.default_generator.seed)
        process: Any = sys.modules.get("multiprocessing.process")
        if process and process.current_process().authkey is self.authkey:
            self.fresh.append(lambda: self.fresh_authkey(process.current_process()))
        # It has a copy of OpenSSL that cannot be told so.
        self.tells_by_pid = "cryptography" in sys.modules
        ssl: Any = sys.modules.get("_ssl")
        if ssl:
            self.fresh.append(lambda: self.mix(ssl))
        sqlite: Any = sys.modules.get("_sqlite3")
        if sqlite:
            if not self.find_sqlite(os.fsencode(_file(sqlite) or "")):
                self.reset_sqlite = lambda: self.open_database(sqlite)
                self.tells_by_pid = True
            self.fresh.append(self.reset_sqlite)
        uuid: Any = sys.modules.get("uuid")
        if uuid and uuid._generate_time_safe:
            self.fresh.append(lambda: self.tell_apart(uuid, uuid._generate_time_safe))
        if self.operations:
            self.operations.settle()
        self.forget_keras()
        if TensorflowGenerator.LIBRARY in _read("/proc/self/maps"):
            state = TensorflowGenerator.find()
            if state is None:
                self.refusals.append(("the random generator of this TensorFlow", "tensorflow"))
            else:
                self.fresh.append(lambda: TensorflowGenerator.seed(state))

    def forget_keras(self) -> None:
        """Keras makes one generator for all who have none, when it is needed; it is not kept unless a seed
        was chosen."""
        state: Any = sys.modules.get("keras.src.backend.common.global_state")
        tracker = getattr(state, "GLOBAL_STATE_TRACKER", None)
        generator = getattr(tracker, "global_seed_generator", None)
        chosen = getattr(generator, "_initial_seed", None) is not None
        if generator is not None and not chosen and not self.generators["random"].seeded():
            del tracker.global_seed_generator

    @staticmethod
    def tell_apart(uuid: Any, generate: Any) -> None:
        """
        libuuid chooses a clock sequence once, and a node where there is no network, and two processes
        with the same ones may draw the same (RFC 9562, section 5.1: bytes 8 to 15).
        """
        fresh = os.urandom(8)

        def generate_time_safe() -> tuple[bytes, int | None]:
            drawn, unsafe = generate()
            if unsafe == 0:
                return drawn, unsafe
            # The variant stays, and the bit by which a chosen node is told from a card's number.
            chosen = drawn[10] & 1
            mask = bytes([fresh[0] & 0x3F, fresh[1]])
            mask += bytes([fresh[2] & 0xFE]) + fresh[3:] if chosen else bytes(6)
            return drawn[:8] + bytes(one ^ other for one, other in zip(drawn[8:], mask)), unsafe

        uuid._generate_time_safe = generate_time_safe

    @staticmethod
    def fresh_authkey(process: Any) -> None:
        process.authkey = os.urandom(32)

    def mix(self, ssl: Any) -> None:
        """OpenSSL takes fresh randomness by itself when it sees another process id."""
        if os.getpid() == self.pid:
            ssl.RAND_add(os.urandom(32), 32.0)

    @staticmethod
    def open_database(sqlite: Any) -> None:
        """A SQLite that shows none of its functions seeds itself anew where it is about to open a file and
        sees another process id (src/os_unix.c, unixOpen)."""
        _try(lambda: sqlite.connect("file:/proc/self/none?mode=ro", uri=True))

    def thaw(self, start: Start) -> None:
        if self.tells_by_pid and os.getpid() == self.pid:
            # To a generator that cannot be told, this is the frozen process.
            start.over()
        for fresh in self.fresh:
            fresh()


class Memories:
    """What modules remember of the process, its machine and its beginning."""

    TID = 0x2D0
    """Where glibc (x86-64) keeps a thread's id, from the address that is its ``ident``."""

    def settle(self) -> None:
        self.threading: Any = sys.modules.get("threading")
        self.logging: Any = sys.modules.get("logging")
        self.threads: list[Any] = []
        if self.threading:
            main = self.threading._main_thread
            self.threads = [thread for thread in self.threading.enumerate() if thread is not main]
        _forget_directories()
        _forget_lines()
        tempfile: Any = sys.modules.get("tempfile")
        if tempfile:
            tempfile._name_sequence = None
            if tempfile.tempdir and tempfile.tempdir == tempfile._get_default_tempdir():
                tempfile.tempdir = None
        synchronize: Any = sys.modules.get("multiprocessing.synchronize")
        if synchronize:
            # It compares process ids, and a restored process may have the same.
            synchronize.SemLock._rand._rng_pid = None
        uuid: Any = sys.modules.get("uuid")
        if uuid:
            uuid._node = uuid._last_timestamp = None
        platform: Any = sys.modules.get("platform")
        if platform:
            platform._uname_cache = None
            platform._platform_cache.clear()

    def thaw(self, start: Start) -> None:
        if self.threading:
            self.threading._main_thread._native_id = _thread.get_native_id()
        if self.threads:
            memory = os.open("/proc/self/mem", os.O_RDONLY | os.O_CLOEXEC)
            for thread in self.threads:
                number = os.pread(memory, 4, thread.ident + self.TID)
                thread._native_id = int.from_bytes(number, sys.byteorder)
            os.close(memory)
        if self.logging:
            clock = time.time if isinstance(self.logging._startTime, float) else time.time_ns
            self.logging._startTime = clock()


class Processes:
    """Who remembers the number of this process, or those of children that were left running: they
    have other ones now."""

    def settle(self) -> None:
        self.own = os.getpid()
        self.holders: list[tuple[Any, str]] = []
        self.tables: list[dict[int, object]] = []
        kinds = self.kinds()
        for found in gc.get_objects() if kinds else ():
            for kind, attribute in kinds.items():
                if issubclass(type(found), kind):
                    self.note(found, attribute)
        for name, holder, attribute in (
            ("multiprocessing.resource_tracker", "_resource_tracker", "_pid"),
            ("multiprocessing.forkserver", "_forkserver", "_forkserver_pid"),
        ):
            if name in sys.modules:
                self.note(getattr(sys.modules[name], holder), attribute)

    @staticmethod
    def kinds() -> dict[Any, str]:
        named = {
            ("subprocess", "Popen"): "pid",
            ("multiprocessing.popen_fork", "Popen"): "pid",
            ("multiprocessing.process", "BaseProcess"): "_parent_pid",
            ("multiprocessing.util", "Finalize"): "_pid",
            ("concurrent.futures.process", "ProcessPoolExecutor"): "_processes",
        }
        return {
            getattr(sys.modules[module], kind): attribute
            for (module, kind), attribute in named.items()
            if module in sys.modules
        }

    def note(self, holder: Any, attribute: str) -> None:
        value = getattr(holder, attribute, None)
        if isinstance(value, dict):
            self.tables.append(value)
        elif value is not None:
            self.holders.append((holder, attribute))

    def thaw(self, start: Start) -> None:
        if not self.holders and not self.tables:
            return
        now = start.numbers
        now[self.own] = os.getpid()
        for holder, attribute in self.holders:
            number = getattr(holder, attribute)
            if number in now:
                setattr(holder, attribute, now[number])
        for table in self.tables:
            entries = {now.get(number, number): entry for number, entry in table.items()}
            table.clear()
            table.update(entries)
        # They live as long as the program wants them to.
        self.holders, self.tables = [], []


class Pools:
    """The threads of the numeric libraries, as many as the variables say or this process has
    processors: what the libraries find out when they are loaded."""

    LIBRARIES = (
        (
            ("openblas",),
            (
                "openblas_set_num_threads",
                "openblas_set_num_threads64_",
                "scipy_openblas_set_num_threads",
                "scipy_openblas_set_num_threads64_",
            ),
            (b"OPENBLAS_NUM_THREADS", b"GOTO_NUM_THREADS", b"OMP_NUM_THREADS"),
        ),
        (("libgomp", "libomp", "libiomp"), ("omp_set_num_threads",), (b"OMP_NUM_THREADS",)),
    )
    """By the name of the file: functions that set the number, and variables, the first one first."""
    OTHERS = ("torch", "tensorflow", "jax", "numba")
    """Packages with pools of their own that look at the same variables."""
    OF_TORCH = (b"MKL_NUM_THREADS", b"OMP_NUM_THREADS")
    """Variables by which PyTorch is told a number."""

    def __init__(self, environment: Environment) -> None:
        self.environment = environment
        self.pools: list[tuple[Callable[[int], object], Sequence[bytes]]] = []
        self.torch: Callable[[int], object] | None = None
        self.torch_threads = 0
        self.notes: dict[str, Callable[[Any], None]] = {"torch": self.note_torch}

    def note_torch(self, module: Any) -> None:
        # It decides when it is first asked.
        self.torch_threads = module.get_num_threads()

    def settle(self) -> None:
        self.processors = len(os.sched_getaffinity(0))
        self.find_libraries()
        torch: Any = sys.modules.get("torch")
        told = any(self.environment.data.get(name) for name in self.OF_TORCH)
        if torch and not told and torch.get_num_threads() == self.torch_threads:
            self.torch = torch.set_num_threads

    def find_libraries(self) -> None:
        ctypes: Any = sys.modules.get("ctypes")
        if ctypes is None:
            return
        files = {line.split(None, 5)[-1].strip() for line in _read("/proc/self/maps").splitlines()}
        for path in sorted(files):
            for keys, functions, variables in self.LIBRARIES:
                if not any(key in path.rpartition("/")[2] for key in keys):
                    continue
                library = ctypes.CDLL(path, os.RTLD_NOLOAD | os.RTLD_NOW)
                function = next((name for name in functions if hasattr(library, name)), None)
                if function is None:
                    self.pools.clear()
                    return
                self.pools.append((getattr(library, function), variables))

    def variables(self) -> set[bytes]:
        """Those that need not be as they were."""
        if any(name in sys.modules for name in self.OTHERS):
            return set()
        return {name for _, variables in self.pools for name in variables}

    @staticmethod
    def number(environ: Mapping[bytes, bytes], variables: Sequence[bytes], processors: int) -> int:
        given = (int(value) for name in variables if (value := environ.get(name, b"")).isdigit())
        return next((number for number in given if number), processors)

    def thaw(self, start: Start) -> None:
        if not self.pools and self.torch is None:
            return
        processors = len(os.sched_getaffinity(0))
        for function, variables in self.pools:
            before = self.number(self.environment.original, variables, self.processors)
            now = self.number(start.environ, variables, processors)
            if now != before:
                function(now)
        if self.torch is not None and processors != self.processors:
            # Of two hardware threads of one core it uses one.
            self.torch(max(1, self.torch_threads * processors // self.processors))


class Marks:
    """The umask and the name of the main thread, which a script has as an import has left them."""

    def __init__(self) -> None:
        self.umask, self.name = self.first = self.look()

    @staticmethod
    def look() -> tuple[str, bytes]:
        with _io.open("/proc/self/comm", "rb") as file:
            return _status_of("/proc/self").get("Umask", ""), file.read().rstrip(b"\n")

    def settle(self) -> None:
        self.umask, self.name = self.look()

    def thaw(self, start: Start) -> None:
        if self.umask != self.first[0]:
            start.umask = os.umask(int(self.umask, 8))
        if self.name != self.first[1]:
            _try(self.call)

    def call(self) -> None:
        with _io.open("/proc/self/comm", "wb", 0) as file:
            file.write(self.name)


class Callbacks:
    """Functions that libraries want to be called at exit, and that give memory back and do nothing else.
    Where the process leaves without a use for that memory, they are not called."""

    ONLY_MEMORY = (("h5py._conv", "unregister_converters"),)
    ONLY_MEMORY_OF_AN_OBJECT = (("torch.library", "_del_library"),)
    """Those that are called by a ``weakref.finalize`` of each of many objects."""

    def __init__(self) -> None:
        self.functions: list[Callable[[], object]] = []

    def settle(self) -> None:
        for module, name in self.ONLY_MEMORY:
            function = getattr(sys.modules.get(module), name, None)
            if function is not None:
                atexit.unregister(function)
                self.functions.append(function)
        weakref: Any = sys.modules.get("weakref")
        finalizers = list(weakref.finalize._registry) if weakref else []
        functions = [
            getattr(sys.modules.get(module), name, None)
            for module, name in self.ONLY_MEMORY_OF_AN_OBJECT
        ]
        for finalizer in finalizers:
            told = finalizer.peek()
            if told and finalizer.atexit and any(told[1] is function for function in functions):
                finalizer.atexit = False
                self.functions.append(self.of(finalizer))

    @staticmethod
    def of(finalizer: Any) -> Callable[[], object]:
        def finalize() -> None:
            # Once it has called those that are due at exit, it calls none any more.
            told = finalizer.detach()
            if told:
                _, function, arguments, options = told
                function(*arguments, **options)

        return finalize

    def thaw(self, start: Start) -> None:
        pass

    def call(self) -> None:
        while self.functions:
            _try(self.functions.pop())


class Warnings:
    """The filters of -W and PYTHONWARNINGS: they stand before Python's own and behind those of the
    imports."""

    DEFAULT = (
        ("default", None, DeprecationWarning, "__main__", 0),
        ("ignore", None, DeprecationWarning, None, 0),
        ("ignore", None, PendingDeprecationWarning, None, 0),
        ("ignore", None, ImportWarning, None, 0),
        ("ignore", None, ResourceWarning, None, 0),
    )
    """Those of a release build of CPython (Python/_warnings.c)."""

    def __init__(self) -> None:
        self.options = list(sys.warnoptions)
        self.original: list[Any] = list(_warnings.filters)

    def settle(self) -> None:
        self.module: Any = sys.modules.get("warnings")
        filters: list[Any] = list(_warnings.filters)
        place = len(filters)
        while place and filters[place - 1] not in self.original:
            place -= 1
        # Those of before the imports still stand in their order, unless one was put in front.
        following = len(self.original)
        while place and filters[place - 1] in self.original[:following]:
            place -= 1
            following = self.original.index(filters[place])
        self.before = filters[:place]
        self.behind = [entry for entry in filters[place:] if entry not in self.original]

    def thaw(self, start: Start) -> None:
        if sys.warnoptions == self.options:
            return
        if self.module is None:
            import warnings  # noqa: F401 (it reads sys.warnoptions)

            return
        filters: list[Any] = self.module.filters
        filters[:] = self.DEFAULT if self.options else self.original
        self.module._processoptions(sys.warnoptions)
        fresh = [entry for entry in filters if entry not in self.before]
        behind = [entry for entry in self.behind if entry not in fresh]
        filters[:] = self.before + fresh + behind
        self.module._filters_mutated()


class Tools:
    """What -X and variables switch on at the start of an interpreter, and only there."""

    def settle(self) -> None:
        pass

    def thaw(self, start: Start) -> None:
        if start.wish("faulthandler", b"PYTHONFAULTHANDLER"):
            import faulthandler

            faulthandler.enable(2)
        frames = start.wish("tracemalloc", b"PYTHONTRACEMALLOC")
        if frames and int(frames):
            _without_trace("_tracemalloc").start(int(frames))
        # CPython 3.10 and 3.11 leave it as it was.
        digits = start.wish("int_max_str_digits", b"PYTHONINTMAXSTRDIGITS")
        if digits:
            sys.set_int_max_str_digits(int(digits))


class Hooks:
    """The module ``preloaded_criu``: what a program can do about being frozen. It is found as a
    built-in module is, and so leaves no trace where nobody asks for it."""

    NAME = "preloaded_criu"
    DOC = """Hooks of a process that is frozen and restored.

before_snapshot(function)  calls function() before this process is frozen, in reverse order
after_restore(function)    calls function() in every restored process before its program, in order
follows(variable, by, function)
                           where an environment variable is another than it was, calls function() before
                           those of after_restore: it does what the modules `by` would have done with it
start_over(why)            called in a hook: an ordinary interpreter is started instead
is_restored()              whether this process was restored
image()                    the file that it was restored from, or None

`by` is the name, or names, of what has read the variable: modules, packages with all that is in them, and
"getenv" for C code. Where function() returns False or fails, an ordinary interpreter is started; as it is
where somebody else has read the variable too.
"""
    C = "getenv"
    """As whom C code is known, which reads by getenv(3)."""

    def __init__(self) -> None:
        self.before: list[Callable[[], object]] = []
        self.after: list[Callable[[], object]] = []
        self.others: list[tuple[Any, Any, Any]] = []
        self.followers: dict[bytes, list[tuple[frozenset[str], Callable[[], object]]]] = {}
        self.followed: dict[bytes, set[bytes | None]] = {}
        """The variables that only followers have read, and what they may be without them."""
        self.start: Start | None = None
        """While hooks are called in a restored process."""
        self.silent = False
        self.restored = False
        self.module = type(sys)(self.NAME, self.DOC)
        register, hooks = self.register, self

        def before_snapshot(function: Callable[[], object]) -> Callable[[], object]:
            return register(hooks.before, function)

        def after_restore(function: Callable[[], object]) -> Callable[[], object]:
            return register(hooks.after, function)

        def follows(
            variable: str, by: str | Sequence[str], function: Callable[[], object]
        ) -> Callable[[], object]:
            readers = frozenset((by,) if isinstance(by, str) else by)
            followers = hooks.followers.setdefault(os.fsencode(variable), [])
            register([], function)
            followers.append((readers, function))
            return function

        def start_over(why: str) -> NoReturn:
            if hooks.start is None:
                raise RuntimeError("it is too late, or too early, to start over")
            hooks.start_over(hooks.start, why)

        def is_restored() -> bool:
            return hooks.restored

        def image() -> str | None:
            return hooks.image() if hooks.restored else None

        for function in (before_snapshot, after_restore, follows, start_over, is_restored, image):
            function.__module__ = self.NAME
            function.__qualname__ = function.__name__
            setattr(self.module, function.__name__, function)
        self.install()

    def install(self) -> None:
        bootstrap: Any = sys.modules["_frozen_importlib"]
        importer, name, loader = bootstrap.BuiltinImporter, self.NAME, HooksLoader(self.module)
        find = importer.__dict__["find_spec"].__func__
        spec_of = bootstrap.spec_from_loader

        def find_spec(cls: Any, fullname: str, path: Any = None, target: Any = None) -> Any:
            if fullname == name:
                return spec_of(name, loader, origin="built-in")
            return find(cls, fullname, path, target)

        importer.find_spec = classmethod(find_spec)

    @staticmethod
    def register(
        functions: list[Callable[[], object]], function: Callable[[], object]
    ) -> Callable[[], object]:
        if not callable(function):
            raise TypeError(f"{type(function).__name__!r} object is not callable")
        functions.append(function)
        return function

    def registered(self, name: str) -> list[tuple[Any, Any, Any]]:
        """The functions of AWS's package for the same purpose."""
        registry: Any = sys.modules.get("snapshot_restore_py")
        return getattr(registry, name, list)()

    def before_snapshot(self, report: Report, ledger: Ledger) -> None:
        # One that is called may register another.
        registered = self.registered("get_before_snapshot")
        while self.before or registered:
            if self.before:
                function, arguments, options = self.before.pop(), (), {}
            else:
                function, arguments, options = registered.pop()
            name = f"before_snapshot {getattr(function, '__qualname__', function)}"
            try:
                function(*arguments, **options)
            except BaseException as error:
                report.failed(name, error)
            ledger.look(name)
        self.others = self.registered("get_after_restore")

    def is_followed(self, variable: bytes, readers: set[str]) -> bool:
        """Whether each of a variable's readers follows it."""
        names = {name for by, _ in self.followers.get(variable, ()) for name in by}
        return all(
            any(reader == name or reader.startswith(f"{name}.") for name in names)
            for reader in readers
        )

    def after_restore(self, start: Start, silent: bool) -> None:
        self.restored = True
        if not self.after and not self.others and not self.followed:
            return
        self.start, self.silent = start, silent
        try:
            for variable, values in self.followed.items():
                if start.environ.get(variable) not in values:
                    self.follow(start, variable)
            for function in self.after:
                function()
            for function, arguments, options in self.others:
                function(*arguments, **options)
        except BaseException as error:
            error.__traceback__ = _without_us(error.__traceback__)
            sys.__excepthook__(type(error), error, error.__traceback__)
            _flush()
            os._exit(1)
        self.start = None

    def follow(self, start: Start, variable: bytes) -> None:
        for _, function in self.followers[variable]:
            try:
                if function() is not False:
                    continue
                why = ""
            except Exception as error:
                why = ": " + ": ".join(filter(None, (type(error).__name__, str(error))))
            name = getattr(function, "__name__", function)
            self.start_over(
                start,
                "its imports have read the environment variable "
                f"{os.fsdecode(variable)}, which is another here, and {name} cannot follow it{why}",
            )

    def start_over(self, start: Start, why: object) -> NoReturn:
        # What a hook has printed is the new interpreter's to print.
        if not self.silent and not start.environ.get(b"PRELOADED_CRIU_QUIET"):
            line = " ".join(f"preloaded-criu: python starts without its image: {why}".split())
            _try(lambda: os.write(2, os.fsencode(f"{line}\n")))
        start.over()

    def image(self) -> str | None:
        """The file that this object is mapped from."""
        place = id(self)
        with _io.open("/proc/self/maps", errors="surrogateescape") as maps:
            for line in maps:
                fields = line.rstrip("\n").split(maxsplit=5)
                first, last = (int(number, 16) for number in fields[0].split("-"))
                if first <= place < last:
                    return fields[5] if len(fields) > 5 and fields[5][0] == "/" else None
        return None


class HooksLoader:
    """Hands the module out."""

    def __init__(self, module: ModuleType) -> None:
        self.module = module

    def create_module(self, spec: ModuleSpec) -> ModuleType:
        return self.module

    def exec_module(self, module: ModuleType) -> None:
        pass


class Watch:
    """A finder that has functions called as soon as a module has been imported."""

    def __init__(self, *tables: dict[str, Callable[[Any], None]]) -> None:
        self.notes: dict[str, list[Callable[[Any], None]]] = {}
        for table in tables:
            for name, note in table.items():
                self.notes.setdefault(name, []).append(note)

    def find_spec(
        self, name: str, path: Sequence[str] | None = None, target: ModuleType | None = None
    ) -> ModuleSpec | None:
        if name not in self.notes:
            return None
        for finder in sys.meta_path:
            spec = finder.find_spec(name, path, target) if finder is not self else None
            if spec is not None:
                if spec.loader is not None:
                    spec.loader = WatchedLoader(spec, self.notes)  # type: ignore[assignment]
                return spec
        return None


class WatchedLoader:
    """Stands in for a module's loader until it loads."""

    def __init__(self, spec: ModuleSpec, notes: dict[str, list[Callable[[Any], None]]]) -> None:
        self.spec = spec
        self.loader: Any = spec.loader
        self.notes = notes

    def __getattr__(self, name: str) -> Any:
        return getattr(self.loader, name)

    def create_module(self, spec: ModuleSpec) -> Any:
        return self.loader.create_module(spec)

    def exec_module(self, module: ModuleType) -> None:
        self.spec.loader = module.__loader__ = self.loader
        self.loader.exec_module(module)
        for note in self.notes.pop(self.spec.name, ()):
            note(module)


class Reads:
    """Stands in for the dictionary behind ``os.environ`` while the imports run, and notes which
    variables they look at: what they found there is part of the image. Who copies all of them reads
    none; but a module that goes through all looks for those that begin with its own name."""

    AGAIN = ("site", "sysconfig", "tempfile")
    """Modules that are told to look again in every restored process."""
    AT_EACH_CALL = {"joblib", "sklearn", "threadpoolctl"}
    """Packages that ask for the number of threads each time that they need it."""
    HELD = (b"LC_", b"LANG", b"LOC", b"NLSPATH", b"GCONV_PATH", b"TZ", b"LD_", b"GLIBC_", b"MALLOC_") + (
        b"RES_OPTIONS",
        b"HOSTALIASES",
        b"TERM",
        b"TMPDIR",
        b"PATH",
        b"HOME",
        b"PYTHON",
    )
    """How the variables begin that the C library, the loader and CPython look at by themselves, and may
    hold on to."""
    ON_BEHALF = ("os", "posixpath", "pathlib", "collections", "_collections_abc")
    """Modules that look for whoever calls them."""

    def __init__(self, environment: Environment) -> None:
        self.environment = environment
        self.data = environment.data
        self.names: dict[bytes, set[str]] = {}
        self.families: set[bytes] = set()
        self.listed: Iterator[bytes] = iter(())
        self.seen: set[bytes] = set()
        self.stand_in(self)

    @staticmethod
    def stand_in(data: Any) -> None:
        os.environ._data = os.environb._data = data  # type: ignore[attr-defined]

    def end(self) -> None:
        self.stand_in(self.data)

    def told(self, names_from_c: bytes, pools: Pools, hooks: Hooks) -> dict[str, object]:
        """For each variable what it may be, None for absent: as it was, or as the imports leave it
        to their children; and which the pools set themselves to. Text of JSON stands for bytes, one character each.
        Those that are followed are not among them: the hooks are told."""
        original = self.environment.original
        names = {name: set(readers) for name, readers in self.names.items()}
        for name in names_from_c.split(b"\0"):
            names.setdefault(name, set()).add(hooks.C)
        families = tuple(self.families)
        for name in self.read_by_site() | {name for name in original if name.startswith(families)}:
            names.setdefault(name, set()).add("")
        self.seen = set(names)
        later = {name: after for name, _, after in self.environment.changes}
        variables = {}
        for name in names.keys() - _NO_MATTER - {b""}:
            values = {original.get(name), later.get(name, original.get(name))}
            if not name.startswith(families) and hooks.is_followed(name, names[name]):
                hooks.followed[name] = values
                continue
            variables[name.decode("latin-1")] = [
                value if value is None else value.decode("latin-1") for value in values
            ]
        settable = {
            name
            for name in pools.variables()
            if {reader.partition(".")[0] for reader in self.names.get(name, ())}
            <= self.AT_EACH_CALL
        }

        def texts(names: set[bytes]) -> list[str]:
            return [name.decode("latin-1") for name in names]

        return {
            "variables": variables,
            "families": texts(self.families),
            "settable": texts(settable),
        }

    def forget_the_rest(
        self, pools: Pools, wipe: Callable[[bytes], object], wipe_given: Callable[[bytes], object]
    ) -> None:
        """Takes the values that nothing has looked at out of the memory: they are no part of what the
        imports have made, and no run needs them. ``wipe`` overwrites the bytes of an object,
        ``wipe_given`` the values of these variables (each with a NUL behind it) where the kernel has put
        them. What somebody else holds stays as it is."""
        environment = self.environment
        changed = {name for name, _, _ in environment.changes}
        needed = self.seen | changed | {name for _, names in pools.pools for name in names}
        needed.update(pools.OF_TORCH)
        names = [
            name
            for name in environment.original
            if name not in needed and not name.startswith(self.HELD)
        ]
        for name in names:
            self.data.pop(name, None)
            posix.environ.pop(name, None)  # type: ignore[call-overload]
            value = environment.original.pop(name)
            # Held by us alone. The shortest ones are CPython's own, and everybody's.
            if len(value) > 1 and sys.getrefcount(value) == 2:
                wipe(value)
        wipe_given(b"".join(name + b"\0" for name in names))
        while environment.blocks:
            wipe(environment.blocks.pop())

    def __getitem__(self, name: bytes) -> bytes:
        if next(self.listed, None) != name:
            self.listed = iter(())
            # What an import has put there itself is its own.
            same = self.data.get(name) == self.environment.original.get(name)
            reader = self.reader()
            if same and reader.partition(".")[0] not in self.AGAIN:
                self.names.setdefault(name, set()).add(reader)
        return self.data[name]

    @staticmethod
    def read_by_site() -> set[bytes]:
        """What the code in .pth files has looked at, when this was not there yet: every word of it
        that may be a variable's name."""
        names = {b"COVERAGE_PROCESS_START", b"COVERAGE_PROCESS_CONFIG"}
        for directory in sys.path:
            for file in os.listdir(directory) if os.path.isdir(directory) else ():
                if not file.endswith(".pth"):
                    continue
                for line in _read(f"{directory}/{file}").splitlines():
                    if line.startswith(("import ", "import\t")):
                        text = "".join(c if c.isalnum() or c == "_" else " " for c in line)
                        words = (word for word in text.split() if word.isupper() and "_" in word)
                        names.update(word.encode() for word in words)
        return names

    def reader(self) -> str:
        """The module whose code looks at the environment."""
        frame: Any = sys._getframe(2)
        while frame:
            name = str(frame.f_globals.get("__name__"))
            if name.partition(".")[0] not in self.ON_BEHALF:
                return name
            frame = frame.f_back
        return "__main__"

    def __setitem__(self, name: bytes, value: bytes) -> None:
        self.data[name] = value

    def __delitem__(self, name: bytes) -> None:
        del self.data[name]

    def __iter__(self) -> Iterator[bytes]:
        package = self.reader().partition(".")[0]
        if package.isidentifier() and package != "__main__":
            self.families.add(package.upper().encode() + b"_")
        names = list(self.data)
        self.listed = iter(names)
        return iter(names)

    def __len__(self) -> int:
        return len(self.data)

    def __getattr__(self, name: str) -> Any:
        return getattr(self.data, name)


class Report:
    """The line back to whoever makes the image."""

    def __init__(self, descriptor: int, dumps: Callable[..., str]) -> None:
        self.descriptor = descriptor
        self.dumps = dumps

    def line(self, event: str, **fields: object) -> bytes:
        text = self.dumps({"event": event, **fields}, ensure_ascii=False)
        # A file's name need not be text, but JSON is.
        return text.encode(errors="replace") + b"\n"

    def write(self, line: bytes) -> None:
        while line:
            line = line[os.write(self.descriptor, line) :]

    def send(self, event: str, **fields: object) -> None:
        self.write(self.line(event, **fields))

    def failed(self, what: str, error: BaseException) -> NoReturn:
        import traceback

        error.__traceback__ = _without_us(error.__traceback__)
        self.send("failed", what=what, traceback="".join(traceback.format_exception(error)))
        _flush()
        os._exit(1)

    def refused(self, refusals: Sequence[tuple[str, str]]) -> None:
        for what, owner in refusals:
            self.send("refused", what=what, owner=owner)
        if refusals:
            _flush()
            os._exit(1)


class Properties:
    """What a process can change of itself for good, and what its children have from it. In a run it is the
    caller's, so what an import has done (left its rights, say, before it reads what others wrote) would be
    undone without a word."""

    OF_THREADS = {
        "no_new_privs": ("NoNewPrivs",),
        "the capabilities": ("CapInh", "CapPrm", "CapEff", "CapBnd", "CapAmb"),
        "the user or the groups": ("Uid", "Gid", "Groups"),
        "the speculation control": ("Speculation_Store_Bypass", "SpeculationIndirectBranch"),
    }
    """Lines of proc_pid_status(5), of which no thread may have another."""
    OF_PRCTL = {
        "PR_SET_DUMPABLE": 3,
        "PR_SET_SECUREBITS": 27,
        "PR_SET_TIMERSLACK": 30,
        "PR_MCE_KILL": 34,
        "PR_SET_THP_DISABLE": 42,
        "PR_SET_MDWE": 66,
        "PR_SET_MEMORY_MERGE": 68,
        "PR_SET_IO_FLUSHER": 74,
    }
    """Options of prctl(2) by what sets them: those that tell, without arguments."""

    def __init__(self, prctl: Callable[[bytes], bytes]) -> None:
        self.prctl = prctl

    def look(self) -> dict[str, str]:
        threads = [f"/proc/self/task/{name}" for name in _names_in("/proc/self/task")]
        # One that has just ended tells nothing.
        statuses = [status for status in map(_status_of, threads) if status]
        found: dict[str, object] = {"what lies at /proc": bool(statuses)}
        for what, names in self.OF_THREADS.items() if statuses else ():
            found[what] = {tuple(map(status.get, names)) for status in statuses}
        for name in _names_in("/proc/self/ns"):
            spaces = {self.link(f"{thread}/ns/{name}") for thread in threads}
            found[f"the {name} namespace"] = spaces - {""}
        for line in _read("/proc/self/limits").splitlines()[1:]:
            name, values = line[:26].strip(), line[26:].split()
            found[f"the limit {name!r}"] = values
        numbers = memoryview(self.prctl(bytes(self.OF_PRCTL.values()))).cast("q").tolist()
        found.update(zip(self.OF_PRCTL, numbers))
        found["the working directory"] = self.directory(".")
        found["the root directory"] = self.directory("/")
        found["the session"] = posix.getsid(0)
        found["the process group"] = posix.getpgid(0)
        found["the nice value"] = posix.getpriority(posix.PRIO_PROCESS, 0)
        policy = posix.sched_getscheduler(0), posix.sched_getparam(0).sched_priority
        found["the scheduling policy"] = policy
        found["the processors that may be used"] = sorted(posix.sched_getaffinity(0))
        for name in ("oom_score_adj", "coredump_filter") if statuses else ():
            found[name] = _read(f"/proc/self/{name}")
        return {
            what: repr(sorted(value) if isinstance(value, set) else value)
            for what, value in found.items()
        }

    @staticmethod
    def link(path: str) -> str:
        try:
            return posix.readlink(path)
        except OSError:
            return ""

    @staticmethod
    def directory(path: str) -> object:
        try:
            status = posix.stat(path)
        except OSError:
            return None
        return status.st_dev, status.st_ino


class Ledger:
    """What the imports left open or running or have changed of the process, and after which of them it was
    so first."""

    def __init__(self, properties: Properties, *ours: int | None) -> None:
        self.properties = properties
        self.first = properties.look()
        self.changed: dict[str, dict[str, str]] = {}
        self.ours = ours
        self.opened: dict[int, dict[str, str]] = {}
        self.started: dict[int, dict[str, str]] = {}
        self.mapped: dict[int, dict[str, str]] = {}
        self.timed: dict[int, dict[str, str]] = {}
        self.filtered: dict[int, dict[str, str]] = {}
        self.look("python")

    def look(self, owner: str) -> None:
        self.owner = owner
        self.changed = self.update(self.changed, self.properties.look(), owner)
        self.opened = self.update(self.opened, self.open_files(), owner)
        self.started = self.update(self.started, self.children(), owner)
        self.mapped = self.update(self.mapped, self.shared_mappings(), owner)
        self.timed = self.update(self.timed, self.timers(), owner)
        self.filtered = self.update(self.filtered, self.filters(), owner)

    @staticmethod
    def update(
        known: dict[Key, dict[str, str]], now: dict[Key, str], owner: str
    ) -> dict[Key, dict[str, str]]:
        entries = {}
        for number, target in now.items():
            entry = known.get(number)
            same = entry is not None and entry["target"] == target
            entries[number] = entry if entry and same else {"target": target, "owner": owner}
        return entries

    def open_files(self) -> dict[int, str]:
        found = {}
        for name in _names_in("/proc/self/fd"):
            try:
                target = os.readlink(f"/proc/self/fd/{name}")
            except OSError:
                continue
            if int(name) > 2 and int(name) not in self.ours:
                found[int(name)] = target
        return found

    @staticmethod
    def children() -> dict[int, str]:
        found = {}
        for thread in _names_in("/proc/self/task"):
            for child in _read(f"/proc/self/task/{thread}/children").split():
                name, _, rest = _read(f"/proc/{child}/stat").partition("(")[2].rpartition(")")
                ended = ", ended but not waited for" if rest.split()[:1] == ["Z"] else ""
                found[int(child)] = f"{name} (process {child}{ended})"
        return found

    @staticmethod
    def shared_mappings() -> dict[int, str]:
        found = {}
        for line in _read("/proc/self/maps").splitlines():
            addresses, access, *rest = line.split(None, 5)
            if access.endswith("s"):
                found[int(addresses.partition("-")[0], 16)] = rest[-1]
        return found

    @staticmethod
    def timers() -> dict[int, str]:
        kinds = (_signal.ITIMER_REAL, _signal.ITIMER_VIRTUAL, _signal.ITIMER_PROF)
        return {kind: "timer" for kind in kinds if any(_signal.getitimer(kind))}

    @staticmethod
    def filters() -> dict[int, str]:
        """The seccomp filters by their numbers in the order of their coming (proc_pid_status(5))."""
        most = 0
        for thread in _names_in("/proc/self/task"):
            status = _status_of(f"/proc/self/task/{thread}")
            # Linux tells how many there are since 5.9.
            most = max(most, int(status.get("Seccomp_filters", status.get("Seccomp", 0))))
        return {number: "a seccomp filter" for number in range(1, most + 1)}

    def mappings(self) -> list[dict[str, object]]:
        return [{"address": start, "owner": entry["owner"]} for start, entry in self.mapped.items()]

    def child_owners(self) -> list[str]:
        return [entry["owner"] for entry in self.started.values()]

    def timer_owners(self) -> list[str]:
        return [entry["owner"] for entry in self.timed.values()]

    def descriptors(self) -> list[dict[str, object]]:
        return [{"descriptor": number, **entry} for number, entry in self.opened.items()]

    def refusals(self, lenient: bool) -> list[tuple[str, str]]:
        self.look(self.owner)
        found = []
        for number, entry in self.opened.items():
            if entry["target"].startswith("socket:"):
                if not lenient:
                    found.append((f"an open socket (descriptor {number})", entry["owner"]))
            elif entry["target"].startswith("/dev/nvidia"):
                found.append((f"an initialised CUDA device ({entry['target']})", entry["owner"]))
        # Those that were there before the imports are the caller's.
        owners = dict.fromkeys(entry["owner"] for entry in self.filtered.values())
        found += [("a seccomp filter", owner) for owner in owners if owner != "python"]
        # Neither engine brings any of it back.
        for what, entry in self.changed.items():
            if entry["target"] != self.first.get(what):
                found.append((f"a change of {what}", entry["owner"]))
        for entry in () if lenient else self.started.values():
            found.append((f"a child process: {entry['target']}", entry["owner"]))
        return found


def _check_python(report: Report) -> None:
    name, version = sys.implementation.name, ".".join(map(str, sys.version_info[:3]))
    if name != "cpython" or not _OLDEST <= sys.version_info[:2] <= _NEWEST:
        report.refused([(f"{name} {version}, which is not CPython 3.10 to 3.13", "python")])


def _import(names: Sequence[str], report: Report, ledger: Ledger) -> None:
    safe = getattr(sys.flags, "safe_path", False) or sys.flags.isolated
    if not safe:
        sys.path.insert(0, "")
    for name in names:
        report.send("importing", module=name)
        begin = time.perf_counter()
        try:
            __import__(name)
        except BaseException as error:
            report.failed(f"import {name}", error)
        report.send("imported", module=name, seconds=time.perf_counter() - begin)
        ledger.look(f"import {name}")
    if not safe and "" in sys.path:
        sys.path.remove("")


def _execute(path: str, report: Report) -> None:
    """Runs a file as ``python3 path`` would, in a ``__main__`` of its own."""
    report.send("exec", path=path)
    argv, main, folder = sys.argv, sys.modules["__main__"], os.path.dirname(os.path.realpath(path))
    module = type(sys)("__main__")
    module.__dict__.update(__file__=path, __builtins__=builtins, __cached__=None)
    sys.argv = [path]
    sys.path.insert(0, folder)
    sys.modules["__main__"] = module
    try:
        with _io.open_code(path) as file:
            code = compile(file.read(), path, "exec", dont_inherit=True)
        exec(code, module.__dict__)
    except SystemExit as error:
        if error.code not in (None, 0):
            report.failed(f"exec {path}", error)
    except BaseException as error:
        report.failed(f"exec {path}", error)
    finally:
        sys.modules["__main__"] = main
        sys.argv = argv
        if folder in sys.path:
            sys.path.remove(folder)


def _freeze() -> None:
    """Keeps the garbage collector away from what is there now, except for the dictionary of
    ``__main__``: it becomes the program's, and is collected in the end with what is in it."""
    names = sys.modules["__main__"].__dict__
    content = dict(names)
    names.clear()
    # A full collection stops to track a dictionary that is empty.
    gc.collect()
    gc.freeze()
    names.update(content)


def _subclass_tables() -> list[dict[int, object]]:
    """The dictionaries in which types note their subclasses. Finalization lets go of those of the
    built-in types; as long as somebody has them it need not visit each subclass to free them."""
    tables = []
    for thing in gc.get_objects():
        if type(thing) is dict and thing:
            key, value = next(iter(thing.items()))
            if type(key) is int and type(value) is _weakref.ref and id(value()) == key:
                tables.append(thing)
    return tables


def _forget_directories() -> None:
    """What ``importlib.invalidate_caches()`` does, which imports a module itself."""
    for name, finder in list(sys.path_importer_cache.items()):
        if finder is None:
            del sys.path_importer_cache[name]
        elif hasattr(finder, "invalidate_caches"):
            finder.invalidate_caches()


def _forget_lines() -> None:
    """The source lines of files, which may change; not those of code that has no file."""
    linecache: Any = sys.modules.get("linecache")
    cache: dict[Any, Any] = linecache.cache if linecache else {}
    for name in [name for name, entry in cache.items() if len(entry) > 1 and entry[1] is not None]:
        del cache[name]


def _without_trace(name: str) -> Any:
    """A module for ourselves: ``sys.modules`` stays as it is."""
    before = set(sys.modules)
    module = __import__(name)
    for new in set(sys.modules) - before:
        del sys.modules[new]
    return module


def _without_us(traceback: TracebackType | None) -> TracebackType | None:
    while traceback and traceback.tb_frame.f_code.co_filename == _OUR_FILE:
        traceback = traceback.tb_next
    if traceback:
        traceback.tb_next = _without_us(traceback.tb_next)
    return traceback


def _python() -> dict[str, object]:
    flags = [name for name in dir(sys.flags) if name.islower() and name[0] != "_"]
    return {
        "version": ".".join(map(str, sys.version_info[:3])),
        "tag": sys.implementation.cache_tag,
        "executable": sys.executable,
        "prefix": sys.prefix,
        "base_prefix": sys.base_prefix,
        "encoding": sys.getfilesystemencoding(),
        "flags": {
            name: int(getattr(sys.flags, name))
            for name in flags
            if isinstance(getattr(sys.flags, name), int) and not name.startswith("n_")
        },
    }


def _versions() -> dict[str, str]:
    versions = {}
    for name, module in sys.modules.items():
        version = getattr(module, "__dict__", {}).get("__version__")
        if "." not in name and isinstance(version, str):
            versions[name] = version
    return versions


def _file(module: ModuleType) -> str | None:
    file = getattr(module, "__dict__", {}).get("__file__")
    return file if isinstance(file, str) else None


def _source(module: ModuleType, begin: float) -> str | None:
    """The file that a module was read from, but for one that the imports have written themselves: code
    that was generated and loaded (TensorFlow's AutoGraph does so), and is taken away at exit."""
    file = _file(module)
    try:
        status = posix.stat(file or "")
    except (OSError, ValueError):
        return file
    return None if min(status.st_mtime, status.st_ctime) >= begin else file


def _set_locale(category: int, name: str) -> bool:
    try:
        _locale.setlocale(category, name)
    except _locale.Error:  # type: ignore[attr-defined]
        return False
    return True


def _status_of(process: str) -> dict[str, str]:
    """What proc_pid_status(5) says; nothing of what has ended."""
    lines = _read(f"{process}/status").splitlines()
    return {name: value.strip() for name, _, value in (line.partition(":") for line in lines)}


def _names_in(directory: str) -> list[str]:
    try:
        return os.listdir(directory)
    except OSError:
        return []


def _read(path: str) -> str:
    try:
        with _io.open(path, errors="replace") as file:
            return file.read()
    except OSError:
        return ""


def _flush() -> None:
    for stream in (sys.stdout, sys.stderr, sys.__stdout__, sys.__stderr__):
        if stream is not None:
            _try(stream.flush)


def _try(action: Callable[[], object]) -> None:
    try:
        action()
    except Exception:
        pass
