"""`nacz bench`: what names stand for, the coders, the state, the reports, the picture.

Run with `pytest tests/test_bench.py`. Measures small texts with the byte model and whatever peers are here.
"""

from __future__ import annotations

import functools
import hashlib
import json
import os
import sys
import threading
import zipfile
from collections.abc import Iterator
from http.server import SimpleHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path
from typing import Any

import pytest
import tiny
from cli_runner import Nacz
from golden_inputs import SAMPLE

import nacz
from nacz import CodecOptions, cli, errors, levels, segment_coder
from nacz.bench import ablation, child, coders, command, report, sources
from nacz.bench import run as runs
from nacz.bench.run import Row, Skipped
from nacz.predictors.language_model import EFFORTS, LanguageModelCoder, Params
from nacz.predictors.learning import Learner
from nacz.predictors.members import MEMBERS, parse_members

TEXT = b"The quick brown fox jumps over the lazy dog. " * 60


@pytest.fixture
def corpora(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    folder = tmp_path / "corpora"
    (folder / "wiki").mkdir(parents=True)
    (folder / "wiki" / "enwik8.first3000").write_bytes(TEXT)
    (folder / "small").mkdir()
    (folder / "small" / "b").write_bytes(b"bb")
    (folder / "small" / "a.txt").write_bytes(b"a")
    (folder / "small" / "empty").touch()
    (folder / "odd:name:1").write_bytes(b"odd")
    monkeypatch.chdir(tmp_path)
    monkeypatch.setenv("NACZ_CORPORA", str(folder))
    return folder


# -- sources ----------------------------------------------------------------------------------------------------------


def test_what_names_stand_for(corpora: Path) -> None:
    def found(*names: str) -> list[tuple[str, bytes, str]]:
        return [(source.label, source.data, source.seen) for source in sources.find_sources(names)]

    size = f"{len(TEXT):,}"
    assert found("enwik8") == [(f"enwik8 [0, {size})", TEXT, "seen")]
    assert found("enwik8:10:20") == [("enwik8 [10, 30)", TEXT[10:30], "seen")]
    (corpora / "wiki").rename(corpora / "enwik8")
    assert found("enwik8:10:20") == [("enwik8 [10, 30)", TEXT[10:30], "seen")]
    assert found("small") == [("a.txt", b"a", "unknown"), ("b", b"bb", "unknown")]
    assert found(str(corpora / "odd:name:1")) == [("odd:name:1", b"odd", "unknown")]
    (corpora / "enwik9").write_bytes(b"not it")
    assert found("enwik9")[0][0] == "a file called enwik9, which is not enwik9"
    (source,) = sources.find_sources(["b"])
    assert source.sha256 == hashlib.sha256(b"bb").hexdigest()
    assert sources.default_source().data


@pytest.mark.parametrize(
    ("name", "words"),
    [
        ("enwik9", "sha256 159b85351e5f76e60cbe32e04c677847a9ecba3adc79addab6f4c6c7aa3744bc"),
        ("nothing-of-the-kind", "no such file, folder or corpus"),
        ("enwik8:2690:11", "no slice of 11 bytes at 2,690"),
        ("enwik8:0:0", "at least one byte"),
        ("../corpora/../x", "no such file"),
    ],
)
def test_what_is_not_there(corpora: Path, name: str, words: str) -> None:
    with pytest.raises(errors.UsageError, match=words):
        list(sources.find_sources([name]))


@pytest.fixture
def public(tmp_path: Path) -> Iterator[str]:
    """The address of a server with a zip of one file called enwik9."""
    folder = tmp_path / "public"
    folder.mkdir()
    with zipfile.ZipFile(folder / "enwik9.zip", "w", zipfile.ZIP_DEFLATED) as archive:
        archive.writestr("enwik9", TEXT)
    (folder / "no.zip").write_bytes(TEXT)

    class Quiet(SimpleHTTPRequestHandler):
        def log_message(self, *arguments: object) -> None:
            pass

    server = ThreadingHTTPServer(("127.0.0.1", 0), functools.partial(Quiet, directory=os.fspath(folder)))
    thread = threading.Thread(target=server.serve_forever, daemon=True)
    thread.start()
    yield f"http://127.0.0.1:{server.server_port}"
    server.shutdown()
    server.server_close()


def test_a_public_corpus_is_downloaded(
    corpora: Path, public: str, run: Nacz, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("NACZ_CORPORA", str(corpora))
    digest = hashlib.sha256(TEXT).hexdigest()

    def known(size: int, sha256: str, path: str) -> None:
        corpus = sources.Corpus(size, sha256, "somewhere", f"{public}/{path}")
        monkeypatch.setitem(sources.CORPORA, "enwik9", corpus)

    before = sorted(corpora.iterdir())
    for size, sha256, path, words in (
        (len(TEXT), "0" * 64, "enwik9.zip", "is not the known enwik9; nothing was kept"),
        (len(TEXT) - 1, digest, "enwik9.zip", "is not the known enwik9"),
        (len(TEXT), digest, "no.zip", "has no enwik9 in it"),
        (len(TEXT), digest, "missing.zip", "could not be downloaded"),
    ):
        known(size, sha256, path)
        with pytest.raises(errors.UsageError, match=words):
            list(sources.find_sources(["enwik9"], may_download=True))
        assert sorted(corpora.iterdir()) == before
    known(len(TEXT), digest, "enwik9.zip")
    with pytest.raises(errors.UsageError, match="add --download"):
        list(sources.find_sources(["enwik9"]))
    monkeypatch.setenv("NACZ_OFFLINE", "1")
    with pytest.raises(errors.UsageError, match="NACZ_OFFLINE is set"):
        list(sources.find_sources(["enwik9"], may_download=True))
    monkeypatch.delenv("NACZ_OFFLINE")
    assert run("bench", "enwik9:10:50", "--download", "--levels", "none", "--peers", "gzip", "--json", "-", "-q") == 0
    (row,) = json.loads(run.out)["rows"]
    assert row["text"] == "enwik9 [10, 60)" and row["sha256"] == hashlib.sha256(TEXT[10:60]).hexdigest()
    assert (corpora / "enwik9").read_bytes() == TEXT and len(list(corpora.iterdir())) == len(before) + 1


# -- coders -----------------------------------------------------------------------------------------------------------


def test_peers_are_read() -> None:
    assert coders.parse_peers("none") == []
    assert [coder.name for coder in coders.parse_peers("all")] == list(coders.PEERS)
    assert [coder.label for coder in coders.parse_peers("zstd:3,zstd, xz")] == ["zstd -3", "zstd -19", "xz -9e"]
    for text in ("rar", "gzip:10", "zstd:fast", ""):
        with pytest.raises(errors.UsageError):
            coders.parse_peers(text)


@pytest.mark.parametrize("name", coders.PEERS)
def test_every_peer_brings_back_what_it_took(name: str) -> None:
    peer = coders.PEERS[name]
    for setting in {peer.default, peer.settings[0], peer.settings[-1]}:
        try:
            compress, decompress = coders.Coder(name, setting).functions(1)
        except coders.Missing as error:
            pytest.skip(str(error))
        for data in (b"", b"x", TEXT, bytes(range(256)) * 20):
            assert decompress(compress(data)) == data
        assert coders.Coder(name, setting).version()


@pytest.mark.parametrize("name", ["zstd", "brotli"])
def test_programs_stand_in_for_packages(name: str, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(coders, "_has", lambda module: False)
    try:
        compress, decompress = coders.Coder(name, coders.PEERS[name].settings[-1]).functions(1)
    except coders.Missing as error:
        pytest.skip(str(error))
    assert decompress(compress(TEXT)) == TEXT
    monkeypatch.setenv("PATH", "")
    with pytest.raises(coders.Missing, match="nacz\\[bench\\]"):
        coders.Coder(name, "5").functions(1)


def test_levels_are_read() -> None:
    assert command.parse_levels("1-3,9,3") == [1, 2, 3, 9]
    assert command.parse_levels("none") == []
    for text in ("0", "10", "x", "1-", "-3", "3-1", ""):
        with pytest.raises(errors.UsageError):
            command.parse_levels(text)


# -- running ----------------------------------------------------------------------------------------------------------


def test_measuring_and_going_on(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    source = sources.Source("text", TEXT, hashlib.sha256(TEXT).hexdigest(), "unknown")
    state = tmp_path / "state"
    some = [coders.Coder("gzip", "9"), coders.Coder("bzip2", "1")]
    first = list(runs.measure([source], some[:1], threads=1, state=state))
    (row,) = first
    assert isinstance(row, Row)
    assert row.plain_size == len(TEXT) and 0 < row.archive_size < 300
    assert row.bits_per_byte == 8 * row.archive_size / len(TEXT)
    assert row.compress_seconds > 0 and row.decompress_seconds > 0 and row.start > 0
    assert row.memory is None or 5e6 < row.memory < 200e6
    with state.open("a") as file:
        file.write('{"text": "cut off')
        file.write("\n[]\n")
    asked: list[str] = []
    both = list(runs.measure([source], some, threads=1, state=state, announce=asked.append))
    assert both[0] == row and asked == ["text: bzip2 -1"]
    assert len(list(runs._read(state))) == 2
    monkeypatch.setenv("PATH", "")
    assert list(runs.measure([source], [coders.Coder("zpaq", "5")], threads=1)) == [
        Skipped("zpaq -5", "needs the program zpaq on PATH")
    ]


def test_what_decodes_to_something_else_counts_for_nothing(monkeypatch: pytest.MonkeyPatch) -> None:
    source = sources.Source("text", TEXT, "0" * 64, "unknown")
    with pytest.raises(errors.InternalError, match="decoded text to other bytes"):
        list(runs.measure([source], [coders.Coder("gzip", "1")], threads=1))


def test_bench_as_people_call_it(corpora: Path, run: Nacz, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("NACZ_CORPORA", str(corpora))
    assert run("bench", "enwik8:0:2000", "--levels", "1", "--peers", "gzip,xz:6", "--json", "b.json", "-T1",
               "--html", "b.html", "--markdown", "b.md") == 0  # fmt: skip
    lines = run.out.decode().splitlines()
    assert lines[0].startswith("- Weights are not counted"), "caveats first"
    assert [line.split()[:2] for line in lines[-3:]] == [["nacz", "-1"], ["gzip", "-9"], ["xz", "-6"]]
    found = json.loads(Path("b.json").read_text())
    assert [row["coder"] for row in found["rows"]] == ["nacz", "gzip", "xz"]
    assert found["command"] == (
        "nacz bench enwik8:0:2000 --levels 1 --peers gzip,xz:6 --json b.json -T1 --html b.html --markdown b.md"
    )
    assert all(row["text"] == "enwik8 [0, 2,000)" and row["seen"] == "seen" for row in found["rows"])
    page, table = Path("b.html").read_text(), Path("b.md").read_text()
    assert "http://" not in page and "https://" not in page and "<th scope=\"row\">nacz -1</th>" in page
    assert "| nacz -1 |" in table and found["command"] in table and "the model has seen it" in table
    assert run("bench", "small", "--levels", "none", "--peers", "gzip", "--json", "-", "-q") == 0
    assert run.err == "" and len(json.loads(run.out)["rows"]) == 2


@pytest.mark.parametrize(
    "arguments", [["nowhere"], ["--levels", "0"], ["--peers", "arj"], ["--ablate", "--levels", "1-3"]], ids=" ".join
)
def test_bench_refuses(run: Nacz, arguments: list[str]) -> None:
    assert run("bench", *arguments) == 1
    assert run.err.count("\n") == 1 and run.out == b""


# -- taking a level apart ---------------------------------------------------------------------------------------------


def test_what_is_measured_to_take_a_level_apart() -> None:
    five = [coder.label for coder in ablation.taken_apart(5)]
    names = list(MEMBERS)
    assert five == [f"nacz -5 {how} {name}" for how, some in (("without", names), ("without", ["ensemble"]),
                                                             ("only", names)) for name in some]  # fmt: skip
    nine = [coder.label for coder in ablation.taken_apart(9)]
    assert len(nine) == len(five) + 2 and {"nacz -9 without learning", "nacz -9 without either"} <= set(nine)
    assert ablation.taken_apart(3) == []
    for coder in ablation.taken_apart(9):
        options = CodecOptions(level=9, **coder.options)
        assert options.ensemble is None or parse_members(options.ensemble) >= 0
    assert coders.Coder("nacz", "6", {"lanes": 2}).label == "nacz -6 lanes=2"


def apart(level: int, size: int, options: dict[str, Any]) -> Row:
    return Row(
        "text", "0" * 64, "unseen", "nacz", str(level), options, "1", 2, 10_000, size, 1.0, 2.0, 3.0, 4.0, 0.1, None,
        "a machine", "abc",
    )  # fmt: skip


def test_the_table_of_parts() -> None:
    others = ",".join(name for name in MEMBERS if name != "match")
    rows = [
        apart(9, 1000, {}), apart(9, 1100, {"ensemble": "none"}), apart(9, 1010, {"ensemble": others}),
        apart(9, 1045, {"ensemble": "match"}), apart(9, 1200, {"learn": 0}), apart(3, 1900, {}),
    ]  # fmt: skip
    (found,) = ablation.parts(rows).values()
    assert [(part.what, part.size, part.change and round(part.change, 2)) for part in found] == [
        ("all of it", 1000, None), ("without ensemble", 1100, 10.0), ("without match", 1010, 1.0),
        ("only match", 1045, -5.0), ("without learning", 1200, 20.0),
    ]  # fmt: skip
    lines = report.text_parts(rows)
    assert lines[1] == "What each part of level 9 gives" and lines[-1] == ablation.NOTE
    assert lines[4].split() == ["without", "ensemble", "1,100", "+10.00", "%", "2.0", "4.0"]
    assert report.text_parts(rows[:1]) == []
    table = report.markdown(rows, "nacz bench x")
    assert "| nacz -9 | **1,000** |" in table and "| only match | 1,045 | -5.00 % | 2.0 | 4.0 |" in table
    assert "| nacz -9 without match" not in table, "not among whole levels"
    page = report.html_page(rows, "nacz bench x", None)
    assert '<th scope="row">only match</th><td>1,045</td><td>-5.00 %</td>' in page


def test_taking_a_level_apart(
    corpora: Path, run: Nacz, tmp_path_factory: pytest.TempPathFactory, monkeypatch: pytest.MonkeyPatch
) -> None:
    """As people call it, but for the processes: they would need the real weights."""
    model = str(tiny.write(tmp_path_factory.mktemp("model")))

    def in_this_process(coder: coders.Coder, direction: str, threads: int, source: Path, target: Path) -> Any:
        options = CodecOptions(level=int(coder.setting), model=model, **coder.options)
        data = source.read_bytes()
        target.write_bytes(
            nacz.compress(data, options=options, threads=1) if direction == "compress"
            else nacz.decompress(data, CodecOptions(model=model))
        )  # fmt: skip
        return {"seconds": 0.5, "cpu": 0.25, "start": 0.1, "memory": None}

    monkeypatch.setattr(runs, "_child", in_this_process)
    Path("sample").write_bytes(SAMPLE * 3)
    segment_coder.register_predictor(segment_coder.BYTE_MODEL, segment_coder.StoredCoder)
    segment_coder.register_predictor(segment_coder.LANGUAGE_MODEL, LanguageModelCoder)
    assert run("bench", "sample", "--levels", "5", "--peers", "none", "--ablate", "--json", "a.json") == 0
    lines = run.out.decode().splitlines()
    assert lines[-1] == ablation.NOTE and "only bytes" in lines[-2] and "all of it" in "".join(lines)
    rows = json.loads(Path("a.json").read_text())["rows"]
    assert len(rows) == 2 + 2 * len(MEMBERS) and len({row["archive_size"] for row in rows}) > 3


# -- showing ----------------------------------------------------------------------------------------------------------


def some_rows() -> list[Row | Skipped]:
    def row(coder: str, setting: str, size: int, seconds: float) -> Row:
        return Row(
            "text <b>", "0" * 64, "unseen", coder, setting, {}, "1", 2, 10_000, size, seconds, seconds, seconds / 9,
            seconds, 0.1, 50_000_000, "a machine", "abc",
        )  # fmt: skip

    rows: list[Row | Skipped] = [row("nacz", str(n), 4000 - 300 * n, 10.0**n / 1e6) for n in range(1, 10)]
    return [*rows, row("gzip", "9", 4100, 1e-5), row("zpaq", "5", 2500, 0.1), Skipped("brotli -11", "needs <it>")]


def test_reports() -> None:
    rows = some_rows()
    assert report.text_row(rows[-1]) == "brotli -11               skipped: needs <it>"
    table = report.markdown(rows, "nacz bench x", "docs/x.png")
    assert "](docs/x.png)" in table and table.startswith("# Benchmarks\n")
    assert "| nacz -9 | **1,300** | **1.040** |" in table and "Skipped: brotli -11: needs <it>." in table
    page = report.html_page(rows, "nacz bench x", b"\x89PNG")
    assert "text &lt;b&gt;" in page and "needs &lt;it&gt;" in page and "data:image/png;base64,iVBORw==" in page


def test_the_picture() -> None:
    pytest.importorskip("matplotlib")
    from nacz.bench.plot import png

    assert png([row for row in some_rows() if isinstance(row, Row)]).startswith(b"\x89PNG")
    with pytest.raises(errors.UsageError):
        png([])


def test_no_picture_without_matplotlib(monkeypatch: pytest.MonkeyPatch) -> None:
    from nacz.bench import plot

    monkeypatch.setitem(sys.modules, "matplotlib", None)
    with pytest.raises(errors.UsageError, match="nacz\\[bench\\]"):
        plot.png([row for row in some_rows() if isinstance(row, Row)])


def test_a_picture_that_cannot_be_made_is_refused_before_anything_is_measured(
    monkeypatch: pytest.MonkeyPatch, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.setitem(sys.modules, "matplotlib", None)
    (tmp_path / "text").write_bytes(b"some text")
    picture = tmp_path / "out.png"
    assert cli.main(["bench", str(tmp_path / "text"), "--levels", "1", "--peers", "none", "--png", str(picture)]) == 1
    shown = capsys.readouterr()
    assert "matplotlib" in shown.err and "nacz -1" not in shown.out and not picture.exists()


def test_the_table_of_levels_has_all_levels() -> None:
    assert list(levels.LEVELS) == list(range(1, 10))
    assert all(levels.seconds(level, 10**6, 2) > 0 for level in levels.LEVELS)
    learns = {level for level, effort in EFFORTS.items() if effort.learning is not None}
    assert learns == set(range(levels.FIRST_LEVEL_THAT_LEARNS, 10))


def test_what_makes_a_learning_level_ready_is_learned_from(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Else what learns would be compiled while its time is taken."""
    model, learn, learned = str(tiny.write(tmp_path)), Learner.learn, []

    def learn_and_tell(self: Learner, *arguments: Any) -> None:
        learn(self, *arguments)
        learned.append(self)

    monkeypatch.setattr(Learner, "learn", learn_and_tell)
    for level in range(levels.FIRST_LEVEL_THAT_LEARNS, 10):
        assert child.warm_up(coders.nacz_coder(level, {"learn": 0})).options == {"learn": 0}
        options = CodecOptions(level=level, model=model, **child.warm_up(coders.nacz_coder(level)).options)
        coder = LanguageModelCoder(options)
        rows = EFFORTS[level].learning.rows  # type: ignore[union-attr]
        learned.clear()
        params, _ = coder.encode(child._MORE, options=options, threads=1, progress=None)
        found = Params.from_bytes(params, len(child._MORE))
        assert learned and found.tokens > found.lanes * rows


def test_estimates_know_that_few_lanes_share_little_work() -> None:
    one, many = levels.seconds(9, 100_000, 1), levels.seconds(9, 100_000, 64)
    assert 1.9 < one / many <= 2 and levels.seconds(6, 10**6, 64) < levels.seconds(6, 10**6, 8)
