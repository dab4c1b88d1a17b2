// The browser of rollouts: filters, a list, and one rollout in full. All text is set as text, never
// as HTML: it was written by a model.

const OUTCOMES = { correct: "green", wrong: "red", unparseable: "amber", timeout: "violet", error: "grey" };
const SURPRISE = 3; // nats at which a token's colour is strongest
const PAGE = 200; // rows added to the list at a time

// How tokens are coloured, and what the two ends of the scale mean. The advantage is the one of most
// algorithms, up to its scale: the reward less the group's mean, the same for all tokens.
const advantage = (rollout) => {
  const judged = rollout.group.filter((value) => value !== null);
  return rollout.value === null ? 0 : rollout.value - judged.reduce((a, b) => a + b, 0) / judged.length;
};
const spread = (rollout) => {
  const judged = rollout.group.filter((value) => value !== null);
  return Math.max(...judged) - Math.min(...judged) || 1;
};
const VERSIONS = ["blue", "amber", "teal", "pink", "violet", "green"];
const COLOURINGS = {
  surprise: {
    legend: ["sure", "surprised"],
    paint: ({ logprob }) => {
      const heat = Math.min(1, -logprob / SURPRISE);
      return heat > 0.01 ? `rgba(var(--heat), ${(0.6 * heat).toFixed(3)})` : "";
    },
  },
  advantage: {
    legend: ["worse than its group", "better"],
    paint: ({ rollout }) => {
      const share = advantage(rollout) / spread(rollout);
      return share ? `color-mix(in srgb, var(--${share > 0 ? "green" : "red"}) ${Math.round(55 * Math.min(1, Math.abs(share)))}%, transparent)` : "";
    },
  },
  "weights version": {
    legend: ["each version", "its colour"],
    paint: ({ version }) => `color-mix(in srgb, var(--${VERSIONS[version % VERSIONS.length]}) 28%, transparent)`,
  },
};

const number = (value) => (value === null ? "not judged" : String(Math.round(value * 1000) / 1000));
const lastWritten = (rollout) => {
  const written = rollout.messages.filter((message) => message.role === "assistant");
  return written.length ? written[written.length - 1].text : "";
};

class RolloutBrowser {
  constructor(place, rollouts) {
    this.rollouts = rollouts;
    this.outcomes = new Set();
    this.chosen = {}; // field -> the one value that may pass, as a string
    this.low = -Infinity;
    this.high = Infinity;
    this.colouring = "surprise";
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
    const choices = [["run", "all runs", ""], ["step", "all steps", "step "], ["end", "any end", "ended: "]];
    for (const [field, all, prefix] of choices) bar.append(...this.choice(field, all, prefix));
    const order = element("select");
    order.setAttribute("aria-label", "Order");
    for (const [value, text] of [["step", "by step"], ["high", "best first"], ["low", "worst first"], ["long", "longest first"]]) order.append(new Option(text, value));
    order.onchange = () => { this.order = order.value; this.refresh(); };
    const search = element("input");
    search.type = "search";
    search.placeholder = "Search prompts, completions, tasks";
    search.oninput = () => { this.words = search.value.toLowerCase(); this.refresh(); };
    this.count = element("span", "count");
    const colours = element("select");
    colours.setAttribute("aria-label", "Token colours");
    for (const name of Object.keys(COLOURINGS)) colours.append(new Option("colours: " + name, name));
    colours.onchange = () => { this.colouring = colours.value; if (this.shown.length) this.show(this.shown[this.at]); };
    bar.append(order, colours, this.bound("low", "reward ≥", -Infinity), this.bound("high", "reward ≤", Infinity));
    for (const outcome of Object.keys(OUTCOMES)) {
      const n = this.rollouts.filter((r) => r.outcome === outcome).length;
      if (n) bar.append(this.chip(outcome, n));
    }
    bar.append(search, this.count);
    return bar;
  }

  // A select of one field's values; none where there is nothing to choose.
  choice(field, all, prefix) {
    const values = [...new Set(this.rollouts.map((r) => r[field]))];
    if (values.length < 2) return [];
    const select = element("select");
    select.setAttribute("aria-label", field);
    select.append(new Option(all, ""));
    for (const value of values) select.append(new Option(prefix + value, String(value)));
    select.onchange = () => { this.chosen[field] = select.value; this.refresh(); };
    return [select];
  }

  bound(field, text, none) {
    const input = element("input", "score");
    input.type = "number";
    input.step = "any";
    input.placeholder = text;
    input.setAttribute("aria-label", field === "low" ? "Reward from" : "Reward to");
    input.oninput = () => { this[field] = input.value === "" ? none : Number(input.value); this.refresh(); };
    return input;
  }

  fits(rollout) {
    const bounded = this.low !== -Infinity || this.high !== Infinity;
    return (!this.outcomes.size || this.outcomes.has(rollout.outcome)) &&
      Object.entries(this.chosen).every(([field, value]) => value === "" || String(rollout[field]) === value) &&
      (!bounded || (rollout.value !== null && rollout.value >= this.low && rollout.value <= this.high)) &&
      rollout.haystack.includes(this.words);
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
    this.shown = this.rollouts.filter((r) => this.fits(r));
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
      element("span", "where", `step ${rollout.step} · prompt ${rollout.prompt} · ${rollout.sample}${rollout.run ? " · " + rollout.run : ""}`),
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
    for (const message of rollout.messages) parts.push(this.message(message, rollout));
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

  message(message, rollout) {
    const box = element("div", "message" + (message.turn ? " written" : ""));
    const heading = element("h4", "", message.role);
    const text = element("div", "text");
    box.append(heading, text);
    if (!message.turn || !message.turn.texts) {
      text.textContent = message.text;
      return box;
    }
    const { legend: ends } = COLOURINGS[this.colouring];
    const legend = element("small", "legend", ends[0]);
    legend.append(element("i", this.colouring.split(" ")[0]), ends[1]);
    heading.append(element("small", "", `${message.turn.ids.length} tokens, ended by ${message.turn.finish}`), legend);
    this.tokens(message.turn, text, rollout);
    return box;
  }

  tokens(turn, place, rollout) {
    const versions = turn.versions.flatMap(([version, n]) => Array(n).fill(version));
    turn.texts.forEach((text, i) => {
      if (turn.cut && i === turn.cut[0]) place.append(element("span", "cut", `\n[... ${turn.cut[1]} tokens not shown ...]\n`));
      const token = element("span", "token" + (/^<\|?[^<>]*\|?>$/.test(text) ? " special" : ""), text);
      const logprob = turn.logprobs[i] / 1000;
      const background = COLOURINGS[this.colouring].paint({ logprob, version: versions[i], rollout });
      if (background) token.style.background = background;
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
