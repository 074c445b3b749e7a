"""distill.program, and every program under the streams and environments that it may inherit."""

import io
import os
import re
import signal
import subprocess
import sys
import threading
import weakref
from contextlib import suppress
from pathlib import Path

import pytest
from tiny import DIGITS, ROOT, wait_for

from distill import cli
from distill.errors import ConfigError
from distill.program import Signals, Stopped, program_name, refuse, run_program, say
from distill.reporting.plots import FIGURES

TOY = "krr_toy.py --no-figures"
LANCZOS = "--dataset digits --train-size 40 --solver lanczos --lam 1 --no-figures"
TEACHER = "--dataset digits --train-size 40 --test-size 40 --max-epochs 1 --distillation-steps 0 --output run"
TRAINING = "self_distiller.py --help"
PREVIEW = "-m distill.preview --help"
BAD = "self_distiller.py --train-size 0"
FULL = r"[\w.]+: error: cannot write to standard output: No space left on device\n"

# What is set, the shell's redirection, the program, its exit status, what it says on standard error.
STREAMS = [
    *(("", "| true", program, 141, "") for program in (TOY, TRAINING, PREVIEW)),
    *(("", ">/dev/full", program, 2, FULL) for program in (TOY, TRAINING, PREVIEW)),
    ("PYTHONUNBUFFERED=1", "| true", TOY, 141, ""),
    ("PYTHONUNBUFFERED=1", ">/dev/full", TOY, 2, FULL),
    *(("", ">&-", program, 0, "") for program in (TOY, TRAINING, PREVIEW)),
    ("", "<&- >&- 2>&-", TOY, 0, ""),
    ("", "2>&-", BAD, 2, ""),
    ("", "2>/dev/full", BAD, 2, ""),
    ("", "", BAD, 2, r"self_distiller.py: error: train_size must be [^\n]*\n"),
    *(("PYTHONIOENCODING=ascii", ">out", program, 0, "") for program in (TOY, "krr_toy.py --help", TRAINING)),
    ("PYTHONIOENCODING=cp1252", ">out", TOY, 0, ""),
    ("LC_ALL=POSIX PYTHONUTF8=0 PYTHONCOERCECLOCALE=0", ">out", TOY, 0, ""),
    ("COLUMNS=1", ">out", TRAINING, 0, ""),
    ("", "", "self_distiller.py --dataset $'\\e[31m\\xff'", 2, r"[^\x1b\n]*not \\x1b\[31m\\udcff\n"),
    ("", "", "-m distill.cli --lr -1e-3", 2, r"self_distiller.py: error: lr must be [^\n]* not -0.001\n"),
    ("", "", "-m distill.kernel.toy.program --lam -1e-3", 2, r"krr_toy.py: error: [^\n]* not '-1e-3'\n"),
    *(
        (f"MPLBACKEND={name}", ">out", "krr_toy.py --output figures --dpi 20", 0, "")
        for name in ("none", "module://no.x")
    ),
    ("SOURCE_DATE_EPOCH=x", ">out", "krr_toy.py --output figures --dpi 20", 0, ""),
    ("TQDM_MININTERVAL=x", ">out", f"krr_toy.py {LANCZOS}", 0, ""),
    *(
        (f"{name}=x", ">out", program, 2, rf"\S+: error: [^\n]*loaded with [^\n]*{name}[^\n]*\n")
        for name, program in (
            ("TORCH_LOGS", f"self_distiller.py {TEACHER}"),
            ("SKLEARN_WORKING_MEMORY", f"krr_toy.py {LANCZOS}"),
            ("JOBLIB_MULTIPROCESSING", f"krr_toy.py {LANCZOS}"),
        )
    ),
    *(
        (f"MATPLOTLIBRC={name}", ">out", "krr_toy.py --output figures --dpi 20", 0, "")
        for name in ("bad", "/dev/zero", ".")
    ),
    *(("PYTHONSAFEPATH=1 PYTHONPATH=", ">out", program, 0, "") for program in ("krr_toy.py --help", TRAINING)),
]


@pytest.mark.skipif(os.name != "posix", reason="needs a shell")
@pytest.mark.parametrize(("variables", "streams", "program", "status", "said"), STREAMS)
def test_streams_and_environments(tmp_path, variables, streams, program, status, said):
    (tmp_path / "bad").write_text("backend: none\ntext.usetex: True\nfont.size: large\nno.such.key: 1\n")
    script = program if program.startswith("-m") else f"{ROOT}/{program}"
    command = f"{variables} {sys.executable} {script} {streams}; exit ${{PIPESTATUS[0]}}"
    environment = {name: value for name, value in os.environ.items() if not name.startswith("PYTHON")}
    done = subprocess.run(
        ["bash", "-c", command],
        cwd=tmp_path,
        env=environment | {"PYTHONPATH": str(ROOT)},
        capture_output=True,
        text=True,
    )
    assert done.returncode == status, done.stderr
    assert re.fullmatch(said, done.stderr), done.stderr
    if "--output figures" in program:
        assert len(list((tmp_path / "figures").iterdir())) == 9


@pytest.mark.slow
def test_a_whole_run_into_a_poor_stream_with_a_backend_that_is_not_installed(tmp_path):
    run = tmp_path / "Größe\x1b±"
    command = [sys.executable, ROOT / "self_distiller.py", *DIGITS, "--seed", "1", "2", "--output", run]
    environment = os.environ | {"PYTHONIOENCODING": "ascii", "MPLBACKEND": "module://no.such"}
    done = subprocess.run(command, env=environment, capture_output=True)
    assert (done.returncode, done.stderr) == (0, b"")
    assert b"mean +- standard deviation over 2 seeds" in done.stdout
    assert b"Gr\\xf6\\xdfe\\x1b+-" in done.stdout
    assert (run / "accuracy.png").exists()


@pytest.mark.page
def test_a_figure_that_fails_is_a_note(tmp_path, monkeypatch, capsys):
    def broken(run):
        raise RuntimeError("no\nfont")

    monkeypatch.setitem(FIGURES, "accuracy", broken)
    assert cli.main([*DIGITS, "--output", str(tmp_path / "run")]) == 0
    out, err = capsys.readouterr()
    assert "Test accuracy" in out
    assert err == f"note: no figure {tmp_path / 'run' / 'accuracy'} (RuntimeError: no font)\n"
    assert (tmp_path / "run" / "diagnostics.png").exists()


def test_a_toy_whose_figures_fail_prints_its_table(tmp_path, monkeypatch, capsys):
    from distill.kernel.toy import figures, program

    monkeypatch.setattr(figures, "all_figures", lambda *_: 1 / 0)
    assert program.main(["--output", str(tmp_path / "x"), "--csv", str(tmp_path / "loss.csv")]) == 0
    out, err = capsys.readouterr()
    assert "0.14959" in out
    assert err == "note: no figures (ZeroDivisionError: division by zero)\n"
    assert [path.name for path in tmp_path.iterdir()] == ["loss.csv"]


@pytest.mark.parametrize(("number", "status"), [(signal.SIGINT, 130), (signal.SIGTERM, 143), (signal.SIGHUP, 129)])
def test_a_signal_is_one_line(capsys, number, status):
    def work() -> int:
        signal.raise_signal(number)
        return 0

    before = signal.signal(number, signal.SIG_DFL)  # whoever runs the tests may ignore it
    try:
        assert run_program("program", work, "; come again") == status
        assert capsys.readouterr().err == "stopped; come again\n"
        assert signal.getsignal(number) == signal.SIG_DFL
    finally:
        signal.signal(number, before)


def test_a_signal_that_is_ignored_stays_so():
    before = signal.signal(signal.SIGHUP, signal.SIG_IGN)  # as nohup does
    try:
        assert run_program("program", lambda: signal.raise_signal(signal.SIGHUP) or 0) == 0
    finally:
        signal.signal(signal.SIGHUP, before)


def test_a_program_in_a_thread_leaves_signals_alone(capsys):
    found: list[int] = []
    before = signal.getsignal(signal.SIGTERM)
    thread = threading.Thread(target=lambda: found.append(cli.main(["--alpha", "2"])))
    thread.start()
    thread.join()
    assert found == [2]
    assert capsys.readouterr().err.count("\n") == 1
    assert signal.getsignal(signal.SIGTERM) == before


class Bare:
    """A stream with nothing but write and flush."""

    closed = False
    text = ""

    def write(self, text: str) -> None:
        self.text += text

    def flush(self) -> None:
        pass

    def isatty(self) -> bool:
        return False


@pytest.mark.parametrize("make", [io.StringIO, Bare, lambda: io.TextIOWrapper(io.BytesIO(), "ascii")])
def test_streams_that_were_replaced(monkeypatch, make):
    monkeypatch.setattr(sys, "stdout", make())
    monkeypatch.setattr(sys, "stderr", make())

    def work() -> int:
        say("∞ \udcff \x1b")
        raise ConfigError("∞")

    assert run_program("program", work) == 2


def test_the_caller_s_environment_and_streams_are_put_back(monkeypatch):
    monkeypatch.setenv("SOURCE_DATE_EPOCH", "x")
    monkeypatch.setattr(sys, "stdout", io.TextIOWrapper(io.BytesIO(), "ascii"))
    found = []

    def work() -> int:
        found.append(("SOURCE_DATE_EPOCH" in os.environ, sys.stdout.errors))
        return 0

    assert run_program("program", work) == 0
    assert found == [(False, "distill.plain")]
    assert (os.environ["SOURCE_DATE_EPOCH"], sys.stdout.errors) == ("x", "strict")


def test_an_error_with_a_file_says_what_is_kept(capsys):
    def work() -> int:
        Path("/dev/null/x").write_text("")
        return 0

    assert run_program("program", work, after_failure="; all is well") == 2
    assert re.fullmatch(r"program: error: [^\n]*Not a directory[^\n]*; all is well\n", capsys.readouterr().err)


def test_too_small_a_memory_limit_is_refused(capsys, monkeypatch):
    resource = pytest.importorskip("resource")
    monkeypatch.setattr(resource, "getrlimit", lambda _: (300_000_000, -1))
    assert run_program("program", lambda: 0) == 2
    expected = "program: error: the memory limit (ulimit -v) is 0.3 GB: raise it to 1 GB or more\n"
    assert capsys.readouterr().err == expected


def test_a_library_that_the_memory_limit_leaves_no_room_for_is_a_line(capsys):
    def work() -> int:
        raise ImportError("libtorch_cpu.so: failed to map segment from shared object")

    assert run_program("program", work) == 2
    assert re.fullmatch(
        r"program: error: the memory limit \(ulimit -v\) [^\n]*libtorch[^\n]*\n", capsys.readouterr().err
    )


@pytest.mark.parametrize(
    ("typed", "name"), [("/usr/bin/self-distiller", "self-distiller"), ("x/self_distiller.py", "self_distiller.py")]
)
def test_the_name_that_was_typed(monkeypatch, typed, name):
    monkeypatch.setattr("sys.argv", [typed])
    assert program_name("self_distiller.py", "self-distiller") == name


def test_another_program_s_name_is_not_taken(monkeypatch):
    monkeypatch.setattr("sys.argv", ["/usr/bin/pytest"])
    assert program_name("self_distiller.py", "self-distiller") == "self_distiller.py"


def test_a_message_of_several_lines_becomes_one(capsys):
    assert refuse("program", ValueError("first\n  second")) == 2
    assert capsys.readouterr().err == "program: error: first second\n"


def test_signals_wait_for_a_check_and_only_the_first_is_raised():
    with Signals() as signals:
        signals.check()
        signal.raise_signal(signal.SIGTERM)
        signal.raise_signal(signal.SIGINT)
        with pytest.raises(Stopped):
            signals.raise_at_once()
    with Signals() as signals:
        signals.raise_at_once()
        with pytest.raises(KeyboardInterrupt) as stopped:
            signal.raise_signal(signal.SIGINT)
        signal.raise_signal(signal.SIGTERM)  # while the program cleans up
    assert isinstance(stopped.value, Stopped)


class Thing:
    """An object whose end is a callback."""


class Ending(Thing):
    def __del__(self) -> None:
        signal.raise_signal(signal.SIGINT)


def in_a_weak_reference() -> None:
    thing = Thing()
    reference = weakref.ref(thing, lambda _: signal.raise_signal(signal.SIGTERM))  # imports have such callbacks
    del thing
    assert reference() is None


def in_a_library() -> None:
    with suppress(BaseException):
        signal.raise_signal(signal.SIGINT)


def in_a_library_that_raises_another_error() -> None:
    in_a_library()
    raise ImportError


@pytest.mark.parametrize(
    ("swallow", "status"),
    [
        *((in_a_weak_reference, 143), (Ending, 130)),
        *((in_a_library, 130), (in_a_library_that_raises_another_error, 130)),
    ],
)
def test_what_a_signal_raised_and_python_swallowed_is_raised_again(capsys, swallow, status):
    def work() -> int:
        swallow()
        threading.Event().wait(10)
        return 0

    assert run_program("program", work) == status
    assert capsys.readouterr().err == "stopped\n"


def test_other_exceptions_that_python_swallows_are_still_shown(capsys, monkeypatch):
    shown = []
    monkeypatch.setattr(sys, "unraisablehook", shown.append)

    class Bad(Thing):
        def __del__(self) -> None:
            raise ValueError

    assert run_program("program", lambda: Bad() and 0) == 0
    assert [each.exc_type for each in shown] == [ValueError]
    assert sys.unraisablehook == shown.append


def test_the_third_signal_ends_a_program_and_its_child_processes_at_once():
    program = """if True:
        import multiprocessing, signal, time
        from distill.program import Signals
        child = multiprocessing.get_context("fork").Process(target=time.sleep, args=(100,))
        child.start()
        print(child.pid, flush=True)
        with Signals():
            for _ in range(3):
                signal.raise_signal(signal.SIGINT)
        print("never")
    """
    done = subprocess.run([sys.executable, "-c", program], cwd=ROOT, capture_output=True, text=True, timeout=60)
    assert (done.returncode, done.stderr) == (130, "")
    state = Path(f"/proc/{done.stdout.strip()}/stat")
    wait_for(lambda: not state.exists() or state.read_text().rpartition(")")[2].split()[0] == "Z", seconds=10)


def test_the_third_signal_ends_a_program_whose_child_processes_cannot_be_listed():
    program = """if True:
        import multiprocessing, signal
        from distill.program import Signals
        multiprocessing.active_children = lambda: 1 / 0
        with Signals():
            for _ in range(3):
                signal.raise_signal(signal.SIGINT)
    """
    done = subprocess.run([sys.executable, "-c", program], cwd=ROOT, capture_output=True, text=True, timeout=60)
    assert (done.returncode, done.stderr) == (130, "")


def test_an_ignored_signal_stays_ignored(monkeypatch):
    monkeypatch.setattr(signal, "getsignal", lambda number: signal.SIG_IGN)
    with Signals() as signals:
        assert signals.before == {}
