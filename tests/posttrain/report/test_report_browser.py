"""The page in a real browser: a silent console, filters that filter, a big run, a phone, dark.

A probe is added to the end of the page: it works the controls as a person would, and posts what it
saw to the server that the page came from.
"""

from __future__ import annotations

import json
import queue
import shutil
import subprocess
import threading
from collections.abc import Mapping
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import pytest

from envs import EndReason
from posttrain.config import GrpoConfig
from posttrain.report import write_report
from posttrain.storage.run_dir import RunDir
from posttrain.types import Completion, FinishReason, Group, Rollout, Turn
from rewards import Outcome, Score

CHROMIUM = shutil.which("chromium") or shutil.which("chromium-browser") or shutil.which("chrome")
pytestmark = pytest.mark.skipif(CHROMIUM is None, reason="no Chromium here: apt package chromium")
FLAGS = (
    "--headless --no-sandbox --disable-gpu --disable-quic --no-first-run --disable-sync "
    "--disable-background-networking --disable-component-update --remote-debugging-port=0 "
    "--window-size=1500,900"
)
WATCH = """<head><script>
window.seen = [];
addEventListener("error", (event) => seen.push(String(event.message)));
addEventListener("unhandledrejection", (event) => seen.push(String(event.reason)));
for (const kind of ["error", "warn"]) {
  const usual = console[kind];
  console[kind] = (...words) => { seen.push(words.join(" ")); usual(...words); };
}
</script>"""
PROBE = """<script>
(async () => {
  const later = (ms) => new Promise((go) => setTimeout(go, ms));
  while (document.documentElement.dataset.ready !== "yes") await later(20);
  const one = (query) => document.querySelector(query);
  const set = (query, value, event) => {
    one(query).value = value;
    one(query).dispatchEvent(new Event(event));
  };
  const count = () => one(".count").textContent;
  const told = {};
  try {
    PROBE
  } catch (error) {
    seen.push(String(error));
  }
  told.seen = window.seen;
  await fetch("/told", { method: "POST", body: JSON.stringify(told) });
})();
</script></body>"""
FILTERS = """
  told.all = count();
  set('[aria-label="step"]', "1", "change"); told.step = count();
  set('[aria-label="end"]', "length", "change"); told.stepAndEnd = count();
  set('[aria-label="step"]', "", "change"); told.end = count();
  set('[aria-label="end"]', "", "change");
  set('[aria-label="Reward from"]', "0.5", "input"); told.high = count();
  set('[aria-label="Reward to"]', "0.6", "input"); told.between = count();
  set('[aria-label="Reward from"]', "", "input"); set('[aria-label="Reward to"]', "", "input");
  const chips = [...document.querySelectorAll(".chip")];
  const chip = chips.find((e) => e.textContent.startsWith("timeout"));
  chip.click(); told.timeouts = count(); chip.click();
  set("input[type=search]", "answer 3", "input"); told.words = count();
  set("input[type=search]", "", "input"); told.again = count();
  set('[aria-label="Order"]', "high", "change"); told.best = one(".row .value").textContent;
"""
COLOURS = """
  const paint = (token) => getComputedStyle(token).backgroundColor;
  const paints = () => [...document.querySelectorAll(".token")].map(paint);
  told.surprise = paints();
  set('[aria-label="Token colours"]', "weights version", "change"); told.version = paints();
  set('[aria-label="Token colours"]', "advantage", "change"); told.advantage = paints();
"""
SHAPE = """
  told.width = innerWidth;
  told.overflow = document.documentElement.scrollWidth - innerWidth;
  one("#theme").click();
  told.theme = document.documentElement.dataset.theme;
  const rgb = (e, what) => getComputedStyle(e)[what].match(/\\d+/g).slice(0, 3).map(Number);
  told.page = rgb(document.body, "backgroundColor");
  told.text = rgb(document.body, "color");
  told.card = rgb(one(".card"), "backgroundColor");
"""
PAINT = """
  const painted = () => performance.getEntriesByName("first-contentful-paint");
  while (!painted().length) await later(50);
  told.paint = painted()[0].startTime;
  const start = performance.now();
  set("input[type=search]", "answer 3", "input");
  told.search = performance.now() - start;
  told.rows = count();
"""


def rollout(sample: int, step: int, tokens: int = 4) -> Rollout:
    """Sample 0 could not be judged, 1 was cut off, the others are worth a fifth of their number."""
    versions = np.array([step] * (tokens - 1) + [step + 1])
    logprobs = np.linspace(-3, 0, tokens, dtype=np.float32)
    completion = Completion(np.arange(tokens), logprobs, versions, FinishReason.STOP)
    said = f"answer {sample} at {step} " + "and so on " * (tokens // 4)
    messages = ({"role": "user", "content": "?"}, {"role": "assistant", "content": said})
    judged = Score(sample / 5, Outcome.CORRECT if sample > 2 else Outcome.WRONG, {}, "")
    score = judged if sample else Score(None, Outcome.TIMEOUT, {}, "")
    end = EndReason.LENGTH if sample == 1 else EndReason.DONE
    turn = Turn(np.array([1]), completion)
    return Rollout(f"{step}-{sample}", "t", sample, (turn,), messages, score, end, 0.1, 0.1)


def tokenizer(folder: Path) -> Path:
    from tokenizers import Tokenizer, decoders, models

    words = {f" w{i}": i for i in range(500)}
    made = Tokenizer(models.WordLevel(words, unk_token=" w0"))
    made.decoder = decoders.Fuse()
    folder.mkdir()
    made.save(str(folder / "tokenizer.json"))
    return folder


@pytest.fixture(scope="module")
def report(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("small")
    config = GrpoConfig.model_validate({"model": str(tokenizer(folder / "model")), "env": "e"})
    with RunDir.create(folder / "run", config) as run:
        for step in range(3):
            run.seal_step(step, [Group(step, 0, tuple(rollout(i, step) for i in range(5)))])
            idle = {"engine_idle_share": 0.5, "learner_idle_share": 0.25, "time_total_s": 2.0}
            run.log({"kind": "step", "step": step, "reward_mean": step / 3, **idle})
    return write_report(folder / "run")


class Stage(BaseHTTPRequestHandler):
    """Gives the page, and takes what the probe saw."""

    pages: Mapping[str, bytes]
    told: queue.Queue[dict[str, Any]]

    def do_GET(self) -> None:
        self.send_response(200 if self.path in self.pages else 404)
        self.send_header("Content-Type", "text/html; charset=utf-8")
        self.end_headers()
        self.wfile.write(self.pages.get(self.path, b""))

    def do_POST(self) -> None:
        body = self.rfile.read(int(self.headers["Content-Length"]))
        self.send_response(204)
        self.end_headers()
        self.told.put(json.loads(body))

    def log_message(self, *message: Any) -> None:
        """Silent."""


def probed(page: Path, script: str, folder: Path, width: int = 1400) -> dict[str, Any]:
    """What the probe saw, in a frame: a window of this browser is never as narrow as a phone."""
    icon = '<link rel="icon" href="data:,">'  # or the browser asks for one, and tells of the 404
    text = page.read_text().replace("<head>", WATCH + icon, 1)
    text = text.replace("</body>", PROBE.replace("    PROBE", script))
    frame = f'<html><head>{icon}</head><iframe src="/page" width={width} height=800>'.encode()
    told: queue.Queue[dict[str, Any]] = queue.Queue()
    stage = type(
        "OneStage", (Stage,), {"pages": {"/": frame, "/page": text.encode()}, "told": told}
    )
    with ThreadingHTTPServer(("127.0.0.1", 0), stage) as server:
        threading.Thread(target=server.serve_forever, args=(0.02,), daemon=True).start()
        profile = f"--user-data-dir={folder / 'profile'}"
        url = f"http://127.0.0.1:{server.server_port}/"
        command = [
            CHROMIUM or "",
            *FLAGS.split(),
            profile,
            "--remote-debugging-port=0",
            "--window-size=1500,900",
        ]
        with subprocess.Popen([*command, url], stderr=subprocess.DEVNULL) as browser:
            try:
                return told.get(timeout=60)
            finally:
                browser.terminate()
                browser.wait(20)
                server.shutdown()


def test_filters_filter_and_the_console_is_silent(report: Path, tmp_path: Path) -> None:
    told = probed(report, FILTERS + COLOURS, tmp_path)
    assert told["seen"] == []
    assert told["all"] == told["again"] == "15 of 15"
    assert (told["step"], told["stepAndEnd"], told["end"]) == ("5 of 15", "1 of 15", "3 of 15")
    assert told["high"] == "6 of 15"  # 0.6 and 0.8, three steps
    assert told["between"] == "3 of 15"
    assert told["timeouts"] == "3 of 15"
    assert told["words"] == "3 of 15"
    assert told["best"] == "0.8"
    # four tokens: from surprising to sure, one version and then another, one advantage for all
    assert len(set(told["surprise"])) == 4
    assert [told["version"][0] == colour for colour in told["version"]] == [True] * 3 + [False]
    assert len(set(told["advantage"])) == 1
    assert told["advantage"][0] not in told["surprise"]


def luminance(rgb: list[int]) -> float:
    """Of WCAG 2, relative."""
    linear = [c / 3294.6 if c <= 10 else ((c / 255 + 0.055) / 1.055) ** 2.4 for c in rgb]
    return 0.2126 * linear[0] + 0.7152 * linear[1] + 0.0722 * linear[2]


def test_a_phone_in_the_dark(report: Path, tmp_path: Path) -> None:
    told = probed(report, SHAPE, tmp_path, width=390)
    assert told["seen"] == []
    assert told["width"] == 390
    assert told["overflow"] <= 0  # nothing to scroll sideways
    assert told["theme"] == "dark"
    assert luminance(told["page"]) < 0.02
    for ground in ("page", "card"):
        contrast = (luminance(told["text"]) + 0.05) / (luminance(told[ground]) + 0.05)
        assert contrast > 7


@pytest.fixture(scope="module")
def big(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """50 steps of 1,000 rollouts: one step, written 50 times under other numbers."""
    folder = tmp_path_factory.mktemp("big")
    config = GrpoConfig.model_validate({"model": str(tokenizer(folder / "model")), "env": "e"})
    with RunDir.create(folder / "run", config) as run:
        members = tuple(rollout(i, 0, tokens=150) for i in range(5))
        run.seal_step(0, [Group(0, prompt, members) for prompt in range(200)])
        table = pq.read_table(run.rollouts.parquet_path(0))
        place = table.schema.get_field_index("step")
        for step in range(50):
            run.log({"kind": "step", "step": step, "reward_mean": step / 50, "time_total_s": 1.0})
            column = pa.array(np.full(len(table), step))
            renamed = table.set_column(place, table.schema.field("step"), column)
            pq.write_table(renamed, run.rollouts.parquet_path(step), compression="zstd")
    return write_report(folder / "run")


def test_fifty_thousand_rollouts_stay_usable(big: Path, tmp_path: Path) -> None:
    assert big.stat().st_size < 20_000_000
    assert "a sample of 600 of 50,000; 49,400 are left out" in big.read_text()
    told = probed(big, PAINT, tmp_path)
    assert told["seen"] == []
    assert told["paint"] < 5000  # milliseconds, real ones
    assert told["search"] < 1000
    assert told["rows"] == "120 of 600"
