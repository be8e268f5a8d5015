"""The limits of a machine, read from files that anyone may have written."""

from __future__ import annotations

import copy
import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

from fusedrnn.machine.limits import Machine, load

EXAMPLE = Path(__file__).parents[2] / "docs" / "example-machine.json"


def put(*keys: str, value: Any) -> Callable[[dict[str, Any]], None]:
    def change(data: dict[str, Any]) -> None:
        for key in keys[:-1]:
            data = data[key]
        data[keys[-1]] = value

    return change


def drop(*keys: str) -> Callable[[dict[str, Any]], None]:
    def change(data: dict[str, Any]) -> None:
        for key in keys[:-1]:
            data = data[key]
        del data[keys[-1]]

    return change


@pytest.mark.parametrize(
    ("change", "message"),
    [
        (put("color", value="red"), r"color: unknown key"),
        (drop("cpu"), r"cpu: missing"),
        (drop("limits", "avx2", "flops"), r"limits\.avx2\.flops: missing"),
        (drop("limits", "avx2"), r"limits\.avx2: missing"),
        (drop("limits", "avx2", "bandwidth", "L2"), r"limits\.avx2\.bandwidth\.L2: missing"),
        (put("limits", "avx2", "bandwidth", "L4", value=1e9), r"bandwidth\.L4: unknown key"),
        (put("limits", "avx2", "latency", "relu", value=1e-9), r"latency\.relu: unknown key"),
        (put("limits", "avx2", "speed", value=1), r"limits\.avx2\.speed: unknown key"),
        (put("limits", "neon", value={}), r"limits\.neon\.flops: missing"),
        (put("limits", "avx2", "flops", value=0), r"limits\.avx2\.flops: must be a number"),
        (put("limits", "avx2", "flops", value=-1e9), r"limits\.avx2\.flops: must be a number"),
        (put("limits", "avx2", "flops", value=float("nan")), r"limits\.avx2\.flops: must be"),
        (put("limits", "avx2", "flops", value=float("inf")), r"limits\.avx2\.flops: must be"),
        (put("limits", "avx2", "flops", value=10**400), r"limits\.avx2\.flops: must be"),
        (put("limits", "avx2", "flops", value="1e9"), r"limits\.avx2\.flops: must be a number"),
        (put("limits", "avx2", "flops", value=True), r"limits\.avx2\.flops: must be a number"),
        (put("limits", "avx2", "bandwidth", value=[1]), r"bandwidth: must be an object"),
        (put("limits", "avx2", value=None), r"limits\.avx2: must be an object"),
        (put("limits", value=[]), r"limits: must be an object"),
        (put("capacity", value={}), r"capacity: must hold at least one"),
        (put("capacity", "L2", value=16), r"capacity: caches must grow"),
        (put("capacity", "L9", value=2**40), r"capacity\.L9: unknown key"),
        (put("capacity", "L1", value=1.5), r"capacity\.L1: must be a whole number"),
        (put("caches", "L1", value=-1), r"caches\.L1: must be a whole number"),
        (put("caches", value=7), r"caches: must be an object"),
        (put("isas", value="avx2"), r"isas: must be a list"),
        (put("isas", value=[1]), r"isas: must be a list of names"),
        (put("isas", value=[]), r"isas: must be names"),
        (put("isas", value=["avx2", "avx2"]), r"isas: must be names, each once"),
        (put("cores", value="4"), r"cores: must be a whole number"),
        (put("cpu", value=4), r"cpu: must be a string"),
        (put("cpu", value="a\nb"), r"cpu: must be one line"),
        (put("hypervisor", value=1), r"hypervisor: must be a string"),
        (put("schema_version", value=2), r"schema_version: must be 1, got 2"),
        (drop("schema_version"), r"schema_version: must be 1, got None"),
    ],
)
def test_a_wrong_key_is_named(
    change: Callable[[dict[str, Any]], None], message: str, tmp_path: Path
) -> None:
    data = copy.deepcopy(json.loads(EXAMPLE.read_text()))
    change(data)
    path = tmp_path / "machine.json"
    path.write_text(json.dumps(data))
    with pytest.raises((TypeError, ValueError), match=rf"machine\.json: .*{message}"):
        load(path)


@pytest.mark.parametrize(
    ("raw", "message"),
    [
        (b"", "not JSON"),
        (b"[]", "must be an object"),
        (b"import os", "not JSON"),
        (b"\xff\xfe\xfa", "not JSON"),
        (b"[" * 20_000, "nested too deeply"),
        (b" " * 70_000, "at most 65,536 bytes"),
        (b'{"cpu": 1, "cpu": 2}', "cpu: stands twice"),
        (b"1" * 5_000, "machine"),
    ],
)
def test_what_is_no_machine_file(raw: bytes, message: str, tmp_path: Path) -> None:
    path = tmp_path / "machine.json"
    path.write_bytes(raw)
    with pytest.raises((TypeError, ValueError), match=message):
        load(path)


LONG, WILD = "x" * 50_000, "a\n\x1b[31m\ud800"


@pytest.mark.parametrize("text", [LONG, WILD], ids=["long", "wild"])
@pytest.mark.parametrize(
    "keys",
    [
        (),
        ("caches",),
        ("capacity",),
        ("limits",),
        ("limits", "avx2"),
        ("limits", "avx2", "bandwidth"),
    ],
)
def test_a_key_of_any_text_is_named_on_one_short_line(
    keys: tuple[str, ...], text: str, tmp_path: Path
) -> None:
    data = copy.deepcopy(json.loads(EXAMPLE.read_text()))
    put(*keys, text, value=-1)(data)
    path = tmp_path / "machine.json"
    path.write_text(json.dumps(data))
    with pytest.raises((TypeError, ValueError)) as caught:
        load(path)
    message = str(caught.value).removeprefix(str(path))
    assert message.isprintable()
    assert len(message) < 300


@pytest.mark.parametrize(
    ("key", "value"),
    [
        ("cores", 10**5000),
        ("cpu", LONG),
        ("cpu", WILD),
        ("isas", [LONG] * 2),
        ("schema_version", LONG),
    ],
    ids=["cores", "long cpu", "wild cpu", "isas", "version"],
)
def test_a_value_of_any_length_is_named_on_one_short_line(key: str, value: Any) -> None:
    data = json.loads(EXAMPLE.read_text()) | {key: value}
    with pytest.raises((TypeError, ValueError), match=f"^{key}: ") as caught:
        Machine.from_dict(data)
    assert str(caught.value).isprintable()
    assert len(str(caught.value)) < 200


def test_a_byte_order_mark_is_no_part_of_the_file(tmp_path: Path) -> None:
    path = tmp_path / "machine.json"
    path.write_bytes(b"\xef\xbb\xbf" + EXAMPLE.read_bytes())
    assert load(path) == load(EXAMPLE)
