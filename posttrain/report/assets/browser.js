// The browser of rollouts: filters, a list, and one rollout in full. All text is set as text, never
// as HTML: it was written by a model.

const OUTCOMES = { correct: "green", wrong: "red", unparseable: "amber", timeout: "violet", error: "grey" };
const SURPRISE = 3; // nats at which a token's colour is strongest
const PAGE = 200; // rows added to the list at a time

const number = (value) => (value === null ? "not judged" : String(Math.round(value * 1000) / 1000));
const lastWritten = (rollout) => {
  const written = rollout.messages.filter((message) => message.role === "assistant");
  return written.length ? written[written.length - 1].text : "";
};

class RolloutBrowser {
  constructor(place, rollouts) {
    this.rollouts = rollouts;
    this.outcomes = new Set();
    this.step = "";
    this.words = "";
    this.order = "step";
    for (const rollout of rollouts) {
      rollout.haystack = [rollout.id, rollout.task, rollout.detail, ...rollout.messages.map((m) => m.text)].join("\n").toLowerCase();
    }
    this.list = element("div", "list");
    this.detail = element("div", "detail");
    this.tip = element("div");
    this.tip.id = "tip";
    const panes = element("div", "browser");
    panes.append(this.list, this.detail);
    place.append(this.filters(), panes);
    document.body.append(this.tip);
    this.list.addEventListener("keydown", (event) => this.move(event));
    this.list.addEventListener("scroll", () => {
      if (this.list.scrollTop + this.list.clientHeight > this.list.scrollHeight - 300) this.more();
    });
    this.detail.addEventListener("mousemove", (event) => this.hover(event));
    this.detail.addEventListener("mouseleave", () => { this.tip.style.display = "none"; });
    this.refresh();
  }

  filters() {
    const bar = element("div", "filters");
    const steps = element("select");
    steps.setAttribute("aria-label", "Step");
    steps.append(new Option("all steps", ""));
    for (const step of new Set(this.rollouts.map((r) => r.step))) steps.append(new Option("step " + step, String(step)));
    steps.onchange = () => { this.step = steps.value; this.refresh(); };
    const order = element("select");
    order.setAttribute("aria-label", "Order");
    for (const [value, text] of [["step", "by step"], ["high", "best first"], ["low", "worst first"], ["long", "longest first"]]) order.append(new Option(text, value));
    order.onchange = () => { this.order = order.value; this.refresh(); };
    const search = element("input");
    search.type = "search";
    search.placeholder = "Search prompts, completions, tasks";
    search.oninput = () => { this.words = search.value.toLowerCase(); this.refresh(); };
    this.count = element("span", "count");
    bar.append(steps, order);
    for (const outcome of Object.keys(OUTCOMES)) {
      const n = this.rollouts.filter((r) => r.outcome === outcome).length;
      if (n) bar.append(this.chip(outcome, n));
    }
    bar.append(search, this.count);
    return bar;
  }

  chip(outcome, n) {
    const chip = element("button", "chip");
    chip.type = "button";
    chip.append(element("i", "fill-" + OUTCOMES[outcome]), `${outcome} ${n}`);
    chip.onclick = () => {
      if (!this.outcomes.delete(outcome)) this.outcomes.add(outcome);
      chip.classList.toggle("on");
      this.refresh();
    };
    return chip;
  }

  refresh() {
    const worth = (r) => (r.value === null ? -Infinity : r.value);
    const orders = { high: (a, b) => worth(b) - worth(a), low: (a, b) => worth(a) - worth(b), long: (a, b) => b.tokens - a.tokens };
    this.shown = this.rollouts.filter((r) =>
      (!this.outcomes.size || this.outcomes.has(r.outcome)) &&
      (this.step === "" || String(r.step) === this.step) && r.haystack.includes(this.words));
    if (orders[this.order]) this.shown.sort(orders[this.order]);
    this.count.textContent = `${this.shown.length} of ${this.rollouts.length}`;
    this.list.replaceChildren();
    this.list.scrollTop = 0;
    this.more();
    if (this.shown.length) this.select(0, false);
    else this.detail.replaceChildren(element("p", "none", "No rollout fits these filters."));
  }

  more() {
    const from = this.list.children.length;
    this.shown.slice(from, from + PAGE).forEach((rollout, i) => this.list.append(this.row(rollout, from + i)));
  }

  row(rollout, index) {
    const row = element("button", "row");
    row.type = "button";
    row.append(element("i", "fill-" + (OUTCOMES[rollout.outcome] || "grey")),
      element("span", "where", `step ${rollout.step} · prompt ${rollout.prompt} · ${rollout.sample}`),
      element("span", "value", rollout.value === null ? rollout.outcome : number(rollout.value)),
      element("span", "what", lastWritten(rollout).slice(0, 200) || "(empty)"));
    row.onclick = () => this.select(index, true);
    return row;
  }

  move(event) {
    const by = { ArrowDown: 1, ArrowUp: -1 }[event.key];
    if (!by) return;
    event.preventDefault();
    this.select(Math.max(0, Math.min(this.shown.length - 1, this.at + by)), true);
  }

  select(index, focus) {
    while (this.list.children.length <= index) this.more();
    if (this.at !== undefined && this.list.children[this.at]) this.list.children[this.at].classList.remove("on");
    this.at = index;
    const row = this.list.children[index];
    row.classList.add("on");
    if (focus) row.focus();
    this.show(this.shown[index]);
  }

  show(rollout) {
    const parts = [element("h3", "", `Step ${rollout.step}, prompt ${rollout.prompt}, sample ${rollout.sample}`),
      element("div", "sub", `${rollout.task} · ${rollout.tokens} tokens · ended: ${rollout.end} · ` +
        `generation ${rollout.seconds[0]} s, reward ${rollout.seconds[1]} s`), this.score(rollout)];
    if (rollout.detail) parts.push(element("pre", "text", rollout.detail));
    parts.push(this.siblings(rollout));
    for (const message of rollout.messages) parts.push(this.message(message));
    this.detail.replaceChildren(...parts);
    this.detail.scrollTop = 0;
  }

  score(rollout) {
    const row = element("div", "score");
    const add = (name, value) => {
      const cell = element("span", "", name);
      cell.append(element("b", "", value));
      row.append(cell);
    };
    add("outcome", rollout.outcome);
    add("reward", number(rollout.value));
    for (const [name, value] of Object.entries(rollout.parts)) add(name, number(value));
    return row;
  }

  siblings(rollout) {
    const row = element("div", "siblings", "group");
    const judged = rollout.group.filter((value) => value !== null);
    const low = Math.min(...judged), high = Math.max(...judged);
    rollout.group.slice(0, 32).forEach((value, index) => {
      const cell = element("i", index === rollout.sample ? "me" : "", value === null ? "–" : number(value).slice(0, 5));
      const share = value === null ? 0 : high > low ? (value - low) / (high - low) : 0.5;
      if (value !== null && high > low) cell.style.background = `color-mix(in srgb, var(--green) ${Math.round(55 * share)}%, var(--soft))`;
      row.append(cell);
    });
    if (judged.length && high === low) row.append("all equal: no signal");
    return row;
  }

  message(message) {
    const box = element("div", "message" + (message.turn ? " written" : ""));
    const heading = element("h4", "", message.role);
    const text = element("div", "text");
    box.append(heading, text);
    if (!message.turn || !message.turn.texts) {
      text.textContent = message.text;
      return box;
    }
    const legend = element("small", "legend", "sure");
    legend.append(element("i"), "surprised");
    heading.append(element("small", "", `${message.turn.ids.length} tokens, ended by ${message.turn.finish}`), legend);
    this.tokens(message.turn, text);
    return box;
  }

  tokens(turn, place) {
    const versions = turn.versions.flatMap(([version, n]) => Array(n).fill(version));
    turn.texts.forEach((text, i) => {
      if (turn.cut && i === turn.cut[0]) place.append(element("span", "cut", `\n[... ${turn.cut[1]} tokens not shown ...]\n`));
      const token = element("span", "token" + (/^<\|?[^<>]*\|?>$/.test(text) ? " special" : ""), text);
      const logprob = turn.logprobs[i] / 1000;
      const heat = Math.min(1, -logprob / SURPRISE);
      if (heat > 0.01) token.style.background = `rgba(var(--heat), ${(0.6 * heat).toFixed(3)})`;
      token.dataset.tip = `log-prob ${logprob.toFixed(3)}  (${(100 * Math.exp(logprob)).toFixed(1)} %)\ntoken ${turn.ids[i]}\nweights version ${versions[i]}`;
      place.append(token);
    });
  }

  hover(event) {
    const tip = event.target.dataset ? event.target.dataset.tip : undefined;
    this.tip.style.display = tip ? "block" : "none";
    if (!tip) return;
    this.tip.textContent = tip;
    const x = Math.min(event.clientX + 14, window.innerWidth - this.tip.offsetWidth - 8);
    const y = Math.min(event.clientY + 18, window.innerHeight - this.tip.offsetHeight - 8);
    this.tip.style.left = x + "px";
    this.tip.style.top = y + "px";
  }
}
