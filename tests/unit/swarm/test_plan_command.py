"""`swarm-peer plan`, and what it takes from a run file and from this machine."""

from __future__ import annotations

import json
import tomllib
from pathlib import Path

import pytest
from typer.testing import CliRunner

from protocols.errors import ExitCode
from protocols.runspec import RunSpec
from swarm import planning
from swarm.cli import app
from swarm.models.presets import PRESETS
from swarm.monitoring.survey import write_survey
from tests.unit.swarm.test_survey import a_survey

RUN_FILE = """
[run]
name = "planned"
[model]
preset = "{preset}"
[data]
sequence_length = {tokens}
"""
KEYS = {"members", "machine", "link", "workload", "given", "recommended", "advice", "run_file", "warnings", "memory", "candidates"}
FIGURES = {
    "sample_s",
    "step_s",
    "inner_steps",
    "compute_s",
    "rounds_s",
    "averaging_s",
    "update_s",
    "epoch_s",
    "utilisation",
    "up_bytes",
    "down_bytes",
    "busiest_bytes",
    "group",
    "epoch_samples",
    "samples_per_s",
    "device_bytes",
    "host_bytes",
}


def spec_of(preset: str = "tiny", tokens: int = 64) -> RunSpec:
    return RunSpec.from_toml(RUN_FILE.format(preset=preset, tokens=tokens))


@pytest.fixture
def run_file(tmp_path: Path) -> Path:
    path = tmp_path / "run.toml"
    path.write_text(RUN_FILE.format(preset="medium", tokens=128))
    return path


def run(*arguments: str | Path) -> tuple[int, str, str]:
    result = CliRunner().invoke(app.app, ["plan", *map(str, arguments)], env={"COLUMNS": "200", "TERM": "dumb"})
    return result.exit_code, result.stdout, result.stderr


def test_it_says_what_a_run_will_be_like_and_what_to_write(run_file: Path) -> None:
    code, text, warnings = run(run_file, "--peers", "12", "--mbit", "20", "--device-tflops", "1")
    assert code == 0
    for words in ("85.3 M parameters", "devices compute", "samples/s of the swarm", "up, down a peer and epoch", "optimizer.rule"):
        assert words in text
    assert 'rule = "outer"' in text
    assert "audits" in warnings


def test_the_lines_for_the_run_file_are_a_run_file(run_file: Path) -> None:
    for mbit in ("20", "10000"):
        code, text, _ = run(run_file, "--peers", "12", "--mbit", mbit, "--device-tflops", "1", "--json")
        assert code == 0
        found = json.loads(text)
        lines = tomllib.loads(found["run_file"])
        spec = RunSpec.from_settings({**tomllib.loads(run_file.read_text()), **lines})
        assert spec.optimizer.rule == found["recommended"]["settings"]["rule"]
        assert spec.optimizer.target_batch_samples == found["recommended"]["settings"]["target_samples"]


def test_its_json_has_these_keys(run_file: Path) -> None:
    code, text, complaint = run(run_file, "--peers", "5", "--mbit", "100", "--device-tflops", "1", "--clients", "2", "--json")
    assert (code, complaint) == (0, "")
    assert text.count("\n") == 1
    found = json.loads(text)
    assert set(found) == KEYS
    assert set(found["given"]["prediction"]) == set(found["given"]["other_overlap"]) == FIGURES
    assert set(found["recommended"]["prediction"]) == FIGURES
    assert found["members"] == {"peers": 5, "clients": 2, "helpers": 0, "others_samples_per_s": None}
    assert {advice["key"] for advice in found["advice"]} >= {"rule", "codec", "max_group", "overlap", "target_batch_samples"}
    assert all(advice["why"].endswith(".") for advice in found["advice"])


def test_wrong_usage_and_wrong_files_end_as_with_every_command(run_file: Path, tmp_path: Path) -> None:
    base = ["--peers", "4", "--mbit", "50"]
    cases: tuple[tuple[list[str | Path], ExitCode], ...] = (
        ([run_file, *base], ExitCode.USAGE),
        ([run_file, *base, "--device-tflops", "1", "--probe"], ExitCode.USAGE),
        ([run_file, "--peers", "0", "--mbit", "50", "--device-tflops", "1"], ExitCode.USAGE),
        ([run_file, *base, "--device-tflops", "1", "--clients", "4"], ExitCode.CONFIG),
        ([tmp_path / "none.toml", *base, "--device-tflops", "1"], ExitCode.CONFIG),
        ([run_file, *base, "--probe", "--device", "abacus"], ExitCode.CONFIG),
        ([run_file, *base, "--probe", "--micro-batch", "4"], ExitCode.USAGE),
        ([run_file, *base, "--device-tflops", "1", "--device", "cpu"], ExitCode.USAGE),
        ([run_file, *base, "--device-tflops", "1", "--device-gb", "inf"], ExitCode.USAGE),
    )
    for arguments, expected in cases:
        code, _, complaint = run(*arguments)
        assert (code, "Traceback" in complaint) == (expected, False), complaint


def test_probing_measures_this_machine(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(planning, "PASSES_S", 1e-6)
    monkeypatch.setattr(planning, "_CODEC_ELEMS", 2**12)
    path = tmp_path / "run.toml"
    path.write_text(RUN_FILE.format(preset="tiny", tokens=16))
    code, text, complaint = run(path, "--peers", "4", "--mbit", "50", "--probe", "--device", "cpu", "--json")
    assert code == 0, complaint
    machine = json.loads(text)["machine"]
    assert machine["flops_per_s"] > 0
    assert machine["update_s_per_elem"] > 0
    assert machine["memory_bytes"] > 0
    assert machine["micro_batch_samples"] >= 1


@pytest.mark.parametrize("overlap", [False, True])
@pytest.mark.parametrize("rule", ["gradient", "outer"])
def test_every_way_of_updating_can_be_probed(rule: str, overlap: bool, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(planning, "PASSES_S", 1e-6)
    monkeypatch.setattr(planning, "_CODEC_ELEMS", 2**12)
    settings = {"run": {"name": "x"}, "model": {"preset": "tiny"}, "data": {"sequence_length": 8}}
    spec = RunSpec.from_settings({**settings, "optimizer": {"rule": rule}, "averaging": {"overlap": overlap}})
    done: list[float] = []
    assert planning.measured_machine(spec, "cpu", lambda part, what: done.append(part)).update_s_per_elem > 0
    assert done == sorted(done)
    assert done[-1] == 1.0


def test_a_workload_counts_parameters_and_attention() -> None:
    found = planning.workload_of(spec_of("tiny", 64))
    preset = PRESETS["tiny"]
    assert found.parameters == preset.parameters()
    assert found.flops_per_sample == 6 * preset.parameters() * 64 + 12 * preset.layers * 64**2 * preset.hidden
    assert (found.tokens_per_sample, found.parts) == (64, preset.layers)
    assert found.activation_bytes_per_sample > 0


def test_models_that_name_their_shape_otherwise_are_understood() -> None:
    config = {"model_type": "gpt2", "n_layer": 3, "n_embd": 32, "n_head": 2, "vocab_size": 300, "n_positions": 64}
    spec = RunSpec.from_settings({"run": {"name": "x"}, "model": {"config": config}, "data": {"sequence_length": 32}})
    found = planning.workload_of(spec)
    assert found.parts == 3
    assert found.flops_per_sample == 6 * found.parameters * 32 + 12 * 3 * 32**2 * 32


def test_settings_are_the_run_files() -> None:
    spec = RunSpec.from_settings(
        {
            "run": {"name": "x"},
            "model": {"preset": "tiny"},
            "optimizer": {"rule": "outer", "target_batch_samples": 99},
            "outer": {"inner_batch_samples": 7, "fragments": 2},
            "averaging": {"codec": "int4", "block_elems": 4096, "max_group": 5, "overlap": True},
            "trust": {"verify": False},
        }
    )
    found = planning.settings_of(spec)
    assert (found.rule, found.target_samples, found.inner_batch_samples, found.fragments) == ("outer", 99, 7, 2)
    assert (found.codec, found.block_elems, found.max_group, found.overlap, found.verify) == ("int4", 4096, 5, True, False)


def test_what_a_member_measured_stands_in_for_numbers_by_hand(run_file: Path, tmp_path: Path) -> None:
    write_survey(tmp_path / "measured.json", a_survey())
    for path in (tmp_path, tmp_path / "measured.json"):
        code, text, complaint = run(run_file, "--measured", path, "--json")
        assert code == 0, complaint
        found = json.loads(text)
        assert found["machine"]["flops_per_s"] == 1e10
        assert found["link"]["bytes_per_s"] == 1e6
        assert found["members"] == {"peers": 3, "clients": 0, "helpers": 1, "others_samples_per_s": 150.0}
    code, text, _ = run(run_file, "--measured", tmp_path, "--peers", "7", "--mbit", "80", "--rtt-ms", "5", "--json")
    found = json.loads(text)
    assert (found["members"]["peers"], found["members"]["others_samples_per_s"]) == (7, None), "what is given counts"
    assert (found["link"]["bytes_per_s"], found["link"]["rtt_s"]) == (1e7, 0.005)
    _, text, _ = run(run_file, "--measured", tmp_path, "--clients", "1", "--json")
    assert json.loads(text)["members"] == {"peers": 3, "clients": 1, "helpers": 1, "others_samples_per_s": 150.0}
    assert run(run_file, "--measured", tmp_path, "--clients", "3")[0] == ExitCode.CONFIG


def test_what_was_not_measured_must_be_said(run_file: Path, tmp_path: Path) -> None:
    write_survey(tmp_path / "measured.json", a_survey(down_bytes_per_s=None))
    assert run(run_file, "--measured", tmp_path)[0] == ExitCode.USAGE
    assert run(run_file, "--measured", tmp_path, "--mbit", "20")[0] == 0
    write_survey(tmp_path / "measured.json", a_survey(flops_per_s=None))
    assert run(run_file, "--measured", tmp_path)[0] == ExitCode.CONFIG
    assert run(run_file, "--measured", tmp_path / "nothing")[0] == ExitCode.CONFIG
    assert run(run_file, "--device-tflops", "1", "--mbit", "20")[0] == ExitCode.USAGE
    assert run(run_file, "--measured", tmp_path, "--device-tflops", "1")[0] == ExitCode.USAGE


def test_more_fragments_than_the_model_has_parts_are_refused(run_file: Path) -> None:
    run_file.write_text(run_file.read_text() + '[optimizer]\nrule = "outer"\n[outer]\nfragments = 1000\n')
    code, _, complaint = run(run_file, "--peers", "4", "--mbit", "50", "--device-tflops", "1")
    assert code == ExitCode.CONFIG
    assert "outer.fragments" in complaint


def test_sparse_codecs_are_shown_with_what_they_cost(run_file: Path) -> None:
    code, text, _ = run(run_file, "--peers", "12", "--mbit", "20", "--device-tflops", "1")
    assert code == 0
    assert "topk64" in text
    assert "not in a run that verifies" in text


@pytest.mark.parametrize(
    ("gb", "words", "flags"),
    [
        ("24", "It fits, with micro-batches of up to 10: members need no option", ""),
        ("12", "swarm-peer join LINK --optimizer-states 8bit", "--optimizer-states 8bit"),
        ("8", "join LINK --offload-optimizer", "--offload-optimizer"),
        ("6.5", "join LINK --offload-optimizer --recompute-activations", "--offload-optimizer --recompute-activations"),
        ("2", "It fits in no way", None),
    ],
)
def test_it_says_how_a_run_fits_a_card(tmp_path: Path, gb: str, words: str, flags: str | None) -> None:
    path = tmp_path / "run.toml"
    sections = '[optimizer]\nrule = "outer"\n[outer]\ninner_batch_samples = 16\n[trust]\nauditors = 0\n'
    path.write_text(RUN_FILE.format(preset="560m", tokens=256) + sections)
    flags_of_plan = ("--peers", "12", "--mbit", "50", "--device-tflops", "20", "--device-gb", gb)
    code, text, _ = run(path, *flags_of_plan)
    assert code == 0
    assert words in text
    assert f"memory, for a device of {gb} GiB" in text
    code, text, _ = run(path, *flags_of_plan, "--json")
    memory = json.loads(text)["memory"]
    assert memory["recommended_flags"] == flags
    assert memory["choices"][0]["device_bytes"] == pytest.approx(sum(memory["choices"][0]["device"].values()))


def test_for_an_unknown_device_it_prints_one_line_about_memory(run_file: Path) -> None:
    _, text, _ = run(run_file, "--peers", "12", "--mbit", "20", "--device-tflops", "1")
    (line,) = [line for line in text.splitlines() if line.startswith("Memory, GiB:")]
    assert "weights 0.32" in line
    assert "main memory" in line
