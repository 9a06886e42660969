"""`nacz explain`: costs on the tiny model, passages, the page, and the page in a real browser where there is one.

Run with `pytest tests/test_explain.py`; the browser tests need playwright and a chromium on PATH.
"""

from __future__ import annotations

import json
import re
import shutil
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import tiny
from cli_runner import Nacz
from hypothesis import given, settings
from hypothesis import strategies as st
from nacz.coder.range_coder import RangeEncoder
from numpy.typing import NDArray

from nacz.explain import costs as costs_module
from nacz.explain.costs import ALTERNATIVES, Costs, explain
from nacz.explain.page import page
from nacz.explain.passages import curve, passages, readable
from nacz.predictors.language_model import mixed_in
from nacz.predictors.members import ALL, ALL_OF_TOKENS, BYTES, MEMBERS
from nacz.weights import store

TEXT = ("The end of the nation is in the hands of the other. \u00fcber \u4e2d\u6587\n" * 8).encode() + b"\x00\xff\xc3"


@pytest.fixture(scope="module")
def model() -> store.LoadedModel:
    return store.in_memory(tiny.model())


# -- costs ------------------------------------------------------------------------------------------------------------


def test_costs_are_those_of_the_coder(model: store.LoadedModel) -> None:
    from nacz.kernels.dispatch import chosen

    from nacz.lane_encoding import encode_lanes
    from nacz.predictors.transformer import make_shape, make_weights

    found = explain(TEXT, model, window=256)
    tokens = model.vocabulary.encode(TEXT)
    shape, weights = make_shape(model.architecture, 256), make_weights(model)

    class Listener(RangeEncoder):
        bits = 0.0

        def encode(self, low: NDArray[np.uint32], freq: NDArray[np.uint32]) -> None:
            self.bits += float(np.sum(24 - np.log2(freq.astype(np.float64))))
            super().encode(low, freq)

    def ideal(members: int) -> float:
        coder = Listener(24)
        encode_lanes(
            chosen()[1], shape, weights, model.vocabulary.bos_id, tokens, 1, 1,
            ensemble=mixed_in(members, 0, model), coder=coder,
        )  # fmt: skip
        assert abs(coder.bits / 8 - len(coder.finish())) < 5
        return coder.bits

    def paid(bits: NDArray[np.float32]) -> float:
        return float(bits.sum(dtype=np.float64))

    assert abs(paid(found.bits) - ideal(ALL)) < 0.01
    assert abs(paid(found.without["bytes"]) - ideal(ALL_OF_TOKENS)) < 0.01
    assert abs(paid(found.only["bytes"]) - ideal(BYTES)) < 0.01
    assert abs(paid(found.predictors["language model"]) - ideal(0)) < 0.01
    assert found.bits_per_byte == pytest.approx(ideal(ALL) / len(TEXT), rel=1e-5)


def test_members_are_told_apart(model: store.LoadedModel) -> None:
    """Looking at what members say alone changes nothing of what they learn together."""
    found = explain(TEXT, model, window=256)
    assert list(found.only) == list(found.without) == list(MEMBERS)
    alone = found.predictors["language model"]
    for name in MEMBERS:
        assert found.only[name].size == found.without[name].size == found.bits.size
        assert not np.array_equal(found.only[name], alone) and not np.array_equal(found.without[name], found.bits)
    names, carried = found.carriers()
    assert names == ["language model", *MEMBERS] and carried.dtype == np.uint8 and carried.max() < len(names)
    few = alone - found.bits < 0.1
    assert few.any() and (~few).any() and (carried[few] == 0).all() and (carried[~few] > 0).all()
    for unit in np.flatnonzero(~few):
        assert found.only[names[carried[unit]]][unit] == min(bits[unit] for bits in found.only.values())
    # A text that comes again costs little, and without all that remember it much more.
    second = np.cumsum(found.lengths) > len(TEXT) // 2
    assert found.bits[second].sum() < 0.5 * alone[second].sum()


def test_alternatives_are_the_most_probable(model: store.LoadedModel) -> None:
    found = explain(TEXT, model, window=256)
    assert found.alternatives.shape == found.chances.shape == (found.bits.size, ALTERNATIVES)
    assert (np.diff(found.chances, axis=1) <= 0).all() and (found.chances > 0).all()
    assert (found.chances.sum(axis=1) <= 1.0001).all()
    assert set(found.words) == set(found.alternatives.reshape(-1).tolist())
    # A unit of one token that is among its alternatives cost what they say.
    first = found.data[: found.lengths[0]]
    for k in range(ALTERNATIVES):
        if found.words[int(found.alternatives[0, k])] == first:
            assert found.without["bytes"][0] == pytest.approx(-np.log2(found.chances[0, k]), abs=1e-3)


def test_threads_and_stretches_change_nothing(model: store.LoadedModel, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(costs_module, "STRETCH", 40)
    seen: list[tuple[int, int]] = []
    one = explain(TEXT, model, window=256, threads=1)
    two = explain(TEXT, model, window=256, threads=3, report=lambda done, total: seen.append((done, total)))
    assert np.array_equal(one.bits, two.bits) and np.array_equal(one.alternatives, two.alternatives)
    assert all(np.array_equal(one.without[name], two.without[name]) for name in MEMBERS)
    assert seen[-1][0] == seen[-1][1] == model.vocabulary.encode(TEXT).size

    class Enough(Exception):
        pass

    def cancel(done: int, total: int) -> None:
        raise Enough

    with pytest.raises(Enough):
        explain(TEXT, model, window=256, report=cancel)


@settings(max_examples=60, deadline=None)
@given(st.one_of(st.binary(max_size=60), st.text(max_size=40).map(str.encode)))
def test_units_are_text_and_cover_everything(data: bytes) -> None:
    vocabulary = tiny.tokenizer()
    tokens = vocabulary.encode(data)
    first, lengths = costs_module._units(data, tokens, vocabulary)
    assert lengths.sum() == len(data) and (np.diff(first) > 0).all() and (lengths > 0).all()
    assert first.size == 0 or first[0] == 0
    try:
        data.decode()
    except UnicodeDecodeError:
        return
    ends = np.cumsum(lengths)
    for end, size in zip(ends.tolist(), lengths.tolist(), strict=True):
        data[end - size : end].decode()


def test_no_text(model: store.LoadedModel) -> None:
    nothing = explain(b"", model, window=256)
    assert nothing.bits.size == 0 and nothing.bits_per_byte == 0
    assert passages(nothing) == [] and curve(nothing, nothing.bits) == []
    assert "</html>" in page(nothing, "empty", "x")


def test_the_byte_model_beside_it() -> None:
    from nacz.explain.context import byte_model_bits
    from nacz.predictors import bytemodel

    lengths = np.array([1, 7, 30] * 20, np.int32)
    lengths = lengths[np.cumsum(lengths) <= len(TEXT)]
    lengths = np.append(lengths, np.int32(len(TEXT) - lengths.sum())).astype(np.int32)
    bits = byte_model_bits(TEXT, lengths, level=1)
    assert bits.size == lengths.size and (bits >= 0).all()
    assert abs(float(bits.sum()) / 8 - len(bytemodel.compress(TEXT, 1))) < 4
    assert byte_model_bits(b"", np.zeros(0, np.int32)).size == 0


# -- passages ---------------------------------------------------------------------------------------------------------


def made(n: int, *, several: bool = False) -> Costs:
    """Costs of a text of n tokens of some length, without any model."""
    rng = np.random.default_rng(5)
    words = [b"the", b" of", b" and", b"\n", b" nation", b" \xe4\xb8\xad", b" <b>&", b"</script>"]
    which = rng.integers(0, len(words), n)
    data = b"".join(words[i] for i in which)
    bits = rng.exponential(2.0, n).astype(np.float32)
    chances = np.sort(rng.dirichlet(np.ones(6), n)[:, :5].astype(np.float32))[:, ::-1]
    alternatives = np.stack([(which + k) % len(words) for k in range(5)], axis=1).astype(np.int32)
    predictors, only, without = {"language model": bits}, {}, {}
    if several:
        predictors = {"language model": (bits + rng.exponential(0.3, n)).astype(np.float32), "byte model": 2 * bits}
        for name in MEMBERS:
            only[name] = (bits + rng.exponential(0.2, n)).astype(np.float32)
            without[name] = (bits + rng.normal(0.1, 0.2, n)).astype(np.float32)
    lengths = np.array([len(words[i]) for i in which], np.int32)
    return Costs(data, lengths, bits, alternatives, chances, dict(enumerate(words)), predictors, only, without)


def test_passages_and_curve() -> None:
    found = made(1000)
    found.bits[500:505] = 20.0
    some = passages(found, 5, 10)
    assert len(some) == 5 and 491 <= some[0].unit <= 504
    assert [p.bits for p in some] == sorted((p.bits for p in some), reverse=True)
    assert all(abs(a.unit - b.unit) >= 10 for a in some for b in some if a != b)
    values = curve(found, found.bits, 50)
    assert len(values) == 50
    edges = np.arange(51) * len(found.data) // 50
    assert np.dot(values, np.diff(edges)) == pytest.approx(float(found.bits.sum()), rel=1e-6)


def test_what_no_eye_sees_is_escaped() -> None:
    assert readable(b"a\tb\n\x00\xff\xe2\x80\x8b") == "a\tb\n\\x00\\xff\\x200b"


# -- the page ---------------------------------------------------------------------------------------------------------


def test_the_page_is_one_file_and_tells_nothing_else() -> None:
    text = page(made(300), "a <b>", "nacz & others")
    assert "a &lt;b&gt;" in text and "nacz &amp; others" in text and "{{" not in text
    assert "http" not in text.replace('http-equiv', "").replace("http://www.w3.org/2000/svg", "")
    assert len(re.findall("</script>", text)) == 2, "text cannot end the element"
    data = json.loads(re.search(r'id="data">(.*?)</script>', text, re.S)[1])  # type: ignore[index]
    assert data["text"] == made(300).data.decode() and len(data["passages"]) == len(passages(made(300)))


def test_explain_as_people_call_it(run: Nacz, tmp_path: Path) -> None:
    weights = tiny.write(tmp_path)
    (tmp_path / "text").write_bytes(TEXT)
    assert run("explain", "text", "--model", weights) == 0
    lines = run.out.decode().splitlines()
    assert re.fullmatch(rf"text: {len(TEXT):,} bytes cost [\d,]+ bytes, [\d.]+ bits per byte", lines[0])
    for name, line in zip(MEMBERS, lines[3:], strict=False):
        assert re.fullmatch(rf"{name} +\d+ +\d+ +[\d.]+ %", line)
    assert run("explain", "text", "--model", weights, "--html", "out.html") == 0
    made_page = (tmp_path / "out.html").read_text(encoding="utf-8")
    assert "</html>" in made_page and '"byte model"' in made_page and '"recall"' in made_page
    assert run("explain", "text", "--model", weights, "--html", "out.html") == 1
    assert "already exists" in run.err
    assert run("explain", "-", "--model", weights, "--html", "-", stdin=TEXT) == 0
    assert b"<title>stdin" in run.out
    assert run("explain", "missing") == 1 and run("explain", str(tmp_path)) == 1


# -- in a browser -----------------------------------------------------------------------------------------------------


@pytest.fixture(scope="module")
def browser() -> Iterator[Any]:
    playwright = pytest.importorskip("playwright.sync_api")
    program = shutil.which("chromium") or shutil.which("chromium-browser") or shutil.which("google-chrome")
    if program is None:
        pytest.skip("no chromium on PATH")
    with playwright.sync_playwright() as started:
        found = started.chromium.launch(executable_path=program, args=["--no-sandbox"])
        yield found
        found.close()


def opened(browser: Any, text: str, folder: Path) -> tuple[Any, list[str]]:
    """The page from a file, and a list that takes whatever it complains of or asks the network for."""
    file = folder / "page.html"
    file.write_text(text, encoding="utf-8")
    tab, complaints = browser.new_page(viewport={"width": 1280, "height": 900}), []
    tab.on("console", lambda message: complaints.append(message.text))
    tab.on("pageerror", lambda error: complaints.append(str(error)))
    tab.on("request", lambda request: complaints.append(request.url) if request.url != file.as_uri() else None)
    tab.goto(file.as_uri())
    tab.wait_for_selector("body[data-ready]")
    return tab, complaints


@pytest.mark.slow
def test_in_a_browser(browser: Any, tmp_path: Path) -> None:
    costs = made(4000, several=True)
    tab, complaints = opened(browser, page(costs, "text", "made up"), tmp_path)
    tab.hover("#text span[data-i='3']")
    shown = tab.inner_text("#details")
    assert f"{costs.bits[3]:.2f} bits" in shown and shown.count("%") == 5 and "Carried by" in shown
    tab.focus("#text")
    tab.keyboard.press("ArrowRight")
    assert tab.locator(".now").get_attribute("data-i") == "4"
    tab.keyboard.press("n")
    expensive = next(i for i in range(5, 4000) if round(float(costs.bits[i]) * 1000) >= 6000)
    assert tab.locator(".now").get_attribute("data-i") == str(expensive)
    tab.keyboard.press("End")
    assert tab.locator(".now").get_attribute("data-i") == "3999"
    tab.locator("#least").fill("4")
    kept = int((np.rint(costs.bits * 1000) >= 4000).sum())
    assert tab.inner_text("#kept").startswith(f"{kept:,} of 4,000 tokens, ")
    opacity = {float(v) for v in tab.eval_on_selector_all("#text span", "all => all.map(s => s.style.opacity || 1)")}
    assert opacity == {0.22, 1.0}
    tab.select_option("#predictor", "byte model")
    tab.locator("#least").fill("0")
    names, carried = costs.carriers()
    tab.select_option("#carrier", label="match")
    assert tab.inner_text("#kept").startswith(f"{int((carried == names.index('match')).sum()):,} of 4,000 tokens, ")
    tab.focus("#text")
    tab.keyboard.press("Home")
    tab.keyboard.press("n")
    chosen = int(tab.locator(".now").get_attribute("data-i"))
    assert chosen == next(i for i in range(1, 4000) if names[carried[i]] == "match")
    shown = tab.inner_text("#details")
    others = ("byte model", "language model")
    assert "Carried by match." in shown and all(name in shown for name in (*MEMBERS, *others))
    table = tab.inner_text("#predictors").splitlines()
    names = [line.split("\t")[0] for line in table[1:]]
    assert names == ["all together", "language model", "byte model", *MEMBERS]
    assert all(line.endswith("%") for line in table[4:])
    tab.click("#savingsBox summary")
    assert tab.locator("#savings polyline").count() == len(MEMBERS) + 1
    tab.locator("#savings").click(position={"x": 500, "y": 40})
    tab.locator("#passages button").first.click()
    assert tab.locator(".now").count() == 1
    tab.locator("#curve").click(position={"x": 300, "y": 40})
    assert tab.evaluate("document.querySelectorAll('script[src], link, img').length") == 0
    # What a screen reader is told: names for everything that can be focused, a live region, a language.
    assert tab.get_attribute("html", "lang") == "en" and tab.get_attribute("#details", "aria-live") == "polite"
    assert tab.eval_on_selector_all(
        "input, select, button, [tabindex]",
        "all => all.every(e => e.labels?.length || e.getAttribute('aria-label') || e.getAttribute('aria-labelledby')"
        " || e.textContent.trim())",
    )
    assert complaints == []


@pytest.mark.slow
def test_on_a_narrow_screen(browser: Any, tmp_path: Path) -> None:
    """What is told of a token is on the screen together with the token."""
    tab, complaints = opened(browser, page(made(4000, several=True), "text", "made up"), tmp_path)
    tab.set_viewport_size({"width": 420, "height": 800})
    tab.focus("#text")
    for _ in range(3):
        tab.keyboard.press("n")
    tab.wait_for_timeout(1000)  # scrolling is smooth
    token, told = tab.locator(".now").bounding_box(), tab.locator("#details").bounding_box()
    assert 0 <= token["y"] < told["y"] < 800 and told["y"] > 400
    assert tab.evaluate("document.documentElement.scrollWidth") <= 420 and complaints == []


@pytest.mark.slow
def test_one_megabyte_in_a_browser(browser: Any, tmp_path: Path) -> None:
    """Text that nobody looks at is not drawn, and what is asked for comes at once."""
    costs = made(260_000, several=True)
    assert len(costs.data) > 1_000_000
    tab, complaints = opened(browser, page(costs, "text", "made up"), tmp_path)
    ready = tab.evaluate("performance.now()")
    tab.focus("#text")
    took = tab.evaluate(
        "async () => { const start = performance.now();"
        "document.getElementById('text').dispatchEvent(new KeyboardEvent('keydown', {key: 'End'}));"
        "await new Promise(requestAnimationFrame); return performance.now() - start; }"
    )
    assert tab.locator(".now").get_attribute("data-i") == "259999"
    tab.wait_for_timeout(500)
    drawn = tab.evaluate("document.querySelectorAll('#text span').length")
    assert drawn < 30_000, "only what is near the screen"
    assert ready < 8000 and took < 2000, "on a slow and busy machine; a tenth of it elsewhere"
    assert complaints == []
