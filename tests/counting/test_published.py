"""Published figures: each one reproduces as it should, and a wrong size is found out."""

from __future__ import annotations

import csv
import io
import json
import re
import subprocess
import sys
from fractions import Fraction
from pathlib import Path
from typing import Any

import pytest

from fusedrnn import cli
from fusedrnn.counting.network_file import load, parse
from fusedrnn.counting.published import (
    NO_MATCH,
    PUBLISHED,
    ROUNDED,
    TRUNCATED,
    Check,
    Verification,
    check,
    verdict,
    verify,
)

Capture = pytest.CaptureFixture[str]
ROOT = Path(__file__).parents[2]
CHECKS = verify().checks

# What each file counts, worked out by formula apart from this library. A mean over data sets and parts
# of a network are what was published of them.
COMPUTED = {
    "chung-2014-music-gru": [20_217],
    "chung-2014-music-lstm": [19_764],
    "chung-2014-music-rnn": [20_050],
    "chung-2014-speech-gru": [168_888],
    "chung-2014-speech-lstm": [169_065],
    "chung-2014-speech-rnn": [168_400],
    "gnmt": [280_825_856, 215_220_224],
    "graves-2013-ctc-1l-250h": [780_562],
    "graves-2013-ctc-1l-622h": [3_793_018],
    "graves-2013-ctc-2l-250h": [2_284_062],
    "graves-2013-ctc-3l-250h": [3_787_562],
    "graves-2013-ctc-3l-421h-uni": [3_786_957],
    "graves-2013-ctc-3l-500h-tanh": [3_688_062],
    "graves-2013-ctc-5l-250h": [6_794_562],
    "graves-2013-trans-3l-250h": [4_335_312],
    "inan-2016-large": [51_022_000],
    "jozefowicz-2016-big-lstm": [1_776_882_559],
    "jozefowicz-2016-big-lstm-cnn": [1_036_156_287],
    "jozefowicz-2016-lstm-1024-512": [818_030_463],
    "jozefowicz-2016-lstm-2048-512": [822_753_151],
    "jozefowicz-2016-lstm-512-512": [815_669_119],
    "jozefowicz-2016-lstm-8192-2048": [3_401_878_399],
    "koutnik-2014-lstm-10": [481],
    "koutnik-2014-lstm-15": [1_021],
    "koutnik-2014-lstm-4": [97],
    "koutnik-2014-lstm-7": [253],
    "koutnik-2014-srn-15": [256],
    "koutnik-2014-srn-22": [529],
    "koutnik-2014-srn-31": [1_024],
    "koutnik-2014-srn-9": [100],
    "lpcnet": [2_292_128_000],
    "merity-2017-awd-lstm-ptb": [24_221_600],
    "merity-2017-awd-lstm-wikitext-2": [33_556_078],
    "mlperf-rnnt": [45_323_037],
    "sak-2014-1024-512-2l": [14_826_919],
    "sak-2014-1024-512-3l": [19_552_679],
    "sak-2014-2048-512-1l": [12_893_607],
    "sak-2014-2048-512-2l": [22_345_127],
    "sak-2014-385-7l": [13_287_507],
    "sak-2014-440-5l": [13_338_327],
    "sak-2014-600-2l": [12_986_847],
    "sak-2014-6000-800-1l": [36_413_847],
    "sak-2014-750-1l": [13_074_747],
    "sak-2014-800-512-2l": [13_182_311],
    "sak-2014-840-5l": [37_547_127],
    "shazeer-2017-2xlstm-8192-1024": [150_994_944] * 2,
    "shazeer-2017-4xlstm-512": [8_388_608] * 2,
    "shazeer-2017-lstm-1024-512": [4_718_592] * 2,
    "shazeer-2017-lstm-2048-512": [9_437_184] * 2,
    "shazeer-2017-lstm-512-512": [2_359_296] * 2,
    "sutskever-2014": [384_000_000, 64_000_000, 32_000_000, 32_000_000],
    "tensorflow-43960-gru": [150],
    "tensorflow-43960-gru-reset-after": [165],
    "zaremba-2014-large": [66_022_000, 66_022_000],
    "zaremba-2014-learning-to-execute": [2_563_200],
    "zaremba-2014-medium": [19_775_200],
}
TRUNCATED_FILES = {
    "merity-2017-awd-lstm-wikitext-2",
    "sak-2014-840-5l",
    "zaremba-2014-learning-to-execute",
}


def identity(each: Check) -> str:
    return f"{Path(each.file).stem}-{each.published.figure}-{each.published.printed}"


# The verdict


@pytest.mark.parametrize(
    ("printed", "computed", "expected"),
    [
        ("66M", 66_022_000, ROUNDED),
        ("66M", 65_500_000, ROUNDED),
        ("66M", 65_499_999, NO_MATCH),
        ("66M", 66_999_999, TRUNCATED),
        ("66M", 67_000_000, NO_MATCH),
        ("151.0M", 150_994_944, ROUNDED),
        ("151.0M", 151_050_000, TRUNCATED),
        ("0.82B", 815_000_000, ROUNDED),
        ("0.82B", 814_999_999, NO_MATCH),
        ("2.4M", 2_350_000, ROUNDED),
        ("150", 150, ROUNDED),
        ("150", 151, NO_MATCH),
        ("150", Fraction(301, 2), TRUNCATED),
        ("20.1k", 20_050, ROUNDED),
        ("2.3G", 2_292_128_000, ROUNDED),
        ("1T", 10**12, ROUNDED),
    ],
)
def test_the_verdict_is_exact_at_the_printed_digit(
    printed: str, computed: int, expected: str
) -> None:
    assert verdict(printed, computed) == expected


@pytest.mark.parametrize("printed", ["", "M", "66 M", "1,000", "-1", "66m", "1e6", "٣", "1.M"])
def test_what_is_no_printed_figure(printed: str) -> None:
    with pytest.raises(ValueError, match="printed must be a figure"):
        verdict(printed, 1)
    with pytest.raises(ValueError, match=r"published\[0\]\.printed: must "):
        parse(document(printed=printed))


# The figures that come with the library


@pytest.mark.parametrize("each", CHECKS, ids=identity)
def test_each_published_figure(each: Check) -> None:
    stem = Path(each.file).stem
    same = [other for other in CHECKS if other.file == each.file]
    assert each.computed == COMPUTED[stem][same.index(each)]
    assert not each.failed
    if each.group == "computed only":
        assert (each.verdict, each.result) == (None, "-")
    elif each.group == "no match":
        assert (each.verdict, each.result) == (NO_MATCH, "as expected")
        assert each.published.reason
    else:
        assert each.verdict == (TRUNCATED if stem in TRUNCATED_FILES else ROUNDED)
        assert each.result == {"read": "pass", "memory": "unverified"}[each.group]


def test_every_file_is_checked() -> None:
    assert {Path(each.file).stem for each in CHECKS} == set(COMPUTED)
    assert not verify().failed


def test_no_computed_figure_is_written_down() -> None:
    for path in PUBLISHED.glob("*.toml"):
        text = path.read_text(encoding="utf-8").replace(",", "").replace("_", "")
        for figure in COMPUTED[path.stem]:
            # A figure so small, or so round, is also a size or the one that was printed.
            if figure > 1_024:
                assert not re.search(rf"(?<!\d){figure}(?!\d)", text), path.name


def test_a_figure_that_was_read_says_where() -> None:
    for each in CHECKS:
        assert bool(each.published.where) == (each.published.provenance == "read")


@pytest.mark.parametrize("path", sorted(PUBLISHED.glob("*.toml")), ids=lambda path: path.stem)
def test_a_wrong_size_is_found_out(path: Path) -> None:
    """The negative control: with four times the units, no figure is what it was."""
    text = path.read_text(encoding="utf-8")

    def larger(match: re.Match[str]) -> str:
        return f"{match[1]}{4 * int(match[2])}"

    changed = re.sub(r"^(hidden = )(\d+)", larger, text, flags=re.MULTILINE)
    assert changed != text
    if 'tied = "embedding"' in text:
        with pytest.raises(ValueError, match="cannot be one matrix"):
            parse(changed)
        changed = re.sub(r"^(vocabulary = )(\d+)", larger, text, flags=re.MULTILINE)
    network = parse(changed)
    for published in network.published:
        each = check(network, published)
        if published.printed and published.expected == "match":
            assert each.verdict == NO_MATCH
            assert each.failed == (published.provenance == "read")


# What decides the exit code


def document(**published: Any) -> str:
    """A network of 30 parameters (an RNN of 3 on 6 inputs) with one published figure."""
    figure = {"figure": "parameters", "printed": "30", "provenance": "read", "source": "me"}
    figure |= published
    lines = (f"{key} = {json.dumps(value)}" for key, value in figure.items() if value is not None)
    return (
        "[[layers]]\nkind = 'input'\nwidth = 6\n[[layers]]\nkind = 'rnn'\nhidden = 3\n"
        "[[published]]\n" + "\n".join(lines)
    )


@pytest.mark.parametrize(
    ("published", "result"),
    [
        ({}, "pass"),
        ({"printed": "31"}, "FAIL"),
        ({"printed": "31", "provenance": "memory"}, "unverified"),
        ({"printed": "31", "expected": "no match", "reason": "nominal"}, "as expected"),
        ({"expected": "no match", "reason": "nominal"}, "FAIL"),
        ({"provenance": "memory", "expected": "no match", "reason": "nominal"}, "FAIL"),
        ({"printed": None, "provenance": None}, "-"),
        ({"figure": "macs_per_step", "printed": "27"}, "pass"),
        ({"figure": "matrix_flops_per_second", "rate": 1000, "printed": "54k"}, "pass"),
        ({"layers": ["input"], "printed": "0"}, "pass"),
        ({"shares": 4, "printed": "7.5"}, "pass"),
        ({"shares": 4, "printed": "7"}, "pass"),
        ({"shares": 7, "printed": "4.29"}, "pass"),
    ],
)
def test_the_exit_code(
    published: dict[str, Any], result: str, tmp_path: Path, capsys: Capture
) -> None:
    path = tmp_path / "network.toml"
    path.write_text(document(**published))
    (each,) = verify([path]).checks
    assert each.result == result
    assert cli.main(["verify", str(path)]) == (result == "FAIL")
    assert ("FAIL" in capsys.readouterr().out) == (result == "FAIL")


def test_tied_weights_count_as_the_figure_says(tmp_path: Path) -> None:
    text = (PUBLISHED / "inan-2016-large.toml").read_text(encoding="utf-8")
    network = parse(text.replace('"51M"', '"66M"') + 'tied = "twice"\n')
    assert check(network, network.published[0]).verdict == ROUNDED


@pytest.mark.parametrize(
    ("published", "message"),
    [
        ({"figre": "x"}, "published[0].figre: unknown key; did you mean 'figure'?"),
        ({"figure": "x"}, "published[0].figure: unknown 'x'; one of parameters"),
        ({"figure": None}, "published[0].figure: missing: a published figure needs it"),
        ({"source": None}, "published[0].source: missing: a published figure needs it"),
        ({"provenance": None}, "published[0].provenance: missing: a published figure needs it"),
        ({"provenance": "hearsay"}, "published[0].provenance: unknown 'hearsay'; one of read"),
        ({"printed": 30}, "published[0].printed: must be text, not an integer"),
        ({"printed": None}, "published[0].provenance: is of a printed figure, and there is none"),
        ({"expected": "no match"}, "published[0].reason: goes with"),
        ({"reason": "why"}, "published[0].reason: goes with"),
        ({"rate": 3}, "published[0].rate: goes with"),
        ({"figure": "matrix_flops_per_second"}, "published[0].rate: goes with"),
        ({"layers": ["rn"]}, "published[0].layers[0]: no layer 'rn'"),
        ({"tied": "thrice"}, "published[0].tied: unknown 'thrice'; did you mean 'twice'?"),
        ({"shares": 0}, "published[0].shares: must be at least 1, got 0"),
    ],
)
def test_a_wrong_figure_is_told_its_key(
    published: dict[str, Any], message: str, tmp_path: Path, capsys: Capture
) -> None:
    path = tmp_path / "network.toml"
    path.write_text(document(**published))
    assert cli.main(["verify", str(path)]) == 2
    assert f"{path}: {message}" in capsys.readouterr().err


def test_a_network_without_a_figure_is_no_check(capsys: Capture) -> None:
    path = ROOT / "examples" / "language-model.toml"
    assert cli.main(["verify", str(path)]) == 2
    assert "no [[published]] figure to check" in capsys.readouterr().err


def test_an_installation_without_figures_is_no_success(
    monkeypatch: pytest.MonkeyPatch, tmp_path: Path, capsys: Capture
) -> None:
    monkeypatch.setattr("fusedrnn.counting.published.PUBLISHED", tmp_path)
    assert cli.main(["verify"]) == 2
    assert "the installation is incomplete" in capsys.readouterr().err


# What is printed


def test_every_format_has_every_figure() -> None:
    verification = verify()
    rows = csv.DictReader(io.StringIO(verification.to_csv()))
    computed = [each.computed for each in verification.checks]
    assert [row["computed"] for row in rows] == list(map(str, computed))
    assert [each["computed"] for each in verification.to_dict()["checks"]] == computed
    for each in verification.checks:
        assert f"{each.computed:,}" in str(verification)


def test_a_failure_is_named() -> None:
    network = parse(document(printed="31"))
    verification = Verification((check(network, network.published[0]),))
    assert str(verification).endswith("FAILED: network (31)")
    assert "0 of 1 figures read in a source match" in str(verification)


def test_the_documentation_has_the_table_as_printed() -> None:
    page = (ROOT / "docs" / "verify.md").read_text(encoding="utf-8")
    assert verify().to_markdown() in page


def test_the_command_needs_no_numpy() -> None:
    code = (
        "import sys; from fusedrnn import cli; status = cli.main(['verify'])\n"
        "assert 'numpy' not in sys.modules; sys.exit(status)"
    )
    done = subprocess.run(
        [sys.executable, "-c", code], capture_output=True, text=True, check=False, timeout=60
    )
    assert (done.returncode, done.stderr) == (0, "")
    assert done.stdout.endswith("Verified.\n")


def test_each_file_can_be_counted(capsys: Capture) -> None:
    for path in PUBLISHED.glob("*.toml"):
        assert load(path).published
    assert cli.main(["count", str(PUBLISHED / "sutskever-2014.toml")]) == 0
    assert "384,000,000" in capsys.readouterr().out
