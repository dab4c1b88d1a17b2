// Draws the charts that charts.py describes, with plotly. Colours come from the page's style, so a
// change of theme draws them again.

const MAX_BARS = 250; // a stack of more points is drawn as areas

function colour(name, alpha) {
  const hex = getComputedStyle(document.documentElement).getPropertyValue("--" + name).trim();
  if (alpha === undefined) return hex;
  const [r, g, b] = [1, 3, 5].map((i) => parseInt(hex.slice(i, i + 2), 16));
  return `rgba(${r}, ${g}, ${b}, ${alpha})`;
}

const plain = (text) => String(text).replace(/&/g, "&amp;").replace(/</g, "&lt;");

function plotlyTrace(trace, form) {
  const base = {
    x: trace.x, y: trace.y, name: plain(trace.name), mode: "lines",
    line: { color: colour(trace.colour), width: 2 },
    hovertemplate: `%{y:${form}}<extra>${plain(trace.name)}</extra>`,
  };
  if (trace.x.length === 1 && trace.style !== "points") {
    return { ...base, mode: "markers", marker: { color: colour(trace.colour), size: 7 } };
  }
  if (trace.style === "faint") return { ...base, line: { color: colour(trace.colour, 0.42), width: 1.3 } };
  if (trace.style === "area" && trace.x.length <= MAX_BARS) {
    return { x: trace.x, y: trace.y, name: base.name, hovertemplate: base.hovertemplate, type: "bar",
      marker: { color: colour(trace.colour, 0.85), line: { width: 0 } } };
  }
  if (trace.style === "area") {
    return { ...base, stackgroup: "all", line: { width: 0.5, color: colour(trace.colour) },
      fillcolor: colour(trace.colour, 0.75) };
  }
  if (trace.style === "points") {
    const up = trace.high.map((value, i) => (value === null ? 0 : value - trace.y[i]));
    const down = trace.low.map((value, i) => (value === null ? 0 : trace.y[i] - value));
    return { ...base, mode: "lines+markers", marker: { size: 8, color: colour(trace.colour) },
      error_y: { type: "data", symmetric: false, array: up, arrayminus: down, thickness: 1.5, width: 5,
        color: colour(trace.colour, 0.7) } };
  }
  return base;
}

function shapes(chart, marks) {
  const lines = marks.map((mark) => ({
    type: "line", x0: mark.x, x1: mark.x, yref: "paper", y0: 0, y1: 1,
    line: { color: colour("red", 0.35), width: 1, dash: "dot" },
  }));
  if (chart.limit) {
    lines.push({ type: "line", xref: "paper", x0: 0, x1: 1, y0: chart.limit.y, y1: chart.limit.y,
      line: { color: colour("red", 0.6), width: 1, dash: "dash" } });
  }
  return lines;
}

function layout(chart, marks, xrange) {
  const axis = { color: colour("dim"), gridcolor: colour("line"), zeroline: false, automargin: true, nticks: 6,
    tickfont: { size: 11 }, fixedrange: true, exponentformat: "e" };
  const ticks = chart.form.endsWith("%") ? "~%" : chart.form.startsWith(",") ? "," : undefined;
  const y = { ...axis, tickformat: ticks };
  const area = chart.traces.some((trace) => trace.style === "area");
  if (chart.bottom !== undefined || area) y.rangemode = "tozero";
  if (chart.top !== undefined) { y.range = [0, chart.top]; }
  const flat = chart.traces.every((trace) => trace.y.every((value) => !value));
  if (flat) y.range = [0, chart.form.endsWith("%") ? 0.01 : 1];
  return {
    height: undefined, margin: { l: 44, r: 10, t: 8, b: 30 }, hovermode: "x unified",
    paper_bgcolor: "rgba(0,0,0,0)", plot_bgcolor: "rgba(0,0,0,0)",
    font: { family: getComputedStyle(document.body).fontFamily, color: colour("text"), size: 12 },
    hoverlabel: { bgcolor: colour("card"), bordercolor: colour("line"), font: { color: colour("text"), size: 12 } },
    xaxis: { ...axis, range: xrange, gridcolor: "rgba(0,0,0,0)", tickformat: "d", hoverformat: "d",
      dtick: xrange[1] - xrange[0] < 8 ? 1 : undefined },
    yaxis: y, shapes: shapes(chart, marks), barmode: "stack", bargap: 0.12,
    showlegend: chart.traces.length > 1 && !chart.nokey && !chart.traces.some((trace) => trace.name === "moving average"),
    legend: { orientation: "h", y: 1.0, yanchor: "bottom", x: 0, font: { size: 11, color: colour("dim") },
      itemclick: "toggle", traceorder: "normal" },
  };
}

function stepRange(sections) {
  const steps = sections.flatMap((s) => s.charts.flatMap((c) => c.traces.flatMap((t) => [t.x[0], t.x[t.x.length - 1]])));
  const low = steps.reduce((a, b) => Math.min(a, b)), high = steps.reduce((a, b) => Math.max(a, b));
  const margin = Math.max(0.5, 0.015 * (high - low));
  return [low - margin, high + margin];
}

function element(tag, className, text) {
  const made = document.createElement(tag);
  if (className) made.className = className;
  if (text !== undefined) made.textContent = text;
  return made;
}

// Three in a row; the first rows have two, where that leaves no hole at the end.
function width(index, n) {
  if (n === 1) return " full";
  const wide = n % 3 === 2 ? 2 : n % 3 === 1 ? 4 : 0;
  return index < wide ? " wide" : "";
}

// Builds the cards and returns a function that draws every chart in the current colours.
function buildCharts(sections, marks) {
  const drawn = [];
  const xrange = stepRange(sections);
  for (const section of sections) {
    const place = [...document.querySelectorAll("[data-section]")].find((e) => e.dataset.section === section.title);
    for (const [index, chart] of section.charts.entries()) {
      const card = element("div", "chart" + width(index, section.charts.length));
      const heading = element("h3", "", chart.title);
      heading.append(element("span", "", chart.last || ""));
      const plot = element("div", "plot");
      card.append(heading, element("p", "", chart.text), plot);
      place.append(card);
      drawn.push({ chart, plot });
    }
  }
  return () => {
    for (const { chart, plot } of drawn) {
      const traces = chart.traces.map((trace) => plotlyTrace(trace, chart.form));
      Plotly.react(plot, traces, layout(chart, marks, xrange), { displayModeBar: false, responsive: true });
    }
  };
}
