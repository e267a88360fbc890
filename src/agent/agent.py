"""The Python side of a frozen interpreter.

It lives in the image, and runs before and after the user's program, never while it does:

``prepare`` runs once, when the image is made: it imports and warms up, finds out what must be
different in every restored process, and gets ready what ``thaw`` will need.

``thaw`` runs in every restored process, when CPython has read the command line and before its main
runs the program: it makes of the frozen interpreter one that has just been started, with this
process's environment, standard streams, signals and randomness. It is on the way of every run, so it imports nothing and
touches little memory.

Nothing of this is visible to the program: no name in ``sys.modules``, no frame in a traceback, no
module that only we needed. Of the exit callbacks the first registered, so the last called, is
ours: it hides the frozen modules from the interpreter's finalization, which would visit all of
their memory to free what the kernel frees anyway.

Randomness: importing ``random``, ``numpy.random`` or ``torch`` seeds a hidden generator from the
operating system, and every restored process must get its own. One that was seeded on purpose must
stay as it is. The generator's state tells the two apart: a state that the one of the import leads
to by drawing numbers (libraries do, for temporary names and the like) is an accident and is
replaced; so is what ``random.seed()`` without an argument led to. Any other was chosen and stays.
"""

from __future__ import annotations

import sys

# The line above the last one has imported a module too.
_MODULES_OF_PYTHON = [name for name in sys.modules if name != "__future__"]

import _io
import _locale
import _thread
import _warnings
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
    from collections.abc import Callable, Mapping, MutableMapping, Sequence
    from importlib.machinery import ModuleSpec
    from types import ModuleType, TracebackType
    from typing import Any, NoReturn, Protocol

    class Part(Protocol):
        """One thing that a process has and an image must not: made before the imports."""

        def settle(self) -> None:
            """After the imports, once: learns what they did, does what can be done early."""

        def thaw(self, start: Start) -> None:
            """In every restored process."""

else:
    import _signal


FULL_EXIT = 1
"""Option of ``thaw``: the interpreter's finalization tears everything down."""

_OUR_FILE = (lambda: None).__code__.co_filename
_IMPORTED_FOR_US = [name for name in sys.modules if name not in _MODULES_OF_PYTHON]
_DEFAULT_FILTERS = (
    ("default", None, DeprecationWarning, "__main__", 0),
    ("ignore", None, DeprecationWarning, None, 0),
    ("ignore", None, PendingDeprecationWarning, None, 0),
    ("ignore", None, ImportWarning, None, 0),
    ("ignore", None, ResourceWarning, None, 0),
)
"""Those of a release build of CPython (Python/_warnings.c)."""

_TORN_DOWN = ("sys", "builtins", "__main__")
"""The modules that belong to the program, or that finalization cannot do without."""

_DRAWS_FOLLOWED = 10_000
"""How far a generator is followed from its first state, in steps of its 624 numbers."""


class Start:
    """How this process was started."""

    __slots__ = ("environ", "argv", "ignored")

    def __init__(self, block: bytes, argv: Sequence[bytes], ignored: int) -> None:
        self.environ: dict[bytes, bytes] = {}
        for entry in block.split(b"\0"):
            name, equals, value = entry.partition(b"=")
            if equals:
                self.environ.setdefault(name, value)
        self.argv = argv
        self.ignored = ignored

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
            for position in range(1, len(argument)):
                flag = argument[position : position + 1]
                if flag == b"u":
                    return True
                if flag in b"cm":
                    return False
                if flag in b"WX":
                    if position + 1 == len(argument):
                        next(arguments, None)
                    break
        return False


class Environment:
    """``os.environ`` becomes this process's, with what the imports changed in theirs."""

    def __init__(self, preload: str | None) -> None:
        os.environ.pop("PRELOADED_CRIU_FREEZE", None)
        if preload is None:
            os.environ.pop("LD_PRELOAD", None)
        else:
            os.environ["LD_PRELOAD"] = preload
        self.variables: MutableMapping[bytes, bytes] = os.environb
        # The dictionary behind os.environ, which is posix.environ too.
        self.data: dict[bytes, bytes] = os.environ._data  # type: ignore[attr-defined]
        self.original = dict(self.data)
        self.changes: list[tuple[bytes, bytes | None, bytes | None]] = []

    def settle(self) -> None:
        for name in {**self.original, **self.data}:
            before, after = self.original.get(name), self.data.get(name)
            if before != after:
                self.changes.append((name, before, after))

    def thaw(self, start: Start) -> None:
        self.data.clear()
        self.data.update(start.environ)
        if self.data is not posix.environ:
            posix.environ.clear()
            posix.environ.update(start.environ)
        for name, before, after in self.changes:
            current = self.data.get(name)
            if after is None:
                if current is not None:
                    del self.variables[name]
            elif before is None:
                # The import's default; a caller who says otherwise means it.
                if current is None:
                    self.variables[name] = after
            elif current is not None and before and before in after:
                # Something was put before or after a list such as PATH.
                self.variables[name] = after.replace(before, current, 1)
            else:
                self.variables[name] = after


class Locale:
    """The locale of the environment, as CPython applies it at its start (PEP 538 and 540)."""

    COERCED = ("C.UTF-8", "C.utf8", "UTF-8")
    WARNING = (
        "Python detected LC_CTYPE=C: LC_CTYPE coerced to {} (set another locale or "
        "PYTHONCOERCECLOCALE=0 to disable this locale coercion behavior).\n"
    )

    def __init__(self) -> None:
        self.variables = os.environb
        with _io.open("/proc/self/environ", "rb") as file:
            # Without LC_CTYPE, which CPython sets when it coerces the locale.
            self.choice = self.chosen(Start(file.read(), (), 0).environ)
        self.coerced = self.choice != self.chosen(os.environb)

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
    def chosen(environ: Mapping[bytes, bytes]) -> tuple[bytes | None, ...]:
        return tuple(map(environ.get, (b"LC_ALL", b"LC_CTYPE", b"LANG", b"PYTHONCOERCECLOCALE")))

    def codec(self) -> tuple[str, str]:
        """The encoding of the standard streams, and their error handler."""
        if sys.flags.utf8_mode:
            return "utf-8", "surrogateescape"
        errors = "strict"
        if _locale.setlocale(_locale.LC_CTYPE) in ("C", "POSIX", *self.COERCED):
            errors = "surrogateescape"
        return codecs.lookup(_locale.nl_langinfo(_locale.CODESET)).name, errors

    def thaw(self, start: Start) -> None:
        if self.chosen(start.environ) == self.choice:
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
        self.variables[b"LC_CTYPE"] = name.encode()
        if start.variable(b"PYTHONCOERCECLOCALE") == "warn":
            try:
                os.write(2, self.WARNING.format(name).encode())
            except OSError:
                pass


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
            file = os.stat("/etc/localtime")
        except OSError:
            return ()
        return (file.st_mtime_ns, file.st_size, file.st_ino)

    def thaw(self, start: Start) -> None:
        if self.current(start.environ) != self.zone:
            time.tzset()


class Stream:
    """One of the standard streams. The same three objects are made anew, because libraries keep
    references to them."""

    def __init__(self, descriptor: int, name: str) -> None:
        self.descriptor = descriptor
        self.name = name
        self.text: Any = getattr(sys, f"__{name}__")
        self.reading = descriptor == 0
        self.mode = "rb" if self.reading else "wb"
        self.buffer: Any = self.text.buffer
        if isinstance(self.buffer, _io.FileIO):
            self.buffer = _io.BufferedWriter(self.buffer)
        self.first = self.look()
        self.changes: dict[str, object] = {}

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
        try:
            # A new object: this one remembers whether it can be positioned.
            raw = _io.FileIO(self.descriptor, self.mode, False)
        except OSError:
            self.close()
            return
        raw.name = f"<{self.name}>"  # type: ignore[misc]
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
            encoding, errors = codecs.lookup(wish).name, "strict"
        if wished_errors:
            errors = wished_errors
        unbuffered = start.unbuffered()
        for stream in self.streams:
            if stream.descriptor == 2:
                errors = "backslashreplace"
            stream.open(encoding, errors, unbuffered)


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


class SearchPath:
    """``sys.path``, with this process's PYTHONPATH."""

    def __init__(self) -> None:
        value = "" if sys.flags.ignore_environment else os.environ.get("PYTHONPATH", "")
        self.entries = self.resolve(value)

    def settle(self) -> None:
        self.path = sys.path
        self.frozen = list(sys.path)

    @staticmethod
    def resolve(value: str) -> list[str]:
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

    def thaw(self, start: Start) -> None:
        # CPython 3.10 has put another list there, without what site had added.
        sys.path, path = self.path, self.frozen
        entries = self.resolve(start.variable(b"PYTHONPATH"))
        if entries != self.entries:
            place = min((path.index(entry) for entry in self.entries if entry in path), default=0)
            kept = [entry for entry in path if entry not in self.entries and entry not in entries]
            path = kept[:place] + entries + kept[place:]
        sys.path[:] = path


class Randomness:
    """Everything that the imports drew from the operating system, and other processes must not
    share."""

    def __init__(self) -> None:
        self.random: Any = None
        self.random_state: object = None
        self.random_seed: Any = None
        self.torch_seed: int | None = None
        self.authkey: object = None
        self.pid = os.getpid()
        self.fresh: list[Callable[[], object]] = []
        self.notes: dict[str, Callable[[Any], None]] = {
            "random": self.note_random,
            "torch": self.note_torch,
            "multiprocessing.process": self.note_multiprocessing,
        }
        for name in self.notes:
            if name in sys.modules:
                self.notes[name](sys.modules[name])

    def note_random(self, module: Any) -> None:
        self.random, self.random_seed = module, module.seed
        self.random_state = module.getstate()

        def seed(a: object = None, version: int = 2) -> None:
            self.random_seed(a, version)
            if a is None:
                self.random_state = module.getstate()

        module.seed = seed

    def note_torch(self, module: Any) -> None:
        self.torch_seed = module.initial_seed()

    def note_multiprocessing(self, module: Any) -> None:
        self.authkey = module.current_process().authkey

    def settle(self) -> None:
        self.settle_random()
        self.settle_numpy()
        torch = sys.modules.get("torch")
        if torch and torch.initial_seed() == self.torch_seed:
            self.fresh.append(torch.default_generator.seed)
        self.settle_multiprocessing()
        tempfile = sys.modules.get("tempfile")
        if tempfile:
            tempfile._name_sequence = None  # type: ignore[attr-defined]
        uuid = sys.modules.get("uuid")
        if uuid:
            uuid._node = None  # type: ignore[attr-defined]
        ssl: Any = sys.modules.get("_ssl")
        if ssl:
            self.fresh.append(lambda: self.mix(ssl))

    def settle_random(self) -> None:
        random = self.random
        if not random:
            return
        stand_in, random.seed = random.seed, self.random_seed
        for module in list(sys.modules.values()):
            names = getattr(module, "__dict__", {})
            for name in [name for name in names if names[name] is stand_in]:
                names[name] = self.random_seed
        state = random.getstate()
        clone = random.Random()
        clone.setstate(self.random_state)
        for _ in range(_DRAWS_FOLLOWED):
            if clone.getstate()[1][:-1] == state[1][:-1]:
                self.fresh.append(random.seed)
                break
            clone.getrandbits(32 * 624)

    def settle_numpy(self) -> None:
        mtrand: Any = sys.modules.get("numpy.random.mtrand")
        if not mtrand:
            return
        legacy = mtrand._rand
        generator = legacy._bit_generator
        sequence = getattr(generator, "_seed_seq", None)
        # Seeding the legacy generator makes it forget the sequence that the import gave it.
        if type(generator).__name__ != "MT19937" or sequence is None:
            return
        key = generator.state["state"]["key"].tobytes()
        clone = type(generator)(sequence)

        def fresh() -> None:
            sequence.__init__()
            words = memoryview(os.urandom(4 * 624)).cast("I").tolist()
            legacy.set_state(("MT19937", words, 624, 0, 0.0))

        for _ in range(_DRAWS_FOLLOWED):
            if clone.state["state"]["key"].tobytes() == key:
                self.fresh.append(fresh)
                break
            clone.random_raw(624, False)

    def settle_multiprocessing(self) -> None:
        module: Any = sys.modules.get("multiprocessing.process")
        if not module:
            return
        process = module.current_process()
        if process.authkey is self.authkey:

            def fresh() -> None:
                process.authkey = os.urandom(32)

            self.fresh.append(fresh)
        synchronize: Any = sys.modules.get("multiprocessing.synchronize")
        if synchronize:
            # It compares process ids, and a restored process may have the same.
            synchronize.SemLock._rand._rng_pid = None

    def mix(self, ssl: Any) -> None:
        """OpenSSL takes fresh randomness when it sees a new process id."""
        if os.getpid() == self.pid:
            ssl.RAND_add(os.urandom(32), 32.0)

    def thaw(self, start: Start) -> None:
        for fresh in self.fresh:
            fresh()


class Identity:
    """What libraries remember of the process and its beginning."""

    def settle(self) -> None:
        self.threading: Any = sys.modules.get("threading")
        self.logging: Any = sys.modules.get("logging")
        tempfile: Any = sys.modules.get("tempfile")
        if tempfile is not None:
            names = [os.environ.get(name, "") for name in ("TMPDIR", "TEMP", "TMP")]
            usual = [*names, "/tmp", "/var/tmp", "/usr/tmp", os.curdir]
            # Found by looking, not chosen: each process looks for itself.
            if tempfile.tempdir in [os.path.abspath(name) for name in usual if name]:
                tempfile.tempdir = None

    def thaw(self, start: Start) -> None:
        if self.threading:
            self.threading._main_thread._native_id = _thread.get_native_id()
            if _native_id is not None and len(self.threading._active) > 1:
                for thread in self.threading._active.values():
                    if thread is not self.threading._main_thread:
                        thread._native_id = _native_id(thread.ident)
        if self.logging:
            clock = time.time if isinstance(self.logging._startTime, float) else time.time_ns
            self.logging._startTime = clock()


class Warnings:
    """The filters of -W and PYTHONWARNINGS: they stand before Python's own and behind those of the
    imports."""

    def __init__(self) -> None:
        self.options = list(sys.warnoptions)
        self.original: list[Any] = list(_warnings.filters)

    def settle(self) -> None:
        self.module: Any = sys.modules.get("warnings")
        filters: list[Any] = list(_warnings.filters)
        old = [entry for entry in filters if entry in self.original]
        place = filters.index(old[0]) if old else len(filters)
        self.before = filters[:place]
        self.behind = [entry for entry in filters[place:] if entry not in old]

    def thaw(self, start: Start) -> None:
        if sys.warnoptions == self.options:
            return
        if self.module is None:
            import warnings  # noqa: F401 (it reads sys.warnoptions)

            return
        filters: list[Any] = self.module.filters
        filters[:] = self.original if not self.options else _DEFAULT_FILTERS
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


class Watch:
    """A finder that calls back as soon as a module has been imported."""

    def __init__(self, notes: dict[str, Callable[[Any], None]]) -> None:
        self.notes = notes

    def find_spec(
        self, name: str, path: Sequence[str] | None = None, target: ModuleType | None = None
    ) -> ModuleSpec | None:
        note = self.notes.pop(name, None)
        if note is None:
            return None
        for finder in sys.meta_path:
            spec = finder.find_spec(name, path, target)
            if spec is not None:
                if spec.loader is not None:
                    spec.loader = WatchedLoader(spec, note)  # type: ignore[assignment]
                return spec
        return None


class WatchedLoader:
    """Stands in for a module's loader while it is loaded."""

    def __init__(self, spec: ModuleSpec, note: Callable[[Any], None]) -> None:
        self.spec = spec
        self.loader: Any = spec.loader
        self.note = note

    def create_module(self, spec: ModuleSpec) -> ModuleType | None:
        module: ModuleType | None = self.loader.create_module(spec)
        return module

    def exec_module(self, module: ModuleType) -> None:
        self.spec.loader = module.__loader__ = self.loader
        self.loader.exec_module(module)
        self.note(module)


class Report:
    """The line back to whoever makes the image."""

    def __init__(self, descriptor: int, dumps: Callable[[object], str]) -> None:
        self.descriptor = descriptor
        self.dumps = dumps

    def send(self, event: str, **fields: object) -> None:
        line = memoryview((self.dumps({"event": event, **fields}) + "\n").encode())
        while line:
            line = line[os.write(self.descriptor, line) :]

    def failed(self, what: str, error: BaseException) -> NoReturn:
        import traceback

        error.__traceback__ = _without_us(error.__traceback__)
        self.send("failed", what=what, traceback="".join(traceback.format_exception(error)))
        _flush()
        os._exit(1)


class Ledger:
    """What the imports left open or running, each with the first import after which it was there."""

    def __init__(self) -> None:
        self.known: dict[str, str] = {}
        self.found: list[tuple[str, str]] = []
        self.look("the start of python")

    def look(self, owner: str) -> None:
        for what in self.descriptors() + self.children():
            if what not in self.known:
                self.known[what] = owner

    @staticmethod
    def descriptors() -> list[str]:
        found = []
        for name in os.listdir("/proc/self/fd"):
            try:
                target = os.readlink(f"/proc/self/fd/{name}")
            except OSError:
                continue
            if target.startswith("socket:"):
                found.append(f"an open socket (descriptor {name})")
            elif target.startswith("/dev/nvidia"):
                found.append(f"an initialised CUDA device ({target}, descriptor {name})")
        return found

    @staticmethod
    def children() -> list[str]:
        found = []
        for thread in os.listdir("/proc/self/task"):
            try:
                with _io.open(f"/proc/self/task/{thread}/children") as file:
                    children = file.read().split()
            except OSError:
                continue
            for child in children:
                try:
                    with _io.open(f"/proc/{child}/comm") as file:
                        found.append(f"a child process, {file.read().strip()} ({child})")
                except OSError:
                    continue
        return found

    def refusals(self) -> list[tuple[str, str]]:
        return [(what, self.known[what]) for what in self.descriptors() + self.children()]


class Frozen:
    """What the image holds for ``thaw``."""

    def __init__(self, preload: str | None) -> None:
        locale = Locale()
        self.environment = Environment(preload)
        self.randomness = Randomness()
        self.streams = Streams(locale)
        self.parts: list[Part] = [
            self.environment,
            locale,
            TimeZone(),
            self.streams,
            Signals(),
            SearchPath(),
            Warnings(),
            Tools(),
            self.randomness,
            Identity(),
        ]
        self.modules: dict[str, ModuleType] = {}
        self.full_exit = True
        self.status = 0
        self.leave: Callable[[int], None] | None = None


_frozen: Frozen
_kept: list[object] = []


def prepare(job_json: bytes, report_fd: int, facts: Mapping[str, Any]) -> None:
    """Imports, warms up and makes ready. ``job_json`` and the lines written to ``report_fd`` are
    documented in ``mod.rs``; ``facts`` are the resident's, for the reader of the report."""
    global _frozen
    # Registered before any import can register its own: called last.
    atexit.register(_leave)
    for name in (__name__, *_IMPORTED_FOR_US):
        sys.modules.pop(name, None)
    # Importing is as in `python3 -c`.
    sys.argv = ["-c"]
    json = _without_trace("json")
    job = json.loads(job_json.decode())
    report = Report(report_fd, json.dumps)
    _frozen = Frozen(job.get("preload"))
    ledger = Ledger()
    watch = Watch(_frozen.randomness.notes)
    sys.meta_path.insert(0, watch)  # type: ignore[arg-type]
    _import(job["imports"], report, ledger)
    for path in job.get("exec", ()):
        _execute(path, report)
        ledger.look(f"exec {path}")
    sys.meta_path.remove(watch)  # type: ignore[arg-type]

    _forget_directories()
    gc.collect()
    refusals = ledger.refusals()
    for what, owner in refusals:
        report.send("refused", what=what, owner=owner)
    if refusals:
        _flush()
        os._exit(1)
    for part in _frozen.parts:
        part.settle()
    _frozen.modules = {name: sys.modules[name] for name in sys.modules if name not in _TORN_DOWN}
    _kept.append(_frozen)
    report.send(
        "ready",
        pid=os.getpid(),
        **facts,
        python=_python(),
        modules={name: _file(module) for name, module in sys.modules.items()},
        versions=_versions(),
    )
    os.close(report_fd)
    _flush()
    nothing = os.open("/dev/null", os.O_RDWR)
    for descriptor in range(3):
        os.dup2(nothing, descriptor)
    os.close(nothing)
    del report, json
    _freeze()


def thaw(environ: bytes, argv: list[bytes], ignored: int, options: int) -> bytes:
    """Makes this process's own what must not be the image's. ``environ`` is the environment as a
    NUL-separated block (C's already is this one), ``argv`` the command line of the interpreter,
    ``ignored`` the signals that the caller ignores (bit n-1 for signal n, as in /proc). Returns
    what is to be run, as ``_program`` has it."""
    start = Start(environ, argv, ignored)
    for part in _frozen.parts:
        part.thaw(start)
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


def finish(error: BaseException | None, status: int, leave: Callable[[int], None]) -> int:
    """The program has ended: by the SystemExit ``error``, or with ``status``. Returns the exit status
    of the process, and has finalization end it by ``leave``, which does not return, as soon as
    nothing of the program is left."""
    main = sys.modules.get("__main__")
    if main is not None and getattr(main, "__loader__", None) is not None:
        for name in ("__file__", "__cached__"):
            main.__dict__.pop(name, None)
    if error is not None:
        status = _status(error)
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
    """Hides the frozen modules from finalization. The references are moved, not dropped: dropping
    one writes to the module's memory, and there are thousands."""
    if not _kept or _frozen.full_exit:
        return
    if _swap is None:
        _hide_one_by_one()
    else:
        _hide_at_once(_swap)
    # What the program has hung into a frozen module is not torn down, but no data may be lost.
    for thing in gc.get_objects():
        if type(thing) in (_io.TextIOWrapper, _io.BufferedWriter, _io.BufferedRandom):
            _try(thing.flush)
    sys.__dict__["streams"] = LastWords(_frozen)


_native_id: Callable[[int], int] | None = None
"""The TID that a thread has now; from the resident."""

_swap: Callable[[dict[str, Any], dict[str, Any]], None] | None = None
"""Exchanges the contents of two dictionaries; from the resident, for interpreters that it knows."""


_MOVED_AT_MOST = 16


def _hide_at_once(swap: Callable[[dict[str, Any], dict[str, Any]], None]) -> None:
    """The modules of the program came after the frozen ones; looking at each of those would touch
    all of their memory. A program may have moved some of them among its own."""
    everything: dict[str, ModuleType] = {}
    swap(sys.modules, everything)
    _kept.append(everything)
    own: list[tuple[str, ModuleType]] = []
    in_a_row = 0
    for item in reversed(everything.items()):
        if _frozen.modules.get(item[0]) is item[1]:
            in_a_row += 1
            if in_a_row == _MOVED_AT_MOST:
                break
        elif item[0] not in _TORN_DOWN:
            in_a_row = 0
            own.append(item)
    own += [(name, everything[name]) for name in reversed(_TORN_DOWN) if name in everything]
    for name, _ in own:
        del everything[name]
    sys.modules.update(reversed(own))


def _hide_one_by_one() -> None:
    modules, frozen = sys.modules, _frozen.modules
    own: list[tuple[str, ModuleType]] = []
    while modules:
        item = modules.popitem()
        if frozen.get(item[0]) is not item[1]:
            own.append(item)
        else:
            _kept.append(item)
    modules.update(reversed(own))


class LastWords:
    """Dies when finalization clears ``sys``, as the standard streams do in an interpreter where no
    frozen module has a reference to them: what was printed since must not be lost."""

    def __init__(self, frozen: Frozen) -> None:
        self.leave, self.status = frozen.leave, frozen.status
        streams = frozen.streams
        self.standard = [getattr(sys, name, None) for name in ("stdout", "stderr")]
        self.streams: list[Any] = []
        for stream in streams.streams[1:]:
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
            self.leave(self.status)


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
    argv, search, main = sys.argv, list(sys.path), sys.modules["__main__"]
    module = type(sys)("__main__")
    module.__dict__.update(__file__=path, __builtins__=builtins, __cached__=None)
    sys.argv = [path]
    sys.path.insert(0, os.path.dirname(os.path.realpath(path)))
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
        if search and sys.path[0] != search[0]:
            del sys.path[0]


def _without_trace(name: str) -> Any:
    """A module for ourselves: ``sys.modules`` stays as it is."""
    before = set(sys.modules)
    module = __import__(name)
    for name in set(sys.modules) - before:
        del sys.modules[name]
    return module


def _without_us(traceback: TracebackType | None) -> TracebackType | None:
    while traceback and traceback.tb_frame.f_code.co_filename == _OUR_FILE:
        traceback = traceback.tb_next
    if traceback:
        traceback.tb_next = _without_us(traceback.tb_next)
    return traceback


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


def _forget_directories() -> None:
    """What ``importlib.invalidate_caches()`` does, which imports a module itself."""
    for name, finder in list(sys.path_importer_cache.items()):
        if finder is None:
            del sys.path_importer_cache[name]
        elif hasattr(finder, "invalidate_caches"):
            finder.invalidate_caches()


def _flush() -> None:
    for stream in (sys.stdout, sys.stderr, sys.__stdout__, sys.__stderr__):
        if stream is not None:
            _try(stream.flush)


def _try(action: Callable[[], object]) -> None:
    try:
        action()
    except Exception:
        pass


def _python() -> dict[str, object]:
    return {
        "version": ".".join(map(str, sys.version_info[:3])),
        "implementation": sys.implementation.name,
        "tag": sys.implementation.cache_tag,
        "executable": sys.executable,
        "prefix": sys.prefix,
        "base_prefix": sys.base_prefix,
        "encoding": sys.getfilesystemencoding(),
        "flags": {name: int(getattr(sys.flags, name)) for name in _flag_names()},
    }


def _flag_names() -> list[str]:
    return [
        name
        for name in dir(sys.flags)
        if not name.startswith(("_", "n_")) and name not in ("count", "index")
    ]


def _file(module: ModuleType) -> str | None:
    file = getattr(module, "__dict__", {}).get("__file__")
    return file if isinstance(file, str) else None


def _versions() -> dict[str, str]:
    versions = {}
    for name, module in sys.modules.items():
        version = getattr(module, "__dict__", {}).get("__version__")
        if "." not in name and isinstance(version, str):
            versions[name] = version
    return versions


def _set_locale(category: int, name: str) -> bool:
    try:
        _locale.setlocale(category, name)
    except _locale.Error:
        return False
    return True
