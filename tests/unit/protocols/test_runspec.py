from __future__ import annotations

import json
import math

import pytest
from hypothesis import given
from hypothesis import strategies as st
from pydantic import ValidationError

from protocols.canonical import canonical_json, pack_fields, unpack_fields
from protocols.config_errors import MAX_SENTENCES
from protocols.errors import ConfigError, RemoteProtocolError
from protocols.ids import Epoch
from protocols.runspec import RunSpec, SignedRunSpec, learning_rate, target_samples
from tests.helpers.run_world import RunWorld, ed25519, identity

BASE = '[run]\nname = "a"\n[model]\npreset = "tiny"\n'


def spec(more: str = "") -> RunSpec:
    return RunSpec.from_toml(BASE + more)


def test_two_lines_are_a_whole_spec() -> None:
    assert spec().optimizer.target_batch_samples > 0
    assert spec().admission.mode == "open"


def test_every_section_is_read() -> None:
    read = spec(
        '[data]\nsource = "files"\nfiles = ["a.txt", "b.txt"]\nfingerprint = "' + "ab" * 32 + '"\n'
        '[optimizer]\nname = "sgd"\nlearning_rate = 1\nmomentum = 0.9\nbetas = [0, 0.5]\n'
        '[schedule]\nwarmup_epochs = 3\n[averaging]\ncodec = "fp16"\n[admission]\nmode = "private"\n'
        '[trust]\nverify = false\naggregator = "krum"\nbucket = 2\nauditors = 0\nweight_cap = 1\nprobation_epochs = 0\n'
    )
    assert read.data.files == ("a.txt", "b.txt")
    assert (read.optimizer.learning_rate, read.optimizer.betas) == (1.0, (0.0, 0.5))
    assert (read.schedule.warmup_epochs, read.averaging.codec, read.admission.mode) == (3, "fp16", "private")
    trust = read.trust
    assert (trust.verify, trust.aggregator, trust.bucket, trust.auditors) == (False, "krum", 2, 0)
    assert (trust.weight_cap, trust.probation_epochs, trust.audit_tolerance, trust.byzantine_fraction) == (1.0, 0, 0.02, 0.45)


@pytest.mark.parametrize(
    ("text", "sentence"),
    [
        (BASE + "[optimiser]\n", "optimiser is not a known setting: did you mean optimizer?"),
        (BASE + "[optimizer]\nlearning_rte = 1", "optimizer.learning_rte is not a known setting: did you mean optimizer.learning_rate?"),
        (BASE + "target_batch_samples = 9", "did you mean optimizer.target_batch_samples?"),
        (BASE + "xyz = 9", "model.xyz is not a known setting: known here are preset, config."),
        (BASE + "[run.int]", "run"),
        ("", "run is missing: add it."),
        ("run = 1", "run must be a table: write [run] and its settings below it."),
        (BASE + "[optimizer]\nlearning_rate = 'x'", "optimizer.learning_rate cannot be 'x': it should be a valid number."),
        (BASE + "[optimizer]\nlearning_rate = true", "optimizer.learning_rate cannot be True"),
        (BASE + "[optimizer]\nlearning_rate = nan", "optimizer.learning_rate cannot be nan"),
        (BASE + "[optimizer]\nbetas = [0.9, 1.5]", "optimizer.betas[1] cannot be 1.5: it should be less than 1."),
        (BASE + "[optimizer]\nmomentum = 0.5", 'momentum belongs to name = "sgd"'),
        (BASE + "[schedule]\nwarmup_epochs = 9\ntotal_epochs = 9", "warmup_epochs (9) must be smaller than total_epochs (9)"),
        (
            BASE + '[averaging]\ncodec = "int3"',
            (
                "averaging.codec cannot be 'int3': it should be 'fp32', 'fp16', 'bf16', 'int8', 'int4', 'e3m0', 'adaptive-int8', 'topk64', "
                "'topk128', 'topk32-152', 'rd20', 'rd50' or 'rd100'."
            ),
        ),
        (BASE + '[trust]\naggregator = "median"', "trust.aggregator cannot be 'median'"),
        (BASE + "[trust]\nauditors = 33", "trust.auditors cannot be 33: it should be less than or equal to 32."),
        (BASE + "[trust]\nbucket = 0", "trust.bucket cannot be 0"),
        (BASE + "[trust]\nverify = 1", "trust.verify cannot be 1"),
        (BASE + "[trust]\naudit_tolerance = 0", "trust.audit_tolerance cannot be 0: it should be greater than 0."),
        (BASE + "[trust]\naudit_tolerance = 1.0", "trust.audit_tolerance cannot be 1.0: it should be less than 1."),
        (BASE + "[trust]\nweight_cap = 0.5", "trust.weight_cap cannot be 0.5"),
        (BASE + "[trust]\nprobation_epochs = 1001", "trust.probation_epochs cannot be 1001"),
        (BASE + "[trust]\nbyzantine_fraction = 0.5", "trust.byzantine_fraction cannot be 0.5: it should be less than 0.5."),
        (BASE + "[trust]\nauditor = 1", "trust.auditor is not a known setting: did you mean trust.auditors?"),
        (BASE + '[data]\nsource = "files"', 'source = "files" needs files'),
        (BASE + '[data]\nfiles = ["a"]', 'only read with source = "files"'),
        (BASE + '[data]\nsource = "files"\nfiles = ["a", "a"]', "a file is listed twice"),
        (BASE + '[data]\nsource = "files"\nfiles = ["a", 1]', "data.files[1] cannot be 1"),
        (BASE + '[data]\nfingerprint = "zz"', "data.fingerprint cannot be 'zz'"),
        ('[run]\nname = "a b"\n[model]\npreset = "tiny"', "run.name cannot be 'a b'"),
        ('[run]\nname = "a"\n[model]', "give either preset"),
        (BASE + 'config = {model_type = "bloom"}', "give either preset"),
        ('[run]\nname = "a"\n[model]\nconfig = {n_layer = 2}', "needs model_type"),
        ('[run]\nname = "a"\n[model]\nconfig = {model_type = "x", day = 1979-05-27}', "model.config.day cannot be"),
        ('[run]\nname = "a"\n[model]\nconfig = {model_type = "x", f = [1, {a = inf}]}', "model.config.f[1].a cannot be inf"),
        ("x = [", "The run file is not TOML"),
    ],
)
def test_mistakes_are_explained(text: str, sentence: str) -> None:
    with pytest.raises(ConfigError) as caught:
        RunSpec.from_toml(text)
    assert sentence in str(caught.value)
    assert "\n" not in str(caught.value)


def test_every_mistake_gets_its_sentence_within_bounds() -> None:
    with pytest.raises(ConfigError) as caught:
        spec("[optimizer]\neps = -1\nweight_decay = -1\nlearning_rate = 0")
    assert str(caught.value).count("optimizer.") == 3
    with pytest.raises(ConfigError, match="There are 12 more mistakes") as caught:
        spec("[data]\n" + "\n".join(f"wrong{i} = 1" for i in range(MAX_SENTENCES + 12)))
    assert len(str(caught.value)) < 2000


def test_settings_from_a_dictionary_are_judged_like_a_file() -> None:
    assert RunSpec.from_settings({"run": {"name": "a"}, "model": {"preset": "tiny"}}) == spec()
    with pytest.raises(ConfigError, match=r"run\.name is missing"):
        RunSpec.from_settings({"run": {}, "model": {"preset": "tiny"}})


def test_a_spec_cannot_be_changed() -> None:
    with pytest.raises(ValidationError, match="frozen"):
        spec().run.seed = 3


def test_canonical_bytes_do_not_depend_on_how_it_was_written() -> None:
    shuffled = '[schedule]\ntotal_epochs = 1000\n[optimizer]\nlearning_rate = 1e-3\n[model]\npreset = "tiny"\n[run]\nseed = 0\nname = "a"\n'
    assert RunSpec.from_toml(shuffled).canonical_bytes() == spec().canonical_bytes()
    assert spec("[optimizer]\nlearning_rate = 1").canonical_bytes() == spec("[optimizer]\nlearning_rate = 1.0").canonical_bytes()


def test_canonical_bytes_are_pinned() -> None:
    """Changing these bytes changes every run's fingerprint: that is a new protocol version."""
    assert spec().canonical_bytes() == (
        b'{"admission":{"mode":"open"},"averaging":{"block_elems":1048576,"codec":"fp32","error_feedback":0.0,"max_group":16,"overlap":false,'
        b'"step_ahead":0.0},"data":{"files":[],"fingerprint":null,"holdout_percent":5,"sequence_length":128,"source":"stdlib"},'
        b'"model":{"config":null,"preset":"tiny"},"optimizer":{"betas":[0.9,0.95],"eps":1e-08,"grad_clip_norm":1.0,"learning_rate":0.001,'
        b'"momentum":0.0,"name":"adamw","rule":"gradient","target_batch_samples":256,"weight_decay":0.01},'
        b'"outer":{"beta2":0.99,"eps":0.001,"fragments":1,"inner_batch_samples":32,"learning_rate":0.7,"mixing":0.0,"momentum":0.9,'
        b'"optimizer":"nesterov"},"run":{"name":"a","seed":0},'
        b'"schedule":{"final_fraction":0.1,"kind":"cosine","ramp_epochs":0,"ramp_start":0.125,"total_epochs":1000,"warmup_epochs":0},'
        b'"trust":{"aggregator":"centered_clip","audit_tolerance":0.02,"auditors":1,"bucket":1,"byzantine_fraction":0.45,'
        b'"probation_epochs":2,"verify":true,"weight_cap":4.0}}'
    )


@given(
    seed=st.integers(0, 2**53 - 1),
    rate=st.floats(1e-300, 1e300),
    fraction=st.floats(0, 1),
    extra=st.recursive(
        st.none() | st.booleans() | st.integers() | st.floats(allow_nan=False, allow_infinity=False) | st.text(max_size=8),
        lambda inner: st.lists(inner, max_size=3) | st.dictionaries(st.text(max_size=4), inner, max_size=3),
        max_leaves=8,
    ),
)
def test_canonical_bytes_read_back(seed: int, rate: float, fraction: float, extra: object) -> None:
    written = RunSpec.from_settings(
        {
            "run": {"name": "a", "seed": seed},
            "model": {"config": {"model_type": "bloom", "extra": extra}},
            "optimizer": {"learning_rate": rate},
            "schedule": {"final_fraction": fraction},
        }
    )
    read = RunSpec.from_canonical_bytes(written.canonical_bytes())
    assert read == written
    assert read.canonical_bytes() == written.canonical_bytes()


@pytest.mark.parametrize(
    "change",
    [
        lambda data: data + b" ",
        lambda data: data.replace(b'"seed":0', b'"seed": 0'),
        lambda data: data.replace(b'"seed":0', b'"seed":0,"seed":0'),
        lambda data: data.replace(b"0.001", b"1e-3"),
        lambda data: data.replace(b"0.001", b"NaN"),
        lambda data: data.replace(b'"seed":0', b'"sead":0'),
        lambda data: data.replace(b'"seed":0', b'"seed":0.0'),
        lambda data: data.replace(b',"seed":0', b""),
        lambda data: b"\xff" + data,
        lambda data: b"[" * 60_000,
        lambda data: b"1" * 60_000,
        lambda data: b" " * 70_000,
        lambda data: b"",
    ],
)
def test_other_bytes_are_not_a_canonical_spec(change: object) -> None:
    data = spec().canonical_bytes()
    changed = change(data)  # type: ignore[operator]
    assert changed != data
    with pytest.raises(RemoteProtocolError):
        RunSpec.from_canonical_bytes(changed)


def test_signed_spec_reads_back_with_the_same_run_id() -> None:
    signed = RunWorld().signed_spec
    read = SignedRunSpec.from_bytes(signed.to_bytes())
    assert read == signed
    assert read.run_id == signed.run_id


def test_run_id_names_spec_and_authority() -> None:
    signed = SignedRunSpec.sign(spec(), identity(1))
    assert signed.run_id != SignedRunSpec.sign(spec("[optimizer]\neps = 1e-7"), identity(1)).run_id
    assert signed.run_id != SignedRunSpec.sign(spec(), identity(2)).run_id
    assert signed.run_id == SignedRunSpec.sign(spec(), identity(1)).run_id


def test_every_bit_of_a_signed_spec_is_protected() -> None:
    data = RunWorld().signed_spec.to_bytes()
    for position in range(len(data)):
        tampered = bytearray(data)
        tampered[position] ^= 1
        with pytest.raises(RemoteProtocolError):
            SignedRunSpec.from_bytes(bytes(tampered))


def test_a_spec_signed_by_somebody_else_is_refused() -> None:
    domain, canonical, _, signature = unpack_fields(RunWorld().signed_spec.to_bytes(), 4)
    stranger = ed25519(9).public_key().public_bytes_raw()
    with pytest.raises(RemoteProtocolError, match="did not sign"):
        SignedRunSpec.from_bytes(pack_fields(domain, canonical, stranger, signature))


def test_a_signature_made_for_something_else_is_refused() -> None:
    signer = identity(1)
    domain, canonical, key, _ = unpack_fields(SignedRunSpec.sign(spec(), signer).to_bytes(), 4)
    with pytest.raises(RemoteProtocolError, match="did not sign"):
        SignedRunSpec.from_bytes(pack_fields(domain, canonical, key, signer.sign(canonical)))


@given(st.binary(max_size=300))
def test_garbage_is_refused_as_garbage(data: bytes) -> None:
    with pytest.raises(RemoteProtocolError):
        SignedRunSpec.from_bytes(data)
    with pytest.raises(RemoteProtocolError):
        RunSpec.from_canonical_bytes(data)


def test_an_oversized_spec_is_not_signed() -> None:
    large = RunSpec.from_settings(
        {"run": {"name": "a"}, "model": {"preset": "tiny"}, "data": {"source": "files", "files": [f"{i:01000d}" for i in range(100)]}}
    )
    with pytest.raises(ConfigError, match="shorten the list of files"):
        SignedRunSpec.sign(large, identity(1))


@given(st.lists(st.binary(max_size=9), max_size=6), st.lists(st.binary(max_size=9), max_size=6))
def test_packed_fields_are_unambiguous(one: list[bytes], other: list[bytes]) -> None:
    assert unpack_fields(pack_fields(*one), 6) == tuple(one)
    assert (pack_fields(*one) == pack_fields(*other)) == (one == other)


def test_canonical_json_refuses_what_it_cannot_hold() -> None:
    assert canonical_json({"b": 1, "a": [1.0, "ä"]}) == b'{"a":[1.0,"\\u00e4"],"b":1}'
    for value in (math.nan, {"x": math.inf}, object(), {1: 2, "a": 3}):
        with pytest.raises(ValueError, match=r".+"):
            canonical_json(value)


# Learning rate


def rates(schedule: str, epochs: int) -> list[float]:
    made = spec(f"[optimizer]\nlearning_rate = 0.4\n[schedule]\n{schedule}\n")
    return [learning_rate(made, Epoch(epoch)) for epoch in range(epochs)]


def test_constant_rate_after_warmup() -> None:
    assert rates('kind = "constant"\nwarmup_epochs = 4\ntotal_epochs = 6', 8) == [0.1, 0.2, 0.3, 0.4, 0.4, 0.4, 0.4, 0.4]


def test_linear_decay_ends_at_the_final_fraction_and_stays() -> None:
    assert rates('kind = "linear"\ntotal_epochs = 4\nfinal_fraction = 0.5', 7) == [0.4, 0.35, 0.3, 0.25, 0.2, 0.2, 0.2]


def test_cosine_decay_is_half_way_in_the_middle() -> None:
    got = rates('kind = "cosine"\nwarmup_epochs = 2\ntotal_epochs = 10\nfinal_fraction = 0', 12)
    assert got[1:3] == [0.4, 0.4]
    assert got[6] == 0.2
    assert got[10:] == [0.0, 0.0]


@given(st.sampled_from(["constant", "linear", "cosine"]), st.integers(0, 49), st.integers(0, 200), st.floats(0, 1))
def test_rate_is_within_bounds_and_never_rises_after_warmup(kind: str, warmup: int, epoch: int, fraction: float) -> None:
    made = RunSpec.from_settings(
        {
            "run": {"name": "a"},
            "model": {"preset": "tiny"},
            "schedule": {"kind": kind, "warmup_epochs": warmup, "total_epochs": 50, "final_fraction": fraction},
        }
    )
    rate, after = learning_rate(made, Epoch(epoch)), learning_rate(made, Epoch(epoch + 1))
    assert 0 <= rate <= made.optimizer.learning_rate
    if epoch + 1 < warmup:
        assert after > rate
    elif epoch >= warmup:
        assert after <= rate
    assert json.loads(json.dumps(rate)) == rate


@pytest.mark.parametrize("codec", ["topk64", "topk128", "rd20", "rd50", "rd100"])
def test_sparse_codecs_are_not_for_runs_that_verify(codec: str) -> None:
    run = {"run": {"name": "a"}, "model": {"preset": "tiny"}, "averaging": {"codec": codec, "error_feedback": 0.95}}
    with pytest.raises(ConfigError, match="verify = false"):
        RunSpec.from_settings(run)
    believing = run | {"trust": {"verify": False}}
    assert RunSpec.from_settings(believing).averaging.codec == codec
    with pytest.raises(ConfigError, match="error_feedback"):
        RunSpec.from_settings(believing | {"averaging": {"codec": codec}})


def test_stepping_ahead_is_about_residuals_of_the_outer_rule() -> None:
    run = {"run": {"name": "a"}, "model": {"preset": "tiny"}, "averaging": {"error_feedback": 0.9, "step_ahead": 0.4}}
    with pytest.raises(ConfigError, match="step_ahead"):
        RunSpec.from_settings(run)
    outer = run | {"optimizer": {"rule": "outer"}}
    assert RunSpec.from_settings(outer).averaging.step_ahead == 0.4
    for change in ({"averaging": {"step_ahead": 0.4}}, {"outer": {"mixing": 0.5}}):
        with pytest.raises(ConfigError, match="step_ahead"):
            RunSpec.from_settings(outer | change)


def test_the_target_rises_in_a_straight_line_and_stays() -> None:
    run = {"run": {"name": "a"}, "model": {"preset": "tiny"}, "optimizer": {"target_batch_samples": 80}}
    ramping = RunSpec.from_settings(run | {"schedule": {"ramp_epochs": 4, "ramp_start": 0.2}})
    assert [target_samples(ramping, Epoch(epoch)) for epoch in range(7)] == [16, 32, 48, 64, 80, 80, 80]
    assert target_samples(RunSpec.from_settings(run), Epoch(0)) == 80
    tiny = RunSpec.from_settings(run | {"optimizer": {"target_batch_samples": 2}, "schedule": {"ramp_epochs": 9, "ramp_start": 0.01}})
    assert target_samples(tiny, Epoch(0)) == 1
