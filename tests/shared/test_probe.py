"""The try-out in a child process: what passes, what is refused and where, and that the child never takes the parent along."""

from __future__ import annotations

import os
import select
import signal
import subprocess
import sys
from pathlib import Path
from typing import Any

import msgspec
import numpy as np
import pytest
from tests.fakes import tryouts

from toprope_shared.contained import SAID_BYTES, TAIL_BYTES, Ended, run_contained
from toprope_shared.digest import sha256, sha256_file
from toprope_shared.engines import find_engine
from toprope_shared.errors import EngineError, InputError, ProbeError
from toprope_shared.golden import GoldenSet
from toprope_shared.made_up import make_call
from toprope_shared.probe import COMMAND, ProbeRequest, ProbeResult, Stage, best, judge, probe
from toprope_shared.tensors import Array, Tensors, TensorSpec

ENGINES = ("onnxruntime", "litert", "tflite-runtime")
PATIENCE_S = 60.0


def asked(folder: Path, data: bytes, engine: str = "onnxruntime", **more: Any) -> ProbeRequest:
    """Return a request for a file of these bytes."""
    file = folder / "model"
    file.write_bytes(data)
    return ProbeRequest(engine=engine, file=str(file), sha256=sha256(data), **more)


def convolution(folder: Path, engine: str, **more: Any) -> ProbeRequest:
    """Return a request for the small network with its golden set."""
    golden = tryouts.golden_set(folder / "golden.npz")
    data = tryouts.conv_onnx() if engine == "onnxruntime" else tryouts.conv_tflite()
    known = {"inputs": (tryouts.IMAGE,), "outputs": (tryouts.PROBS,), "tolerance_ppm": 10, "stacked": True}
    return asked(folder, data, engine, golden=str(golden), golden_sha256=sha256_file(golden), **(known | more))


def refused(request: ProbeRequest, wall_s: float = PATIENCE_S) -> ProbeError:
    with pytest.raises(ProbeError) as caught:
        probe(request, wall_s=wall_s)
    return caught.value


@pytest.mark.parametrize("engine", ENGINES)
def test_what_holds_its_golden_outputs_passes_with_its_figures(tmp_path: Path, engine: str) -> None:
    result = probe(convolution(tmp_path, engine, threads=2, variant="one"))
    assert (result.engine, result.threads, result.variant) == (engine, 2, "one")
    assert result.runtime == f"{engine}/{find_engine(engine).version}"
    assert result.error_ppm <= 10
    assert 0 < result.latency_us <= result.p99_us
    assert result.calls > 0
    assert result.memory_bytes > 0


def test_a_file_says_itself_what_it_takes_when_nobody_else_does(tmp_path: Path) -> None:
    result = probe(convolution(tmp_path, "litert", inputs=(), outputs=(), stacked=None))
    assert (result.inputs, result.outputs) == ((tryouts.IMAGE,), (tryouts.PROBS,))


def test_other_outputs_than_the_golden_ones_are_refused(tmp_path: Path) -> None:
    golden = tmp_path / "other.npz"
    np.savez(golden, **{"in.image": np.zeros((1, 1, 8, 8, 1), np.float32), "out.probs": np.ones((1, 1, 3), np.float32)})
    request = convolution(tmp_path, "onnxruntime")
    error = refused(msgspec.structs.replace(request, golden=str(golden), golden_sha256=sha256_file(golden)))
    assert (error.stage, error.reason, error.signal) == (Stage.GOLDEN, "probe_failed", "")
    assert "allowed are 10" in str(error)


@pytest.mark.parametrize("field", ["sha256", "golden_sha256"])
def test_other_bytes_than_were_signed_are_refused_before_an_engine_sees_them(tmp_path: Path, field: str) -> None:
    request = convolution(tmp_path, "onnxruntime")
    error = refused(msgspec.structs.replace(request, **{field: "0" * 64}))
    assert (error.stage, error.reason) == (Stage.DIGEST, "integrity_failed")


def test_a_file_that_kills_its_engine_is_refused_with_the_signal_and_the_stage(tmp_path: Path) -> None:
    error = refused(asked(tmp_path, tryouts.deadly_tflite(), "tflite-runtime"))
    assert (error.stage, error.reason, error.signal) == (Stage.LOAD, "crashed", "SIGSEGV")
    assert str(error) == "the try-out with tflite-runtime was killed by SIGSEGV while the file was opened"


def test_what_spare_time_is_not_enough_for_begins_anew_with_its_share(tmp_path: Path) -> None:
    request = convolution(tmp_path, "onnxruntime")
    assert probe(request, spare_s=0.001).error_ppm <= 10
    with pytest.raises(ProbeError, match=r"did not end within 0\.002 s"):
        probe(request, spare_s=0.001, wall_s=0.002)


def test_a_call_that_never_ends_is_killed_by_the_clock(tmp_path: Path) -> None:
    error = refused(asked(tmp_path, tryouts.endless_onnx()), wall_s=1.0)
    assert (error.reason, error.signal) == ("hung", "SIGKILL")
    assert "did not end within 1 s" in str(error)


def test_a_call_that_never_ends_is_killed_when_its_cpu_time_is_over(tmp_path: Path) -> None:
    error = refused(asked(tmp_path, tryouts.endless_onnx(), cpu_s=1))
    assert (error.stage, error.reason, error.signal) == (Stage.GOLDEN, "hung", "SIGXCPU")
    assert "more than 1 s of CPU time" in str(error)


def test_a_few_bytes_that_ask_for_gigabytes_do_not_get_them(tmp_path: Path) -> None:
    data = tryouts.greedy_onnx(40_000_000)
    error = refused(asked(tmp_path, data, memory_bytes=100 << 20))
    assert (error.stage, error.reason) == (Stage.GOLDEN, "out_of_memory")
    assert "it needs more than 100 MiB of memory" in str(error)
    assert probe(asked(tmp_path, data, memory_bytes=1 << 30)).calls > 0


def test_text_is_refused_with_a_sentence(tmp_path: Path) -> None:
    error = refused(asked(tmp_path, tryouts.text_onnx()))
    assert (error.stage, error.reason) == (Stage.LOAD, "load_failed")
    assert "the tensor 'words' is text" in str(error)


def test_an_engine_that_is_not_there_is_no_crash(tmp_path: Path) -> None:
    error = refused(asked(tmp_path, b"", "abacus"))
    assert (error.stage, error.reason) == (Stage.LOAD, "bad_input")


def test_the_child_writes_no_file_and_gets_no_secret(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    program = (
        "import os, sys\nfrom toprope_shared.limits import limit_process\nlimit_process(9)\n"
        f"try: open({str(tmp_path / 'made')!r}, 'w').write('x' * 99999)\n"
        "except OSError as error: print(error.errno, 'TOPROPE_HOME' in os.environ, 'PATH' in os.environ)\n"
        "print(open('/proc/self/oom_score_adj').read())"
    )
    monkeypatch.setenv("TOPROPE_HOME", str(tmp_path))
    ended = run_contained([sys.executable, "-c", program], b"", wall_s=PATIENCE_S)
    assert (ended.status, ended.said.split()) == (0, [b"27", b"False", b"True", b"1000"]), ended.tail  # 27: EFBIG
    assert (tmp_path / "made").read_bytes() == b""


def test_a_limit_that_is_lower_already_stays() -> None:
    program = (
        "import resource\nfrom toprope_shared.limits import limit_memory, limit_process\n"
        "resource.setrlimit(resource.RLIMIT_NOFILE, (32, 32)); resource.setrlimit(resource.RLIMIT_DATA, (1 << 28, 1 << 29))\n"
        "limit_process(9); limit_memory(1 << 40)\n"
        "print(resource.getrlimit(resource.RLIMIT_NOFILE), resource.getrlimit(resource.RLIMIT_DATA)[1] == 1 << 29)"
    )
    ended = run_contained([sys.executable, "-c", program], b"", wall_s=PATIENCE_S)
    assert ended.said == b"(32, 32) True\n", ended.tail


def test_a_file_larger_than_the_memory_it_may_take_is_refused_before_an_engine_sees_it(tmp_path: Path) -> None:
    request = asked(tmp_path, b"", memory_bytes=50 << 20)
    os.truncate(request.file, 300 << 20)
    error = refused(request)
    assert (error.stage, error.reason) == (Stage.DIGEST, "out_of_memory")


def test_a_child_ends_with_the_process_that_started_it(tmp_path: Path) -> None:
    request = msgspec.json.encode(asked(tmp_path, tryouts.endless_onnx()))
    program = (
        "import sys, msgspec, subprocess\nchild = subprocess.Popen(sys.argv[2:], stdin=-1, stdout=-1)\n"
        "child.stdin.write(sys.argv[1].encode()); child.stdin.close()\n"
        "while b'golden' not in child.stdout.readline(): pass\n"
        "print(child.pid, flush=True); child.wait()"
    )
    with subprocess.Popen([sys.executable, "-c", program, request, *COMMAND], stdout=subprocess.PIPE) as parent:
        assert parent.stdout
        child = os.pidfd_open(int(parent.stdout.readline()))
        parent.kill()
    _wait_end(child)


def test_what_a_child_leaves_behind_is_killed_too() -> None:
    program = "import subprocess; print(subprocess.Popen(['sleep', '600']).pid, flush=True)"
    waiting = f"{program}\nimport sys; sys.stdin.buffer.read(); import time; time.sleep(600)"
    ended = run_contained([sys.executable, "-c", waiting], b"", wall_s=1.5)
    assert ended.hung
    try:
        _wait_end(os.pidfd_open(int(ended.said)))
    except ProcessLookupError:
        return  # it has ended, and nobody asks about it any more


def test_a_child_that_shouts_is_cut_short_and_one_that_complains_is_heard_to_its_end() -> None:
    shouting = "import os\nwhile True: os.write(1, b'x' * 65536)"
    ended = run_contained([sys.executable, "-c", shouting], b"", wall_s=PATIENCE_S)
    assert (ended.shouted, ended.signal) == (True, "SIGKILL")
    assert len(ended.said) < 2 * SAID_BYTES
    complaining = "import os\nfor _ in range(99): os.write(2, b'x' * 65536)\nos.write(2, b'last'); os.abort()"
    ended = run_contained([sys.executable, "-c", complaining], b"", wall_s=PATIENCE_S)
    assert (len(ended.tail), ended.tail[-4:], ended.signal) == (TAIL_BYTES, b"last", "SIGABRT")


def test_a_child_that_reads_nothing_does_not_hold_the_parent() -> None:
    ended = run_contained([sys.executable, "-c", "pass"], b"x" * (4 << 20), wall_s=PATIENCE_S)
    assert (ended.status, ended.hung) == (0, False)


def test_a_parent_that_is_interrupted_leaves_no_child(tmp_path: Path) -> None:
    pid = tmp_path / "pid"
    program = (
        f"import os, signal, time; open({str(pid)!r}, 'w').write(str(os.getpid()))\n"
        "os.kill(os.getppid(), signal.SIGUSR1); time.sleep(600)"
    )

    def interrupt(*_: object) -> None:
        raise KeyboardInterrupt

    before = signal.signal(signal.SIGUSR1, interrupt)
    try:
        with pytest.raises(KeyboardInterrupt):
            run_contained([sys.executable, "-c", program], b"", wall_s=PATIENCE_S)
    finally:
        signal.signal(signal.SIGUSR1, before)
    with pytest.raises(ProcessLookupError):
        os.pidfd_open(int(pid.read_text()))


def test_a_program_that_does_not_exist_is_no_fault_of_the_file(tmp_path: Path) -> None:
    with pytest.raises(ProbeError, match="did not start") as caught:
        run_contained([str(tmp_path / "nothing")], b"", wall_s=1.0)
    assert caught.value.stage == ""


ANY = ProbeRequest(engine="e", file="", sha256="", cpu_s=7)
LOADING = b'{"stage":"load"}\n'
PASSED = b'{"result":{"engine":"e","runtime":"e/1","threads":1,"latency_us":1.5,"memory_bytes":0,"error_ppm":0}}\n'


@pytest.mark.parametrize(
    ("ended", "reason", "signal", "text"),
    [
        (Ended(LOADING, b"", -11), "crashed", "SIGSEGV", "was killed by SIGSEGV while the file was opened"),
        (Ended(LOADING + PASSED, b"", -6), "crashed", "SIGABRT", "was killed by SIGABRT"),
        (Ended(PASSED, b"", 1), "crashed", "", "ended with code 1 while the file was opened: it said nothing"),
        (Ended(b"", b"Trace\nKeyError: 'x'\n", 1), "crashed", "", "code 1 while the file was opened: KeyError: 'x'"),
        (Ended(b"", b"", -9), "crashed", "SIGKILL", "the system does that when memory runs out"),
        (Ended(b"", b"terminate: std::bad_alloc", -6), "out_of_memory", "SIGABRT", "was killed by SIGABRT"),
        (Ended(b"", b"", -24), "hung", "SIGXCPU", "took more than 7 s of CPU time"),
        (Ended(b"", b"", -40), "crashed", "signal 40", "was killed by signal 40"),
        (Ended(PASSED, b"", -9, hung=True), "hung", "SIGKILL", "did not end within 3 s"),
        (Ended(PASSED, b"", -9, shouted=True), "crashed", "SIGKILL", "said too much"),
        (Ended(b'{"stage":"moon"}\n[[[\n{"code":1}', b"", 0), "crashed", "", "ended with code 0"),
    ],
)
def test_a_child_that_did_not_answer_is_refused_with_what_is_known(
    ended: Ended, reason: str, signal: str, text: str
) -> None:
    with pytest.raises(ProbeError) as caught:
        judge(ANY, ended, 3.0)
    error = caught.value
    assert (error.reason, error.signal, error.stage) == (reason, signal, Stage.LOAD)
    assert text in str(error)


def test_a_file_that_takes_over_the_child_has_no_say_on_the_terminal() -> None:
    said = b'{"stage":"golden"}\n{"code":"a\\u001b[2J","error":"\\u001b]0;x\\u0007 b' + b"c" * 9999 + b'"}\n'
    with pytest.raises(ProbeError) as caught:
        judge(ANY, Ended(said, b"\x1b[31mred\xff", 0), 3.0)
    error = caught.value
    assert str(error).startswith("]0;x bc")
    assert str(error).endswith("c [a [2J]")
    assert (len(str(error)) < 1100, error.tail, error.stage) == (True, " [31mred\ufffd", Stage.GOLDEN)


FAST = ProbeResult("litert", "litert/1", 1, 100.0, 5 << 20, 0)


@pytest.mark.parametrize(
    ("other", "wins"),
    [
        ({"latency_us": 80.0, "memory_bytes": 900 << 20, "threads": 4}, True),
        ({"latency_us": 98.0, "memory_bytes": 9 << 20}, False),
        ({"latency_us": 104.0, "memory_bytes": 4 << 20}, True),
        ({"latency_us": 106.0, "memory_bytes": 4 << 20}, False),
        ({"latency_us": 97.0, "threads": 2, "memory_bytes": (5 << 20) + 4096}, False),
        ({"latency_us": 99.0, "memory_bytes": (5 << 20) + 4096}, True),
    ],
)
def test_the_best_is_the_fastest_then_the_smallest_then_the_one_with_fewer_threads(
    other: dict[str, Any], wins: bool
) -> None:
    rival = msgspec.structs.replace(FAST, **other)
    assert best([FAST, rival]) is (rival if wins else FAST)
    assert best([rival, FAST]) is (rival if wins else FAST)


STATE = (TensorSpec("x", "FP32", (-1, -1)), TensorSpec("state", "FP32", (2, -1, 4)), TensorSpec("rate", "INT64", ()))


def test_open_sizes_are_found_by_asking() -> None:
    def picky(inputs: Tensors) -> dict[str, Array]:
        if inputs["x"].shape != (1, 576) or inputs["state"].shape != (2, 1, 4):
            raise EngineError(f"{inputs['x'].shape} does not fit")
        return {"y": inputs["x"] / inputs["rate"]}

    assert make_call(STATE, picky, {})["x"].shape == (1, 576)
    assert make_call(STATE, picky, {"x": (1, 576)})["rate"] == 1


def test_an_endless_search_for_sizes_ends_with_advice() -> None:
    def never(inputs: Tensors) -> dict[str, Array]:
        raise EngineError("no")

    with pytest.raises(ProbeError, match=r"no made-up inputs: no; name the open sizes of x \[-1, -1\]; state"):
        make_call(STATE, never, {})


@pytest.mark.parametrize("shapes", [{"y": (1,)}, {"x": (1,)}, {"state": (3, 1, 4)}])
def test_a_shape_that_does_not_fit_is_refused(shapes: dict[str, tuple[int, ...]]) -> None:
    with pytest.raises(InputError, match="--shape"):
        make_call(STATE, dict, shapes)


def test_made_up_inputs_must_come_to_finite_numbers() -> None:
    with pytest.raises(ProbeError, match="'y' is NaN or infinite"):
        make_call(STATE, lambda inputs: {"y": inputs["x"] * np.float32("nan")}, {})


@pytest.mark.parametrize(
    ("shape", "spec", "stacked", "fitted"),
    [
        ((5, 4), (-1, 4), False, (5, 4)),
        ((5, 4), (1, 4), True, (5, 1, 4)),
        ((1, 4), (1, 4), False, (1, 4)),
        ((5, 1, 4), (1, 4), True, (5, 1, 4)),
        ((5,), (), True, (5,)),
    ],
)
def test_golden_rows_become_the_calls_that_a_file_takes(
    shape: tuple[int, ...], spec: tuple[int, ...], stacked: bool, fitted: tuple[int, ...]
) -> None:
    found = GoldenSet({"x": np.zeros(shape)}, {"y": np.zeros(shape)}).fitted((TensorSpec("x", "FP64", spec),))
    assert (found.stacked, found.inputs["x"].shape, found.outputs["y"].shape) == (stacked, fitted, fitted)


def test_a_golden_set_of_another_model_is_refused_by_name() -> None:
    golden = GoldenSet({"x": np.zeros(1)}, {"y": np.zeros(1)})
    with pytest.raises(ProbeError, match="has inputs x; the model's are z"):
        golden.fitted((TensorSpec("z", "FP64", (1,)),))
    with pytest.raises(ProbeError, match="names the output y; the model's are z"):
        golden.error_ppm({"z": np.zeros(1)})


def _wait_end(process: int) -> None:
    """Wait until the process behind a descriptor has ended."""
    poll = select.poll()
    poll.register(process, select.POLLIN)
    try:
        assert poll.poll(PATIENCE_S * 1000), "it still runs"
    finally:
        os.close(process)
